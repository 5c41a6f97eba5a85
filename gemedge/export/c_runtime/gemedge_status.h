/* What a run gives. */

#ifndef GEMEDGE_STATUS_H
#define GEMEDGE_STATUS_H

#define GEMEDGE_OK 0
#define GEMEDGE_ARENA_TOO_SMALL 1
#define GEMEDGE_ARENA_MISALIGNED 2
#define GEMEDGE_NULL_POINTER 3
#define GEMEDGE_INDEX_OUTSIDE 4 /* an input index that is not a row of its table */

#endif
