/* A program for simavr that runs a network once: it prints in hexadecimal what the run gives, and holds the clock
   while nothing of the network runs. gemedge_sample.h, which gemedge.export.avr writes, has the network's functions
   and one sample. A line is a letter and a number: L layer, O output, S status, K bytes of stack, R those there
   are for it, or D and bytes in their order.

   The clock is pin A0, whose changes simavr notes with their cycle: high holds it. An instruction each, so that a
   stretch is 2 cycles longer than what runs in it. */

#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>
#include <avr_mcu_section.h>
#include <stddef.h>
#include <stdint.h>

#include "gemedge_sample.h"

#define HOLD() (PORTA |= 1u)
#define RELEASE() (PORTA &= (uint8_t)~1u)
#define PAINT 0xA5u
#define A_LINE 32u

AVR_MCU(1000000, "atmega1284p");
AVR_MCU_SIMAVR_CONSOLE(&GPIOR0);
AVR_MCU_VCD_FILE("clock.vcd", 1000);
const struct avr_mmcu_vcd_trace_t clock_traced[] _MMCU_ = {
    {AVR_MCU_VCD_SYMBOL("held"), .mask = 1, .what = (void *)&PORTA}};

extern uint8_t __heap_start; /* the first byte behind the variables */

static void put(uint8_t character) {
    GPIOR0 = character;
}

static void put_hex(uint8_t byte) {
    static const char digits[] = "0123456789abcdef";
    put((uint8_t)digits[byte >> 4]);
    put((uint8_t)digits[byte & 15u]);
}

static void put_number(char key, uint16_t number) {
    put((uint8_t)key);
    put_hex((uint8_t)(number >> 8));
    put_hex((uint8_t)number);
    put('\r'); /* at which simavr prints the line */
}

static void put_bytes(const void *data, size_t bytes) {
    const uint8_t *byte = data;
    size_t i;
    for (i = 0; i < bytes; i++) {
        if (i % A_LINE == 0) {
            put('D');
        }
        put_hex(byte[i]);
        if (i % A_LINE == A_LINE - 1u || i == bytes - 1u) {
            put('\r');
        }
    }
}

/* Not inlined, or the registers that it needs would be saved before the clock is held. */
__attribute__((noinline, noclone)) static void show(int layer, const void *data, size_t bytes) {
    if (layer >= 0) {
        put_number('L', (uint16_t)layer);
        put_bytes(data, bytes);
    }
}

void gemedge_observe(int layer, const void *data, size_t bytes, void *context);
void gemedge_observe(int layer, const void *data, size_t bytes, void *context) {
    (void)context;
    HOLD();
    show(layer, data, bytes);
    RELEASE();
}

/* What a run takes beside its own instructions: a call and a return. */
int gemedge_nothing(PARAMETERS);
__attribute__((naked, noinline, noclone)) int gemedge_nothing(PARAMETERS) {
    __asm__ volatile("ret");
}

/* The bytes down from the top of the stack to the deepest that is not painted any more. */
static uint16_t used_below(uint16_t top) {
    const volatile uint8_t *byte = &__heap_start;
    while (byte <= (const volatile uint8_t *)top && *byte == PAINT) {
        byte++;
    }
    return (uint16_t)(top + 1u - (uint16_t)byte);
}

int main(void) {
    volatile uint8_t *byte;
    int status;
    uint16_t top, used;
    HOLD();
#ifdef OBSERVED
    { /* what showing a layer takes beside what is held */
        void (*volatile observe)(int, const void *, size_t, void *) = gemedge_observe;
        observe(-1, arena, ARENA_SIZE, 0);
        observe(-1, arena, ARENA_SIZE, 0);
        HOLD();
    }
#endif
    RELEASE();
    gemedge_nothing(ARGUMENTS);
    HOLD();
    top = SP;
    for (byte = &__heap_start; byte <= (volatile uint8_t *)top; byte++) {
        *byte = PAINT;
    }
    RELEASE();
    status = RUN(ARGUMENTS);
    HOLD();
    used = used_below(top);
    SHOW_OUTPUTS
    put_number('S', (uint16_t)status);
    put_number('K', used);
    put_number('R', (uint16_t)(top + 1u - (uint16_t)&__heap_start));
    cli();
    sleep_enable();
    sleep_cpu(); /* simavr ends */
    return 0;
}
