"""A child in which preparing never ends: `python -m slow_preparation` for `python -m gemedge.confined`."""

import sys

from gemedge import confined
from gemedge.quant import job


def _forever(model):
    while True:
        pass


if __name__ == "__main__":
    job._SECONDS_TO_PREPARE = 1
    job.prepare = _forever
    confined._child(sys.argv[1], *map(int, sys.argv[2:5]))
