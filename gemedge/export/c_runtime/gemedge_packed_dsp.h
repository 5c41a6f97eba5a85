/* The inner loops of gemedge_packed.h by Arm's DSP instructions. */

#ifndef GEMEDGE_PACKED_DSP_H
#define GEMEDGE_PACKED_DSP_H

#include "gemedge_dsp.h"
#include "gemedge_rescale.h"

/* Four numbers of one window at a time: their words lie two apart. */
static inline void gemedge_packed_fours(gemedge_uint32 *to, const int8_t *from, int32_t fours) {
    do {
        const uint32_t word = gemedge_word(from);
        to[0] = (uint32_t)gemedge_even_bytes(word);
        to[2] = (uint32_t)gemedge_odd_bytes(word);
        to += 4;
        from += 4;
    } while (--fours);
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
        const uint32_t a = weight[at], b = weight[at + 1], c = weight[at + 2], d = weight[at + 3];                           \
        const uint32_t four = gemedge_word(row + (at));                                                                \
        const int16x2_t first = gemedge_even_bytes(four);                                                              \
        const int16x2_t second = gemedge_odd_bytes(four);                                                              \
        both_a = __smlad((int16x2_t)a, first, both_a);                                                                 \
        even_a = __smlad(gemedge_even_bytes(a), first, even_a);                                                        \
        both_b = __smlad((int16x2_t)b, first, both_b);                                                                 \
        even_b = __smlad(gemedge_even_bytes(b), first, even_b);                                                        \
        both_a = __smlad((int16x2_t)c, second, both_a);                                                                \
        even_a = __smlad(gemedge_even_bytes(c), second, even_a);                                                       \
        both_b = __smlad((int16x2_t)d, second, both_b);                                                                \
        even_b = __smlad(gemedge_even_bytes(d), second, even_b);                                                       \
    } while (0)

/* sums[channel] of one row times so many channels, for 1..GEMEDGE_LONGEST times four inputs. stride: words from the
   weights of four channels to the next. */
GEMEDGE_APART void gemedge_packed_row(const int8_t *row, const GEMEDGE_FLASH uint32_t *weights, size_t stride,
                                      int32_t fours, int32_t channels, int32_t *sums) {
    const int8_t *const end = row + 4 * fours;
    const int32_t *const last = sums + channels;
    do {
        const GEMEDGE_FLASH uint32_t *weight = weights;
        int32_t both_a = 0, even_a = 0, both_b = 0, even_b = 0, rest;
        for (rest = fours & 3; rest > 0; rest--) {
            GEMEDGE_ROW(0);
            row += 4;
            weight += 4;
        }
        for (; row != end; row += 16) {
            GEMEDGE_ROW(0);
            GEMEDGE_ROW(4);
            GEMEDGE_ROW(8);
            GEMEDGE_ROW(12);
            weight += 16;
        }
        gemedge_part(sums, both_a, even_a);
        gemedge_part(sums + 2, both_b, even_b);
        row -= 4 * fours;
        weights += stride;
        sums += 4;
    } while (sums < last);
}

#undef GEMEDGE_PAIR
#undef GEMEDGE_FOUR
#undef GEMEDGE_ROW

#endif
