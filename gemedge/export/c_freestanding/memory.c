/* memcpy, memmove and memset: by words where both addresses permit it, else by bytes. Compiled with -fno-builtin, or a
   compiler would see a memcpy in memcpy's loop and call it. */

#include <stddef.h>
#include <stdint.h>

typedef uint32_t __attribute__((may_alias)) word;

void *memcpy(void *restrict to, const void *restrict from, size_t count);
void *memmove(void *to, const void *from, size_t count);
void *memset(void *to, int value, size_t count);

static void *forwards(uint8_t *to, const uint8_t *from, size_t count) {
    uint8_t *const start = to;
    if ((((uintptr_t)to | (uintptr_t)from) & 3u) == 0) {
        for (; count >= 4; count -= 4, to += 4, from += 4) {
            *(word *)(void *)to = *(const word *)(const void *)from;
        }
    }
    while (count--) {
        *to++ = *from++;
    }
    return start;
}

void *memcpy(void *restrict to, const void *restrict from, size_t count) {
    return forwards(to, from, count);
}

void *memmove(void *to, const void *from, size_t count) {
    uint8_t *const last = (uint8_t *)to;
    if ((uintptr_t)to <= (uintptr_t)from) {
        return forwards(to, from, count);
    }
    while (count--) {
        last[count] = ((const uint8_t *)from)[count];
    }
    return to;
}

void *memset(void *to, int value, size_t count) {
    uint8_t *place = to;
    while (count && ((uintptr_t)place & 3u)) {
        *place++ = (uint8_t)value;
        count--;
    }
    for (; count >= 4; count -= 4, place += 4) {
        *(word *)(void *)place = (uint8_t)value * (uint32_t)0x01010101;
    }
    while (count--) {
        *place++ = (uint8_t)value;
    }
    return to;
}
