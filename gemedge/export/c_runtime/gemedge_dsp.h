/* Arm's DSP instructions: words of two 16-bit or four 8-bit numbers. */

#ifndef GEMEDGE_DSP_H
#define GEMEDGE_DSP_H

#include <arm_acle.h>

#include "gemedge_numbers.h"

/* Four bytes or two shorts, wherever they lie. */
static inline uint32_t gemedge_word(const void *from) {
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

/* Numbers 0 and 2 of four that lie in two words, and 1 and 3. */
static inline int16x2_t gemedge_even_shorts(uint32_t low, uint32_t high) {
#if defined(__GNUC__) && !defined(__clang__)
    int16x2_t found;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(found) : "r"(low), "r"(high));
    return found;
#else
    return (int16x2_t)((low & 0xFFFFu) | (high << 16));
#endif
}

static inline int16x2_t gemedge_odd_shorts(uint32_t low, uint32_t high) {
#if defined(__GNUC__) && !defined(__clang__)
    int16x2_t found;
    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(found) : "r"(high), "r"(low));
    return found;
#else
    return (int16x2_t)((low >> 16) | (high & 0xFFFF0000u));
#endif
}

#endif
