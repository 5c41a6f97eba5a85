/* Convolutions and dense layers of 8 bits, two channels to a weight, for CPUs that multiply pairs of 16-bit numbers.

   Half a word holds 256 * odd + even, the weights of two neighbouring channels for the same input. Multiplied as it is
   it gives 256 times the odd channel's sum and the even one's; its low byte alone, sign-extended, gives the even one's.
   Their difference is below 2^31 for 512 inputs (GEMEDGE_LONGEST), for weights of -127..127 and inputs of -128..127.

   Weights lie as [4 channels, 4 inputs, word]: words of channels 0 and 1, 2 and 3 for inputs 0 and 2, then both for
   inputs 1 and 3: that is the order in which Arm's SXTB16 unpacks four inputs. What is missing of four is 0. */

#ifndef GEMEDGE_PACKED_H
#define GEMEDGE_PACKED_H

#include "gemedge_loops.h"
#if defined(__ARM_FEATURE_DSP)
#include "gemedge_packed_dsp.h"
#else
#include "gemedge_packed_x86.h"
#endif

#define GEMEDGE_LONGEST 128 /* times four inputs */

/* Numbers k, k + 1, ... of a window become 16-bit numbers. Two windows share columns: a word of each in turn. */
static inline int32_t gemedge_packed_widen(gemedge_int16 *columns, int32_t k, const int8_t *from, int32_t step,
                                           int32_t count) {
    static const uint8_t place[4] = {0, 4, 1, 5};
    const int32_t end = k + count;
    while (k < end) {
        if ((k & 3) == 0 && step == 1 && end - k >= 4) {
            const int32_t fours = (end - k) >> 2;
            gemedge_packed_fours((gemedge_uint32 *)(void *)(columns + 2 * k), from, fours);
            k += 4 * fours;
            from += 4 * fours;
        } else {
            columns[2 * (k & ~3) + place[k & 3]] = *from;
            from += step;
            k++;
        }
    }
    return k;
}

static inline void gemedge_packed_column(gemedge_int16 *columns, const int8_t *in, int8_t zero,
                                         const GEMEDGE_FLASH struct gemedge_window *window, int32_t group_in,
                                         struct gemedge_spot spot) {
    const int32_t top = spot.row * window->stride[0] - window->pad[0];
    const int32_t left = spot.place * window->stride[1] - window->pad[1];
    const int32_t width = window->kernel[1];
    const int32_t channels = window->channels;
    const int side_by_side = window->dilation[1] == 1 && group_in == channels && left >= 0 && left + width <= window->in[1];
    int32_t i, j, k = 0;
    for (i = 0; i < window->kernel[0]; i++) {
        const int32_t y = top + i * window->dilation[0];
        const int8_t *row = in + y * window->in[1] * channels;
        if (y < 0 || y >= window->in[0]) {
            k = gemedge_packed_widen(columns, k, &zero, 0, width * group_in);
        } else if (side_by_side) {
            k = gemedge_packed_widen(columns, k, row + left * channels, 1, width * group_in);
        } else {
            for (j = 0; j < width; j++) {
                const int32_t x = left + j * window->dilation[1];
                const int inside = x >= 0 && x < window->in[1];
                k = gemedge_packed_widen(columns, k, inside ? row + x * channels : &zero, inside, group_in);
            }
        }
    }
}

static inline int32_t gemedge_part_of(int32_t fours) {
    return fours < GEMEDGE_LONGEST ? fours : GEMEDGE_LONGEST;
}

static inline void gemedge_add(int32_t *sums, const int32_t *more, int32_t channels) {
    int32_t i;
    for (i = 0; i < channels; i++) {
        sums[i] += more[i];
    }
}

/* As gemedge_convolution of the other kinds; columns: room for two windows, each of a multiple of four numbers. */
GEMEDGE_APART void gemedge_convolution_packed(const int8_t *in, int32_t zero,
                                              const GEMEDGE_FLASH struct gemedge_window *window, int32_t groups,
                                              int32_t group_in, int32_t group_out,
                                              const GEMEDGE_FLASH uint32_t *weights,
                                              const GEMEDGE_FLASH struct gemedge_rescaling *by, gemedge_int16 *columns,
                                              void *out) {
    const int32_t fours = (window->kernel[0] * window->kernel[1] * group_in + 3) >> 2;
    const int32_t last = window->out[0] * window->out[1];
    const size_t outputs = (size_t)(groups * group_out);
    struct gemedge_places places = {0, 0, 0, 0, 1, 0};
    struct gemedge_spot at = {0, 0};
    const gemedge_uint32 *const column = (const gemedge_uint32 *)(void *)columns;
    int32_t spot, group, channel, i, k;
    int32_t sums[2 * GEMEDGE_BATCH], more[GEMEDGE_BATCH + 4];
    places.next = outputs;
    for (spot = 0; spot < last; spot += 2) {
        const struct gemedge_spot next = gemedge_next_spot(window, at);
        const GEMEDGE_FLASH uint32_t *weight = weights;
        places.windows = last - spot > 1 ? 2 : 1;
        for (group = 0; group < groups; group++) {
            gemedge_packed_column(columns, in + group * group_in, (int8_t)zero, window, group_in, at);
            if (places.windows > 1) {
                gemedge_packed_column(columns + 2, in + group * group_in, (int8_t)zero, window, group_in, next);
            }
            for (channel = 0; channel < group_out; channel += GEMEDGE_BATCH) {
                const int32_t rest = group_out - channel;
                places.first = group * group_out + channel;
                places.channels = rest < GEMEDGE_BATCH ? rest : GEMEDGE_BATCH;
                places.at = (size_t)spot * outputs + (size_t)places.first;
                for (i = 0; i < places.channels; i += 4) {
                    gemedge_packed_windows(column, weight, gemedge_part_of(fours), sums + i);
                    for (k = GEMEDGE_LONGEST; k < fours; k += GEMEDGE_LONGEST) {
                        gemedge_packed_windows(column + 4 * k, weight + 4 * k, gemedge_part_of(fours - k), more);
                        gemedge_add(sums + i, more, 4);
                        gemedge_add(sums + GEMEDGE_BATCH + i, more + GEMEDGE_BATCH, 4);
                    }
                    weight += 4 * fours;
                }
                gemedge_finish_32(sums, GEMEDGE_BATCH, &places, by, out);
            }
        }
        at = gemedge_next_spot(window, next);
    }
}

/* As gemedge_dense of the other kinds. */
GEMEDGE_APART void gemedge_dense_packed(const int8_t *in, int32_t inputs, uint32_t in_step,
                                        const GEMEDGE_FLASH uint32_t *weights,
                                        const GEMEDGE_FLASH struct gemedge_rescaling *by, void *room, void *out,
                                        int32_t outputs, uint32_t out_step,
                                        const GEMEDGE_FLASH struct gemedge_loops *loops) {
    const int32_t whole = inputs >> 2;
    const size_t stride = (size_t)((inputs + 3) & ~3);
    struct gemedge_places places = {0, 0, 1, 0, 0, 0};
    struct gemedge_walk walk;
    int32_t sums[GEMEDGE_BATCH], more[GEMEDGE_BATCH];
    places.step = (size_t)out_step;
    gemedge_begin(&walk);
    do {
        const GEMEDGE_FLASH uint32_t *weight = weights;
        const int8_t *row = in + walk.at[0];
        int8_t rest[4] = {0, 0, 0, 0};
        int32_t output, k;
        if (in_step != 1u) {
            for (k = 0; k < inputs; k++) {
                ((int8_t *)room)[k] = row[(uint32_t)k * in_step];
            }
            row = (const int8_t *)room;
        }
        for (k = 4 * whole; k < inputs; k++) {
            rest[k & 3] = row[k];
        }
        for (output = 0; output < outputs; output += GEMEDGE_BATCH) {
            const int32_t left = outputs - output;
            places.first = output;
            places.channels = left < GEMEDGE_BATCH ? left : GEMEDGE_BATCH;
            places.at = (size_t)(walk.at[1] + (uint32_t)output * out_step);
            if (whole) {
                gemedge_packed_row(row, weight, stride, gemedge_part_of(whole), places.channels, sums);
            } else {
                memset(sums, 0, sizeof sums);
            }
            for (k = GEMEDGE_LONGEST; k < whole; k += GEMEDGE_LONGEST) {
                gemedge_packed_row(row + 4 * k, weight + 4 * k, stride, gemedge_part_of(whole - k), places.channels, more);
                gemedge_add(sums, more, places.channels);
            }
            if (inputs & 3) {
                gemedge_packed_row(rest, weight + 4 * whole, stride, 1, places.channels, more);
                gemedge_add(sums, more, places.channels);
            }
            weight += stride * (GEMEDGE_BATCH >> 2);
            gemedge_finish_32(sums, 0, &places, by, out);
        }
    } while (gemedge_next(&walk, loops));
}

#endif
