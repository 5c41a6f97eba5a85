"""The report as one page that needs nothing else: its first screen says which layer loses the most and why."""

from collections.abc import Sequence

from gemedge.cli.report_chart import histogram, layers_chart
from gemedge.cli.report_style import COLOURS, CSS, SCRIPT, SHOW_ALL
from gemedge.cli.report_words import (
    CAUSES,
    code,
    db,
    html,
    main_cause,
    number,
    part_name,
    percent,
    sentence,
    sortable,
)
from gemedge.quant.compare import TensorError
from gemedge.quant.report import Report

_HISTOGRAMS = 100  # of the worst tensors; more would make a deep network's page slow
_CAUSE_ALONE = {
    "kernel": "activations computed by a table or kernel, not exactly",
    "saturation": "numbers cut off at an end of their format",
    "rounding": "numbers between layers rounded to their format",
    "weights": "weights rounded to integers",
}


def page(found: Report, model_name: str, file_name: str, targets: str = "", notes: Sequence[str] = ()) -> str:
    """The page. targets: HTML of a further section, on the chips that the model is to run on.

    notes: lines on how the float model was read, such as where a learned epsilon went.
    """
    title = f"{html(file_name)}: {html(found.headline)}".replace("`", "")
    sections = [
        _first_screen(found, model_name, file_name),
        _advice(found),
        _causes(found),
        targets,
        _tensors(found.tensors),
        _choices(found),
        _notes(notes),
        _worst(found),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{CSS}</style>{SHOW_ALL}</head><body>\n'
        + "\n".join(section for section in sections if section)
        + f"\n<script>{SCRIPT}</script></body></html>\n"
    )


def _first_screen(found: Report, model_name: str, file_name: str) -> str:
    about = f"{found.scheme}, {found.layers:,} layers, {found.samples:,} samples"
    return (
        f'<header><p class="dim small">gemedge report: {code(file_name)}, integers, beside {code(model_name)},'
        f" float; {about}</p><h1>{_capital(sentence(found.headline))}</h1></header>"
        f'<main><p class="lead">{sentence(_who_loses(found))}</p>{_cards(found)}{_picture(found)}'
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _who_loses(found: Report) -> str:
    """One sentence on the layer with the largest share."""
    shares = found.attribution.layers
    total = sum(share.mean for share in shares)
    if not shares or total <= 0:
        return "The integers give what the float model gives: there is no error to explain."
    worst = max(shares, key=lambda share: share.mean)
    kind = found.operators.get(worst.layers[0], "input")
    alone = len(worst.layers) == 1
    who = f"Layer {part_name(worst)} ({kind}) loses" if alone else f"Layers {part_name(worst)} lose"
    cause = main_cause(worst)
    why = "" if cause == "other" else f", mostly by {CAUSES[cause]}"
    return f"{who} the most: {percent(worst.mean, total)} of the error at the network's output{why}."


def _cards(found: Report) -> str:
    if found.sqnr == float("inf"):
        cards = [("0 %", "error: outputs are equal to the float model's")]
    else:
        share = percent(10 ** (-found.sqnr / 20))
        told = f"SQNR: the outputs are off by {share} of their size; 6 dB more is half the error"
        cards = [(f"{db(found.sqnr)} <small>dB</small>", told)]
    if found.classes is not None:
        classes = found.classes
        cards.append((f"{classes.agreement:.2%}", "of the samples get the same class as from the float model"))
        if classes.accuracy is not None and classes.float_accuracy is not None:
            told = f"are classified right; by the float model {classes.float_accuracy:.2%}"
            cards.append((f"{classes.accuracy:.2%}", told))
    shown = "".join(f'<div class="card"><b>{big}</b><span>{small}</span></div>' for big, small in cards)
    return f'<div class="cards">{shown}</div>'


def _picture(found: Report) -> str:
    attribution = found.attribution
    if not attribution.layers or sum(share.mean for share in attribution.layers) <= 0:
        return ""
    below = any(share.mean < 0 for share in attribution.layers)
    groups = any(len(share.layers) > 1 for share in attribution.layers)
    told = f"Each column is a layer{' or a group of neighbours' if groups else ''}, from input to output; its height is"
    told += f" its share of the error at the output, measured on {found.probed} samples by making it exact."
    told += " Below the line: its error cancels some of another's." if below else ""
    return f'{layers_chart(attribution)}<p class="dim small">{told}</p>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text: bool = False) -> str:
    """A table; rows are HTML. text: the first column may wrap."""
    heads = "".join(f'<th scope="col">{name}</th>' for name in header)
    kind = ' class="text"' if text else ""
    lines = "".join(
        f"<tr><td{kind}>{row[0]}</td>" + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'


def _advice(found: Report) -> str:
    head = "<h2>What to change</h2>"
    if not found.advice:
        return f"{head}<p>No single change was found that gains 0.1 dB or more.</p>"
    rows = [(sentence(a.text), html(a.change), f"{a.gain:.1f}") for a in found.advice]
    told = (
        "<p>Each change was tried alone, in emulation; gains do not add up. Changes that cost the device nothing stand"
        " before those that cost memory or time.</p>"
    )
    return head + told + _table(("change", "kind", "gain, dB"), rows, text=True)


def _causes(found: Report) -> str:
    attribution = found.attribution
    if attribution.noise <= 0:
        return ""
    total = attribution.noise
    rows = [
        (
            f'<i class="bar" style="width:12px;background:{COLOURS[cause]}"></i> {_CAUSE_ALONE[cause]}',
            percent(forward, total),
            percent(reverse, total),
        )
        for cause, (forward, reverse) in attribution.causes.items()
    ]
    rest = percent(attribution.rescaling, total)
    rows.append(("multipliers rounded to integers, and what else the emulation leaves out", rest, rest))
    told = (
        "<p>Causes are switched off one after another, in this order and in the opposite one; what the error falls by"
        " is the cause's share. Where both columns differ, the cause acts together with others: it counts more once"
        " they are gone, or less.</p>"
    )
    return "<h2>Causes</h2>" + told + _table(("cause", "share, first to last", "share, last to first"), rows, text=True)


_COLUMNS = (
    "layer",
    "SQNR, dB",
    "max error, LSB",
    "mean error, LSB",
    "max error",
    "mean error",
    "cosine",
    "saturated",
    "codes used",
    "unused",
    "range used",
)


def _tensors(errors: Sequence[TensorError]) -> str:
    if not errors:
        return ""
    heads = "".join(f'<th scope="col"><button>{name}</button></th>' for name in _COLUMNS)
    bodies = "".join(_tensor(error, shown=index < _HISTOGRAMS) for index, error in enumerate(errors))
    told = "<p>Worst first; a heading sorts, a name opens the histogram of floats beside integers.</p>"
    if len(errors) > _HISTOGRAMS:
        told += f"<p>Histograms are kept of the worst {_HISTOGRAMS} of {len(errors):,} layers.</p>"
    return (
        f'<h2>Layer by layer</h2>{told}<div class="wide"><table class="sorted"><thead><tr>{heads}</tr></thead>'
        f"{bodies}</table></div>"
    )


def _tensor(error: TensorError, *, shown: bool) -> str:
    codes, used = 1 << error.params.bits, _used(error)
    cells = [
        (error.sqnr, db(error.sqnr)),
        (error.max_lsb, f"{error.max_lsb:.2f}"),
        (error.mean_lsb, f"{error.mean_lsb:.3f}"),
        (error.max_abs, number(error.max_abs)),
        (error.mean_abs, number(error.mean_abs)),
        (error.cosine, f"{error.cosine:.6f}"),
        (error.saturated, percent(error.saturated)),
        (error.codes, f"{error.codes:,}"),
        (codes - error.codes, f"{codes - error.codes:,}"),
        (used, percent(used)),
    ]
    row = "".join(f'<td data-v="{sortable(value)}">{html(text)}</td>' for value, text in cells)
    if not shown:
        return f"<tbody><tr><td>{html(error.layer)}</td>{row}</tr></tbody>"
    name = f'<td><button aria-expanded="false">{html(error.layer)}</button></td>'
    more = f"<p>tensor {code(error.tensor)}, {html(str(error.params))}</p>{histogram(error)}"
    return f'<tbody><tr>{name}{row}</tr><tr hidden><td class="more" colspan="{len(_COLUMNS)}">{more}</td></tr></tbody>'


def _used(error: TensorError) -> float:
    """The part of the format's range that the floats lie in."""
    params = error.params
    low, high = ((end - params.zero_point) * params.scale for end in (params.raw_min, params.raw_max))
    return max(min(error.high, high) - max(error.low, low), 0.0) / (high - low)


def _covered(found: Report) -> str:
    if len(found.choices) == found.activations:
        return ""
    return f"<p>The first {len(found.choices)} of {found.activations:,} activations.</p>"


def _choices(found: Report) -> str:
    if not found.choices:
        return ""
    parts = []
    for index, choice in enumerate(found.choices):
        rows = [
            (
                html(way.name),
                f"{way.max_lsb:.2f}",
                f"{way.mean_lsb:.3f}",
                db(way.sqnr),
                f"{way.flash_bytes:,}",
                f"{way.multiplies}",
                f"{way.look_ups}",
            )
            for way in choice.ways
        ]
        header = (
            "way", "max error, LSB", "mean error, LSB", "outputs' SQNR, dB", "bytes", "multiplications", "look-ups",
        )  # fmt: skip
        opened = " open" if index == 0 else ""
        parts.append(
            f"<details{opened}><summary>{code(choice.layer)}: {html(choice.activation)}</summary>"
            f"{_table(header, rows)}</details>"
        )
    told = (
        f"{_covered(found)}<p>What each activation would lose and cost by another way, on this data: error on the"
        " codes that occur,"
        " the outputs' SQNR with this way in this one place, bytes of constants, operations of the dearest number."
        " A network trained with GEM loses accuracy with ReLU in its place unless it is trained again.</p>"
    )
    return f"<h2>Activations, and the other ways to compute them</h2>{told}{''.join(parts)}"


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return f"<h2>How the float model was read</h2><ul>{''.join(f'<li>{html(note)}</li>' for note in notes)}</ul>"


def _worst(found: Report) -> str:
    worst = found.worst
    rows = [
        (f"{index}", number(exact), number(integer), number(integer - exact))
        for index, (exact, integer) in enumerate(zip(worst.exact, worst.found, strict=True))
    ]
    told = f"<p>Sample {worst.sample:,} of the data, counted from 0, differs most: {db(worst.sqnr)} dB.</p>"
    table = _table(("output", "float", "integers", "difference"), rows)
    return f"<h2>The worst sample</h2>{told}<details><summary>Its outputs</summary>{table}</details></main>"
