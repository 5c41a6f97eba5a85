/* The inner loops of gemedge_blocks.h by Arm's DSP instructions. */

#ifndef GEMEDGE_BLOCKS_DSP_H
#define GEMEDGE_BLOCKS_DSP_H

#include "gemedge_dsp.h"
#include "gemedge_rescale.h"

/* What is left of two or four numbers, and the sums. */
#define GEMEDGE_END_BLOCK                                                                                              \
    for (; depth > 0; depth--) {                                                                                       \
        const int32_t left = *first++, right = *second++, one = *weight++, two = *other++;                             \
        a += left * one;                                                                                               \
        b += left * two;                                                                                               \
        c += right * one;                                                                                              \
        d += right * two;                                                                                              \
    }                                                                                                                  \
    sums[0] = a;                                                                                                       \
    sums[1] = b;                                                                                                       \
    sums[GEMEDGE_BATCH] = c;                                                                                           \
    sums[GEMEDGE_BATCH + 1] = d

/* 16-bit weights; multiply adds two products to a sum. What is left is not told by the loop's own comparison: gcc 12 -Os
   loses that on Cortex-M55. */
#define GEMEDGE_DEFINE_BLOCK_OF_16(name, sum_type, multiply)                                                           \
    GEMEDGE_APART void name(const gemedge_int16 *first, const gemedge_int16 *second,                                   \
                            const GEMEDGE_FLASH int16_t *weight, const GEMEDGE_FLASH int16_t *other, int32_t depth,    \
                            sum_type *sums) {                                                                          \
        sum_type a = 0, b = 0, c = 0, d = 0;                                                                           \
        int32_t pairs;                                                                                                 \
        for (pairs = depth >> 1; pairs > 0; pairs--) {                                                                 \
            const int16x2_t left = (int16x2_t)gemedge_word(first), right = (int16x2_t)gemedge_word(second);            \
            const int16x2_t one = (int16x2_t)gemedge_word(weight), two = (int16x2_t)gemedge_word(other);               \
            a = multiply(left, one, a);                                                                                \
            b = multiply(left, two, b);                                                                                \
            c = multiply(right, one, c);                                                                               \
            d = multiply(right, two, d);                                                                               \
            first += 2;                                                                                                \
            second += 2;                                                                                               \
            weight += 2;                                                                                               \
            other += 2;                                                                                                \
        }                                                                                                              \
        depth &= 1;                                                                                                    \
        GEMEDGE_END_BLOCK;                                                                                             \
    }

/* 8-bit weights, which are unpacked as numbers 0 and 2, 1 and 3. */
#define GEMEDGE_DEFINE_BLOCK_OF_8(name, sum_type, multiply)                                                            \
    GEMEDGE_APART void name(const gemedge_int16 *first, const gemedge_int16 *second,                                   \
                            const GEMEDGE_FLASH int8_t *weight, const GEMEDGE_FLASH int8_t *other, int32_t depth,      \
                            sum_type *sums) {                                                                          \
        sum_type a = 0, b = 0, c = 0, d = 0;                                                                           \
        for (; depth > 3; depth -= 4) {                                                                                \
            const uint32_t one = gemedge_word(weight), two = gemedge_word(other);                                      \
            const uint32_t left = gemedge_word(first), left_high = gemedge_word(first + 2);                            \
            const uint32_t right = gemedge_word(second), right_high = gemedge_word(second + 2);                        \
            int16x2_t x = gemedge_even_shorts(left, left_high), y = gemedge_even_shorts(right, right_high);            \
            a = multiply(x, gemedge_even_bytes(one), a);                                                               \
            b = multiply(x, gemedge_even_bytes(two), b);                                                               \
            c = multiply(y, gemedge_even_bytes(one), c);                                                               \
            d = multiply(y, gemedge_even_bytes(two), d);                                                               \
            x = gemedge_odd_shorts(left, left_high);                                                                   \
            y = gemedge_odd_shorts(right, right_high);                                                                 \
            a = multiply(x, gemedge_odd_bytes(one), a);                                                                \
            b = multiply(x, gemedge_odd_bytes(two), b);                                                                \
            c = multiply(y, gemedge_odd_bytes(one), c);                                                                \
            d = multiply(y, gemedge_odd_bytes(two), d);                                                                \
            first += 4;                                                                                                \
            second += 4;                                                                                               \
            weight += 4;                                                                                               \
            other += 4;                                                                                                \
        }                                                                                                              \
        GEMEDGE_END_BLOCK;                                                                                             \
    }

GEMEDGE_DEFINE_BLOCK_OF_8(gemedge_block_8_32, int32_t, __smlad)
GEMEDGE_DEFINE_BLOCK_OF_8(gemedge_block_8_64, int64_t, __smlald)
GEMEDGE_DEFINE_BLOCK_OF_16(gemedge_block_16_32, int32_t, __smlad)
GEMEDGE_DEFINE_BLOCK_OF_16(gemedge_block_16_64, int64_t, __smlald)

/* Number k of bytes or shorts. */
static inline int32_t gemedge_number(const int8_t *from, size_t size, int32_t k) {
    return size == 1u ? from[k] : ((const gemedge_int16 *)(const void *)from)[k];
}

/* Numbers 0 and 2 of four, and 1 and 3. */
static inline int16x2_t gemedge_even_of(const int8_t *from, size_t size) {
    return size == 1u ? gemedge_even_bytes(gemedge_word(from))
                      : gemedge_even_shorts(gemedge_word(from), gemedge_word(from + 4));
}

static inline int16x2_t gemedge_odd_of(const int8_t *from, size_t size) {
    return size == 1u ? gemedge_odd_bytes(gemedge_word(from))
                      : gemedge_odd_shorts(gemedge_word(from), gemedge_word(from + 4));
}

/* Pairs of four, in the same order for all that have the same order of pairs. */
static inline int16x2_t gemedge_first_of(const int8_t *from, size_t size, int in_order) {
    return in_order ? (int16x2_t)gemedge_word(from) : gemedge_even_of(from, size);
}

static inline int16x2_t gemedge_last_of(const int8_t *from, size_t size, int in_order) {
    return in_order ? (int16x2_t)gemedge_word(from + 4) : gemedge_odd_of(from, size);
}

/* One row times the weights of two channels; sizes are of a number. Shorts times shorts need no unpacking. */
#define GEMEDGE_ROWS 1
#define GEMEDGE_DEFINE_ROW(name, sum_type, multiply)                                                                   \
    static inline void name(const void *row, size_t size, const void *weight, const void *other, size_t weight_size,   \
                            int32_t inputs, sum_type *sums) {                                                          \
        const int8_t *from = (const int8_t *)row, *one = (const int8_t *)weight, *two = (const int8_t *)other;         \
        const int in_order = size == 2u && weight_size == 2u;                                                          \
        sum_type a = 0, b = 0;                                                                                         \
        int32_t k;                                                                                                     \
        for (k = inputs >> 2; k > 0; k--) {                                                                            \
            int16x2_t numbers = gemedge_first_of(from, size, in_order);                                                \
            a = multiply(numbers, gemedge_first_of(one, weight_size, in_order), a);                                    \
            b = multiply(numbers, gemedge_first_of(two, weight_size, in_order), b);                                    \
            numbers = gemedge_last_of(from, size, in_order);                                                           \
            a = multiply(numbers, gemedge_last_of(one, weight_size, in_order), a);                                     \
            b = multiply(numbers, gemedge_last_of(two, weight_size, in_order), b);                                     \
            from += 4u * size;                                                                                         \
            one += 4u * weight_size;                                                                                   \
            two += 4u * weight_size;                                                                                   \
        }                                                                                                              \
        for (k = 0; k < (inputs & 3); k++) {                                                                           \
            a += gemedge_number(from, size, k) * gemedge_number(one, weight_size, k);                                  \
            b += gemedge_number(from, size, k) * gemedge_number(two, weight_size, k);                                  \
        }                                                                                                              \
        sums[0] = a;                                                                                                   \
        sums[1] = b;                                                                                                   \
    }

GEMEDGE_DEFINE_ROW(gemedge_row_32, int32_t, __smlad)
GEMEDGE_DEFINE_ROW(gemedge_row_64, int64_t, __smlald)

#endif
