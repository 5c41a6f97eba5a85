/* Where constants lie. AVR reads its flash by other instructions than its RAM, and its compiler takes the qualifier
   below in GNU C (-std=gnu99); in C++ and in strict C constants take RAM there. */

#ifndef GEMEDGE_FLASH_H
#define GEMEDGE_FLASH_H

#define GEMEDGE_RAM

/* GEMEDGE_FLASH qualifies constants; a gemedge_place is where a tensor or a constant lies. (Not AVR's __memx, whose
   addresses say which: gcc 5.4 -Os reads other bytes through them.) */
#if defined(__FLASH) && !defined(__STRICT_ANSI__)
#define GEMEDGE_FLASH __flash
typedef struct {
    const void *tensor; /* or 0 */
    const __flash void *constant;
} gemedge_place;
#define GEMEDGE_TENSOR(address) {address, 0}
#define GEMEDGE_CONSTANT(address) {0, address}
#else
#define GEMEDGE_FLASH
typedef const void *gemedge_place;
#define GEMEDGE_TENSOR(address) address
#define GEMEDGE_CONSTANT(address) address
#endif

#endif
