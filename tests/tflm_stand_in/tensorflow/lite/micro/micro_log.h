#ifndef STAND_IN_MICRO_LOG_H
#define STAND_IN_MICRO_LOG_H

#include <cstdio>

#define MicroPrintf(...) std::fprintf(stderr, __VA_ARGS__)

#endif
