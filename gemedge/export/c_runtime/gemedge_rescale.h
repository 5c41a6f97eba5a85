/* Sums of products become outputs: bias, rescaling, zero point, saturation and, of 8 bits, an activation's table. */

#ifndef GEMEDGE_RESCALE_H
#define GEMEDGE_RESCALE_H

#include "gemedge_numbers.h"

/* floor(a * b / 2^32) from products of 16-bit halves; |a| < 2^31, b is 0..2^31 - 1. */
static inline int32_t gemedge_high_of_halves(int32_t a, int32_t b) {
    const uint16_t a_low = (uint16_t)a;
    const uint16_t b_low = (uint16_t)b;
    const int32_t a_high = a >> 16;
    const int32_t b_high = b >> 16;
    const int32_t middle = a_high * b_low + (int32_t)(((uint32_t)a_low * b_low) >> 16);
    const uint32_t rest = (uint32_t)a_low * (uint32_t)b_high + ((uint32_t)middle & 0xFFFFu);
    return a_high * b_high + (middle >> 16) + (int32_t)(rest >> 16);
}

/* The same where the CPU has a long multiply. */
static inline int32_t gemedge_high(int32_t a, int32_t b) {
#if GEMEDGE_SHORT_PRODUCTS
    return gemedge_high_of_halves(a, b);
#else
    return (int32_t)(((int64_t)a * b) >> 32);
#endif
}

/* gemmlowp's doubling high product: floor((a * b + 2^30) / 2^31). */
static inline int32_t gemedge_doubled_high(int32_t a, int32_t b) {
#if GEMEDGE_SHORT_PRODUCTS
    const uint32_t low = (uint32_t)a * (uint32_t)b;
    const uint32_t rounded = low + ((uint32_t)1 << 30);
    const int32_t high = gemedge_high_of_halves(a, b) + (rounded < low ? 1 : 0);
    return (int32_t)(((uint32_t)high << 1) | (rounded >> 31));
#else
    return (int32_t)(((int64_t)a * b + ((int64_t)1 << 30)) >> 31);
#endif
}

/* gemedge_rescale saturated to 24 bits. */
GEMEDGE_APART int32_t gemedge_rescale_any(int64_t sum, int32_t mantissa, unsigned shift, unsigned law) {
    const int32_t most = (int32_t)1 << 24;
    const int64_t value = gemedge_rescale(sum, mantissa, shift, law);
    return value > most ? most : value < -most ? -most : (int32_t)value;
}

/* gemedge_rescale + zero where shift is 33 or more: what the product then has below 2^32 cannot change the rounding.
   |sum| < 2^31. */
static inline int32_t gemedge_rescale_far(int32_t sum, int32_t mantissa, unsigned shift, unsigned law, int32_t zero) {
    if (law == GEMEDGE_DOUBLE) {
        const int32_t high = gemedge_doubled_high(sum, mantissa);
        return (((high - (int32_t)((uint32_t)high >> 31)) >> (shift - 32u)) + 2 * zero + 1) >> 1;
    }
    return ((gemedge_high(sum, mantissa) >> (shift - 33u)) + 2 * zero + 1) >> 1;
}

/* How the sums of each output channel become numbers. bias: what an input's zero point adds to them is in it. table:
   256 outputs for -128..127, or 0. far: whether all shifts are 33 or more. */
struct gemedge_rescaling {
    const GEMEDGE_FLASH void *bias;
    const GEMEDGE_FLASH int32_t *mantissa;
    const GEMEDGE_FLASH uint8_t *shift;
    const GEMEDGE_FLASH int8_t *table;
    int16_t zero;
    uint8_t bytes;
    uint8_t law;
    uint8_t far;
};

#define GEMEDGE_BATCH 16 /* channels whose sums wait to be finished; a multiple of four */

/* Where outputs go: of channel first + i to at + i * step, for so many channels; those of the next window lie next
   behind. windows is 1 or 2. */
struct gemedge_places {
    int32_t first, channels, windows;
    size_t at, step, next;
};

static inline int32_t gemedge_saturated(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

static inline int32_t gemedge_saturated_byte(int32_t value) {
#if defined(__ARM_FEATURE_SAT) && defined(__GNUC__)
    return (int32_t)__builtin_arm_ssat(value, 8); /* __ssat, whose macro gcc warns of */
#else
    return gemedge_saturated(value, -128, 127);
#endif
}

/* Outputs of 8 bits from far shifts; written out for each law, with a table and without. */
static inline void gemedge_finish_bytes(const int32_t *sums, const struct gemedge_places *places,
                                        const GEMEDGE_FLASH struct gemedge_rescaling *by, int8_t *GEMEDGE_RESTRICT to,
                                        unsigned law, const GEMEDGE_FLASH int8_t *table) {
    const GEMEDGE_FLASH int32_t *bias = (const GEMEDGE_FLASH int32_t *)by->bias + places->first;
    const GEMEDGE_FLASH int32_t *mantissa = by->mantissa + places->first;
    const GEMEDGE_FLASH uint8_t *shift = by->shift + places->first;
    const int32_t *const end = sums + places->channels;
    const size_t step = places->step;
    const int32_t zero = by->zero;
    do {
        const int32_t sum = (int32_t)((uint32_t)*sums++ + (uint32_t)*bias++);
        const int32_t q = gemedge_saturated_byte(gemedge_rescale_far(sum, *mantissa++, *shift++, law, zero));
        *to = table ? table[q] : (int8_t)q;
        to += step;
    } while (sums != end);
}

#if defined(__AVX2__)
/* Outputs of 8 bits side by side, from far shifts and one rounding: eight at a time for a compiler that can. */
static inline void gemedge_finish_row(const int32_t *sums, const struct gemedge_places *places,
                                      const GEMEDGE_FLASH struct gemedge_rescaling *by, int8_t *GEMEDGE_RESTRICT to) {
    const int32_t *bias = (const int32_t *)by->bias + places->first;
    const int32_t *mantissa = by->mantissa + places->first;
    const uint8_t *shift = by->shift + places->first;
    const int32_t zero = by->zero, channels = places->channels;
    int32_t i;
    for (i = 0; i < channels; i++) {
        const int32_t sum = (int32_t)((uint32_t)sums[i] + (uint32_t)bias[i]);
        to[i] = (int8_t)gemedge_saturated_byte(gemedge_rescale_far(sum, mantissa[i], shift[i], GEMEDGE_SINGLE, zero));
    }
    for (i = 0; by->table && i < channels; i++) {
        to[i] = by->table[to[i] + 128];
    }
}
#endif

/* Outputs of 16 bits from far shifts, which have one rounding. */
static inline void gemedge_finish_shorts(const int32_t *sums, const struct gemedge_places *places,
                                         const GEMEDGE_FLASH struct gemedge_rescaling *by, gemedge_int16 *to) {
    const GEMEDGE_FLASH int32_t *bias = (const GEMEDGE_FLASH int32_t *)by->bias + places->first;
    const GEMEDGE_FLASH int32_t *mantissa = by->mantissa + places->first;
    const GEMEDGE_FLASH uint8_t *shift = by->shift + places->first;
    const int32_t lowest = -(int32_t)32767 - 1;
    int32_t i;
    for (i = 0; i < places->channels; i++) {
        const int32_t sum = (int32_t)((uint32_t)sums[i] + (uint32_t)bias[i]);
        const int32_t q = gemedge_rescale_far(sum, mantissa[i], shift[i], GEMEDGE_SINGLE, by->zero);
        *to = (gemedge_int16)gemedge_saturated(q, lowest, 32767);
        to += places->step;
    }
}

/* One window's outputs of any kind, from a sum that bias is part of. */
static inline void gemedge_finish_one(void *out, size_t at, int64_t sum, int32_t channel,
                                      const GEMEDGE_FLASH struct gemedge_rescaling *by) {
    const int32_t low = gemedge_lowest(by->bytes);
    const int32_t value = gemedge_rescale_any(sum, by->mantissa[channel], by->shift[channel], by->law);
    const int32_t q = gemedge_saturated(value + by->zero, low, -1 - low);
    gemedge_put(out, (uint32_t)at, by->bytes, by->table ? by->table[q + 128] : q);
}

/* Sums of 32 bits to which a bias of 32 bits is added; channel i of the next window's lies width numbers behind. */
GEMEDGE_APART void gemedge_finish_32(const int32_t *sums, int32_t width, const struct gemedge_places *places,
                                     const GEMEDGE_FLASH struct gemedge_rescaling *by, void *out) {
    size_t at = places->at;
    int32_t window, i;
    for (window = 0; window < places->windows; window++) {
        int8_t *const to = (int8_t *)out + at;
        if (by->bytes == 2u && by->far && by->law == GEMEDGE_SINGLE) {
            gemedge_finish_shorts(sums, places, by, (gemedge_int16 *)out + at);
        } else if (by->bytes != 1u || !by->far) {
            for (i = 0; i < places->channels; i++) {
                const int32_t channel = places->first + i;
                const uint32_t bias = (uint32_t)((const GEMEDGE_FLASH int32_t *)by->bias)[channel];
                gemedge_finish_one(out, at + (size_t)i * places->step, (int32_t)((uint32_t)sums[i] + bias), channel, by);
            }
#if defined(__AVX2__)
        } else if (by->law == GEMEDGE_SINGLE && places->step == 1u) {
            gemedge_finish_row(sums, places, by, to);
#endif
        } else if (by->law == GEMEDGE_DOUBLE) {
            if (by->table) {
                gemedge_finish_bytes(sums, places, by, to, GEMEDGE_DOUBLE, by->table + 128);
            } else {
                gemedge_finish_bytes(sums, places, by, to, GEMEDGE_DOUBLE, 0);
            }
        } else if (by->table) {
            gemedge_finish_bytes(sums, places, by, to, GEMEDGE_SINGLE, by->table + 128);
        } else {
            gemedge_finish_bytes(sums, places, by, to, GEMEDGE_SINGLE, 0);
        }
        sums += width;
        at += places->next;
    }
}

/* The same of 64 bits, and a bias of as many. */
GEMEDGE_APART void gemedge_finish_64(const int64_t *sums, int32_t width, const struct gemedge_places *places,
                                     const GEMEDGE_FLASH struct gemedge_rescaling *by, void *out) {
    size_t at = places->at;
    int32_t window, i;
    for (window = 0; window < places->windows; window++) {
        for (i = 0; i < places->channels; i++) {
            const int32_t channel = places->first + i;
            const int64_t sum = sums[i] + ((const GEMEDGE_FLASH int64_t *)by->bias)[channel];
            gemedge_finish_one(out, at + (size_t)i * places->step, sum, channel, by);
        }
        sums += width;
        at += places->next;
    }
}

#endif
