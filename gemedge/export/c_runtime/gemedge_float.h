/* Floats to integers and back, at the border of a model alone. Not included by gemedge.h: kernels have no float.

   A quotient is found from the bits of its IEEE 754 binary32 numbers in exact integer arithmetic: neither a mode of
   the floating-point unit nor a compiler's option changes an integer, and no library is needed. */

#ifndef GEMEDGE_FLOAT_H
#define GEMEDGE_FLOAT_H

#include "gemedge_numbers.h"

/* |x| is mantissa * 2^exponent; mantissa has 24 bits, or is 0. */
struct gemedge_binary {
    uint32_t mantissa;
    int32_t exponent;
};

static inline struct gemedge_binary gemedge_binary_of(uint32_t bits) {
    struct gemedge_binary of;
    of.mantissa = bits & 8388607u;
    of.exponent = (int32_t)((bits >> 23) & 255u);
    if (of.exponent > 0) {
        of.mantissa |= 8388608u;
    } else {
        of.exponent = 1;
    }
    while (of.mantissa > 0u && of.mantissa < 8388608u) {
        of.mantissa <<= 1;
        of.exponent--;
    }
    return of;
}

static inline uint32_t gemedge_bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* |x| / scale to the nearest integer, ties to even; 2^17 stands for all that is at least 2^17, and infinity. */
static inline int32_t gemedge_magnitude(uint32_t bits, float scale) {
    const struct gemedge_binary over = gemedge_binary_of(bits & 2147483647u);
    const struct gemedge_binary under = gemedge_binary_of(gemedge_bits_of(scale));
    const int32_t up = over.exponent - under.exponent;
    uint64_t whole, twice;
    if (over.mantissa == 0u || up < -1) {
        return 0; /* below a half */
    }
    if (up > 16 || over.exponent >= 255) {
        return (int32_t)1 << 17;
    }
    whole = (uint64_t)over.mantissa << (up + 1);
    twice = gemedge_quotient(whole, under.mantissa, (unsigned)(up + 2));
    if ((twice & 1u) && (whole > twice * under.mantissa || (twice & 2u))) {
        twice++;
    }
    return (int32_t)(twice >> 1);
}

/* x / scale + zero to the nearest integer, ties to even, saturated: the same as gemedge.fixed.quantize, and zero for
   NaN, which that refuses. scale > 0. */
static inline void gemedge_quantize(const float *x, void *to, float scale, int32_t zero, unsigned bytes,
                                    uint32_t count) {
    const int32_t low = gemedge_lowest(bytes);
    const int32_t high = -1 - low;
    uint32_t i;
    for (i = 0; i < count; i++) {
        const uint32_t bits = gemedge_bits_of(x[i]);
        int32_t q = zero;
        if ((bits & 2147483647u) <= 2139095040u) {
            const int32_t size = gemedge_magnitude(bits, scale);
            q += bits >> 31 ? -size : size;
        }
        gemedge_put(to, i, bytes, q < low ? low : q > high ? high : q);
    }
}

/* scale * (q - zero): one float product, rounded to nearest. */
static inline void gemedge_dequantize(const void *q, float *to, float scale, int32_t zero, unsigned bytes,
                                      uint32_t count) {
    uint32_t i;
    for (i = 0; i < count; i++) {
        to[i] = scale * (float)(gemedge_get(q, i, bytes) - zero);
    }
}

#endif
