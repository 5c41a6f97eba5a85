/* Operators that make one number at a time. */

#ifndef GEMEDGE_ELEMENTWISE_H
#define GEMEDGE_ELEMENTWISE_H

#include "gemedge_activation.h"
#include "gemedge_loops.h"

/* table[q + 128] for each 8-bit q, four at a time: their loads do not wait for each other. out may be in. */
static inline void gemedge_lookup_bytes(const int8_t *in, const GEMEDGE_FLASH int8_t *table, int8_t *out,
                                        uint32_t count) {
    const GEMEDGE_FLASH int8_t *const centre = table + 128;
    uint32_t rest = count & 7u;
    GEMEDGE_ROLLED
    for (count >>= 3; count; count--) {
        const int8_t a = centre[in[0]], b = centre[in[1]], c = centre[in[2]], d = centre[in[3]];
        const int8_t e = centre[in[4]], f = centre[in[5]], g = centre[in[6]], h = centre[in[7]];
        out[0] = a;
        out[1] = b;
        out[2] = c;
        out[3] = d;
        out[4] = e;
        out[5] = f;
        out[6] = g;
        out[7] = h;
        in += 8;
        out += 8;
    }
    GEMEDGE_ROLLED
    while (rest--) {
        *out++ = centre[*in++];
    }
}

/* table[q + 128] for each 8-bit q, as a table of 8- or 16-bit numbers. */
static inline void gemedge_lookup(const void *in, const GEMEDGE_FLASH void *table, void *out, unsigned bytes,
                                  uint32_t count) {
    uint32_t i;
    if (bytes == 1u) {
        gemedge_lookup_bytes((const int8_t *)in, (const GEMEDGE_FLASH int8_t *)table, (int8_t *)out, count);
        return;
    }
    for (i = 0; i < count; i++) {
        const int32_t q = gemedge_get(in, i, 1);
        gemedge_put(out, i, bytes, gemedge_get_flash(table, (uint32_t)(q + 128), bytes));
    }
}

/* 513 entries for -32768, -32640, ... 32768, linear between them: a + ((b - a) f + 64 >> 7). */
static inline void gemedge_interpolate(const void *in, const GEMEDGE_FLASH void *table, void *out, unsigned bytes,
                                       uint32_t count) {
    uint32_t i;
    for (i = 0; i < count; i++) {
        const uint32_t position = (uint32_t)(gemedge_get(in, i, 2) + 32768);
        const int32_t low = gemedge_get_flash(table, position >> 7, bytes);
        const int32_t rise = gemedge_get_flash(table, (position >> 7) + 1u, bytes) - low;
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
                                   struct gemedge_format format, const GEMEDGE_FLASH struct gemedge_loops *loops) {
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
                                        const GEMEDGE_FLASH struct gemedge_loops *loops) {
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
                                    void *out, struct gemedge_format format,
                                    const GEMEDGE_FLASH struct gemedge_loops *loops) {
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
                                  struct gemedge_format format, const GEMEDGE_FLASH struct gemedge_loops *loops) {
    struct gemedge_walk walk;
    uint32_t i;
    gemedge_begin(&walk);
    do {
        for (i = 0; i < gemedge_inner_size(loops); i++) {
            const int32_t holds = gemedge_get_at(of[2].data, walk.at[2] + i * gemedge_inner_step(loops, 2), 1);
            const unsigned chosen = holds ? 0u : 1u;
            const uint32_t at = walk.at[chosen] + i * gemedge_inner_step(loops, chosen);
            gemedge_store(out, walk.at[3] + i * gemedge_inner_step(loops, 3), format,
                          gemedge_rescale(gemedge_centred(&of[chosen], at), of[chosen].mantissa, of[chosen].shift, law));
        }
    } while (gemedge_next(&walk, loops));
}

/* One operand rescaled into its part of a concatenation. */
static inline void gemedge_rescaled(const struct gemedge_operand *of, unsigned law, void *out,
                                    struct gemedge_format format, const GEMEDGE_FLASH struct gemedge_loops *loops) {
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

#endif
