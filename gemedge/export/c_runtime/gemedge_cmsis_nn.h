/* Convolutions and dense layers of 8 bits by CMSIS-NN, where GEMEDGE_USE_CMSIS_NN is defined: the same integers, where
   the library rounds as the model does. Its folder must be on the include path and its sources in the build. */

#ifndef GEMEDGE_CMSIS_NN_H
#define GEMEDGE_CMSIS_NN_H

#include "arm_nnfunctions.h"
#include "gemedge_loops.h"

/* How sums become outputs, in the library's terms: a shift to the left, and a bias that knows no zero point. uniform:
   whether all channels are rescaled alike. */
struct gemedge_cmsis_nn {
    const int32_t *bias;
    const int32_t *mantissa;
    const int32_t *shift;
    int16_t zero;
    uint8_t uniform;
};

static inline cmsis_nn_dims gemedge_dims(int32_t n, int32_t height, int32_t width, int32_t channels) {
    cmsis_nn_dims dims;
    dims.n = n;
    dims.h = height;
    dims.w = width;
    dims.c = channels;
    return dims;
}

static inline cmsis_nn_tile gemedge_tile(const int32_t *pair) {
    cmsis_nn_tile tile;
    tile.h = pair[0];
    tile.w = pair[1];
    return tile;
}

static inline cmsis_nn_per_channel_quant_params gemedge_channels(const struct gemedge_cmsis_nn *by) {
    cmsis_nn_per_channel_quant_params found;
    found.multiplier = (int32_t *)(uintptr_t)by->mantissa; /* it reads them only */
    found.shift = (int32_t *)(uintptr_t)by->shift;
    return found;
}

static inline void gemedge_convolution_bytes(const int8_t *in, int32_t zero, const struct gemedge_window *window,
                                             int32_t groups, int32_t group_in, int32_t group_out,
                                             const int8_t *weights, const struct gemedge_cmsis_nn *by, void *room,
                                             void *out) {
    const cmsis_nn_dims given = gemedge_dims(1, window->in[0], window->in[1], group_in);
    const cmsis_nn_dims filter = gemedge_dims(group_out, window->kernel[0], window->kernel[1], group_in);
    const cmsis_nn_dims biases = gemedge_dims(1, 1, 1, group_out);
    const cmsis_nn_dims made = gemedge_dims(1, window->out[0], window->out[1], group_out);
    const cmsis_nn_per_channel_quant_params channels = gemedge_channels(by);
    cmsis_nn_context context;
    cmsis_nn_conv_params params;
    (void)groups; /* there is one */
    context.buf = room;
    context.size = 4 * window->kernel[0] * window->kernel[1] * group_in;
    params.input_offset = -zero;
    params.output_offset = by->zero;
    params.stride = gemedge_tile(window->stride);
    params.padding = gemedge_tile(window->pad);
    params.dilation = gemedge_tile(window->dilation);
    params.activation.min = -128;
    params.activation.max = 127;
    (void)arm_convolve_s8(&context, &params, &channels, &given, in, &filter, weights, &biases, by->bias, &made,
                          (int8_t *)out);
}

static inline void gemedge_depthwise_bytes(const int8_t *in, int32_t zero, const struct gemedge_window *window,
                                           const int8_t *weights, const struct gemedge_cmsis_nn *by, void *room,
                                           void *out) {
    const cmsis_nn_dims given = gemedge_dims(1, window->in[0], window->in[1], window->channels);
    const cmsis_nn_dims filter = gemedge_dims(1, window->kernel[0], window->kernel[1], window->channels);
    const cmsis_nn_dims biases = gemedge_dims(1, 1, 1, window->channels);
    const cmsis_nn_dims made = gemedge_dims(1, window->out[0], window->out[1], window->channels);
    const cmsis_nn_per_channel_quant_params channels = gemedge_channels(by);
    cmsis_nn_context context;
    cmsis_nn_dw_conv_params params;
    context.buf = room;
    context.size = 0;
    params.input_offset = -zero;
    params.output_offset = by->zero;
    params.ch_mult = 1;
    params.stride = gemedge_tile(window->stride);
    params.padding = gemedge_tile(window->pad);
    params.dilation = gemedge_tile(window->dilation);
    params.activation.min = -128;
    params.activation.max = 127;
    (void)arm_depthwise_conv_s8(&context, &params, &channels, &given, in, &filter, weights, &biases, by->bias, &made,
                                (int8_t *)out);
}

/* Outputs from first on, so many of them, that are rescaled alike. */
static inline void gemedge_dense_alike(const int8_t *row, int32_t zero, int32_t inputs, const int8_t *weights,
                                       const struct gemedge_cmsis_nn *by, int32_t first, int32_t count, int8_t *out) {
    const cmsis_nn_dims given = gemedge_dims(1, 1, 1, inputs);
    const cmsis_nn_dims filter = gemedge_dims(inputs, 1, 1, count);
    const cmsis_nn_dims biases = gemedge_dims(1, 1, 1, count);
    const cmsis_nn_dims made = gemedge_dims(1, 1, 1, count);
    cmsis_nn_context context;
    cmsis_nn_per_tensor_quant_params rescaling;
    cmsis_nn_fc_params params;
    context.buf = 0;
    context.size = 0;
    rescaling.multiplier = by->mantissa[first];
    rescaling.shift = by->shift[first];
    params.input_offset = -zero;
    params.filter_offset = 0;
    params.output_offset = by->zero;
    params.activation.min = -128;
    params.activation.max = 127;
    (void)arm_fully_connected_s8(&context, &params, &rescaling, &given, row, &filter, weights + first * inputs, &biases,
                                 by->bias + first, &made, out);
}

static inline void gemedge_dense_bytes(const int8_t *in, int32_t zero, int32_t inputs, uint32_t in_step,
                                       const int8_t *weights, const struct gemedge_cmsis_nn *by, void *room, void *out,
                                       int32_t outputs, uint32_t out_step, const struct gemedge_loops *loops) {
    const int32_t alike = by->uniform && out_step == 1u ? outputs : 1;
    struct gemedge_walk walk;
    gemedge_begin(&walk);
    do {
        const int8_t *row = in + walk.at[0];
        int32_t output, k;
        if (in_step != 1u) {
            for (k = 0; k < inputs; k++) {
                ((int8_t *)room)[k] = row[(uint32_t)k * in_step];
            }
            row = (const int8_t *)room;
        }
        for (output = 0; output < outputs; output += alike) {
            gemedge_dense_alike(row, zero, inputs, weights, by, output, alike,
                                (int8_t *)out + walk.at[1] + (uint32_t)output * out_step);
        }
    } while (gemedge_next(&walk, loops));
}

#endif
