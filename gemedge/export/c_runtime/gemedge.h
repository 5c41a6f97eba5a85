/* The integer operators of gemedge, in portable C99: no memory but the caller's, no float, no division, no recursion.

   Every function gives the same integers as gemedge.quant.evaluate (tests/test_to_c.py compares each layer).
   A tensor lies in memory in an order that the generator chose; channels come last where a convolution or a pool
   reads or makes it. Which addresses a loop visits is therefore told by constants, never found here.
   That no sum overflows was proven when the model was made: the widths below rest on that proof. */

#ifndef GEMEDGE_H
#define GEMEDGE_H

#include "gemedge_numbers.h"
#include "gemedge_loops.h"
#include "gemedge_sums.h"
#include "gemedge_elementwise.h"
#include "gemedge_windows.h"
#include "gemedge_moving.h"
#include "gemedge_activation.h"
#include "gemedge_rational.h"

#endif
