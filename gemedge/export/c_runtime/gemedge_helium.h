/* Compact kernels by Arm's Helium (MVE): the steps of gemedge_activation.h, which includes this, for four inputs at a
   time, with the same bits. There are no conditions in them: every input takes the same instructions. */

#ifndef GEMEDGE_HELIUM_H
#define GEMEDGE_HELIUM_H

#include <arm_mve.h>

struct gemedge_four_normal {
    uint32x4_t m;
    int32x4_t s;
};

/* A shift by bits that are negative is one to the right. */
GEMEDGE_INLINE struct gemedge_four_normal gemedge_four_denominators(uint32x4_t u, const struct gemedge_compact *by) {
    const uint32x4_t w = vmulq_u32(u, u);
    struct gemedge_four_normal found;
    uint32x4_t high, low;
    if (by->order == 2u) { /* GEM's, whose upper word is not 0 */
        const uint32x4_t square = vmulq_u32(w, w);
        low = vaddq_n_u32(square, (uint32_t)by->power);
        high = vaddq_n_u32(vmulhq_u32(w, w), (uint32_t)(by->power >> 32));
        if ((uint32_t)by->power) {
            high = vaddq_m_n_u32(high, high, 1u, vcmphiq_u32(square, low));
        }
        found.s = (int32x4_t)vclzq_u32(high);
        found.m = vorrq_u32(vshlq_u32(high, found.s), vshlq_u32(low, vsubq_n_s32(found.s, 32)));
        return found;
    }
    high = vaddq_n_u32(w, by->square);
    if (by->linear & 65535u) {
        high = vaddq_u32(high, vmulhq_u32(vshlq_n_u32(u, 16), vdupq_n_u32(by->linear)));
    } else if (by->linear) {
        high = vmlaq_n_u32(high, u, by->linear >> 16);
    }
    found.s = (int32x4_t)vclzq_u32(high);
    found.m = vshlq_u32(high, found.s);
    return found;
}

GEMEDGE_INLINE uint32x4_t gemedge_four_numerators(uint32x4_t u, int32x4_t s, const struct gemedge_compact *by) {
    const int32x4_t up = vaddq_n_s32(s, (int32_t)by->up - by->down);
    if (by->is_segem) {
        return vshlq_u32(vdupq_n_u32(by->numerator), up);
    }
    if (by->down) {
        return vshlq_u32(vmulhq_u32(vshlq_n_u32(u, 16), vdupq_n_u32(by->numerator)), up);
    }
    return by->numerator ? vmulhq_u32(vshlq_u32(u, up), vdupq_n_u32(by->numerator)) : vshlq_u32(u, up);
}

/* The fractions in 2^-bits LSB, to a few units. */
GEMEDGE_INLINE uint32x4_t gemedge_four_fractions(uint32x4_t u, const struct gemedge_compact *by) {
    /* m >> 26 begins with a 1: it is 32 more than the segment */
    const uint32_t *const lines = (const uint32_t *)((uintptr_t)gemedge_lines - sizeof gemedge_lines);
    const struct gemedge_four_normal d = gemedge_four_denominators(u, by);
    const uint32x4_t line = vldrwq_gather_shifted_offset_u32(lines, vshrq_n_u32(d.m, 26));
    const uint32x4_t position = vandq_u32(vshrq_n_u32(d.m, 14), vdupq_n_u32(4095u));
    const uint32x4_t r = vaddq_u32(line, (uint32x4_t)vmullbq_int_s16((int16x8_t)line, (int16x8_t)position));
    uint32x4_t g;
    if (by->is_segem && !by->numerator) {
        g = vshlq_u32(r, vsubq_n_s32(d.s, by->down));
    } else {
        g = vmulhq_u32(gemedge_four_numerators(u, d.s, by), r);
    }
    return vsubq_u32(g, vmulhq_u32(g, vmulhq_u32(d.m, r)));
}

GEMEDGE_INLINE int32x4_t gemedge_four_above(uint32x4_t u, uint32x4_t fraction, const struct gemedge_compact *by) {
    const uint32x4_t half = vsubq_u32(vdupq_n_u32((uint32_t)by->half), fraction);
    if (!by->slope) {
        return vaddq_s32((int32x4_t)u, vshlq_r_s32((int32x4_t)half, -(int32_t)by->bits));
    }
    return vshlq_r_s32((int32x4_t)vaddq_u32(vmulhq_u32(vshlq_n_u32(u, 16), vdupq_n_u32(by->slope)), half),
                       -(int32_t)by->bits);
}

GEMEDGE_INLINE int32x4_t gemedge_compact_four(int32x4_t x, const struct gemedge_compact *by) {
    const uint32x4_t u = vqshluq_n_s32(x, 0); /* either side is 0 at 0 */
    uint32x4_t below;
    if (!by->is_segem) {
        return gemedge_four_above(u, gemedge_four_fractions(u, by), by);
    }
    below = vaddq_n_u32(gemedge_four_fractions(vqshluq_n_s32(vnegq_s32(x), 0), by), (uint32_t)by->offset);
    return vaddq_s32(gemedge_four_above(u, vdupq_n_u32(0), by),
                     vshlq_r_s32((int32x4_t)below, -(int32_t)by->bits_below));
}

/* Whether a kernel has steps here: orders 1 and 2 of GEM, and 1 of SE-GEM. */
GEMEDGE_INLINE int gemedge_has_vectors(const struct gemedge_compact *by) {
    return by->order == 1u || (by->order == 2u && !by->is_segem && !by->is_wide);
}

/* gemedge_activate_compact, where gemedge_has_vectors. */
GEMEDGE_INLINE void gemedge_activate_vectors(const void *in, void *out, uint32_t count,
                                             const struct gemedge_compact *by) {
    const int16_t *from = (const int16_t *)in;
    int16_t *to = (int16_t *)out;
    int32_t rest;
    for (rest = (int32_t)count; rest > 0; rest -= 8) {
        const mve_pred16_t some = vctp16q((uint32_t)rest);
        int16x8_t x = vldrhq_z_s16(from, some);
        const int32x4_t even = gemedge_compact_four(vmovlbq_s16(x), by);
        const int32x4_t odd = gemedge_compact_four(vmovltq_s16(x), by);
        x = vqmovntq_s32(vqmovnbq_s32(x, even), odd);
        vstrhq_p_s16(to, x, some);
        from += 8;
        to += 8;
    }
}

#endif
