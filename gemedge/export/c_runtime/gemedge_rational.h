/* Rational activations of 16-bit numbers: gemedge.rational, line by line. Widths are proven there. */

#ifndef GEMEDGE_RATIONAL_H
#define GEMEDGE_RATIONAL_H

#include "gemedge_numbers.h"

struct gemedge_term {
    int64_t mantissa; /* 0, or 44 bits */
    int16_t exponent;
};

/* The sum of mantissa * 2^exponent * u^power, lowest power first; no terms: not there. */
struct gemedge_polynomial {
    const GEMEDGE_FLASH struct gemedge_term *term;
    uint8_t terms;
};

/* affine(u) + (plus - minus) / (above - below) for start <= u < stop; affine_bits is 16, or 32 to 61. */
struct gemedge_piece {
    int32_t start, stop;
    int64_t slope, offset;
    uint8_t affine_bits;
    struct gemedge_polynomial plus, minus, above, below;
};

/* One sign of x: head before the pieces, tail from stop on. */
struct gemedge_side {
    int32_t stop;
    int16_t head, tail;
    const GEMEDGE_FLASH struct gemedge_piece *piece;
    uint8_t pieces;
};

struct gemedge_exception {
    int16_t code, value;
};

struct gemedge_kernel {
    struct gemedge_side negative, positive;
    const GEMEDGE_FLASH struct gemedge_exception *exception;
    uint8_t exceptions;
};

struct gemedge_scaled {
    int64_t mantissa;
    int32_t exponent;
};

/* 2^16 / x, rounded, for the middles x of 64 intervals that cover [1, 2): gemedge.rational.RECIPROCALS. */
static const GEMEDGE_FLASH uint16_t gemedge_reciprocals[64] = {
    65028, 64035, 63072, 62138, 61231, 60350, 59494, 58662, 57852, 57065, 56299, 55554, 54828, 54120, 53431, 52759,
    52103, 51464, 50840, 50231, 49637, 49056, 48489, 47935, 47393, 46864, 46346, 45839, 45344, 44859, 44384, 43919,
    43464, 43019, 42582, 42154, 41734, 41323, 40920, 40525, 40137, 39756, 39383, 39017, 38657, 38304, 37958, 37617,
    37283, 36954, 36631, 36314, 36003, 35696, 35395, 35099, 34808, 34521, 34239, 33962, 33689, 33421, 33157, 32897};

/* 2^63 / (den >> 12) to a relative 2^-20.7, for den in [2^43, 2^44). */
static inline int64_t gemedge_reciprocal(int64_t den) {
    const int64_t d = den >> 12;
    const int64_t first = gemedge_reciprocals[(d >> 25) - 64];
    const int64_t error = (((int64_t)1 << 47) - d * first) >> 16;
    const int64_t correction = error + ((error * error) >> 31);
    return first * 65536 + ((first * correction) >> 15);
}

/* The polynomial at u = m * 2^-lead, m in [2^15, 2^16), by Horner's rule. */
static inline struct gemedge_scaled gemedge_value(const GEMEDGE_FLASH struct gemedge_polynomial *of, int64_t m,
                                                  int32_t lead) {
    struct gemedge_scaled sum;
    unsigned power = of->terms - 1u;
    sum.mantissa = of->term[power].mantissa;
    sum.exponent = of->term[power].exponent;
    while (power > 0u) {
        const int64_t product = sum.mantissa * m;
        const int32_t down = (int32_t)(product >> 59) + 15;
        const GEMEDGE_FLASH struct gemedge_term *added = &of->term[--power];
        sum.mantissa = product >> down;
        sum.exponent += down - lead;
        if (added->mantissa) {
            const int32_t gap = added->exponent - sum.exponent;
            const int32_t ours = gap > 0 ? gap : 0;
            const int64_t total = gemedge_down(sum.mantissa, ours) + gemedge_down(added->mantissa, ours - gap);
            const int32_t carry = (int32_t)(total >> 44);
            sum.mantissa = total >> carry;
            sum.exponent += ours + carry;
        }
    }
    return sum;
}

static inline struct gemedge_scaled gemedge_difference(const GEMEDGE_FLASH struct gemedge_polynomial *plus,
                                                       const GEMEDGE_FLASH struct gemedge_polynomial *minus, int64_t m,
                                                       int32_t lead) {
    struct gemedge_scaled given = {0, 0};
    struct gemedge_scaled taken;
    int32_t exponent;
    if (!minus->terms) {
        return plus->terms ? gemedge_value(plus, m, lead) : given;
    }
    taken = gemedge_value(minus, m, lead);
    if (!plus->terms) {
        taken.mantissa = -taken.mantissa;
        return taken;
    }
    given = gemedge_value(plus, m, lead);
    exponent = given.exponent > taken.exponent ? given.exponent : taken.exponent;
    given.mantissa = gemedge_down(given.mantissa, exponent - given.exponent) -
                     gemedge_down(taken.mantissa, exponent - taken.exponent);
    given.exponent = exponent;
    return given;
}

/* floor(v(u) + 1/2), not saturated: an estimate from below, then the sign of the exact remainder. */
static inline int64_t gemedge_piece_rounded(const GEMEDGE_FLASH struct gemedge_piece *piece, int32_t u) {
    const int64_t affine = piece->slope * u + piece->offset;
    const unsigned bits = piece->affine_bits;
    const int64_t half = (int64_t)1 << (bits - 1u);
    const int32_t lead = 16 - gemedge_bit_length((uint64_t)u);
    struct gemedge_scaled den, num;
    int64_t m, fraction, estimate, gap, low, remainder;
    int32_t down;
    if (!piece->above.terms) {
        return (affine + half) >> bits;
    }
    m = (int64_t)u * ((int64_t)1 << lead);
    den = gemedge_difference(&piece->above, &piece->below, m, lead);
    if (piece->below.terms) {
        const int32_t up = 44 - gemedge_bit_length((uint64_t)den.mantissa);
        den.mantissa *= (int64_t)1 << up;
        den.exponent -= up;
    }
    num = gemedge_difference(&piece->plus, &piece->minus, m, lead);
    down = 18 - (num.exponent - den.exponent);
    fraction = gemedge_down((num.mantissa >> 14) * gemedge_reciprocal(den.mantissa), down + 27);
    estimate = ((affine >> (bits - 16u)) + fraction + 16384) >> 16;
    gap = affine + half - (estimate + 1) * ((int64_t)1 << bits);
    remainder = den.mantissa * (gap >> bits) + gemedge_down(num.mantissa * 262144, down);
    low = gap & (((int64_t)1 << bits) - 1);
    if (bits == 16u) {
        remainder += (den.mantissa * low) >> 16;
    } else {
        low >>= bits - 32u;
        remainder += (den.mantissa * (low >> 16) + ((den.mantissa * (low & 65535)) >> 16)) >> 16;
    }
    return estimate + (remainder < 0 ? 0 : 1);
}

/* The output for one 16-bit number, saturated to 1 or 2 bytes. */
static inline int32_t gemedge_rational(const GEMEDGE_FLASH struct gemedge_kernel *kernel, int32_t x, unsigned bytes) {
    const GEMEDGE_FLASH struct gemedge_side *side = x > 0 ? &kernel->positive : &kernel->negative;
    const int32_t u = x > 0 ? x : -x;
    const int32_t low = gemedge_lowest(bytes);
    const int32_t high = -1 - low;
    unsigned i;
    for (i = 0; i < kernel->exceptions; i++) {
        if (kernel->exception[i].code == x) {
            return kernel->exception[i].value;
        }
    }
    for (i = 0; i < side->pieces; i++) {
        if (u >= side->piece[i].start && u < side->piece[i].stop) {
            const int64_t y = gemedge_piece_rounded(&side->piece[i], u);
            return y < low ? low : y > high ? high : (int32_t)y;
        }
    }
    return u >= side->stop ? side->tail : side->head;
}

static inline void gemedge_activate(const void *in, const GEMEDGE_FLASH struct gemedge_kernel *kernel, void *out,
                                    unsigned bytes, uint32_t count) {
    uint32_t i;
    for (i = 0; i < count; i++) {
        gemedge_put(out, i, bytes, gemedge_rational(kernel, gemedge_get(in, i, 2), bytes));
    }
}

#endif
