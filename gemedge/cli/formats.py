"""How a number format is written on the command line."""

import re

from gemedge.errors import FormatError
from gemedge.fixed import QFormat, QuantParams

_NUMBER = r"([-+.\dEe]{1,40})"
_AFFINE = re.compile(rf"int(8|16|32)\(scale={_NUMBER}(?:, ?zero_point=(-?\d{{1,4}}))?\)", re.ASCII)


def read_params(text: str) -> QuantParams:
    """The format that `str()` wrote as text: `Q3.12` or `int8(scale=0.1, zero_point=3)`."""
    found = _AFFINE.fullmatch(text.strip())
    if not found:
        if text.strip()[:1] in ("Q", "q"):
            return QFormat.parse(text).params
        raise FormatError(f"format {text[:40]!r} cannot be read; write Q3.12 or int8(scale=0.1, zero_point=3)")
    try:
        scale = float(found[2])
    except ValueError:
        raise FormatError(f"format {text[:40]!r}: scale={found[2]} is not a number") from None
    return QuantParams(scale, int(found[3] or 0), int(found[1]))
