/* Loops over tensors in memory. */

#ifndef GEMEDGE_LOOPS_H
#define GEMEDGE_LOOPS_H

#include "gemedge_numbers.h"

/* Loops of size[0] by size[1] ... by size[rank - 1], the last one inside. Each operand moves by step[operand * rank +
   axis] elements. */
struct gemedge_loops {
    uint8_t rank;
    uint8_t operands;
    const GEMEDGE_FLASH uint32_t *size;
    const GEMEDGE_FLASH uint32_t *step;
};

/* Where the loops stand: the element at which each operand's inner loop begins. */
struct gemedge_walk {
    uint32_t count[GEMEDGE_MOST_AXES];
    uint32_t at[GEMEDGE_MOST_OPERANDS];
};

static inline void gemedge_begin(struct gemedge_walk *walk) {
    memset(walk, 0, sizeof *walk);
}

static inline uint32_t gemedge_inner_size(const GEMEDGE_FLASH struct gemedge_loops *loops) {
    return loops->size[loops->rank - 1];
}

static inline uint32_t gemedge_inner_step(const GEMEDGE_FLASH struct gemedge_loops *loops, unsigned operand) {
    return loops->step[(operand + 1u) * loops->rank - 1u];
}

/* Goes on to the next inner loop; 0 where there is none. */
static inline int gemedge_next(struct gemedge_walk *walk, const GEMEDGE_FLASH struct gemedge_loops *loops) {
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

/* A window over an input of in[0] rows of in[1] spots (one row where there is but one axis), channels last. */
struct gemedge_window {
    int32_t in[2], out[2], kernel[2], stride[2], pad[2], dilation[2], channels;
};

/* Where in the output a window stands. */
struct gemedge_spot {
    int32_t row, place;
};

static inline struct gemedge_spot gemedge_next_spot(const GEMEDGE_FLASH struct gemedge_window *window,
                                                    struct gemedge_spot at) {
    at.place++;
    if (at.place == window->out[1]) {
        at.place = 0;
        at.row++;
    }
    return at;
}

/* One input of an operator that has several, a tensor or a constant, with what it is multiplied by. */
struct gemedge_operand {
    gemedge_place data;
    struct gemedge_format format;
    int32_t mantissa;
    uint8_t shift;
};

/* The number at this place, less the zero point. */
static inline int32_t gemedge_centred(const struct gemedge_operand *of, uint32_t index) {
    return gemedge_get_at(of->data, index, of->format.bytes) - of->format.zero;
}

#endif
