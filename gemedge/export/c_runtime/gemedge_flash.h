/* Where constants lie. AVR reads its flash by other instructions than its RAM, and its compiler takes the qualifiers
   below in GNU C (-std=gnu99); in C++ and in strict C constants take RAM there. */

#ifndef GEMEDGE_FLASH_H
#define GEMEDGE_FLASH_H

#define GEMEDGE_RAM
#if defined(__FLASH) && defined(__MEMX)
#define GEMEDGE_FLASH __flash   /* constants: the lower 64 KB */
#define GEMEDGE_ANYWHERE __memx /* either: the address says which */
#else
#define GEMEDGE_FLASH
#define GEMEDGE_ANYWHERE
#endif

#endif
