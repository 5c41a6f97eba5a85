/* What a run needs, and the status that it gives. */

#ifndef GEMEDGE_STATUS_H
#define GEMEDGE_STATUS_H

#include <stddef.h>
#include <stdint.h>

/* What the address of an arena must be a multiple of: 4, and less where that is enough for a 32-bit integer. */
struct gemedge_aligned {
    char before;
    int32_t number;
};
#define GEMEDGE_ALIGNMENT offsetof(struct gemedge_aligned, number)

#define GEMEDGE_OK 0
#define GEMEDGE_ARENA_TOO_SMALL 1
#define GEMEDGE_ARENA_MISALIGNED 2
#define GEMEDGE_NULL_POINTER 3
#define GEMEDGE_INDEX_OUTSIDE 4 /* an input index that is not a row of its table */

#endif
