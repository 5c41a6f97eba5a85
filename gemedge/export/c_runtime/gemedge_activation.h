/* Compact kernels of activations: gemedge.compact and gemedge.steps, line by line. Each was found right at all codes
   before it was written; the constants are those of one activation, so that what they decide is decided by the
   compiler. With GEMEDGE_CONSTANT_TIME every input takes the same instructions. */

#ifndef GEMEDGE_ACTIVATION_H
#define GEMEDGE_ACTIVATION_H

#include "gemedge_numbers.h"

#if defined(__GNUC__)
#define GEMEDGE_INLINE static inline __attribute__((__always_inline__))
#else
#define GEMEDGE_INLINE static inline
#endif

/* Once around a loop is an element: to unroll it costs flash and gains nothing. */
#if defined(__clang__)
#define GEMEDGE_ROLLED _Pragma("clang loop unroll(disable)")
#else
#define GEMEDGE_ROLLED
#endif
#if defined(__GNUC__) && !defined(__clang__)
#define GEMEDGE_UNROLLED _Pragma("GCC unroll 5")
#else
#define GEMEDGE_UNROLLED
#endif

/* 2^31 / x on 32 segments of [1/2, 1): intercept, and in the lower half the negative slope. */
static const GEMEDGE_FLASH uint32_t gemedge_lines[32] = {
    4294476769u, 4164389678u, 4041904603u, 3926431737u, 3817381273u, 3714228935u, 3616515983u, 3523783675u,
    3435704340u, 3351950306u, 3272128365u, 3196041913u, 3123428813u, 3054026926u, 2987639648u, 2924070375u,
    2863188038u, 2804730496u, 2748632217u, 2694762131u, 2642923633u, 2593051188u, 2545079262u, 2498811250u,
    2454181616u, 2411124826u, 2369575346u, 2329402105u, 2290539568u, 2253053272u, 2216681074u, 2181488510u};

/* gemedge.compact.Compact, field by field. */
struct gemedge_compact {
    uint8_t is_segem, order, is_wide;
    uint32_t square, linear;
    uint64_t power;
    uint32_t numerator;
    uint8_t up, down;
    uint32_t slope;
    int32_t half, offset;
    uint8_t bits, bits_below, saturates;
};

struct gemedge_normal {
    uint32_t m;
    unsigned s;
};

GEMEDGE_INLINE uint32_t gemedge_upper_half(uint32_t a, uint32_t b) {
    return (uint32_t)(((uint64_t)a * b) >> 32);
}

/* a * b / 2^32 rounded down, modulo 2^64. */
GEMEDGE_INLINE uint64_t gemedge_upper(uint64_t a, uint32_t b) {
    return (((uint64_t)(uint32_t)a * b) >> 32) + (a >> 32) * b;
}

#if defined(GEMEDGE_CONSTANT_TIME) && GEMEDGE_SHORT_PRODUCTS
static const GEMEDGE_FLASH uint8_t gemedge_zeros_of[32] = {31, 22, 30, 21, 18, 10, 29, 2, 20, 17, 15, 13, 9, 6, 28, 1,
                                             23, 19, 11, 3, 16, 14, 7, 24, 12, 4, 8, 25, 5, 26, 27, 0};
#endif

/* How many bits of a word that is not 0 come before its first 1. */
GEMEDGE_INLINE unsigned gemedge_zeros(uint32_t word) {
#if defined(GEMEDGE_CONSTANT_TIME) && GEMEDGE_SHORT_PRODUCTS
    unsigned step;
    for (step = 1; step < 32u; step <<= 1) {
        word |= word >> step; /* at last 2^k - 1, each of which 0x07C4ACDD times has other upper bits */
    }
    return gemedge_zeros_of[((word * 0x07C4ACDDu) & 0xFFFFFFFFu) >> 27];
#elif defined(__riscv) && !defined(__riscv_zbb)
    unsigned zeros = 0, step; /* it counts none itself, and libgcc by 256 bytes of table */
    GEMEDGE_UNROLLED
    for (step = 16; step; step >>= 1) {
        const unsigned more = word >> (32u - step) ? 0u : step;
        word <<= more;
        zeros += more;
    }
    return zeros;
#elif defined(__GNUC__)
    return (unsigned)(sizeof(unsigned) == 4u ? __builtin_clz((unsigned)word) : __builtin_clzl(word));
#else
    return 32u - (unsigned)gemedge_bit_length(word);
#endif
}

/* d * 2^s as its upper word, which begins with a 1. */
GEMEDGE_INLINE struct gemedge_normal gemedge_normalised(uint64_t d, unsigned is_wide) {
    struct gemedge_normal found;
    const uint32_t low = (uint32_t)d;
    const uint32_t none = is_wide ? 0u - (uint32_t)((d >> 32) == 0) : 0u; /* all its bits where the upper word is 0 */
    const uint32_t high = (uint32_t)(d >> 32) | (low & none);
    const unsigned s = gemedge_zeros(high);
    found.m = (high << s) | (((low & ~none) >> 1) >> (31u - s));
    found.s = s + (unsigned)(none & 32u);
    return found;
}

GEMEDGE_INLINE struct gemedge_normal gemedge_denominator(uint32_t u, const struct gemedge_compact *by) {
    const uint32_t w = u * u;
    const uint32_t whole = by->linear >> 16;
    const uint32_t b = by->square + (by->linear & 65535u ? gemedge_upper_half(by->linear, u << 16) : whole * u);
    struct gemedge_normal found;
    uint64_t inner;
    if (by->order == 1u) {
        found.s = gemedge_zeros(w + b);
        found.m = (w + b) << found.s;
        return found;
    }
    if (!by->is_segem) {
        inner = (uint64_t)w * w;
        return gemedge_normalised((by->order == 2u ? inner : gemedge_upper(inner, w)) + by->power, by->is_wide);
    }
    inner = (uint64_t)by->square * b;
    if (by->order == 2u) {
        return gemedge_normalised((uint64_t)w * (w + b) + inner, by->is_wide);
    }
    return gemedge_normalised(gemedge_upper((uint64_t)w * (w + b) + inner, w) + gemedge_upper(inner, by->square),
                              by->is_wide);
}

GEMEDGE_INLINE uint32_t gemedge_numerator(uint32_t u, unsigned s, const struct gemedge_compact *by) {
    unsigned down = by->down - s;
    uint32_t shifted;
    if (by->is_wide) {
        down = down > 31u ? 31u : down;
    }
    if (by->is_segem) {
        return by->down ? by->numerator >> down : by->numerator << s;
    }
    if (by->down) {
        return gemedge_upper_half(by->numerator, u << 16) >> down;
    }
    shifted = (u << s) << by->up;
    return by->numerator ? gemedge_upper_half(by->numerator, shifted) : shifted;
}

/* The fraction in 2^-bits LSB, to a few units. */
GEMEDGE_INLINE uint32_t gemedge_fraction(uint32_t u, const struct gemedge_compact *by) {
    const struct gemedge_normal d = gemedge_denominator(u, by);
    const uint32_t segment = (d.m >> 26) & 31u;
    const uint32_t n = gemedge_numerator(u, d.s, by);
    const uint32_t line = gemedge_lines[segment];
    const uint32_t r = line + (uint32_t)((int16_t)(uint16_t)line * (int32_t)((d.m >> 14) & 4095u));
    const uint32_t g = by->is_segem && !by->numerator ? r >> (by->down - d.s) : gemedge_upper_half(n, r);
    return g - gemedge_upper_half(g, gemedge_upper_half(d.m, r));
}

/* The output for x = u > 0 where the fraction is taken away; not saturated. */
GEMEDGE_INLINE int32_t gemedge_above(uint32_t u, uint32_t fraction, const struct gemedge_compact *by) {
    const uint32_t half = (uint32_t)by->half - fraction;
    if (!by->slope) {
        return (int32_t)u + ((int32_t)half >> by->bits);
    }
    return (int32_t)(gemedge_upper_half(by->slope, u << 16) + half) >> by->bits;
}

/* The output of SE-GEM for x = -u <= 0, not saturated. */
GEMEDGE_INLINE int32_t gemedge_below(uint32_t u, const struct gemedge_compact *by) {
    return (int32_t)(gemedge_fraction(u, by) + (uint32_t)by->offset) >> by->bits_below;
}

GEMEDGE_INLINE int32_t gemedge_compact_one(int32_t x, const struct gemedge_compact *by) {
#ifdef GEMEDGE_CONSTANT_TIME
    const int32_t u = x & ~(x >> 31); /* either side is 0 at 0 */
    if (!by->is_segem) {
        return gemedge_above((uint32_t)u, gemedge_fraction((uint32_t)u, by), by);
    }
    return gemedge_above((uint32_t)u, 0, by) + gemedge_below((uint32_t)(u - x), by);
#else
    if (!by->is_segem) {
        return x > 0 ? gemedge_above((uint32_t)x, gemedge_fraction((uint32_t)x, by), by) : 0;
    }
    return x > 0 ? gemedge_above((uint32_t)x, 0, by) : gemedge_below((uint32_t)-x, by);
#endif
}

/* y within 16 bits; |y| < 2^30. */
GEMEDGE_INLINE int32_t gemedge_saturated_short(int32_t y) {
#ifdef GEMEDGE_CONSTANT_TIME
    const int32_t outside = ((y + 32768) | (32767 - y)) >> 31; /* all its bits, or none */
    return (y & ~outside) | (((y >> 31) ^ 32767) & outside);
#else
    return y < -32767 - 1 ? -32767 - 1 : y > 32767 ? 32767 : y;
#endif
}

#if GEMEDGE_HELIUM
#include "gemedge_helium.h"
#endif

/* The activation of 16-bit numbers; out may be in. */
GEMEDGE_INLINE void gemedge_activate_compact(const void *in, void *out, uint32_t count,
                                             const struct gemedge_compact *by) {
    const gemedge_int16 *from = (const gemedge_int16 *)in;
    const gemedge_int16 *const end = from + count;
    gemedge_int16 *to = (gemedge_int16 *)out;
#if GEMEDGE_HELIUM
    if (gemedge_has_vectors(by)) {
        gemedge_activate_vectors(in, out, count, by);
        return;
    }
#endif
    GEMEDGE_ROLLED
    while (from != end) {
        const int32_t y = gemedge_compact_one(*from++, by);
        *to++ = (int16_t)(by->saturates ? gemedge_saturated_short(y) : y);
    }
}

/* gemedge.tabulated.Tabulated, field by field. */
struct gemedge_tabulated {
    const GEMEDGE_FLASH uint16_t *entries;
    uint32_t square;
    uint8_t step;
};

/* The output for x = u >= 0: a fraction that may be one too small, and the sign of the remainder. */
GEMEDGE_INLINE int32_t gemedge_tabulated_one(uint32_t u, const struct gemedge_tabulated *by) {
    const GEMEDGE_FLASH uint16_t *const at = by->entries + (u >> by->step);
    const int32_t first = at[0];
    const int32_t rise = at[1] - first;
    const int32_t within = (int32_t)(u & ((1u << by->step) - 1u));
    const int32_t k = ((first << by->step) + rise * within) >> (by->step + 4);
    const uint32_t d = u * u + by->square;
    const uint32_t remainder = (uint32_t)k * d + (d >> 1) - u * by->square;
    return (int32_t)u - k - (int32_t)(remainder >> 31);
}

/* GEM of 16-bit numbers; out may be in. */
GEMEDGE_INLINE void gemedge_activate_tabulated(const void *in, void *out, uint32_t count,
                                               const struct gemedge_tabulated *by) {
    const gemedge_int16 *from = (const gemedge_int16 *)in;
    const gemedge_int16 *const end = from + count;
    gemedge_int16 *to = (gemedge_int16 *)out;
    GEMEDGE_ROLLED
    while (from != end) {
        const int32_t x = *from++;
#ifdef GEMEDGE_CONSTANT_TIME
        *to++ = (int16_t)gemedge_tabulated_one((uint32_t)(x & ~(x >> 31)), by);
#else
        *to++ = (int16_t)(x > 0 ? gemedge_tabulated_one((uint32_t)x, by) : 0);
#endif
    }
}

#endif
