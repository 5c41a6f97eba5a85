/* The inner loops of gemedge_blocks.h, and those of dense layers, by Arm's Helium: eight numbers at a time, and what is
   left of eight by lanes that are 0. */

#ifndef GEMEDGE_BLOCKS_HELIUM_H
#define GEMEDGE_BLOCKS_HELIUM_H

#include <arm_mve.h>

#include "gemedge_rescale.h"

/* Eight numbers of one byte or two as 16-bit numbers. */
static inline int16x8_t gemedge_eight(const void *from, size_t size, mve_pred16_t some) {
    return size == 1u ? vldrbq_z_s16((const int8_t *)from, some) : vldrhq_z_s16((const int16_t *)from, some);
}

/* add adds eight products to a sum. */
#define GEMEDGE_DEFINE_BLOCK(name, weight_type, sum_type, add)                                                         \
    GEMEDGE_APART void name(const gemedge_int16 *first, const gemedge_int16 *second, const weight_type *weight,        \
                            const weight_type *other, int32_t depth, sum_type *sums) {                                 \
        sum_type a = 0, b = 0, c = 0, d = 0;                                                                           \
        for (; depth > 0; depth -= 8) {                                                                                \
            const mve_pred16_t some = vctp16q((uint32_t)depth);                                                        \
            const int16x8_t left = gemedge_eight(first, 2u, some), right = gemedge_eight(second, 2u, some);            \
            const int16x8_t one = gemedge_eight(weight, sizeof *weight, some);                                         \
            const int16x8_t two = gemedge_eight(other, sizeof *other, some);                                           \
            a = add(a, left, one);                                                                                     \
            b = add(b, left, two);                                                                                     \
            c = add(c, right, one);                                                                                    \
            d = add(d, right, two);                                                                                    \
            first += 8;                                                                                                \
            second += 8;                                                                                               \
            weight += 8;                                                                                               \
            other += 8;                                                                                                \
        }                                                                                                              \
        sums[0] = a;                                                                                                   \
        sums[1] = b;                                                                                                   \
        sums[GEMEDGE_BATCH] = c;                                                                                       \
        sums[GEMEDGE_BATCH + 1] = d;                                                                                   \
    }

GEMEDGE_DEFINE_BLOCK(gemedge_block_8_32, int8_t, int32_t, vmladavaq_s16)
GEMEDGE_DEFINE_BLOCK(gemedge_block_8_64, int8_t, int64_t, vmlaldavaq_s16)
GEMEDGE_DEFINE_BLOCK(gemedge_block_16_32, int16_t, int32_t, vmladavaq_s16)
GEMEDGE_DEFINE_BLOCK(gemedge_block_16_64, int16_t, int64_t, vmlaldavaq_s16)

/* One row times the weights of two channels; sizes are of a number. */
#define GEMEDGE_ROWS 1
#define GEMEDGE_DEFINE_ROW(name, sum_type, add)                                                                        \
    static inline void name(const void *row, size_t size, const void *weight, const void *other, size_t weight_size,   \
                            int32_t inputs, sum_type *sums) {                                                          \
        const int8_t *from = (const int8_t *)row, *one = (const int8_t *)weight, *two = (const int8_t *)other;         \
        sum_type a = 0, b = 0;                                                                                         \
        for (; inputs > 0; inputs -= 8) {                                                                              \
            const mve_pred16_t some = vctp16q((uint32_t)inputs);                                                       \
            const int16x8_t numbers = gemedge_eight(from, size, some);                                                 \
            a = add(a, numbers, gemedge_eight(one, weight_size, some));                                                \
            b = add(b, numbers, gemedge_eight(two, weight_size, some));                                                \
            from += 8u * size;                                                                                         \
            one += 8u * weight_size;                                                                                   \
            two += 8u * weight_size;                                                                                   \
        }                                                                                                              \
        sums[0] = a;                                                                                                   \
        sums[1] = b;                                                                                                   \
    }

GEMEDGE_DEFINE_ROW(gemedge_row_32, int32_t, vmladavaq_s16)
GEMEDGE_DEFINE_ROW(gemedge_row_64, int64_t, vmlaldavaq_s16)

#endif
