/* Sums of products: convolutions, dense layers, products of matrices.

   An input's zero point is in the bias: the sum of weight * (input - zero) is that of weight * input, plus a constant.
   Padding is then filled with the zero point. i16w8s32: 16-bit inputs, 8-bit weights, sums that 32 bits were proven to
   hold. */

#ifndef GEMEDGE_SUMS_H
#define GEMEDGE_SUMS_H

#include "gemedge_blocks.h"
#include "gemedge_loops.h"
#include "gemedge_rescale.h"

#define GEMEDGE_OF(name) name##_i8w8s32
#define GEMEDGE_INPUT int8_t
#define GEMEDGE_WEIGHT int8_t
#define GEMEDGE_SUM int32_t
#define GEMEDGE_BLOCK gemedge_block_8_32
#define GEMEDGE_FINISH gemedge_finish_32
#include "gemedge_sums_of.h"

#define GEMEDGE_OF(name) name##_i8w16s32
#define GEMEDGE_INPUT int8_t
#define GEMEDGE_WEIGHT int16_t
#define GEMEDGE_SUM int32_t
#define GEMEDGE_BLOCK gemedge_block_16_32
#define GEMEDGE_FINISH gemedge_finish_32
#include "gemedge_sums_of.h"

#define GEMEDGE_OF(name) name##_i8w16s64
#define GEMEDGE_INPUT int8_t
#define GEMEDGE_WEIGHT int16_t
#define GEMEDGE_SUM int64_t
#define GEMEDGE_BLOCK gemedge_block_16_64
#define GEMEDGE_FINISH gemedge_finish_64
#include "gemedge_sums_of.h"

#define GEMEDGE_OF(name) name##_i16w8s32
#define GEMEDGE_INPUT gemedge_int16
#define GEMEDGE_WEIGHT int8_t
#define GEMEDGE_SUM int32_t
#define GEMEDGE_BLOCK gemedge_block_8_32
#define GEMEDGE_FINISH gemedge_finish_32
#include "gemedge_sums_of.h"

#define GEMEDGE_OF(name) name##_i16w8s64
#define GEMEDGE_INPUT gemedge_int16
#define GEMEDGE_WEIGHT int8_t
#define GEMEDGE_SUM int64_t
#define GEMEDGE_BLOCK gemedge_block_8_64
#define GEMEDGE_FINISH gemedge_finish_64
#include "gemedge_sums_of.h"

#define GEMEDGE_OF(name) name##_i16w16s32
#define GEMEDGE_INPUT gemedge_int16
#define GEMEDGE_WEIGHT int16_t
#define GEMEDGE_SUM int32_t
#define GEMEDGE_BLOCK gemedge_block_16_32
#define GEMEDGE_FINISH gemedge_finish_32
#include "gemedge_sums_of.h"

#define GEMEDGE_OF(name) name##_i16w16s64
#define GEMEDGE_INPUT gemedge_int16
#define GEMEDGE_WEIGHT int16_t
#define GEMEDGE_SUM int64_t
#define GEMEDGE_BLOCK gemedge_block_16_64
#define GEMEDGE_FINISH gemedge_finish_64
#include "gemedge_sums_of.h"

/* Of 8-bit inputs and weights: packed where the CPU multiplies pairs, and what CMSIS-NN can do instead. */
#if !defined(GEMEDGE_USE_CMSIS_NN) && \
    (defined(__AVX2__) || (defined(__ARM_FEATURE_DSP) && !defined(__ARM_FEATURE_MVE) && !defined(__ARM_BIG_ENDIAN)))
#define GEMEDGE_PACKED
#include "gemedge_packed.h"
#else
#define gemedge_convolution_packed gemedge_convolution_i8w8s32
#define gemedge_dense_packed gemedge_dense_i8w8s32
#endif
#if defined(GEMEDGE_USE_CMSIS_NN)
#include "gemedge_cmsis_nn.h"
#else
#define gemedge_convolution_bytes gemedge_convolution_packed
#define gemedge_depthwise_bytes gemedge_depthwise_i8w8s32
#define gemedge_dense_bytes(in, zero, ...) gemedge_dense_packed(in, __VA_ARGS__)
#endif

/* Where layers are observed, each makes its own output; CMSIS-NN knows no tables. */
#if defined(GEMEDGE_OBSERVE) || defined(GEMEDGE_USE_CMSIS_NN)
#define GEMEDGE_UNFUSED
#define GEMEDGE_FUSED(table) 0
#else
#define GEMEDGE_FUSED(table) table
#endif

/* The sum of products of a row and a column; written out for each width, which bytes is. */
static inline int64_t gemedge_products(const struct gemedge_operand *of, uint32_t left, uint32_t left_step,
                                       uint32_t right, uint32_t right_step, uint32_t depth, unsigned bytes) {
    const int32_t left_zero = of[0].format.zero, right_zero = of[1].format.zero;
    int64_t sum = 0;
    for (; depth > 0; depth--) {
        const int32_t one = gemedge_get_at(of[0].data, left, bytes) - left_zero;
        const int32_t two = gemedge_get_at(of[1].data, right, bytes) - right_zero;
        sum += one * two;
        left += left_step;
        right += right_step;
    }
    return sum;
}

/* [rows, depth] times [depth, columns]; step: along a row and a column of left, of right and of out. The loops are
   over matrices. */
static inline void gemedge_matrix_multiply(const struct gemedge_operand *of, const GEMEDGE_FLASH uint32_t *size,
                                           const GEMEDGE_FLASH uint32_t *step, int32_t mantissa, unsigned shift,
                                           unsigned law, void *out, struct gemedge_format format,
                                           const GEMEDGE_FLASH struct gemedge_loops *loops) {
    const uint32_t depth = size[1];
    struct gemedge_walk walk;
    uint32_t row, column, k;
    gemedge_begin(&walk);
    do {
        for (row = 0; row < size[0]; row++) {
            for (column = 0; column < size[2]; column++) {
                const uint32_t left = walk.at[0] + row * step[0];
                const uint32_t right = walk.at[1] + column * step[3];
                int64_t sum;
                if (of[0].format.bytes != of[1].format.bytes) {
                    sum = 0;
                    for (k = 0; k < depth; k++) {
                        sum += gemedge_centred(&of[0], left + k * step[1]) * gemedge_centred(&of[1], right + k * step[2]);
                    }
                } else if (of[0].format.bytes == 1u) {
                    sum = gemedge_products(of, left, step[1], right, step[2], depth, 1);
                } else {
                    sum = gemedge_products(of, left, step[1], right, step[2], depth, 2);
                }
                gemedge_store(out, walk.at[2] + row * step[4] + column * step[5], format,
                              gemedge_rescale(sum, mantissa, shift, law));
            }
        }
    } while (gemedge_next(&walk, loops));
}

#endif
