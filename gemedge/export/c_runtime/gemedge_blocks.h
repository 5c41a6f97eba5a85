/* The inner loops of convolutions: two windows of 16-bit numbers times the weights of two channels.

   sums[0] and sums[1] become the first window's, those GEMEDGE_BATCH behind the second's. */

#ifndef GEMEDGE_BLOCKS_H
#define GEMEDGE_BLOCKS_H

#include "gemedge_rescale.h"

#if GEMEDGE_HELIUM
#include "gemedge_blocks_helium.h"
#elif defined(__ARM_FEATURE_DSP) && !defined(__ARM_BIG_ENDIAN)
#include "gemedge_blocks_dsp.h"
#else
#define GEMEDGE_ROWS 0

/* Few registers hold two sums; more hold four, and each number loaded is used twice. */
#if defined(__ARM_ARCH_6M__) || defined(__ARM_ARCH_8M_BASE__)
#define GEMEDGE_DEFINE_BLOCK(name, weight_type, sum_type)                                                              \
    GEMEDGE_APART void name##_window(const gemedge_int16 *window, const GEMEDGE_FLASH weight_type *weight,             \
                                     const GEMEDGE_FLASH weight_type *other, int32_t depth, sum_type *sums) {          \
        sum_type a = 0, b = 0;                                                                                         \
        int32_t k;                                                                                                     \
        for (k = 0; k < depth; k++) {                                                                                  \
            const int32_t number = window[k];                                                                          \
            a += number * weight[k];                                                                                   \
            b += number * other[k];                                                                                    \
        }                                                                                                              \
        sums[0] = a;                                                                                                   \
        sums[1] = b;                                                                                                   \
    }                                                                                                                  \
                                                                                                                       \
    static inline void name(const gemedge_int16 *first, const gemedge_int16 *second,                                   \
                            const GEMEDGE_FLASH weight_type *weight, const GEMEDGE_FLASH weight_type *other,           \
                            int32_t depth, sum_type *sums) {                                                           \
        name##_window(first, weight, other, depth, sums);                                                              \
        name##_window(second, weight, other, depth, sums + GEMEDGE_BATCH);                                             \
    }
#else
#define GEMEDGE_DEFINE_BLOCK(name, weight_type, sum_type)                                                              \
    static inline void name(const gemedge_int16 *first, const gemedge_int16 *second,                                   \
                            const GEMEDGE_FLASH weight_type *weight, const GEMEDGE_FLASH weight_type *other,           \
                            int32_t depth, sum_type *sums) {                                                           \
        sum_type a = 0, b = 0, c = 0, d = 0;                                                                           \
        int32_t k;                                                                                                     \
        for (k = 0; k < depth; k++) {                                                                                  \
            const int32_t left = first[k], right = second[k];                                                          \
            a += left * weight[k];                                                                                     \
            b += left * other[k];                                                                                      \
            c += right * weight[k];                                                                                    \
            d += right * other[k];                                                                                     \
        }                                                                                                              \
        sums[0] = a;                                                                                                   \
        sums[1] = b;                                                                                                   \
        sums[GEMEDGE_BATCH] = c;                                                                                       \
        sums[GEMEDGE_BATCH + 1] = d;                                                                                   \
    }

#endif

GEMEDGE_DEFINE_BLOCK(gemedge_block_8_32, int8_t, int32_t)
GEMEDGE_DEFINE_BLOCK(gemedge_block_8_64, int8_t, int64_t)
GEMEDGE_DEFINE_BLOCK(gemedge_block_16_32, int16_t, int32_t)
GEMEDGE_DEFINE_BLOCK(gemedge_block_16_64, int16_t, int64_t)

#endif

#endif
