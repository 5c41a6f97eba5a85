/* Convolutions and dense layers of one kind of input, weight and sum. Included once for each kind (gemedge_sums.h),
   with these defined, and undefined here:

   GEMEDGE_OF(name)     name with the kind behind it
   GEMEDGE_INPUT        the type of an input number
   GEMEDGE_WEIGHT       the type of a weight
   GEMEDGE_SUM          the type of a sum; what it cannot overflow was proven when the model was made
   GEMEDGE_BLOCK        sums of two windows times two channels (gemedge_blocks.h)
   GEMEDGE_FINISH       what makes outputs of sums (gemedge_rescale.h) */

/* Numbers side by side as 16-bit numbers. */
static inline void GEMEDGE_OF(gemedge_widen)(gemedge_int16 *to, const GEMEDGE_INPUT *from, int32_t count) {
    int32_t k;
    if (sizeof *from == sizeof *to) {
        memcpy(to, from, (size_t)count * sizeof *to);
        return;
    }
    for (k = 0; k < count; k++) {
        to[k] = from[k];
    }
}

/* One window as 16-bit numbers in the order of the weights: [*kernel, input of the group], zero where it is padding. */
static inline void GEMEDGE_OF(gemedge_column)(gemedge_int16 *to, const GEMEDGE_INPUT *in, int32_t zero,
                                              const GEMEDGE_FLASH struct gemedge_window *window, int32_t group_in,
                                              struct gemedge_spot spot) {
    const int32_t top = spot.row * window->stride[0] - window->pad[0];
    const int32_t left = spot.place * window->stride[1] - window->pad[1];
    const int32_t width = window->kernel[1];
    const int32_t channels = window->channels;
    const int32_t taps = width * group_in;
    const int side_by_side = window->dilation[1] == 1 && group_in == channels && left >= 0 && left + width <= window->in[1];
    int32_t i, j, k;
    for (i = 0; i < window->kernel[0]; i++) {
        const int32_t y = top + i * window->dilation[0];
        if (y < 0 || y >= window->in[0]) {
            for (k = 0; k < taps; k++) {
                to[k] = (gemedge_int16)zero;
            }
            to += taps;
        } else if (side_by_side) {
            GEMEDGE_OF(gemedge_widen)(to, in + (size_t)(y * window->in[1] + left) * (size_t)channels, taps);
            to += taps;
        } else {
            for (j = 0; j < width; j++) {
                const int32_t x = left + j * window->dilation[1];
                if (x >= 0 && x < window->in[1]) {
                    GEMEDGE_OF(gemedge_widen)(to, in + (size_t)(y * window->in[1] + x) * (size_t)channels, group_in);
                } else {
                    for (k = 0; k < group_in; k++) {
                        to[k] = (gemedge_int16)zero;
                    }
                }
                to += group_in;
            }
        }
    }
}

/* Weights lie as [channel, *kernel, input of the group]. columns: room for two windows of 16-bit numbers. */
GEMEDGE_APART void GEMEDGE_OF(gemedge_convolution)(const GEMEDGE_INPUT *in, int32_t zero,
                                                   const GEMEDGE_FLASH struct gemedge_window *window, int32_t groups,
                                                   int32_t group_in, int32_t group_out,
                                                   const GEMEDGE_FLASH GEMEDGE_WEIGHT *weights,
                                                   const GEMEDGE_FLASH struct gemedge_rescaling *by,
                                                   gemedge_int16 *columns, void *out) {
    const int32_t depth = window->kernel[0] * window->kernel[1] * group_in;
    const int32_t last = window->out[0] * window->out[1];
    const size_t outputs = (size_t)(groups * group_out);
    struct gemedge_places places = {0, 0, 0, 0, 1, 0};
    struct gemedge_spot at = {0, 0};
    int32_t spot, group, channel, i;
    GEMEDGE_SUM sums[2 * GEMEDGE_BATCH];
    places.next = outputs;
    for (spot = 0; spot < last; spot += 2) {
        const struct gemedge_spot next = gemedge_next_spot(window, at);
        const GEMEDGE_FLASH GEMEDGE_WEIGHT *weight = weights;
        places.windows = last - spot > 1 ? 2 : 1;
        for (group = 0; group < groups; group++) {
            const GEMEDGE_INPUT *from = in + (size_t)group * (size_t)group_in;
            gemedge_int16 *second = columns;
            GEMEDGE_OF(gemedge_column)(columns, from, zero, window, group_in, at);
            if (places.windows > 1) {
                second = columns + depth + (depth & 1);
                GEMEDGE_OF(gemedge_column)(second, from, zero, window, group_in, next);
            }
            for (channel = 0; channel < group_out; channel += GEMEDGE_BATCH) {
                const int32_t rest = group_out - channel;
                places.first = group * group_out + channel;
                places.channels = rest < GEMEDGE_BATCH ? rest : GEMEDGE_BATCH;
                places.at = (size_t)spot * outputs + (size_t)places.first;
                for (i = 0; i < places.channels; i += 2) {
                    const GEMEDGE_FLASH GEMEDGE_WEIGHT *other = i + 1 < places.channels ? weight + depth : weight;
                    GEMEDGE_BLOCK(columns, second, weight, other, depth, sums + i);
                    weight = other + depth;
                }
                GEMEDGE_FINISH(sums, GEMEDGE_BATCH, &places, by, out);
            }
        }
        at = gemedge_next_spot(window, next);
    }
}

/* The taps of four channels by themselves, each at an offset from where the first one lies. */
static inline void GEMEDGE_OF(gemedge_taps)(const GEMEDGE_INPUT *in, const gemedge_int32 *offsets, int32_t taps,
                                            const GEMEDGE_FLASH GEMEDGE_WEIGHT *weight, int32_t channels,
                                            GEMEDGE_SUM *sums) {
    const gemedge_int32 *const end = offsets + taps;
    GEMEDGE_SUM a = 0, b = 0, c = 0, d = 0;
    do {
        const GEMEDGE_INPUT *from = in + *offsets++;
        a += (int32_t)from[0] * weight[0];
        b += (int32_t)from[1] * weight[1];
        c += (int32_t)from[2] * weight[2];
        d += (int32_t)from[3] * weight[3];
        weight += channels;
    } while (offsets != end);
    sums[0] = a;
    sums[1] = b;
    sums[2] = c;
    sums[3] = d;
}

/* Those of one channel. */
static inline GEMEDGE_SUM GEMEDGE_OF(gemedge_tap)(const GEMEDGE_INPUT *in, const gemedge_int32 *offsets, int32_t taps,
                                                  const GEMEDGE_FLASH GEMEDGE_WEIGHT *weight, int32_t channels) {
    GEMEDGE_SUM sum = 0;
    int32_t k;
    for (k = 0; k < taps; k++) {
        sum += (int32_t)in[offsets[k]] * *weight;
        weight += channels;
    }
    return sum;
}

/* Each channel by itself; weights lie as [*kernel, channel]. offsets: room for where each tap of a window lies, and
   behind it for the numbers of one spot. */
GEMEDGE_APART void GEMEDGE_OF(gemedge_depthwise)(const GEMEDGE_INPUT *in, int32_t zero,
                                                 const GEMEDGE_FLASH struct gemedge_window *window,
                                                 const GEMEDGE_FLASH GEMEDGE_WEIGHT *weights,
                                                 const GEMEDGE_FLASH struct gemedge_rescaling *by,
                                                 gemedge_int32 *offsets, void *out) {
    const int32_t channels = window->channels;
    const int32_t taps = window->kernel[0] * window->kernel[1];
    GEMEDGE_INPUT *const blank = (GEMEDGE_INPUT *)(offsets + taps);
    const int32_t blank_offset = (int32_t)(blank - in);
    struct gemedge_places places = {0, 0, 1, 0, 1, 0};
    GEMEDGE_SUM sums[GEMEDGE_BATCH];
    int32_t row, spot, channel, i, j, k;
    for (channel = 0; channel < channels; channel++) {
        blank[channel] = (GEMEDGE_INPUT)zero;
    }
    for (row = 0; row < window->out[0]; row++) {
        const int32_t top = row * window->stride[0] - window->pad[0];
        for (spot = 0; spot < window->out[1]; spot++) {
            const int32_t left = spot * window->stride[1] - window->pad[1];
            gemedge_int32 *offset = offsets;
            for (i = 0; i < window->kernel[0]; i++) {
                const int32_t y = top + i * window->dilation[0];
                for (j = 0; j < window->kernel[1]; j++) {
                    const int32_t x = left + j * window->dilation[1];
                    const int inside = y >= 0 && y < window->in[0] && x >= 0 && x < window->in[1];
                    *offset++ = inside ? (y * window->in[1] + x) * channels : blank_offset;
                }
            }
            for (channel = 0; channel < channels; channel += GEMEDGE_BATCH) {
                const int32_t rest = channels - channel;
                places.first = channel;
                places.channels = rest < GEMEDGE_BATCH ? rest : GEMEDGE_BATCH;
                for (k = 0; k + 4 <= places.channels; k += 4) {
                    GEMEDGE_OF(gemedge_taps)(in + channel + k, offsets, taps, weights + channel + k, channels, sums + k);
                }
                for (; k < places.channels; k++) {
                    sums[k] = GEMEDGE_OF(gemedge_tap)(in + channel + k, offsets, taps, weights + channel + k, channels);
                }
                GEMEDGE_FINISH(sums, 0, &places, by, out);
                places.at += (size_t)places.channels;
            }
        }
    }
}

/* One row times two channels. */
GEMEDGE_APART void GEMEDGE_OF(gemedge_row)(const GEMEDGE_INPUT *row, const GEMEDGE_FLASH GEMEDGE_WEIGHT *weight,
                                           const GEMEDGE_FLASH GEMEDGE_WEIGHT *other, int32_t inputs,
                                           GEMEDGE_SUM *sums) {
#if GEMEDGE_ROWS
    if (sizeof(GEMEDGE_SUM) == sizeof(int32_t)) {
        gemedge_row_32(row, sizeof *row, weight, other, sizeof *weight, inputs, (int32_t *)sums);
    } else {
        gemedge_row_64(row, sizeof *row, weight, other, sizeof *weight, inputs, (int64_t *)sums);
    }
#else
    const GEMEDGE_INPUT *const last = row + (inputs & ~3);
    const GEMEDGE_INPUT *const end = row + inputs;
    GEMEDGE_SUM sum = 0, beside = 0;
#define GEMEDGE_ONE(k)                                                                                                 \
    do {                                                                                                               \
        const int32_t number = row[k];                                                                                 \
        sum += number * weight[k];                                                                                     \
        beside += number * other[k];                                                                                   \
    } while (0)
    while (row != last) {
        GEMEDGE_ONE(0);
        GEMEDGE_ONE(1);
        GEMEDGE_ONE(2);
        GEMEDGE_ONE(3);
        row += 4;
        weight += 4;
        other += 4;
    }
    while (row != end) {
        GEMEDGE_ONE(0);
        row++;
        weight++;
        other++;
    }
#undef GEMEDGE_ONE
    sums[0] = sum;
    sums[1] = beside;
#endif
}

/* Weights lie as [output, input]. The loops are over rows; in_step and out_step lead from number to number within one.
   room: for the numbers of a row, where they do not lie side by side. */
GEMEDGE_APART void GEMEDGE_OF(gemedge_dense)(const GEMEDGE_INPUT *in, int32_t inputs, uint32_t in_step,
                                             const GEMEDGE_FLASH GEMEDGE_WEIGHT *weights,
                                             const GEMEDGE_FLASH struct gemedge_rescaling *by, void *room, void *out,
                                             int32_t outputs, uint32_t out_step,
                                             const GEMEDGE_FLASH struct gemedge_loops *loops) {
    struct gemedge_places places = {0, 0, 1, 0, 0, 0};
    struct gemedge_walk walk;
    GEMEDGE_SUM sums[GEMEDGE_BATCH];
    places.step = (size_t)out_step;
    gemedge_begin(&walk);
    do {
        const GEMEDGE_FLASH GEMEDGE_WEIGHT *weight = weights;
        const GEMEDGE_INPUT *row = in + walk.at[0];
        int32_t output, i, k;
        if (in_step != 1u) {
            for (k = 0; k < inputs; k++) {
                ((GEMEDGE_INPUT *)room)[k] = row[(uint32_t)k * in_step];
            }
            row = (const GEMEDGE_INPUT *)room;
        }
        for (output = 0; output < outputs; output += GEMEDGE_BATCH) {
            const int32_t rest = outputs - output;
            places.first = output;
            places.channels = rest < GEMEDGE_BATCH ? rest : GEMEDGE_BATCH;
            places.at = (size_t)(walk.at[1] + (uint32_t)output * out_step);
            for (i = 0; i < places.channels; i += 2) {
                const GEMEDGE_FLASH GEMEDGE_WEIGHT *other = i + 1 < places.channels ? weight + inputs : weight;
                GEMEDGE_OF(gemedge_row)(row, weight, other, inputs, sums + i);
                weight = other + inputs;
            }
            GEMEDGE_FINISH(sums, 0, &places, by, out);
        }
    } while (gemedge_next(&walk, loops));
}

#undef GEMEDGE_OF
#undef GEMEDGE_INPUT
#undef GEMEDGE_WEIGHT
#undef GEMEDGE_SUM
#undef GEMEDGE_BLOCK
#undef GEMEDGE_FINISH
