"""The rows of the comparison, the contenders, and the tables made of their figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PEER = "ArdiQ"  #: ratios are to its figure of the same run

#: contender → row → round → figure; a peer may fail in one
Figures = Mapping[str, Mapping[str, Mapping[int, float]]]


@dataclass(frozen=True)
class Contender:
    """One column: a script beside this file, and how much of the work it can do in time."""

    name: str
    script: str
    kind: str = ""  #: for qnb: where the bodies run
    package: str = "qnb"
    scale: float = 1.0
    forms: tuple[str, ...] = ("one", "arrays", "two")

    @property
    def is_ours(self) -> bool:
        return self.package == "qnb"


INLINE = Contender("qnb, in process", "with_qnb.py", "inline")
ONE = Contender("qnb worker -n 1", "with_qnb.py", "children 1", forms=("one",))
TWO = Contender("qnb worker -n 2", "with_qnb.py", "children 2")
CONTENDERS = (
    Contender(PEER, "with_ardiq.py", package="ardiq"),
    INLINE,
    TWO,
    ONE,
    Contender("arq", "with_arq.py", package="arq", scale=0.25),
    Contender("RQ", "with_rq.py", package="rq", scale=0.1),
)


@dataclass(frozen=True)
class Row:
    """One line of the table, and what qnb is to reach there: in process, with child processes."""

    key: str
    what: str
    unit: str
    figure: str = "{:,.0f}"
    times: tuple[float | None, float | None] = (None, None)  #: of ArdiQ's figure
    most: float | None = None  #: of its unit
    more: bool = False  #: more is better
    against: str = ""  #: the row of ArdiQ's figure, where that is another one


ROWS = (
    Row("dispatch", "dispatch: no-op coroutines, drained", "jobs/s", times=(4, 2.5), more=True),
    Row("cpu", "processor time of the worker, a no-op job", "µs", most=40),
    Row("server cpu", "… and of the server: stored, run and ended", "µs"),
    Row("enqueue many", "`enqueue_many`, made and stored", "jobs/s", times=(2.5, 2.5), more=True),
    Row("enqueue one", "enqueue one, awaited, one by one", "jobs/s", times=(1.5, 1.5), more=True),
    Row("trip p50", "round trip, idle worker, median", "ms", "{:.2f}", (0.45, 0.45)),
    Row("trip p99", "round trip, idle worker, 99th of 100", "ms", "{:.2f}", (0.45, 0.45)),
    Row("blocking p50", "… from blocking code, median", "ms", "{:.2f}", (0.45, 0.45),
        against="trip p50"),
    Row("fan out", "2,000 jobs sent and gathered by the client", "s", "{:.2f}", (0.2, 0.2)),
    Row("compute", "200 × 10 ms of pure Python on 2 processes", "s", "{:.2f}", (None, 0.85)),
    Row("arrays", "50 arrays of 4 MB, there and back", "MB/s", times=(2, 2), more=True),
    Row("memory", "resident memory of a worker", "MB", times=(1.6, 1.6)),
    Row("slot memory", "… and of each child process", "MB", most=40),
    Row("import", "`import`, over a bare interpreter", "ms", most=150),
)  # fmt: skip


def median(figures: Figures, contender: str, key: str) -> float | None:
    rounds = figures.get(contender, {}).get(key)
    return statistics.median(rounds.values()) if rounds else None


def ratio(figures: Figures, contender: str, row: Row) -> float | None:
    """The median of the rounds' own ratios to ArdiQ: a slow minute of the machine hits both."""
    ours = figures.get(contender, {}).get(row.key, {})
    theirs = figures.get(PEER, {}).get(row.against or row.key, {})
    both = ours.keys() & theirs.keys()
    return statistics.median(ours[number] / theirs[number] for number in both) if both else None


def _cell(figures: Figures, row: Row, name: str) -> str:
    figure = median(figures, name, row.key)
    if figure is None:
        return "–"
    times = None if name == PEER else ratio(figures, name, row)
    return row.figure.format(figure) + ("" if times is None else f" ({times:.2f}×)")


def table(figures: Figures) -> str:
    """The comparison in Markdown."""
    names = [one.name for one in CONTENDERS if one.name in figures]
    lines = [["", *names], ["---"] * (len(names) + 1)]
    for row in ROWS:
        cells = [_cell(figures, row, name) for name in names]
        if any(cell != "–" for cell in cells):
            lines.append([f"{row.what}, {row.unit}", *cells])
    return markdown(lines)


def goals(figures: Figures) -> str:
    """What qnb is to reach, and does or does not."""
    lines = []
    for row in ROWS:
        for goal, one in zip(row.times, (INLINE, TWO), strict=True):
            found = [(ratio(figures, one.name, row), goal, "×"),
                     (median(figures, one.name, row.key), row.most, f" {row.unit}")]  # fmt: skip
            lines += [
                f"{'reached' if (has >= to) is row.more or has == to else 'MISSED '} {row.key}, "
                f"{one.name}: {has:.2f}{unit}, {'≥' if row.more else '≤'} {to:g}"
                for has, to, unit in found if None not in (has, to)
            ]  # fmt: skip
    return "\n".join(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
