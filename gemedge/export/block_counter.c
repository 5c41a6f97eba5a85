/* How often each block of emulated code ran, for gemedge.export.machine: a table by address and bytes. */

#include <stdint.h>

#define CELLS 65536u

struct cell {
    uint64_t block; /* address * 65536 + bytes, 0 where nothing is */
    uint64_t times;
};

struct counter {
    uint64_t used;
    uint64_t lost; /* runs of blocks for which there was no place */
    struct cell cells[CELLS];
};

void count(void *emulator, uint64_t address, uint32_t bytes, void *context);

void count(void *emulator, uint64_t address, uint32_t bytes, void *context) {
    struct counter *const counter = (struct counter *)context;
    const uint64_t block = address << 16 | bytes;
    uint64_t place = (block * UINT64_C(0x9E3779B97F4A7C15)) >> 48;
    (void)emulator;
    while (counter->cells[place].block != block) {
        if (counter->cells[place].block == 0) {
            if (counter->used >= CELLS / 4 * 3) {
                counter->lost++;
                return;
            }
            counter->used++;
            counter->cells[place].block = block;
            break;
        }
        place = (place + 1) % CELLS;
    }
    counter->cells[place].times++;
}
