/* What a self-test says: lines of digests, which `gemedge verify --log` compares with simulate.

   A digest is the CRC-32 of zip and Ethernet over the bytes of a tensor, the low byte of a number first. */

#ifndef GEMEDGE_SELFTEST_H
#define GEMEDGE_SELFTEST_H

#include "gemedge_moving.h"

/* Yours: one character to a serial line, or to wherever a log comes from. With GEMEDGE_STDIO it is putchar. */
void gemedge_put_char(char character);

#ifdef GEMEDGE_STDIO
#include <stdio.h>
void gemedge_put_char(char character) {
    putchar(character);
}
#endif

static void gemedge_put_text(const char *text) {
    while (*text) {
        gemedge_put_char(*text++);
    }
}

static void gemedge_put_decimal(uint32_t value) {
    uint32_t unit = 1;
    while (value / unit > 9u) {
        unit *= 10u;
    }
    for (; unit > 0u; unit /= 10u) {
        gemedge_put_char((char)('0' + (int)(value / unit % 10u)));
    }
}

static void gemedge_put_hex(uint32_t value) {
    int shift;
    for (shift = 28; shift >= 0; shift -= 4) {
        gemedge_put_char("0123456789abcdef"[(value >> shift) & 15u]);
    }
}

static uint32_t gemedge_crc(const void *data, size_t bytes) {
    const uint8_t *byte = (const uint8_t *)data;
    uint32_t crc = 4294967295u;
    for (; bytes > 0u; bytes--) {
        int bit;
        crc ^= *byte++;
        for (bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ ((crc & 1u) ? 3988292384u : 0u);
        }
    }
    return crc ^ 4294967295u;
}

/* "gemedge begin 0badf00d 6 4": the model's digest, its layers, the samples. */
static void gemedge_put_begin(uint32_t model, uint32_t layers, uint32_t samples) {
    gemedge_put_text("\r\ngemedge begin ");
    gemedge_put_hex(model);
    gemedge_put_char(' ');
    gemedge_put_decimal(layers);
    gemedge_put_char(' ');
    gemedge_put_decimal(samples);
    gemedge_put_text("\r\n");
}

/* "gemedge 0 layer 3 12345678": part is in, layer or out. */
static void gemedge_put_digest(uint32_t sample, const char *part, uint32_t index, const void *data, size_t bytes) {
    gemedge_put_text("gemedge ");
    gemedge_put_decimal(sample);
    gemedge_put_char(' ');
    gemedge_put_text(part);
    gemedge_put_char(' ');
    gemedge_put_decimal(index);
    gemedge_put_char(' ');
    gemedge_put_hex(gemedge_crc(data, bytes));
    gemedge_put_text("\r\n");
}

/* "gemedge end 0": the status, and where that is 0, as many samples as gave other outputs than they must. */
static void gemedge_put_end(int status, uint32_t wrong) {
    gemedge_put_text("gemedge end ");
    gemedge_put_decimal((uint32_t)status);
    gemedge_put_char(' ');
    gemedge_put_decimal(wrong);
    gemedge_put_text("\r\n");
}

/* Whether the numbers are those of a constant. */
static int gemedge_equals(const void *data, const GEMEDGE_FLASH void *constant, size_t bytes) {
    size_t i;
    for (i = 0; i < bytes; i++) {
        if (((const uint8_t *)data)[i] != ((const GEMEDGE_FLASH uint8_t *)constant)[i]) {
            return 0;
        }
    }
    return 1;
}

#endif
