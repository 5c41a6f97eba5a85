"""How a benchmark hands over its figures: as rows, printed as tables or, for the collector, as JSON."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of a table. ratio: value over that of the peer, another row of the same run.

    at_most, at_least: the goal, of the ratio where there is one, else of the value. beside: further figures of the
    same thing, by their names with units.
    """

    table: str
    name: str
    value: float
    unit: str
    ratio: float | None = None
    peer: str = ""
    at_most: float | None = None
    at_least: float | None = None
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """Whether the goal is; None without one."""
        if self.at_most is None and self.at_least is None:
            return None
        judged = self.value if self.ratio is None else self.ratio
        return (self.at_most is None or judged <= self.at_most) and (self.at_least is None or judged >= self.at_least)


def timed(table: str, seconds: Mapping[str, float], peer: str, goals: Mapping[str, float] | None = None) -> list[Row]:
    """Rows of times in ms, each with its ratio to the peer's. goals: the largest ratios wanted, by name."""
    return [
        Row(table, name, 1e3 * taken, "ms")
        if name == peer
        else Row(table, name, 1e3 * taken, "ms", taken / seconds[peer], peer, (goals or {}).get(name))
        for name, taken in seconds.items()
    ]


def markdown(rows: Iterable[Row]) -> Iterator[str]:
    """A table for each title, in the order of the rows."""
    for title, grouped in groupby(rows, lambda row: row.table):
        found = list(grouped)
        columns = list(dict.fromkeys(name for row in found for name in row.beside))
        with_peer, with_goal = any(row.peer for row in found), any(row.reached is not None for row in found)
        head = ["", f"{found[0].unit}", *columns, *(["ratio"] if with_peer else []), *(["goal"] if with_goal else [])]
        yield f"**{title}**\n"
        yield f"| {' | '.join(head)} |"
        yield "|---" + "|--:" * (len(head) - 1) + "|"
        for row in found:
            cells = [row.name, number(row.value), *(number(row.beside.get(name)) for name in columns)]
            cells += [f"{number(row.ratio)} of {row.peer}" if row.peer else ""] if with_peer else []
            cells += [_goal(row)] if with_goal else []
            yield f"| {' | '.join(cells)} |"
        yield ""


def number(value: float | None) -> str:
    """Three digits, or all of a large number's."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _goal(row: Row) -> str:
    if row.reached is None:
        return ""
    sides = [f"at most {number(row.at_most)}"] if row.at_most is not None else []
    sides += [f"at least {number(row.at_least)}"] if row.at_least is not None else []
    return f"{', '.join(sides)}{'' if row.reached else ': **missed**'}"


def main(rows: Callable[[bool], list[Row]]) -> None:
    """Measure and print. --quick measures little of each, to see that it runs; --json prints for the collector."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="too little for figures, enough to see that it runs")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = rows(given.quick)
    if given.json:
        json.dump([asdict(row) for row in found], sys.stdout)
    else:
        print("\n".join(markdown(found)))
