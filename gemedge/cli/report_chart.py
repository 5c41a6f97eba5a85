"""The report's pictures: what each layer adds to the output error, and a tensor's numbers beside its integers."""

from collections.abc import Sequence

from gemedge.cli.report_style import COLOURS
from gemedge.cli.report_words import CAUSES, html, main_cause, number, part_name, percent
from gemedge.quant.attribution import Attribution, Share
from gemedge.quant.compare import BINS, TensorError, histogram_edges

_NAMED = 14  # columns that have room for their names
_WIDTH, _HEIGHT, _FOOT = 560, 150, 34


def layers_chart(attribution: Attribution) -> str:
    """A column for each layer from input to output, as high as its share, in the colours of its causes."""
    shares, total = attribution.layers, sum(share.mean for share in attribution.layers)
    top = max(max(share.mean for share in shares), 0.0)
    bottom = min(min(share.mean for share in shares), 0.0)
    height = (top - bottom) or 1.0
    largest = max(range(len(shares)), key=lambda index: shares[index].mean)
    labels = ["" for _ in shares]
    labels[largest] = _label(shares[largest], total, "left" if largest < len(shares) / 2 else "right")
    columns = "".join(
        _column(share, total, (share.mean / height, -bottom / height), label)
        for share, label in zip(shares, labels, strict=True)
    )
    zero = f'<div class="zero" style="bottom:{-100 * bottom / height:.2f}%"></div>'
    told = "; ".join(f"{part_name(share)} {percent(share.mean, total)}" for share in _best(shares, 5))
    label = html(f"Share of the output error by layer: {told}")
    chart = f'<div class="chart" role="img" aria-label="{label}">{zero}{columns}</div>'
    return f"<figure>{chart}{_names(shares)}{_legend(shares)}</figure>"


def _best(shares: Sequence[Share], count: int) -> list[Share]:
    return sorted(shares, key=lambda share: -share.mean)[:count]


def _column(share: Share, total: float, place: tuple[float, float], label: str) -> str:
    """One column: where its share is above zero, a stack of its causes; below, its error cancels another's."""
    size, zero = place
    told = f"{part_name(share)}: {percent(share.mean, total)} of the output error"
    causes: dict[str, float] = {cause: part for cause, part in share.causes.items() if part > 0} or {"other": 1.0}
    told += "".join(f"; {cause} {percent(part, sum(share.causes.values()))}" for cause, part in share.causes.items())
    stack, at = "", zero if size >= 0 else zero + size
    for cause, part in causes.items():
        high = abs(size) * part / sum(causes.values())
        style = f"bottom:{100 * at:.2f}%;height:{100 * high:.2f}%;background:{COLOURS[cause]}"
        stack += f'<i style="{style}"></i>'
        at += high
    return f'<div class="column" title="{html(told)}">{stack}{label}</div>'


def _label(share: Share, total: float, side: str) -> str:
    return f'<u style="{side}:0">{html(part_name(share).replace("`", ""))}: {percent(share.mean, total)}</u>'


def _names(shares: Sequence[Share]) -> str:
    if len(shares) > _NAMED:
        told = f"{len(shares)} columns in the order of the network; point at one for its name"
        return f'<div class="ends" aria-hidden="true"><span>input</span><span>{told}</span><span>output</span></div>'
    names = "".join(f"<span>{html(part_name(share).replace('`', ''))}</span>" for share in shares)
    return f'<div class="names" aria-hidden="true">{names}</div>'


def _legend(shares: Sequence[Share]) -> str:
    seen: set[str] = {cause for share in shares for cause, part in share.causes.items() if part > 0}
    seen |= {"other"} if any(main_cause(share) == "other" for share in shares) else set()
    keys = "".join(
        f'<span><i style="background:{COLOURS[cause]}"></i>{CAUSES[cause]}</span>' for cause in CAUSES if cause in seen
    )
    return f'<div class="legend">{keys}</div>'


def histogram(error: TensorError) -> str:
    """Floats as an area, integers as a line, the ends of the format dashed; heights are square roots of counts."""
    edges = histogram_edges(error.params)
    most = max(*error.exact[1:-1], *error.found[1:-1], 1) ** 0.5
    step = _WIDTH / BINS

    def outline(counts: Sequence[int]) -> str:
        points = [f"M0 {_HEIGHT}"]
        for index, count in enumerate(counts[1:-1]):
            points.append(f"V{_HEIGHT - (_HEIGHT - 16) * count**0.5 / most:.0f}H{(index + 1) * step:.0f}")
        return "".join(points) + f"V{_HEIGHT}"

    params = error.params
    marks = ""
    for raw, anchor, shift in ((params.raw_min, "start", 4), (params.raw_max, "end", -4)):
        value = (raw - params.zero_point) * params.scale
        x = _WIDTH * (value - edges[0]) / (edges[-1] - edges[0])
        marks += f'<line class="limit" x1="{x:.0f}" x2="{x:.0f}" y1="0" y2="{_HEIGHT + 4}"/>'
        marks += f'<text x="{x + shift:.0f}" y="{_HEIGHT + 16}" text-anchor="{anchor}">{number(value)}</text>'
    outside = error.exact[0] + error.exact[-1]
    note = f"{outside:,} float numbers lie beyond the picture" if outside else "every float number is in the picture"
    told = f"Histogram of {error.layer}: floats from {number(error.low)} to {number(error.high)}; {note}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img"><title>{html(told)}</title>'
        f'<path class="float" d="{outline(error.exact)}Z"/><path class="integer" d="{outline(error.found)}"/>'
        f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>{marks}'
        f'<text class="dim" x="{_WIDTH / 2}" y="{_HEIGHT + 31}" text-anchor="middle">'
        f"grey: float; blue: integers; dashed: the format's ends; {note}</text></svg>"
    )
