"""Numbers and names of the report in words and in harmless HTML."""

import re
from html import escape
from math import inf, isfinite

from gemedge.quant.attribution import Share

CAUSES = {
    "rounding": "rounding of the numbers made",
    "saturation": "saturation: numbers cut off at an end of their format",
    "weights": "rounding of weights",
    "kernel": "the way a function is computed: kernel or table",
    "other": "cause not looked into",
}


def visible(text: str) -> str:
    """The text with characters that a terminal or a browser would obey, or not show, as escapes; on one line."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return shown if len(shown) <= 400 else shown[:300] + "…" + shown[-80:]


def html(text: str) -> str:
    return escape(visible(text))


def code(name: str) -> str:
    return f"<code>{html(name)}</code>"


def sentence(text: str) -> str:
    """Text in which `names` stand in backquotes."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html(text))


def db(value: float) -> str:
    return f"{value:.1f}" if isfinite(value) else "exact" if value > 0 else "no signal"


def number(value: float) -> str:
    return f"{value:.4g}" if isfinite(value) else "none"


def percent(part: float, whole: float = 1.0) -> str:
    """Such as 31 %, or 0.03 % where that is more than nothing."""
    share = 100 * part / whole if whole else 0.0
    if share and abs(share) < 0.005:
        return "<0.01 %" if share > 0 else ">-0.01 %"
    digits = 0 if abs(share) >= 9.95 or share == 0 else 1 if abs(share) >= 1 else 2
    return f"{share:.{digits}f} %"


def sortable(value: float) -> str:
    """For data-v: a number that the page's script can compare."""
    return f"{value:.6g}" if isfinite(value) else "1e308" if value == inf else "-1e308"


def part_name(share: Share) -> str:
    """A layer in backquotes, or the ends of a group."""
    first, last = (name.replace("`", "'") for name in (share.layers[0], share.layers[-1]))
    return f"`{first}`" if len(share.layers) == 1 else f"`{first}` to `{last}`"


def main_cause(share: Share) -> str:
    """The largest of its causes, or 'other' where they are not known."""
    cause = max(share.causes, key=lambda cause: share.causes[cause], default=None)
    return "other" if cause is None or share.causes[cause] <= 0 else cause
