"""Rows of a table of which `make test` runs a part, and `make test-all` the rest."""

from collections.abc import Iterable
from typing import Any

import pytest


def thinned(rows: Iterable[Any], step: int) -> list[Any]:
    """The rows; all but every step-th are long."""
    return [row if index % step == 0 else pytest.param(row, marks=pytest.mark.long) for index, row in enumerate(rows)]
