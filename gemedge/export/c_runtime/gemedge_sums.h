/* Sums of products: convolutions, dense layers, products of matrices. */

#ifndef GEMEDGE_SUMS_H
#define GEMEDGE_SUMS_H

#include "gemedge_loops.h"

/* A window over an input of in[0] rows of in[1] spots (one row where there is but one axis), channels last. */
struct gemedge_window {
    int32_t in[2], out[2], kernel[2], stride[2], pad[2], dilation[2], channels;
};

/* Weights, a bias and a rescaling for each output channel. Weights lie as [channel, *kernel, input of the group]; of
   a depthwise convolution as [*kernel, channel]; of a dense layer as [output, input]. */
#define GEMEDGE_DEFINE_SUMS(suffix, input_type, weight_type, sum_type)                                                 \
    struct gemedge_weights_##suffix {                                                                                  \
        const GEMEDGE_FLASH weight_type *weight;                                                                       \
        const GEMEDGE_FLASH sum_type *bias;                                                                            \
        const GEMEDGE_FLASH int32_t *mantissa;                                                                         \
        const GEMEDGE_FLASH uint8_t *shift;                                                                            \
        uint8_t law;                                                                                                   \
    };                                                                                                                 \
                                                                                                                       \
    static inline void gemedge_convolution_##suffix(const input_type *in, int32_t zero,                                \
                                                    const GEMEDGE_FLASH struct gemedge_window *window, int32_t groups, \
                                                    int32_t group_in, int32_t group_out,                               \
                                                    const GEMEDGE_FLASH struct gemedge_weights_##suffix *by,           \
                                                    void *out, struct gemedge_format format) {                         \
        const int32_t taps = window->kernel[1] * group_in;                                                             \
        uint32_t place = 0;                                                                                            \
        int32_t row, spot, group, output, i, j, k;                                                                     \
        for (row = 0; row < window->out[0]; row++) {                                                                   \
            const int32_t top = row * window->stride[0] - window->pad[0];                                              \
            for (spot = 0; spot < window->out[1]; spot++) {                                                            \
                const int32_t left = spot * window->stride[1] - window->pad[1];                                        \
                int32_t channel = 0;                                                                                   \
                for (group = 0; group < groups; group++) {                                                             \
                    for (output = 0; output < group_out; output++) {                                                   \
                        const GEMEDGE_FLASH weight_type *weight =                                                      \
                            by->weight + (size_t)channel * (size_t)(window->kernel[0] * taps);                         \
                        sum_type sum = by->bias[channel];                                                              \
                        for (i = 0; i < window->kernel[0]; i++) {                                                      \
                            const int32_t y = top + i * window->dilation[0];                                           \
                            if (y < 0 || y >= window->in[0]) {                                                         \
                                weight += taps;                                                                        \
                                continue;                                                                              \
                            }                                                                                          \
                            for (j = 0; j < window->kernel[1]; j++) {                                                  \
                                const int32_t x = left + j * window->dilation[1];                                      \
                                if (x >= 0 && x < window->in[1]) {                                                     \
                                    const input_type *from = in +                                                      \
                                                             (size_t)(y * window->in[1] + x) *                         \
                                                                 (size_t)window->channels +                            \
                                                             (size_t)(group * group_in);                               \
                                    for (k = 0; k < group_in; k++) {                                                   \
                                        sum += ((int32_t)from[k] - zero) * (int32_t)weight[k];                         \
                                    }                                                                                  \
                                }                                                                                      \
                                weight += group_in;                                                                    \
                            }                                                                                          \
                        }                                                                                              \
                        gemedge_store(out, place++, format,                                                            \
                                      gemedge_rescale(sum, by->mantissa[channel], by->shift[channel], by->law));       \
                        channel++;                                                                                     \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    static inline void gemedge_depthwise_##suffix(const input_type *in, int32_t zero,                                  \
                                                  const GEMEDGE_FLASH struct gemedge_window *window,                   \
                                                  const GEMEDGE_FLASH struct gemedge_weights_##suffix *by, void *out,  \
                                                  struct gemedge_format format) {                                      \
        const size_t channels = (size_t)window->channels;                                                              \
        uint32_t place = 0;                                                                                            \
        int32_t row, spot, i, j;                                                                                       \
        size_t channel;                                                                                                \
        for (row = 0; row < window->out[0]; row++) {                                                                   \
            const int32_t top = row * window->stride[0] - window->pad[0];                                              \
            for (spot = 0; spot < window->out[1]; spot++) {                                                            \
                const int32_t left = spot * window->stride[1] - window->pad[1];                                        \
                for (channel = 0; channel < channels; channel++) {                                                     \
                    const GEMEDGE_FLASH weight_type *weight = by->weight + channel;                                    \
                    sum_type sum = by->bias[channel];                                                                  \
                    for (i = 0; i < window->kernel[0]; i++) {                                                          \
                        const int32_t y = top + i * window->dilation[0];                                               \
                        for (j = 0; j < window->kernel[1]; j++) {                                                      \
                            const int32_t x = left + j * window->dilation[1];                                          \
                            if (y >= 0 && y < window->in[0] && x >= 0 && x < window->in[1]) {                          \
                                const size_t at = (size_t)(y * window->in[1] + x) * channels + channel;                \
                                sum += ((int32_t)in[at] - zero) * (int32_t)*weight;                                    \
                            }                                                                                          \
                            weight += channels;                                                                        \
                        }                                                                                              \
                    }                                                                                                  \
                    gemedge_store(out, place++, format,                                                                \
                                  gemedge_rescale(sum, by->mantissa[channel], by->shift[channel], by->law));           \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    /* The loops are over rows; in_step and out_step lead from number to number within one. */                         \
    static inline void gemedge_dense_##suffix(const input_type *in, int32_t zero, uint32_t inputs, uint32_t in_step,   \
                                              const GEMEDGE_FLASH struct gemedge_weights_##suffix *by, void *out,      \
                                              struct gemedge_format format, uint32_t outputs, uint32_t out_step,       \
                                              const GEMEDGE_FLASH struct gemedge_loops *loops) {                       \
        struct gemedge_walk walk;                                                                                      \
        gemedge_begin(&walk);                                                                                          \
        do {                                                                                                           \
            const input_type *row = in + walk.at[0];                                                                   \
            const GEMEDGE_FLASH weight_type *weight = by->weight;                                                      \
            uint32_t output, k;                                                                                        \
            for (output = 0; output < outputs; output++) {                                                             \
                sum_type sum = by->bias[output];                                                                       \
                for (k = 0; k < inputs; k++) {                                                                         \
                    sum += ((int32_t)row[k * in_step] - zero) * (int32_t)weight[k];                                    \
                }                                                                                                      \
                weight += inputs;                                                                                      \
                gemedge_store(out, walk.at[1] + output * out_step, format,                                             \
                              gemedge_rescale(sum, by->mantissa[output], by->shift[output], by->law));                 \
            }                                                                                                          \
        } while (gemedge_next(&walk, loops));                                                                          \
    }

GEMEDGE_DEFINE_SUMS(i8w8, int8_t, int8_t, int32_t)
GEMEDGE_DEFINE_SUMS(i16w8, gemedge_int16, int8_t, int64_t)
GEMEDGE_DEFINE_SUMS(i8w16, int8_t, int16_t, int64_t)
GEMEDGE_DEFINE_SUMS(i16w16, gemedge_int16, int16_t, int64_t)

/* [rows, depth] times [depth, columns]; step: along a row and a column of left, of right and of out. The loops are
   over matrices. */
static inline void gemedge_matrix_multiply(const struct gemedge_operand *of, const GEMEDGE_FLASH uint32_t *size,
                                           const GEMEDGE_FLASH uint32_t *step, int32_t mantissa, unsigned shift,
                                           unsigned law, void *out, struct gemedge_format format,
                                           const GEMEDGE_FLASH struct gemedge_loops *loops) {
    struct gemedge_walk walk;
    uint32_t row, column, k;
    gemedge_begin(&walk);
    do {
        for (row = 0; row < size[0]; row++) {
            for (column = 0; column < size[2]; column++) {
                const uint32_t left = walk.at[0] + row * step[0];
                const uint32_t right = walk.at[1] + column * step[3];
                int64_t sum = 0;
                for (k = 0; k < size[1]; k++) {
                    sum += gemedge_centred(&of[0], left + k * step[1]) * gemedge_centred(&of[1], right + k * step[2]);
                }
                gemedge_store(out, walk.at[2] + row * step[4] + column * step[5], format,
                              gemedge_rescale(sum, mantissa, shift, law));
            }
        }
    } while (gemedge_next(&walk, loops));
}

#endif
