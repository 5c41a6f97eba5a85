/* Operators over a window or an axis: pools, Softmax, LayerNormalization. */

#ifndef GEMEDGE_WINDOWS_H
#define GEMEDGE_WINDOWS_H

#include "gemedge_loops.h"

static inline void gemedge_max_pool(const void *in, const GEMEDGE_FLASH struct gemedge_window *window, void *out,
                                    unsigned bytes) {
    uint32_t place = 0;
    int32_t row, spot, channel, i, j;
    for (row = 0; row < window->out[0]; row++) {
        for (spot = 0; spot < window->out[1]; spot++) {
            for (channel = 0; channel < window->channels; channel++) {
                int32_t most = gemedge_lowest(bytes);
                for (i = 0; i < window->kernel[0]; i++) {
                    const int32_t y = row * window->stride[0] - window->pad[0] + i;
                    for (j = 0; j < window->kernel[1]; j++) {
                        const int32_t x = spot * window->stride[1] - window->pad[1] + j;
                        if (y >= 0 && y < window->in[0] && x >= 0 && x < window->in[1]) {
                            const uint32_t at = (uint32_t)(y * window->in[1] + x) * (uint32_t)window->channels;
                            const int32_t q = gemedge_get(in, at + (uint32_t)channel, bytes);
                            most = q > most ? q : most;
                        }
                    }
                }
                gemedge_put(out, place++, bytes, most);
            }
        }
    }
}

/* The sum of one channel's window of numbers less their zero point, and how many there are beside the padding. */
static inline int64_t gemedge_window_sum(const struct gemedge_operand *of,
                                         const GEMEDGE_FLASH struct gemedge_window *window, int32_t row, int32_t spot,
                                         int32_t channel, uint32_t *count) {
    int64_t sum = 0;
    int32_t i, j;
    *count = 0;
    for (i = 0; i < window->kernel[0]; i++) {
        const int32_t y = row * window->stride[0] - window->pad[0] + i;
        for (j = 0; j < window->kernel[1]; j++) {
            const int32_t x = spot * window->stride[1] - window->pad[1] + j;
            if (y >= 0 && y < window->in[0] && x >= 0 && x < window->in[1]) {
                const uint32_t at = (uint32_t)(y * window->in[1] + x) * (uint32_t)window->channels;
                sum += gemedge_centred(of, at + (uint32_t)channel);
                ++*count;
            }
        }
    }
    return sum;
}

/* The mean of each window. counts: 1, or how many mantissas there are, the first for windows of one number. */
static inline void gemedge_average_pool(const struct gemedge_operand *of,
                                        const GEMEDGE_FLASH struct gemedge_window *window,
                                        const GEMEDGE_FLASH int32_t *mantissa, const GEMEDGE_FLASH uint8_t *shift,
                                        uint32_t counts, void *out, struct gemedge_format format) {
    uint32_t place = 0;
    uint32_t count;
    int32_t row, spot, channel;
    for (row = 0; row < window->out[0]; row++) {
        for (spot = 0; spot < window->out[1]; spot++) {
            for (channel = 0; channel < window->channels; channel++) {
                const int64_t sum = gemedge_window_sum(of, window, row, spot, channel, &count);
                const uint32_t which = counts > 1u && count > 0u ? count - 1u : 0u;
                gemedge_store(out, place++, format, gemedge_once(sum, mantissa[which], shift[which]));
            }
        }
    }
}

/* The mean of each window's integers as they are, ties away from zero. of's format has zero 0. */
static inline void gemedge_raw_average_pool(const struct gemedge_operand *of,
                                            const GEMEDGE_FLASH struct gemedge_window *window, void *out) {
    uint32_t place = 0;
    uint32_t count;
    int32_t row, spot, channel;
    for (row = 0; row < window->out[0]; row++) {
        for (spot = 0; spot < window->out[1]; spot++) {
            for (channel = 0; channel < window->channels; channel++) {
                const int64_t sum = gemedge_window_sum(of, window, row, spot, channel, &count);
                const uint64_t size = (uint64_t)(sum < 0 ? -sum : sum) + (count >> 1);
                const int32_t mean = count ? (int32_t)gemedge_quotient(size, count, 17) : 0;
                gemedge_put(out, place++, of->format.bytes, sum < 0 ? -mean : mean);
            }
        }
    }
}

/* The tables of e = coarse[d >> 8] * fine[d & 255] * 2^-shift, rounded; coarse may be one number. */
struct gemedge_exponential {
    const GEMEDGE_FLASH uint32_t *fine;
    const GEMEDGE_FLASH uint32_t *coarse;
    uint8_t shift;
    int32_t one;
};

static inline uint64_t gemedge_share(const GEMEDGE_FLASH struct gemedge_exponential *by, uint32_t below) {
    const uint64_t product = (uint64_t)by->coarse[below >> 8] * by->fine[below & 255u];
    return (product + (((uint64_t)1 << by->shift) >> 1)) >> by->shift;
}

/* floor(e * one / sum(e) + 1/2) along rows of size numbers; the loops are over rows of in, out and mask (or NULL).
   step: from number to number in each. The quotient is at most one <= 2^15: 16 bits by subtraction. */
static inline void gemedge_softmax(const void *in, unsigned bytes, const GEMEDGE_FLASH int8_t *mask,
                                   const GEMEDGE_FLASH struct gemedge_exponential *by, uint32_t size,
                                   const GEMEDGE_FLASH uint32_t *step, void *out, struct gemedge_format format,
                                   const GEMEDGE_FLASH struct gemedge_loops *loops) {
    struct gemedge_walk walk;
    uint32_t i;
    gemedge_begin(&walk);
    do {
        int32_t top = gemedge_lowest(bytes);
        uint64_t total = 0;
        for (i = 0; i < size; i++) {
            const int32_t q = gemedge_get(in, walk.at[0] + i * step[0], bytes);
            if (q > top && (!mask || mask[walk.at[2] + i * step[2]])) {
                top = q;
            }
        }
        for (i = 0; i < size; i++) {
            if (!mask || mask[walk.at[2] + i * step[2]]) {
                const int32_t q = gemedge_get(in, walk.at[0] + i * step[0], bytes);
                total += gemedge_share(by, (uint32_t)(top - q));
            }
        }
        for (i = 0; i < size; i++) {
            uint64_t share = 0;
            if (!mask || mask[walk.at[2] + i * step[2]]) {
                const int32_t q = gemedge_get(in, walk.at[0] + i * step[0], bytes);
                const uint64_t e = gemedge_share(by, (uint32_t)(top - q));
                share = gemedge_quotient(2u * e * (uint32_t)by->one + total, 2u * total, 16);
            }
            gemedge_store(out, walk.at[1] + i * step[1], format, (int64_t)share);
        }
    } while (gemedge_next(&walk, loops));
}

/* (N q - sum) / sqrt(N sum of squares - sum^2 + epsilon) along rows of N numbers, with 20 fraction bits, then times
   mantissa plus bias, rescaled. One root and one quotient a row, both by subtraction; docs/numerics.md has the widths. */
static inline void gemedge_layer_normalization(const void *in, unsigned bytes, int64_t epsilon,
                                               const GEMEDGE_FLASH int32_t *mantissa, const GEMEDGE_FLASH int64_t *bias,
                                               unsigned shift, uint32_t size, const GEMEDGE_FLASH uint32_t *step,
                                               void *out, struct gemedge_format format,
                                               const GEMEDGE_FLASH struct gemedge_loops *loops) {
    struct gemedge_walk walk;
    uint32_t i;
    gemedge_begin(&walk);
    do {
        int64_t total = 0;
        int64_t squares = 0;
        int64_t spread, inverse;
        int32_t up, down;
        for (i = 0; i < size; i++) {
            const int64_t q = gemedge_get(in, walk.at[0] + i * step[0], bytes);
            total += q;
            squares += q * q;
        }
        spread = (int64_t)size * squares - total * total + epsilon;
        up = (62 - gemedge_bit_length((uint64_t)spread)) >> 1;
        inverse = (int64_t)gemedge_quotient((uint64_t)1 << 61, gemedge_root((uint64_t)spread << (2 * up)), 32);
        down = 41 - up;
        for (i = 0; i < size; i++) {
            const int64_t q = gemedge_get(in, walk.at[0] + i * step[0], bytes);
            const int64_t gap = (int64_t)size * q - total;
            const int64_t norm = (gap * inverse + ((int64_t)1 << (down - 1))) >> down;
            const int64_t half = ((int64_t)1 << shift) >> 1;
            gemedge_store(out, walk.at[1] + i * step[1], format, (norm * mantissa[i] + bias[i] + half) >> shift);
        }
    } while (gemedge_next(&walk, loops));
}

#endif
