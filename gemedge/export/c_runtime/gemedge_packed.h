/* Convolutions and dense layers of 8 bits by Arm's DSP instructions, two channels to a weight.

   Half a word holds 256 * odd + even, the weights of two neighbouring channels for the same input. Multiplied as it is
   it gives 256 times the odd channel's sum and the even one's; its low byte alone, sign-extended, gives the even one's.
   Their difference is below 2^31 for 512 inputs (GEMEDGE_LONGEST), for weights of -127..127 and inputs of -128..127.

   Weights lie as [4 channels, 4 inputs, word]: words of channels 0 and 1, 2 and 3 for inputs 0 and 2, then both for
   inputs 1 and 3: that is the order in which __sxtb16 unpacks four inputs. What is missing of four is 0. */

#ifndef GEMEDGE_PACKED_H
#define GEMEDGE_PACKED_H

#include <arm_acle.h>

#include "gemedge_loops.h"
#include "gemedge_rescale.h"

#define GEMEDGE_LONGEST 128 /* times four inputs */

static inline uint32_t gemedge_four(const int8_t *from) {
    uint32_t word;
    memcpy(&word, from, 4);
    return word;
}

static inline int16x2_t gemedge_even_bytes(uint32_t word) {
    return __sxtb16((int8x4_t)word);
}

static inline int16x2_t gemedge_odd_bytes(uint32_t word) {
#if defined(__GNUC__) && !defined(__clang__)
    int16x2_t odd; /* in one instruction, which gcc does not find by itself */
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(word));
    return odd;
#else
    return __sxtb16((int8x4_t)((word >> 8) | (word << 24)));
#endif
}

/* Numbers k, k + 1, ... of a window become 16-bit numbers. Two windows share columns: a word of each in turn. */
static inline int32_t gemedge_packed_widen(gemedge_int16 *columns, int32_t k, const int8_t *from, int32_t step,
                                           int32_t count) {
    static const uint8_t place[4] = {0, 4, 1, 5};
    const int32_t end = k + count;
    while (k < end) {
        if ((k & 3) == 0 && step == 1 && end - k >= 4) {
            gemedge_uint32 *to = (gemedge_uint32 *)(void *)(columns + 2 * k);
            int32_t fours = (end - k) >> 2;
            k += 4 * fours;
            do {
                const uint32_t word = gemedge_four(from);
                to[0] = (uint32_t)gemedge_even_bytes(word);
                to[2] = (uint32_t)gemedge_odd_bytes(word);
                to += 4;
                from += 4;
            } while (--fours);
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

static inline void gemedge_add(int32_t *sums, const int32_t *more) {
    sums[0] += more[0];
    sums[1] += more[1];
    sums[2] += more[2];
    sums[3] += more[3];
}

/* A word of weights, of channels 0 and 1 of a pair, times a word of inputs of each of two windows. */
#define GEMEDGE_PAIR(word, both_0, even_0, both_1, even_1)                                                             \
    do {                                                                                                               \
        const uint32_t pair = (word);                                                                                  \
        const int16x2_t even = gemedge_even_bytes(pair);                                                               \
        both_0 = __smlad((int16x2_t)pair, first, both_0);                                                              \
        both_1 = __smlad((int16x2_t)pair, second, both_1);                                                             \
        even_0 = __smlad(even, first, even_0);                                                                         \
        even_1 = __smlad(even, second, even_1);                                                                        \
    } while (0)

/* The sums of a pair of channels from both and even ones. */
static inline void gemedge_part(int32_t *sums, int32_t both, int32_t even) {
    sums[0] = even;
    sums[1] = (int32_t)((uint32_t)both - (uint32_t)even) >> 8;
}

#define GEMEDGE_FOUR(at)                                                                                               \
    do {                                                                                                               \
        int16x2_t first = (int16x2_t)column[at];                                                                       \
        int16x2_t second = (int16x2_t)column[at + 1];                                                                  \
        GEMEDGE_PAIR(weight[at], both_a, even_a, both_c, even_c);                                                      \
        GEMEDGE_PAIR(weight[at + 1], both_b, even_b, both_d, even_d);                                                  \
        first = (int16x2_t)column[at + 2];                                                                             \
        second = (int16x2_t)column[at + 3];                                                                            \
        GEMEDGE_PAIR(weight[at + 2], both_a, even_a, both_c, even_c);                                                  \
        GEMEDGE_PAIR(weight[at + 3], both_b, even_b, both_d, even_d);                                                  \
    } while (0)

/* sums[channel] and, GEMEDGE_BATCH behind, the next window's: two windows times four channels, for 1..GEMEDGE_LONGEST times four inputs. */
GEMEDGE_APART void gemedge_packed_windows(const gemedge_uint32 *column, const GEMEDGE_FLASH uint32_t *weight,
                                          int32_t fours, int32_t *sums) {
    int32_t *const others = sums + GEMEDGE_BATCH;
    const gemedge_uint32 *const end = column + 4 * fours;
    int32_t both_a = 0, even_a = 0, both_b = 0, even_b = 0; /* the first window, channels 0 and 1, 2 and 3 */
    int32_t both_c = 0, even_c = 0, both_d = 0, even_d = 0; /* the second */
    if (fours & 1) {
        GEMEDGE_FOUR(0);
        column += 4;
        weight += 4;
    }
    for (; column != end; column += 8) {
        GEMEDGE_FOUR(0);
        GEMEDGE_FOUR(4);
        weight += 8;
    }
    gemedge_part(sums, both_a, even_a);
    gemedge_part(sums + 2, both_b, even_b);
    gemedge_part(others, both_c, even_c);
    gemedge_part(others + 2, both_d, even_d);
}

#define GEMEDGE_ROW(at)                                                                                                \
    do {                                                                                                               \
        const uint32_t four = gemedge_four(row + (at));                                                                \
        const int16x2_t first = gemedge_even_bytes(four);                                                              \
        const int16x2_t second = gemedge_odd_bytes(four);                                                              \
        both_a = __smlad((int16x2_t)weight[at], first, both_a);                                                        \
        even_a = __smlad(gemedge_even_bytes(weight[at]), first, even_a);                                               \
        both_b = __smlad((int16x2_t)weight[at + 1], first, both_b);                                                    \
        even_b = __smlad(gemedge_even_bytes(weight[at + 1]), first, even_b);                                           \
        both_a = __smlad((int16x2_t)weight[at + 2], second, both_a);                                                   \
        even_a = __smlad(gemedge_even_bytes(weight[at + 2]), second, even_a);                                          \
        both_b = __smlad((int16x2_t)weight[at + 3], second, both_b);                                                   \
        even_b = __smlad(gemedge_even_bytes(weight[at + 3]), second, even_b);                                          \
    } while (0)

/* sums[channel] of one row times four channels. */
GEMEDGE_APART void gemedge_packed_row(const int8_t *row, const GEMEDGE_FLASH uint32_t *weight, int32_t fours,
                                      int32_t *sums) {
    const int8_t *const end = row + 4 * fours;
    int32_t both_a = 0, even_a = 0, both_b = 0, even_b = 0;
    if (fours & 1) {
        GEMEDGE_ROW(0);
        row += 4;
        weight += 4;
    }
    for (; row != end; row += 8) {
        GEMEDGE_ROW(0);
        GEMEDGE_ROW(4);
        weight += 8;
    }
    gemedge_part(sums, both_a, even_a);
    gemedge_part(sums + 2, both_b, even_b);
}

/* As gemedge_convolution of the other kinds; columns: room for two windows, each of a multiple of four numbers. */
static inline void gemedge_convolution_packed(const int8_t *in, int32_t zero,
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
                        gemedge_add(sums + i, more);
                        gemedge_add(sums + GEMEDGE_BATCH + i, more + GEMEDGE_BATCH);
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
static inline void gemedge_dense_packed(const int8_t *in, int32_t inputs, uint32_t in_step,
                                        const GEMEDGE_FLASH uint32_t *weights,
                                        const GEMEDGE_FLASH struct gemedge_rescaling *by, void *room, void *out,
                                        int32_t outputs, uint32_t out_step,
                                        const GEMEDGE_FLASH struct gemedge_loops *loops) {
    const int32_t whole = inputs >> 2;
    struct gemedge_places places = {0, 0, 1, 0, 0, 0};
    struct gemedge_walk walk;
    int32_t sums[GEMEDGE_BATCH], more[4];
    places.step = out_step;
    gemedge_begin(&walk);
    do {
        const GEMEDGE_FLASH uint32_t *weight = weights;
        const int8_t *row = in + walk.at[0];
        int8_t rest[4] = {0, 0, 0, 0};
        int32_t output, i, k;
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
            places.at = walk.at[1] + (size_t)output * out_step;
            for (i = 0; i < places.channels; i += 4) {
                gemedge_packed_row(row, weight, gemedge_part_of(whole), sums + i);
                for (k = GEMEDGE_LONGEST; k < whole; k += GEMEDGE_LONGEST) {
                    gemedge_packed_row(row + 4 * k, weight + 4 * k, gemedge_part_of(whole - k), more);
                    gemedge_add(sums + i, more);
                }
                if (inputs & 3) {
                    gemedge_packed_row(rest, weight + 4 * whole, 1, more);
                    gemedge_add(sums + i, more);
                }
                weight += 4 * ((inputs + 3) >> 2);
            }
            gemedge_finish_32(sums, 0, &places, by, out);
        }
    } while (gemedge_next(&walk, loops));
}

#undef GEMEDGE_PAIR
#undef GEMEDGE_FOUR
#undef GEMEDGE_ROW

#endif
