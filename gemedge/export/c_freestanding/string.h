/* What the runtime takes of <string.h>, for targets without a C library. The compiler may put a few moves of its own
   in place of a short copy of known size, as it does with a C library's header. */

#ifndef GEMEDGE_FREESTANDING_STRING_H
#define GEMEDGE_FREESTANDING_STRING_H

#include <stddef.h>

void *memcpy(void *to, const void *from, size_t count);
void *memmove(void *to, const void *from, size_t count);
void *memset(void *to, int value, size_t count);

#endif
