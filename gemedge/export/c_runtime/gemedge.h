/* The integer operators of gemedge, in portable C99: no memory but the caller's, no float, no division, no recursion.

   Every function gives the same integers as gemedge.quant.evaluate (tests/test_to_c.py compares each layer).
   A tensor lies in memory in an order that the generator chose; channels come last where a convolution or a pool
   reads or makes it. Which addresses a loop visits is therefore told by constants, never found here.
   That no sum overflows was proven when the model was made: the widths below rest on that proof. */

#ifndef GEMEDGE_H
#define GEMEDGE_H

#include <stdint.h>
#include <string.h>

#define GEMEDGE_OK 0
#define GEMEDGE_ARENA_TOO_SMALL 1
#define GEMEDGE_ARENA_MISALIGNED 2
#define GEMEDGE_NULL_POINTER 3
#define GEMEDGE_INDEX_OUTSIDE 4 /* an input index that is not a row of its table */

/* How an accumulator is rescaled: once, floor(v + 1/2), or by gemmlowp's two roundings. */
#define GEMEDGE_SINGLE 0
#define GEMEDGE_DOUBLE 1

#define GEMEDGE_MOST_AXES 8
#define GEMEDGE_MOST_OPERANDS 8

/* C leaves the right shift of a negative number to the compiler; all that we know of shift in copies of the sign. */
typedef char gemedge_right_shifts_are_arithmetic[((int64_t)-1 >> 1) == -1 && ((int32_t)-1 >> 1) == -1 ? 1 : -1];

/* The arena holds bytes, shorts and words one after another in the same place. */
#if defined(__GNUC__)
typedef int16_t __attribute__((__may_alias__)) gemedge_int16;
typedef int32_t __attribute__((__may_alias__)) gemedge_int32;
#else
typedef int16_t gemedge_int16;
typedef int32_t gemedge_int32;
#endif

/* 1. Numbers */

/* How a tensor's integers are kept: bytes is 1 or 2 (4 for indices), zero the integer that stands for 0. */
struct gemedge_format {
    uint8_t bytes;
    int16_t zero;
};

static inline int32_t gemedge_get(const void *data, uint32_t index, unsigned bytes) {
    if (bytes == 1u) {
        return ((const int8_t *)data)[index];
    }
    return bytes == 2u ? (int32_t)((const gemedge_int16 *)data)[index] : ((const gemedge_int32 *)data)[index];
}

static inline void gemedge_put(void *data, uint32_t index, unsigned bytes, int32_t value) {
    if (bytes == 1u) {
        ((int8_t *)data)[index] = (int8_t)value;
    } else if (bytes == 2u) {
        ((gemedge_int16 *)data)[index] = (int16_t)value;
    } else {
        ((gemedge_int32 *)data)[index] = value;
    }
}

/* The lowest integer of so many bytes, 1 or 2. */
static inline int32_t gemedge_lowest(unsigned bytes) {
    return bytes == 1u ? -128 : -(int32_t)32767 - 1;
}

/* value + zero, saturated to the format; |value| < 2^62. */
static inline void gemedge_store(void *data, uint32_t index, struct gemedge_format format, int64_t value) {
    const int32_t low = gemedge_lowest(format.bytes);
    const int32_t high = -1 - low;
    const int64_t shifted = value + format.zero;
    gemedge_put(data, index, format.bytes, shifted < low ? low : shifted > high ? high : (int32_t)shifted);
}

/* floor(sum * mantissa * 2^-shift + 1/2); |sum * mantissa| < 2^62, shift is 0..62. */
static inline int64_t gemedge_once(int64_t sum, int32_t mantissa, unsigned shift) {
    return (sum * mantissa + (((int64_t)1 << shift) >> 1)) >> shift;
}

/* gemmlowp: sum * 2^(31 - shift) where that is up, its doubling high product, and the rest of the shift with ties
   away from zero. |sum * 2^(31 - shift)| < 2^31, mantissa is 0..2^31 - 1, shift 0..62. */
static inline int64_t gemedge_twice(int64_t sum, int32_t mantissa, unsigned shift) {
    const unsigned up = shift < 31u ? 31u - shift : 0u;
    const unsigned down = shift > 31u ? shift - 31u : 0u;
    const int64_t half = ((int64_t)1 << down) >> 1;
    const int64_t high = (sum * ((int64_t)1 << up) * mantissa + ((int64_t)1 << 30)) >> 31;
    return high < 0 ? -((half - high) >> down) : (high + half) >> down;
}

static inline int64_t gemedge_rescale(int64_t sum, int32_t mantissa, unsigned shift, unsigned law) {
    return law == GEMEDGE_DOUBLE ? gemedge_twice(sum, mantissa, shift) : gemedge_once(sum, mantissa, shift);
}

/* value * 2^-shift rounded down, for any shift from 0 on: beyond 63 only the sign is left. */
static inline int64_t gemedge_down(int64_t value, int32_t shift) {
    return value >> (shift > 63 ? 63 : shift);
}

/* The number of bits of value: 0 for 0. */
static inline int32_t gemedge_bit_length(uint64_t value) {
    int32_t bits = 0;
    int32_t step;
    for (step = 32; step > 0; step >>= 1) {
        if (value >> step) {
            value >>= step;
            bits += step;
        }
    }
    return bits + (value ? 1 : 0);
}

/* The quotient rounded down, bit by bit; it must be below 2^bits, and divisor * 2^(bits - 1) below 2^64. */
static inline uint64_t gemedge_quotient(uint64_t number, uint64_t divisor, unsigned bits) {
    uint64_t quotient = 0;
    uint64_t part = divisor << (bits - 1u);
    unsigned bit;
    for (bit = 0; bit < bits; bit++) {
        quotient <<= 1;
        if (number >= part) {
            number -= part;
            quotient |= 1u;
        }
        part >>= 1;
    }
    return quotient;
}

/* The square root of value < 2^62, rounded down, bit by bit. */
static inline uint64_t gemedge_root(uint64_t value) {
    uint64_t root = 0;
    uint64_t bit = (uint64_t)1 << 60;
    for (; bit; bit >>= 2) {
        const uint64_t trial = root + bit;
        root >>= 1;
        if (value >= trial) {
            value -= trial;
            root += bit;
        }
    }
    return root;
}

/* 2. Loops over tensors in memory */

/* Loops of size[0] by size[1] ... by size[rank - 1], the last one inside. Each operand moves by step[operand * rank +
   axis] elements. */
struct gemedge_loops {
    uint8_t rank;
    uint8_t operands;
    const uint32_t *size;
    const uint32_t *step;
};

/* Where the loops stand: the element at which each operand's inner loop begins. */
struct gemedge_walk {
    uint32_t count[GEMEDGE_MOST_AXES];
    uint32_t at[GEMEDGE_MOST_OPERANDS];
};

static inline void gemedge_begin(struct gemedge_walk *walk) {
    memset(walk, 0, sizeof *walk);
}

static inline uint32_t gemedge_inner_size(const struct gemedge_loops *loops) {
    return loops->size[loops->rank - 1];
}

static inline uint32_t gemedge_inner_step(const struct gemedge_loops *loops, unsigned operand) {
    return loops->step[(operand + 1u) * loops->rank - 1u];
}

/* Goes on to the next inner loop; 0 where there is none. */
static inline int gemedge_next(struct gemedge_walk *walk, const struct gemedge_loops *loops) {
    unsigned axis = loops->rank - 1u;
    while (axis > 0u) {
        unsigned operand;
        uint32_t size;
        axis--;
        size = loops->size[axis];
        walk->count[axis]++;
        for (operand = 0; operand < loops->operands; operand++) {
            const uint32_t step = loops->step[operand * loops->rank + axis];
            walk->at[operand] += walk->count[axis] < size ? step : (uint32_t)0 - step * (size - 1u);
        }
        if (walk->count[axis] < size) {
            return 1;
        }
        walk->count[axis] = 0;
    }
    return 0;
}

/* 3. Sums of products */

/* A window over an input of in[0] rows of in[1] spots (one row where there is but one axis), channels last. */
struct gemedge_window {
    int32_t in[2], out[2], kernel[2], stride[2], pad[2], dilation[2], channels;
};

/* Weights, a bias and a rescaling for each output channel. Weights lie as [channel, *kernel, input of the group]; of
   a depthwise convolution as [*kernel, channel]; of a dense layer as [output, input]. */
#define GEMEDGE_DEFINE_SUMS(suffix, input_type, weight_type, sum_type)                                                 \
    struct gemedge_weights_##suffix {                                                                                  \
        const weight_type *weight;                                                                                     \
        const sum_type *bias;                                                                                          \
        const int32_t *mantissa;                                                                                       \
        const uint8_t *shift;                                                                                          \
        uint8_t law;                                                                                                   \
    };                                                                                                                 \
                                                                                                                       \
    static inline void gemedge_convolution_##suffix(const input_type *in, int32_t zero,                                \
                                                    const struct gemedge_window *window, int32_t groups,               \
                                                    int32_t group_in, int32_t group_out,                               \
                                                    const struct gemedge_weights_##suffix *by, void *out,              \
                                                    struct gemedge_format format) {                                    \
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
                        const weight_type *weight = by->weight + (size_t)channel * (size_t)(window->kernel[0] * taps); \
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
                                                  const struct gemedge_window *window,                                 \
                                                  const struct gemedge_weights_##suffix *by, void *out,                \
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
                    const weight_type *weight = by->weight + channel;                                                  \
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
                                              const struct gemedge_weights_##suffix *by, void *out,                    \
                                              struct gemedge_format format, uint32_t outputs, uint32_t out_step,       \
                                              const struct gemedge_loops *loops) {                                     \
        struct gemedge_walk walk;                                                                                      \
        gemedge_begin(&walk);                                                                                          \
        do {                                                                                                           \
            const input_type *row = in + walk.at[0];                                                                   \
            const weight_type *weight = by->weight;                                                                    \
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

/* One input of an operator that has several, with what it is multiplied by. */
struct gemedge_operand {
    const void *data;
    struct gemedge_format format;
    int32_t mantissa;
    uint8_t shift;
};

/* The number at this place, less the zero point. */
static inline int32_t gemedge_centred(const struct gemedge_operand *of, uint32_t index) {
    return gemedge_get(of->data, index, of->format.bytes) - of->format.zero;
}

/* [rows, depth] times [depth, columns]; step: along a row and a column of left, of right and of out. The loops are
   over matrices. */
static inline void gemedge_matrix_multiply(const struct gemedge_operand *of, const uint32_t *size, const uint32_t *step,
                                           int32_t mantissa, unsigned shift, unsigned law, void *out,
                                           struct gemedge_format format, const struct gemedge_loops *loops) {
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

/* 4. One number at a time */

/* table[q + 128] for each 8-bit q, as a table of 8- or 16-bit numbers. */
static inline void gemedge_lookup(const void *in, const void *table, void *out, unsigned bytes, uint32_t count) {
    uint32_t i;
    for (i = 0; i < count; i++) {
        const int32_t q = gemedge_get(in, i, 1);
        gemedge_put(out, i, bytes, gemedge_get(table, (uint32_t)(q + 128), bytes));
    }
}

/* 513 entries for -32768, -32640, ... 32768, linear between them: a + ((b - a) f + 64 >> 7). */
static inline void gemedge_interpolate(const void *in, const void *table, void *out, unsigned bytes, uint32_t count) {
    uint32_t i;
    for (i = 0; i < count; i++) {
        const uint32_t position = (uint32_t)(gemedge_get(in, i, 2) + 32768);
        const int32_t low = gemedge_get(table, position >> 7, bytes);
        const int32_t rise = gemedge_get(table, (position >> 7) + 1u, bytes) - low;
        gemedge_put(out, i, bytes, low + ((rise * (int32_t)(position & 127u) + 64) >> 7));
    }
}

static inline void gemedge_clamp(const void *in, void *out, unsigned bytes, int32_t low, int32_t high, uint32_t count) {
    uint32_t i;
    for (i = 0; i < count; i++) {
        const int32_t q = gemedge_get(in, i, bytes);
        gemedge_put(out, i, bytes, q < low ? low : q > high ? high : q);
    }
}

/* The sum of operands, each times its own mantissa, rescaled by one shift. The last operand of the loops is out. */
static inline void gemedge_combine(const struct gemedge_operand *of, unsigned count, unsigned shift, void *out,
                                   struct gemedge_format format, const struct gemedge_loops *loops) {
    struct gemedge_walk walk;
    uint32_t i;
    unsigned operand;
    gemedge_begin(&walk);
    do {
        for (i = 0; i < gemedge_inner_size(loops); i++) {
            int64_t sum = ((int64_t)1 << shift) >> 1;
            for (operand = 0; operand < count; operand++) {
                const uint32_t at = walk.at[operand] + i * gemedge_inner_step(loops, operand);
                sum += (int64_t)gemedge_centred(&of[operand], at) * of[operand].mantissa;
            }
            gemedge_store(out, walk.at[count] + i * gemedge_inner_step(loops, count), format, sum >> shift);
        }
    } while (gemedge_next(&walk, loops));
}

/* Two operands times 2^left, rescaled twice each, a negative mantissa subtracting; their sum, rescaled twice. */
static inline void gemedge_gemmlowp_sum(const struct gemedge_operand *of, unsigned left, int32_t mantissa,
                                        unsigned shift, void *out, struct gemedge_format format,
                                        const struct gemedge_loops *loops) {
    struct gemedge_walk walk;
    uint32_t i;
    unsigned operand;
    gemedge_begin(&walk);
    do {
        for (i = 0; i < gemedge_inner_size(loops); i++) {
            int64_t sum = 0;
            for (operand = 0; operand < 2u; operand++) {
                const uint32_t at = walk.at[operand] + i * gemedge_inner_step(loops, operand);
                const int32_t by = of[operand].mantissa;
                const int64_t wide = gemedge_centred(&of[operand], at) * ((int64_t)1 << left);
                const int64_t part = gemedge_twice(wide, by < 0 ? -by : by, of[operand].shift);
                sum += by < 0 ? -part : part;
            }
            gemedge_store(out, walk.at[2] + i * gemedge_inner_step(loops, 2), format,
                          gemedge_twice(sum, mantissa, shift));
        }
    } while (gemedge_next(&walk, loops));
}

static inline void gemedge_multiply(const struct gemedge_operand *of, int32_t mantissa, unsigned shift, unsigned law,
                                    void *out, struct gemedge_format format, const struct gemedge_loops *loops) {
    struct gemedge_walk walk;
    uint32_t i;
    gemedge_begin(&walk);
    do {
        for (i = 0; i < gemedge_inner_size(loops); i++) {
            const int32_t left = gemedge_centred(&of[0], walk.at[0] + i * gemedge_inner_step(loops, 0));
            const int32_t right = gemedge_centred(&of[1], walk.at[1] + i * gemedge_inner_step(loops, 1));
            gemedge_store(out, walk.at[2] + i * gemedge_inner_step(loops, 2), format,
                          gemedge_rescale((int64_t)left * right, mantissa, shift, law));
        }
    } while (gemedge_next(&walk, loops));
}

/* The first operand where the third, a condition of bytes, is 1, and the second where it is 0; each rescaled. */
static inline void gemedge_choose(const struct gemedge_operand *of, unsigned law, void *out,
                                  struct gemedge_format format, const struct gemedge_loops *loops) {
    struct gemedge_walk walk;
    uint32_t i;
    gemedge_begin(&walk);
    do {
        for (i = 0; i < gemedge_inner_size(loops); i++) {
            const int32_t holds = gemedge_get(of[2].data, walk.at[2] + i * gemedge_inner_step(loops, 2), 1);
            const unsigned chosen = holds ? 0u : 1u;
            const uint32_t at = walk.at[chosen] + i * gemedge_inner_step(loops, chosen);
            gemedge_store(out, walk.at[3] + i * gemedge_inner_step(loops, 3), format,
                          gemedge_rescale(gemedge_centred(&of[chosen], at), of[chosen].mantissa, of[chosen].shift, law));
        }
    } while (gemedge_next(&walk, loops));
}

/* One operand rescaled into its part of a concatenation. */
static inline void gemedge_rescaled(const struct gemedge_operand *of, unsigned law, void *out,
                                    struct gemedge_format format, const struct gemedge_loops *loops) {
    struct gemedge_walk walk;
    uint32_t i;
    gemedge_begin(&walk);
    do {
        for (i = 0; i < gemedge_inner_size(loops); i++) {
            const int32_t x = gemedge_centred(of, walk.at[0] + i * gemedge_inner_step(loops, 0));
            gemedge_store(out, walk.at[1] + i * gemedge_inner_step(loops, 1), format,
                          gemedge_rescale(x, of->mantissa, of->shift, law));
        }
    } while (gemedge_next(&walk, loops));
}

/* 5. Windows and axes */

static inline void gemedge_max_pool(const void *in, const struct gemedge_window *window, void *out, unsigned bytes) {
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
static inline int64_t gemedge_window_sum(const struct gemedge_operand *of, const struct gemedge_window *window,
                                         int32_t row, int32_t spot, int32_t channel, uint32_t *count) {
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
static inline void gemedge_average_pool(const struct gemedge_operand *of, const struct gemedge_window *window,
                                        const int32_t *mantissa, const uint8_t *shift, uint32_t counts, void *out,
                                        struct gemedge_format format) {
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
static inline void gemedge_raw_average_pool(const struct gemedge_operand *of, const struct gemedge_window *window,
                                            void *out) {
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
    const uint32_t *fine;
    const uint32_t *coarse;
    uint8_t shift;
    int32_t one;
};

static inline uint64_t gemedge_share(const struct gemedge_exponential *by, uint32_t below) {
    const uint64_t product = (uint64_t)by->coarse[below >> 8] * by->fine[below & 255u];
    return (product + (((uint64_t)1 << by->shift) >> 1)) >> by->shift;
}

/* floor(e * one / sum(e) + 1/2) along rows of size numbers; the loops are over rows of in, out and mask (or NULL).
   step: from number to number in each. The quotient is at most one <= 2^15: 16 bits by subtraction. */
static inline void gemedge_softmax(const void *in, unsigned bytes, const int8_t *mask,
                                   const struct gemedge_exponential *by, uint32_t size, const uint32_t *step, void *out,
                                   struct gemedge_format format, const struct gemedge_loops *loops) {
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
static inline void gemedge_layer_normalization(const void *in, unsigned bytes, int64_t epsilon, const int32_t *mantissa,
                                               const int64_t *bias, unsigned shift, uint32_t size, const uint32_t *step,
                                               void *out, struct gemedge_format format,
                                               const struct gemedge_loops *loops) {
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

/* 6. Integers moved */

/* Operand 0 of the loops to operand 1. */
static inline void gemedge_copy(const void *in, void *out, unsigned bytes, const struct gemedge_loops *loops) {
    struct gemedge_walk walk;
    uint32_t i;
    gemedge_begin(&walk);
    do {
        for (i = 0; i < gemedge_inner_size(loops); i++) {
            gemedge_put(out, walk.at[1] + i * gemedge_inner_step(loops, 1), bytes,
                        gemedge_get(in, walk.at[0] + i * gemedge_inner_step(loops, 0), bytes));
        }
    } while (gemedge_next(&walk, loops));
}

/* As many numbers in the order of one set of loops to that of another: a Reshape between two layouts. */
static inline void gemedge_reorder(const void *in, const struct gemedge_loops *from, void *out,
                                   const struct gemedge_loops *to, unsigned bytes) {
    struct gemedge_walk source, target;
    gemedge_begin(&source);
    gemedge_begin(&target);
    do {
        gemedge_put(out, target.at[0], bytes, gemedge_get(in, source.at[0], bytes));
    } while (gemedge_next(&source, from) && gemedge_next(&target, to));
}

/* The parts at these places of the middle axis of [outer, axis, inner]. */
static inline void gemedge_take(const void *in, const uint32_t *places, uint32_t count, uint32_t axis, uint32_t outer,
                                uint32_t inner, void *out, unsigned bytes) {
    const uint32_t size = inner * bytes;
    uint8_t *to = (uint8_t *)out;
    uint32_t i, j;
    for (i = 0; i < outer; i++) {
        for (j = 0; j < count; j++) {
            memcpy(to, (const uint8_t *)in + (i * axis + places[j]) * size, (size_t)size);
            to += size;
        }
    }
}

static inline void gemedge_fill(void *out, unsigned bytes, int32_t value, uint32_t count) {
    uint32_t i;
    for (i = 0; i < count; i++) {
        gemedge_put(out, i, bytes, value);
    }
}

/* Row `index` of a table [rows, size] for each index; the loops are over the indices, and GEMEDGE_INDEX_OUTSIDE stops
   them. */
static inline int gemedge_embed(const void *in, unsigned in_bytes, const void *table, int32_t rows, uint32_t size,
                                uint32_t out_step, void *out, unsigned bytes, const struct gemedge_loops *loops) {
    struct gemedge_walk walk;
    uint32_t i;
    gemedge_begin(&walk);
    do {
        const int32_t index = gemedge_get(in, walk.at[0], in_bytes);
        if (index < 0 || index >= rows) {
            return GEMEDGE_INDEX_OUTSIDE;
        }
        for (i = 0; i < size; i++) {
            gemedge_put(out, walk.at[1] + i * out_step, bytes, gemedge_get(table, (uint32_t)index * size + i, bytes));
        }
    } while (gemedge_next(&walk, loops));
    return GEMEDGE_OK;
}

/* 7. Rational activations of 16-bit numbers: gemedge.rational, line by line. Widths are proven there. */

struct gemedge_term {
    int64_t mantissa; /* 0, or 44 bits */
    int16_t exponent;
};

/* The sum of mantissa * 2^exponent * u^power, lowest power first; no terms: not there. */
struct gemedge_polynomial {
    const struct gemedge_term *term;
    uint8_t terms;
};

/* affine(u) + (plus - minus) / (above - below) for start <= u < stop; affine_bits is 16, or 32 to 61. */
struct gemedge_piece {
    int32_t start, stop;
    int64_t slope, offset;
    uint8_t affine_bits;
    struct gemedge_polynomial plus, minus, above, below;
};

/* One sign of x: head before the pieces, tail from stop on. */
struct gemedge_side {
    int32_t stop;
    int16_t head, tail;
    const struct gemedge_piece *piece;
    uint8_t pieces;
};

struct gemedge_exception {
    int16_t code, value;
};

struct gemedge_kernel {
    struct gemedge_side negative, positive;
    const struct gemedge_exception *exception;
    uint8_t exceptions;
};

struct gemedge_scaled {
    int64_t mantissa;
    int32_t exponent;
};

/* 2^16 / x, rounded, for the middles x of 64 intervals that cover [1, 2): gemedge.rational.RECIPROCALS. */
static const uint16_t gemedge_reciprocals[64] = {
    65028, 64035, 63072, 62138, 61231, 60350, 59494, 58662, 57852, 57065, 56299, 55554, 54828, 54120, 53431, 52759,
    52103, 51464, 50840, 50231, 49637, 49056, 48489, 47935, 47393, 46864, 46346, 45839, 45344, 44859, 44384, 43919,
    43464, 43019, 42582, 42154, 41734, 41323, 40920, 40525, 40137, 39756, 39383, 39017, 38657, 38304, 37958, 37617,
    37283, 36954, 36631, 36314, 36003, 35696, 35395, 35099, 34808, 34521, 34239, 33962, 33689, 33421, 33157, 32897};

/* 2^63 / (den >> 12) to a relative 2^-20.7, for den in [2^43, 2^44). */
static inline int64_t gemedge_reciprocal(int64_t den) {
    const int64_t d = den >> 12;
    const int64_t first = gemedge_reciprocals[(d >> 25) - 64];
    const int64_t error = (((int64_t)1 << 47) - d * first) >> 16;
    const int64_t correction = error + ((error * error) >> 31);
    return first * 65536 + ((first * correction) >> 15);
}

/* The polynomial at u = m * 2^-lead, m in [2^15, 2^16), by Horner's rule. */
static inline struct gemedge_scaled gemedge_value(const struct gemedge_polynomial *of, int64_t m, int32_t lead) {
    struct gemedge_scaled sum;
    unsigned power = of->terms - 1u;
    sum.mantissa = of->term[power].mantissa;
    sum.exponent = of->term[power].exponent;
    while (power > 0u) {
        const int64_t product = sum.mantissa * m;
        const int32_t down = (int32_t)(product >> 59) + 15;
        const struct gemedge_term *added = &of->term[--power];
        sum.mantissa = product >> down;
        sum.exponent += down - lead;
        if (added->mantissa) {
            const int32_t gap = added->exponent - sum.exponent;
            const int32_t ours = gap > 0 ? gap : 0;
            const int64_t total = gemedge_down(sum.mantissa, ours) + gemedge_down(added->mantissa, ours - gap);
            const int32_t carry = (int32_t)(total >> 44);
            sum.mantissa = total >> carry;
            sum.exponent += ours + carry;
        }
    }
    return sum;
}

static inline struct gemedge_scaled gemedge_difference(const struct gemedge_polynomial *plus,
                                                       const struct gemedge_polynomial *minus, int64_t m,
                                                       int32_t lead) {
    struct gemedge_scaled given = {0, 0};
    struct gemedge_scaled taken;
    int32_t exponent;
    if (!minus->terms) {
        return plus->terms ? gemedge_value(plus, m, lead) : given;
    }
    taken = gemedge_value(minus, m, lead);
    if (!plus->terms) {
        taken.mantissa = -taken.mantissa;
        return taken;
    }
    given = gemedge_value(plus, m, lead);
    exponent = given.exponent > taken.exponent ? given.exponent : taken.exponent;
    given.mantissa = gemedge_down(given.mantissa, exponent - given.exponent) -
                     gemedge_down(taken.mantissa, exponent - taken.exponent);
    given.exponent = exponent;
    return given;
}

/* floor(v(u) + 1/2), not saturated: an estimate from below, then the sign of the exact remainder. */
static inline int64_t gemedge_piece_rounded(const struct gemedge_piece *piece, int32_t u) {
    const int64_t affine = piece->slope * u + piece->offset;
    const unsigned bits = piece->affine_bits;
    const int64_t half = (int64_t)1 << (bits - 1u);
    const int32_t lead = 16 - gemedge_bit_length((uint64_t)u);
    struct gemedge_scaled den, num;
    int64_t m, fraction, estimate, gap, low, remainder;
    int32_t down;
    if (!piece->above.terms) {
        return (affine + half) >> bits;
    }
    m = (int64_t)u * ((int64_t)1 << lead);
    den = gemedge_difference(&piece->above, &piece->below, m, lead);
    if (piece->below.terms) {
        const int32_t up = 44 - gemedge_bit_length((uint64_t)den.mantissa);
        den.mantissa *= (int64_t)1 << up;
        den.exponent -= up;
    }
    num = gemedge_difference(&piece->plus, &piece->minus, m, lead);
    down = 18 - (num.exponent - den.exponent);
    fraction = gemedge_down((num.mantissa >> 14) * gemedge_reciprocal(den.mantissa), down + 27);
    estimate = ((affine >> (bits - 16u)) + fraction + 16384) >> 16;
    gap = affine + half - (estimate + 1) * ((int64_t)1 << bits);
    remainder = den.mantissa * (gap >> bits) + gemedge_down(num.mantissa * 262144, down);
    low = gap & (((int64_t)1 << bits) - 1);
    if (bits == 16u) {
        remainder += (den.mantissa * low) >> 16;
    } else {
        low >>= bits - 32u;
        remainder += (den.mantissa * (low >> 16) + ((den.mantissa * (low & 65535)) >> 16)) >> 16;
    }
    return estimate + (remainder < 0 ? 0 : 1);
}

/* The output for one 16-bit number, saturated to 1 or 2 bytes. */
static inline int32_t gemedge_rational(const struct gemedge_kernel *kernel, int32_t x, unsigned bytes) {
    const struct gemedge_side *side = x > 0 ? &kernel->positive : &kernel->negative;
    const int32_t u = x > 0 ? x : -x;
    const int32_t low = gemedge_lowest(bytes);
    const int32_t high = -1 - low;
    unsigned i;
    for (i = 0; i < kernel->exceptions; i++) {
        if (kernel->exception[i].code == x) {
            return kernel->exception[i].value;
        }
    }
    for (i = 0; i < side->pieces; i++) {
        if (u >= side->piece[i].start && u < side->piece[i].stop) {
            const int64_t y = gemedge_piece_rounded(&side->piece[i], u);
            return y < low ? low : y > high ? high : (int32_t)y;
        }
    }
    return u >= side->stop ? side->tail : side->head;
}

static inline void gemedge_activate(const void *in, const struct gemedge_kernel *kernel, void *out, unsigned bytes,
                                    uint32_t count) {
    uint32_t i;
    for (i = 0; i < count; i++) {
        gemedge_put(out, i, bytes, gemedge_rational(kernel, gemedge_get(in, i, 2), bytes));
    }
}

#endif
