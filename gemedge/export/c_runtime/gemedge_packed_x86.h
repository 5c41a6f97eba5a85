/* The inner loops of gemedge_packed.h by AVX2: eight words of weights at a time; by AVX-512, where it has VNNI, 16. */

#ifndef GEMEDGE_PACKED_X86_H
#define GEMEDGE_PACKED_X86_H

#include <immintrin.h>

#include "gemedge_numbers.h"
#include "gemedge_rescale.h"

/* sum + a * b of pairs of 16-bit numbers. */
static inline __m256i gemedge_pairs(__m256i sum, __m256i a, __m256i b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}

/* Eight words, or four of them and zeros. */
static inline __m256i gemedge_eight(const void *from, int32_t fours) {
    return fours > 1 ? _mm256_loadu_si256((const __m256i *)from)
                     : _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)from));
}

static inline __m256i gemedge_even(__m256i words) {
    return _mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8);
}

/* The sums of four channels; words 0 and 2, 1 and 3 of a four are of the same pair. */
static inline void gemedge_four_sums(int32_t *sums, __m256i both, __m256i even) {
    const __m128i b = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    const __m128i e = _mm_add_epi32(_mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1));
    const __m128i low = _mm_add_epi32(e, _mm_shuffle_epi32(e, 0x4E));
    const __m128i all = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0x4E));
    const __m128i high = _mm_srai_epi32(_mm_sub_epi32(all, low), 8);
    _mm_storeu_si128((__m128i *)(void *)sums, _mm_unpacklo_epi32(low, high));
}

/* Four numbers of one window at a time: their words lie two apart. */
static inline void gemedge_packed_fours(gemedge_uint32 *to, const int8_t *from, int32_t fours) {
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    const __m256i every_other = _mm256_setr_epi32(-1, 0, -1, 0, -1, 0, -1, 0);
    for (; fours > 1; fours -= 2) {
        const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)(const void *)from));
        const __m256i apart = _mm256_cvtepu32_epi64(_mm_shuffle_epi8(wide, order));
        _mm256_maskstore_epi32((int *)(void *)to, every_other, apart);
        to += 8;
        from += 8;
    }
    if (fours) {
        to[0] = (uint16_t)from[0] | (uint32_t)(uint16_t)from[2] << 16;
        to[2] = (uint16_t)from[1] | (uint32_t)(uint16_t)from[3] << 16;
    }
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
static inline __m256i gemedge_halves_added(__m512i sum) {
    return _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
}

/* sums[channel] and, GEMEDGE_BATCH behind, the next window's: two windows times four channels. */
static inline void gemedge_packed_windows(const gemedge_uint32 *column, const uint32_t *weight, int32_t fours,
                                          int32_t *sums) {
    __m512i both_a = _mm512_setzero_si512(), even_a = both_a, both_b = both_a, even_b = both_a;
    for (; fours > 0; fours -= 4) {
        const __mmask16 there = (__mmask16)(fours < 4 ? (1u << (4 * fours)) - 1u : 0xFFFFu);
        const __m512i words = _mm512_maskz_loadu_epi32(there, weight);
        const __m512i numbers = _mm512_maskz_loadu_epi32(there, column);
        const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(words, 8), 8);
        const __m512i first = _mm512_shuffle_epi32(numbers, (_MM_PERM_ENUM)0xA0);
        const __m512i second = _mm512_shuffle_epi32(numbers, (_MM_PERM_ENUM)0xF5);
        both_a = _mm512_dpwssd_epi32(both_a, words, first);
        even_a = _mm512_dpwssd_epi32(even_a, even, first);
        both_b = _mm512_dpwssd_epi32(both_b, words, second);
        even_b = _mm512_dpwssd_epi32(even_b, even, second);
        weight += 16;
        column += 16;
    }
    gemedge_four_sums(sums, gemedge_halves_added(both_a), gemedge_halves_added(even_a));
    gemedge_four_sums(sums + GEMEDGE_BATCH, gemedge_halves_added(both_b), gemedge_halves_added(even_b));
}
#else
/* sums[channel] and, GEMEDGE_BATCH behind, the next window's: two windows times four channels. */
static inline void gemedge_packed_windows(const gemedge_uint32 *column, const uint32_t *weight, int32_t fours,
                                          int32_t *sums) {
    __m256i both_a = _mm256_setzero_si256(), even_a = both_a, both_b = both_a, even_b = both_a;
    for (; fours > 0; fours -= 2) {
        const __m256i words = gemedge_eight(weight, fours);
        const __m256i numbers = gemedge_eight(column, fours);
        const __m256i even = gemedge_even(words);
        const __m256i first = _mm256_shuffle_epi32(numbers, 0xA0);
        const __m256i second = _mm256_shuffle_epi32(numbers, 0xF5);
        both_a = gemedge_pairs(both_a, words, first);
        even_a = gemedge_pairs(even_a, even, first);
        both_b = gemedge_pairs(both_b, words, second);
        even_b = gemedge_pairs(even_b, even, second);
        weight += 8;
        column += 8;
    }
    gemedge_four_sums(sums, both_a, even_a);
    gemedge_four_sums(sums + GEMEDGE_BATCH, both_b, even_b);
}
#endif

/* sums[channel] of one row times so many channels. stride: words from the weights of four channels to the next. */
static inline void gemedge_packed_row(const int8_t *row, const uint32_t *weights, size_t stride, int32_t fours,
                                      int32_t channels, int32_t *sums) {
    int32_t channel, k;
    for (channel = 0; channel < channels; channel += 4) {
        __m256i both = _mm256_setzero_si256(), even = both;
        for (k = 0; k < fours; k++) {
            const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 0, 1, 4, 5, 2, 3, 6, 7, 2, 3, 6, 7);
            int32_t four;
            __m256i numbers, words;
            memcpy(&four, row + 4 * k, 4);
            numbers = _mm256_zextsi128_si256(_mm_shuffle_epi8(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four)), order));
            words = gemedge_eight(weights + 4 * k, 1);
            both = gemedge_pairs(both, words, numbers);
            even = gemedge_pairs(even, gemedge_even(words), numbers);
        }
        gemedge_four_sums(sums + channel, both, even);
        weights += stride;
    }
}

#endif
