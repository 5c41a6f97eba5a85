/* Operators that move integers and change none. */

#ifndef GEMEDGE_MOVING_H
#define GEMEDGE_MOVING_H

#include "gemedge_loops.h"

/* Operand 0 of the loops to operand 1. */
static inline void gemedge_copy(const void *in, void *out, unsigned bytes,
                                const GEMEDGE_FLASH struct gemedge_loops *loops) {
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
static inline void gemedge_reorder(const void *in, const GEMEDGE_FLASH struct gemedge_loops *from, void *out,
                                   const GEMEDGE_FLASH struct gemedge_loops *to, unsigned bytes) {
    struct gemedge_walk source, target;
    gemedge_begin(&source);
    gemedge_begin(&target);
    do {
        gemedge_put(out, target.at[0], bytes, gemedge_get(in, source.at[0], bytes));
    } while (gemedge_next(&source, from) && gemedge_next(&target, to));
}

/* The parts at these places of the middle axis of [outer, axis, inner]. */
static inline void gemedge_take(const void *in, const GEMEDGE_FLASH uint32_t *places, uint32_t count, uint32_t axis,
                                uint32_t outer, uint32_t inner, void *out, unsigned bytes) {
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

/* A constant to the arena. */
static inline void gemedge_load(void *out, const GEMEDGE_FLASH void *constant, uint32_t bytes) {
    uint32_t i;
    for (i = 0; i < bytes; i++) {
        ((uint8_t *)out)[i] = ((const GEMEDGE_FLASH uint8_t *)constant)[i];
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
static inline int gemedge_embed(const void *in, unsigned in_bytes, const GEMEDGE_FLASH void *table, int32_t rows,
                                uint32_t size, uint32_t out_step, void *out, unsigned bytes,
                                const GEMEDGE_FLASH struct gemedge_loops *loops) {
    struct gemedge_walk walk;
    uint32_t i;
    gemedge_begin(&walk);
    do {
        const int32_t index = gemedge_get(in, walk.at[0], in_bytes);
        if (index < 0 || index >= rows) {
            return GEMEDGE_INDEX_OUTSIDE;
        }
        for (i = 0; i < size; i++) {
            gemedge_put(out, walk.at[1] + i * out_step, bytes,
                        gemedge_get_flash(table, (uint32_t)index * size + i, bytes));
        }
    } while (gemedge_next(&walk, loops));
    return GEMEDGE_OK;
}

#endif
