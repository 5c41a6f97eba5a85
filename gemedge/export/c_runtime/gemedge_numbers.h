/* Formats of numbers, rounding and saturation. */

#ifndef GEMEDGE_NUMBERS_H
#define GEMEDGE_NUMBERS_H

#include <stdint.h>
#include <string.h>

#include "gemedge_flash.h"
#include "gemedge_status.h"

/* How an accumulator is rescaled: once, floor(v + 1/2), or by gemmlowp's two roundings. */
#define GEMEDGE_SINGLE 0
#define GEMEDGE_DOUBLE 1

#define GEMEDGE_MOST_AXES 8
#define GEMEDGE_MOST_OPERANDS 8

/* C leaves the right shift of a negative number to the compiler; all that we know of shift in copies of the sign. */
typedef char gemedge_right_shifts_are_arithmetic[((int64_t)-1 >> 1) == -1 && ((int32_t)-1 >> 1) == -1 ? 1 : -1];

/* The arena holds bytes, shorts and words one after another in the same place. */
#if defined(__GNUC__)
typedef int16_t __attribute__((__may_alias__)) gemedge_int16;
typedef int32_t __attribute__((__may_alias__)) gemedge_int32;
typedef uint32_t __attribute__((__may_alias__)) gemedge_uint32;
#else
typedef int16_t gemedge_int16;
typedef int32_t gemedge_int32;
typedef uint32_t gemedge_uint32;
#endif

/* Whether the CPU multiplies 32 by 32 bits to 32 only: a 64-bit product is a call there, of dozens of instructions. */
#if !defined(GEMEDGE_SHORT_PRODUCTS)
#if defined(__ARM_ARCH_6M__) || defined(__ARM_ARCH_8M_BASE__) || defined(__AVR__)
#define GEMEDGE_SHORT_PRODUCTS 1
#else
#define GEMEDGE_SHORT_PRODUCTS 0
#endif
#endif

/* Whether the CPU has vectors of integers (Arm's Helium) whose lane 0 comes first in memory. */
#if defined(__ARM_FEATURE_MVE) && !defined(__ARM_BIG_ENDIAN)
#define GEMEDGE_HELIUM 1
#else
#define GEMEDGE_HELIUM 0
#endif

/* What is called from many places, or kept apart so that its registers are its own. */
#if defined(__GNUC__)
#define GEMEDGE_APART static __attribute__((__noinline__, __unused__))
#define GEMEDGE_RESTRICT __restrict__
#else
#define GEMEDGE_APART static inline
#define GEMEDGE_RESTRICT
#endif

/* How a tensor's integers are kept: bytes is 1 or 2 (4 for indices), zero the integer that stands for 0. */
struct gemedge_format {
    uint8_t bytes;
    int16_t zero;
};

/* The number of so many bytes at this index: of a tensor, of a constant, or of what may be either. */
#define GEMEDGE_DEFINE_GET(name, place)                                                                                \
    static inline int32_t name(const place void *data, uint32_t index, unsigned bytes) {                               \
        if (bytes == 1u) {                                                                                             \
            return ((const place int8_t *)data)[index];                                                                \
        }                                                                                                              \
        if (bytes == 2u) {                                                                                             \
            return ((const place gemedge_int16 *)data)[index];                                                         \
        }                                                                                                              \
        return ((const place gemedge_int32 *)data)[index];                                                             \
    }

GEMEDGE_DEFINE_GET(gemedge_get, GEMEDGE_RAM)
GEMEDGE_DEFINE_GET(gemedge_get_flash, GEMEDGE_FLASH)

static inline int32_t gemedge_get_at(gemedge_place place, uint32_t index, unsigned bytes) {
#if defined(__FLASH) && !defined(__STRICT_ANSI__)
    return place.tensor ? gemedge_get(place.tensor, index, bytes) : gemedge_get_flash(place.constant, index, bytes);
#else
    return gemedge_get(place, index, bytes);
#endif
}

static inline void gemedge_put(void *data, uint32_t index, unsigned bytes, int32_t value) {
    if (bytes == 1u) {
        ((int8_t *)data)[index] = (int8_t)value;
    } else if (bytes == 2u) {
        ((gemedge_int16 *)data)[index] = (int16_t)value;
    } else {
        ((gemedge_int32 *)data)[index] = value;
    }
}

/* The lowest integer of so many bytes, 1 or 2. */
static inline int32_t gemedge_lowest(unsigned bytes) {
    return bytes == 1u ? -128 : -(int32_t)32767 - 1;
}

/* value + zero, saturated to the format; |value| < 2^62. */
static inline void gemedge_store(void *data, uint32_t index, struct gemedge_format format, int64_t value) {
    const int32_t low = gemedge_lowest(format.bytes);
    const int32_t high = -1 - low;
    const int64_t shifted = value + format.zero;
    gemedge_put(data, index, format.bytes, shifted < low ? low : shifted > high ? high : (int32_t)shifted);
}

/* floor(sum * mantissa * 2^-shift + 1/2); |sum * mantissa| < 2^62, shift is 0..62. */
static inline int64_t gemedge_once(int64_t sum, int32_t mantissa, unsigned shift) {
    return (sum * mantissa + (((int64_t)1 << shift) >> 1)) >> shift;
}

/* gemmlowp: sum * 2^(31 - shift) where that is up, its doubling high product, and the rest of the shift with ties
   away from zero. |sum * 2^(31 - shift)| < 2^31, mantissa is 0..2^31 - 1, shift 0..62. */
static inline int64_t gemedge_twice(int64_t sum, int32_t mantissa, unsigned shift) {
    const unsigned up = shift < 31u ? 31u - shift : 0u;
    const unsigned down = shift > 31u ? shift - 31u : 0u;
    const int64_t half = ((int64_t)1 << down) >> 1;
    const int64_t high = (sum * ((int64_t)1 << up) * mantissa + ((int64_t)1 << 30)) >> 31;
    return high < 0 ? -((half - high) >> down) : (high + half) >> down;
}

static inline int64_t gemedge_rescale(int64_t sum, int32_t mantissa, unsigned shift, unsigned law) {
    return law == GEMEDGE_DOUBLE ? gemedge_twice(sum, mantissa, shift) : gemedge_once(sum, mantissa, shift);
}

/* value * 2^-shift rounded down, for any shift from 0 on: beyond 63 only the sign is left. */
static inline int64_t gemedge_down(int64_t value, int32_t shift) {
    return value >> (shift > 63 ? 63 : shift);
}

/* The number of bits of value: 0 for 0. */
static inline int32_t gemedge_bit_length(uint64_t value) {
    int32_t bits = 0;
    int32_t step;
    for (step = 32; step > 0; step >>= 1) {
        if (value >> step) {
            value >>= step;
            bits += step;
        }
    }
    return bits + (value ? 1 : 0);
}

/* The quotient rounded down, bit by bit; it must be below 2^bits, and divisor * 2^(bits - 1) below 2^64. */
static inline uint64_t gemedge_quotient(uint64_t number, uint64_t divisor, unsigned bits) {
    uint64_t quotient = 0;
    uint64_t part = divisor << (bits - 1u);
    unsigned bit;
    for (bit = 0; bit < bits; bit++) {
        quotient <<= 1;
        if (number >= part) {
            number -= part;
            quotient |= 1u;
        }
        part >>= 1;
    }
    return quotient;
}

/* The square root of value < 2^62, rounded down, bit by bit. */
static inline uint64_t gemedge_root(uint64_t value) {
    uint64_t root = 0;
    uint64_t bit = (uint64_t)1 << 60;
    for (; bit; bit >>= 2) {
        const uint64_t trial = root + bit;
        root >>= 1;
        if (value >= trial) {
            value -= trial;
            root += bit;
        }
    }
    return root;
}

#endif
