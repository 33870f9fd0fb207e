"""How a sweep went, drawn: when each job ran and where, how long they took, what they gave.

The only user of matplotlib. Nothing of its state is changed, so that a figure has the reader's
own style; the colours are those of the views, and can be told on a light and a dark ground.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import heapreplace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qnb.analysis.frames import DataFrame
from qnb.errors import InvalidOption
from qnb.options import hint

try:
    from matplotlib import pyplot, ticker
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba_array
    from matplotlib.dates import ConciseDateFormatter
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
except ImportError as missing:
    raise InvalidOption(
        f"plots need matplotlib, which is not here ({missing}): install it with "
        "pip install 'qnb[plot]'"
    ) from missing

__all__ = ["KINDS", "Axes", "Kind", "plot"]

Kind = Literal["timeline", "hist", "scatter"]
Floats: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Places: TypeAlias = NDArray[np.int64]
Column: TypeAlias = Any  # a pandas Series, of whatever dtype
Chosen: TypeAlias = dict[str, str | None]  # x, y and color

#: how a job may stand, from the bottom of a drawing to its top, and its colour in the views
_TONES: Final = {
    "done": "#3da35a",
    "running": "#2f8fe6",
    "aborted": "#9a78cf",
    "failed": "#e5534b",
}
_APART: Final = 30  # jobs in a row that are parted by an outline
_NAMED: Final = 30  # worker processes that fit beside an axis
_GROUPS: Final = 8  # colours that can be told apart
#: units of time, each with its length and from which length on it is used, in seconds
_UNITS: Final = {
    "milliseconds": (1e-3, 0.0),
    "seconds": (1.0, 1.0),
    "minutes": (60.0, 120.0),
    "hours": (3600.0, 7200.0),
    "days": (86400.0, 172_800.0),
}
#: where a logarithmic axis of durations has its marks, in seconds
_MARKS: Final = {
    "1 ms": 1e-3, "10 ms": 1e-2, "100 ms": 0.1, "1 s": 1.0, "10 s": 10.0, "1 min": 60.0,
    "10 min": 600.0, "1 h": 3600.0, "10 h": 36e3, "4 d": 345_600.0, "40 d": 3_456_000.0,
}  # fmt: skip


def plot(  # noqa: PLR0913 - as users call it
    frame: DataFrame,
    kind: Kind = "timeline",
    *,
    parameters: Sequence[str] = (),
    ax: Axes | None = None,
    x: str | None = None,
    y: str | None = None,
    color: str | None = None,
) -> Axes:
    """Draw a frame of jobs on ``ax``, or on the axes of a new figure.

    ``"timeline"`` has a row for each worker process and a bar for each job, ``"hist"`` counts
    durations, ``"scatter"`` has a point for each job. That takes the columns ``x``, ``y`` and
    ``color``; left out, they are the first of the ``parameters`` that varies, the first numeric
    result (else the duration), and the next parameter that varies. A colour of a few values has a
    legend, of many a colour bar.
    """
    draw = KINDS.get(kind)
    if draw is None:
        raise InvalidOption(
            f"kind={kind!r}: expected one of {', '.join(KINDS)}.{hint(str(kind), KINDS)}"
        )
    chosen = {"x": x, "y": y, "color": color}
    for option, name in chosen.items():
        if name is None:
            continue
        if kind != "scatter":
            raise InvalidOption(f"{option}={name!r}: only kind='scatter' takes {option}=")
        if name not in frame.columns:
            columns = [str(column) for column in frame.columns]
            raise InvalidOption(
                f"{option}={name!r}: the frame has no such column.{hint(str(name), columns)} "
                f"It has {', '.join(columns)}"
            )
    if ax is None:
        ax = pyplot.subplots(layout="constrained")[1]
    draw(ax, _Jobs(frame, parameters), chosen)
    return ax


# ---- reading the frame ----


class _Jobs:
    """A frame of jobs, and where to find what in it."""

    def __init__(self, frame: DataFrame, parameters: Sequence[str]) -> None:
        self.frame = frame
        self.parameters = list(parameters)
        self.results = [name for name in frame.attrs.get("results", ()) if name in frame.columns]

    def column(self, name: str) -> str:
        """A bookkeeping column's name: it gives way to parameters and results."""
        while name in self.parameters or name in self.results:
            name += "_job"
        return name

    def __getitem__(self, name: str) -> Column:
        return self.frame[self.column(name)]

    def standings(self) -> dict[str, Mask]:
        """Which jobs stand how. Those reused did not run here, those waiting not yet."""
        cached, done, aborted = (
            self[name].fillna(False).to_numpy(dtype=np.bool_)
            for name in ("cached", "success", "aborted")
        )
        ran = ~cached & self["start"].notna().to_numpy()
        ended = self["finish"].notna().to_numpy()
        return {
            "done": ran & ended & done,
            "running": ran & ~ended,
            "aborted": ran & ended & aborted,
            "failed": ran & ended & ~done & ~aborted,
        }


def _seconds(column: Any) -> Floats:
    return np.asarray(column.dt.total_seconds(), dtype=np.float64)


def _unit(longest: float) -> tuple[float, str]:
    """The unit in which ``longest`` seconds are read most easily: its length and name."""
    return [(size, name) for name, (size, least) in _UNITS.items() if least <= longest][-1]


def _blank(ax: Axes, why: str) -> None:
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", alpha=0.7)
    ax.set_xticks([])
    ax.set_yticks([])


def _legend(ax: Axes, handles: Sequence[Any], title: str | None = None) -> None:
    """Beside the axes, where it hides nothing."""
    ax.legend(
        handles=handles, title=title, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False
    )


def _keys(standings: dict[str, Mask]) -> Iterator[Patch]:
    for word, which in standings.items():
        if which.any():
            yield Patch(color=_TONES[word], label=f"{word} ({which.sum():,})")


# ---- when and where ----


def _timeline(ax: Axes, jobs: _Jobs, chosen: Chosen) -> None:
    standings = jobs.standings()
    shown = np.logical_or.reduce(list(standings.values()))
    if not shown.any():
        _blank(ax, "no job has been started yet")
        return
    started, finished = jobs["start"][shown], jobs["finish"][shown]
    first = started.min()
    start, finish = _seconds(started - first), _seconds(finished - first)
    span = max(float(np.nanmax(np.append(finish, start))), 1e-3)
    finish = np.where(np.isnan(finish), span, finish)  # they run to the end of what is known
    size, unit = _unit(span)
    rows, names = _rows(jobs["worker"][shown], start)
    lane, lanes = _lanes(rows, start, finish)
    height = 0.8 / lanes[rows]
    bottom = rows - 0.4 + lane * height
    corners = np.empty((len(start), 4, 2))
    corners[:, 0, 0] = corners[:, 1, 0] = start / size
    corners[:, 2, 0] = corners[:, 3, 0] = np.maximum(finish, start) / size
    corners[:, 0, 1] = corners[:, 3, 1] = bottom
    corners[:, 1, 1] = corners[:, 2, 1] = bottom + height
    many = len(start) > _APART * len(lanes)
    for word, which in standings.items():
        if (mask := which[shown]).any():
            ax.add_collection(_bars(corners[mask], word, ax, many), autolim=False)
    ax.set_xlim(0, span / size * 1.01)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel(f"{unit} since {first:%Y-%m-%d %H:%M:%S} UTC")
    _name_workers(ax, names)
    _legend(ax, list(_keys(standings)))


def _bars(corners: Floats, word: str, ax: Axes, many: bool) -> PolyCollection:
    """A few are parted by an outline; of many, the failed are at least as wide as a line."""
    outline: Any = ax.get_facecolor()
    if many:
        outline = _TONES[word] if word == "failed" else "none"
    return PolyCollection(
        list(corners), facecolors=_TONES[word], edgecolors=outline, linewidths=0.7, label=word
    )


def _rows(workers: Column, start: Floats) -> tuple[Places, list[str]]:
    """The row of each job, and the worker process of each row: the first to start at the top."""
    codes, found = pd.factorize(workers.astype(object).where(workers.notna(), ""))
    first = np.full(len(found), np.inf)
    np.minimum.at(first, codes, start)
    order = first.argsort(kind="stable")
    return order.argsort()[codes], [str(name) for name in found[order]]


def _lanes(rows: Places, start: Floats, finish: Floats) -> tuple[Places, Places]:
    """For each job a lane of its row in which it overlaps none, and the lanes of each row.

    A process that runs many at once has many.
    """
    lane = np.zeros(len(rows), dtype=np.int64)
    free: list[list[tuple[float, int]]] = [[] for _ in range(rows.max() + 1)]
    for job in np.lexsort((finish, start)):
        lanes = free[rows[job]]
        if lanes and lanes[0][0] <= start[job] + 2e-3:  # times are whole milliseconds
            lane[job] = lanes[0][1]
            heapreplace(lanes, (finish[job], lanes[0][1]))
        else:
            lane[job] = len(lanes)
            lanes.append((finish[job], len(lanes)))
            lanes.sort()
    return lane, np.array([len(lanes) for lanes in free])


def _name_workers(ax: Axes, names: list[str]) -> None:
    hosts = {name.rpartition(":")[0] for name in names}
    if len(names) > _NAMED:
        where = f" on {len(hosts)} hosts" if len(hosts) > 1 else ""
        ax.set_ylabel(f"{len(names):,} worker processes{where}")
        ax.set_yticks([])
        return
    one = len(hosts) == 1 and "" not in hosts
    ax.set_ylabel(f"worker process on {hosts.pop()}" if one else "worker process")
    labels = [name.rpartition(":")[2] if one else name or "unknown" for name in names]
    ax.set_yticks(range(len(names)), labels)


# ---- how long ----


def _hist(ax: Axes, jobs: _Jobs, chosen: Chosen) -> None:
    standings = jobs.standings()
    del standings["running"]  # how long they take is not known yet
    took = _seconds(jobs["duration"])
    counted = np.logical_or.reduce(list(standings.values()))
    if not counted.any():
        _blank(ax, "no job has ended yet")
        return
    words = [word for word in standings if standings[word].any()]
    edges, size, unit = _edges(took[counted])
    middle = float(np.median(took[counted]))
    ax.hist(
        [took[standings[word]].clip(edges[0] * size) / size for word in words],
        bins=edges.tolist(),
        stacked=True,
        color=[_TONES[word] for word in words],
        label=words,
    )
    length, name = _unit(2 * middle)
    line = ax.axvline(
        middle / size,
        color=ax.xaxis.label.get_color(),
        linestyle="--",
        label=f"median {middle / length:.3g} {name}",
    )
    ax.set_xlabel(f"duration ({unit})" if unit else "duration")
    if not unit:
        ax.set_xscale("log")
        marks = {name: at for name, at in _MARKS.items() if edges[0] <= at <= edges[-1]}
        ax.set_xticks(list(marks.values()), list(marks))
        ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.set_ylabel("jobs")
    ax.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    _legend(ax, [*_keys(standings), line])


def _edges(took: Floats) -> tuple[Floats, float, str]:
    """The edges of the bins, the unit they are in, and its name; none where they are seconds on a
    logarithmic axis, because the durations differ so much.
    """
    least, most = np.quantile(took.clip(1e-3), (0.02, 0.98))
    count = int(np.clip(2 * len(took) ** 0.5, 8, 60))
    if most > 20 * least:
        low, high = took.clip(1e-3).min(), took.max()
        return np.geomspace(low * 0.999, high * 1.001, count + 1), 1.0, ""
    size, unit = _unit(float(took.max()))
    # durations are whole milliseconds: narrower bins would be empty by turns
    width = max((float(np.ptp(took)) * 1.001) / count, 1e-3)
    first = took.min() - (5e-4 if width == 1e-3 else 0.0)
    bins = max(1, int(np.ceil((took.max() - first) / width + 1e-9)))
    return (first + width * np.arange(bins + 1)) / size, size, unit


# ---- what came of what ----


def _scatter(ax: Axes, jobs: _Jobs, chosen: Chosen) -> None:
    frame, (x, y, color) = jobs.frame, _chosen(jobs, **chosen)
    if x is None:
        _blank(ax, "no parameter varies")
        return
    across, up = (
        _along(axis, frame[name], is_result=name in jobs.results)
        for axis, name in ((ax.xaxis, x), (ax.yaxis, y))
    )
    shown = np.isfinite(across) & np.isfinite(up)
    for scale, values in ((ax.set_xscale, across[shown]), (ax.set_yscale, up[shown])):
        if len(values) and values.min() > 0 and values.max() >= 100 * values.min():
            scale("log")
    failed = np.isfinite(across) & ~shown & jobs.standings()["failed"]
    if not (shown | failed).any():
        _blank(ax, f"no job has a {y} yet")
        return
    keys = _points(ax, across[shown], up[shown], None if color is None else frame[color][shown])
    title = color if keys else None
    if failed.any():  # they gave nothing to draw, but where they are tells much
        style: dict[str, Any] = {"color": _TONES["failed"], "marker": "x", "linestyle": ""}
        low = np.full(int(failed.sum()), 0.02)
        ax.plot(across[failed], low, transform=ax.get_xaxis_transform(), label="failed", **style)
        keys.append(Line2D([], [], label=f"failed ({len(low):,})", **style))
    if keys:
        _legend(ax, keys, title)


def _chosen(
    jobs: _Jobs, x: str | None, y: str | None, color: str | None
) -> tuple[str | None, str, str | None]:
    """The columns to draw: those given, else those that say most."""
    frame = jobs.frame
    varying = [name for name in jobs.parameters if _varies(frame[name])]
    if x is None:
        numeric = [name for name in varying if _is_numeric(frame[name])]
        x = next((name for name in numeric + varying if name not in (y, color)), None)
    if y is None:
        numbers = [name for name in jobs.results if name != x and _is_numeric(frame[name])]
        y = next(iter(numbers), jobs.column("duration"))
    if color is None:
        color = next((name for name in varying if name not in (x, y)), None)
    return x, y, color


def _varies(column: Column) -> bool:
    try:
        return bool(column.nunique(dropna=False) > 1)
    except TypeError:  # values that cannot be hashed, and would not fit an axis
        return False


def _is_numeric(column: Column) -> bool:
    return (
        pd.api.types.is_numeric_dtype(column)
        and not pd.api.types.is_bool_dtype(column)
        and not pd.api.types.is_complex_dtype(column)
    )


def _along(axis: Any, column: Column, *, is_result: bool) -> Floats:
    """The column as numbers along ``axis``, which is labelled. None is a value, but no result."""
    label = str(column.name)
    if pd.api.types.is_timedelta64_dtype(column):
        found = _seconds(column)
        known = found[np.isfinite(found)]
        size, unit = _unit(2 * float(np.median(known)) if len(known) else 0.0)
        found, label = found / size, f"{label} ({unit})"
    elif pd.api.types.is_datetime64_any_dtype(column):
        axis.axis_date()
        locator = axis.get_major_locator()
        axis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        found = _seconds(column - pd.Timestamp(0, tz=column.dt.tz)) / 86_400
    elif _is_numeric(column):
        found = column.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        codes, names = _codes(column)
        found = np.where(column.isna() & is_result, np.nan, codes)
        every = max(1, -(-len(names) // 25))
        axis.set_ticks(range(0, len(names), every), names[::every])
    axis.set_label_text(label)
    return found


def _codes(column: Column) -> tuple[Places, list[str]]:
    """A number for each of its values: numbers by size, others in the order in which they come."""
    try:
        codes, found = pd.factorize(column, sort=_is_numeric(column), use_na_sentinel=False)
    except TypeError:  # values that cannot be hashed
        codes, found = pd.factorize(column.map(repr))
    return codes, ["None" if pd.isna(name) else _cut(str(name)) for name in found]


def _cut(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"


def _points(ax: Axes, x: Floats, y: Floats, color: Column | None) -> list[Line2D]:
    """Draw them; what the legend says of their colours."""
    few = 1 / max(1, len(x))
    style: dict[str, Any] = {
        "s": np.clip(4000 * few, 8, 36),
        "alpha": np.clip(40 * few**0.5, 0.4, 0.9),
        "linewidths": 0,
        "rasterized": len(x) > 5000,  # or a saved drawing of them is huge
    }
    if color is None:
        ax.scatter(x, y, **style)
        return []
    codes, names = _codes(color)
    if len(names) > _GROUPS and _is_numeric(color):
        drawn = ax.scatter(x, y, c=color.to_numpy(dtype=np.float64, na_value=np.nan), **style)
        bar = ax.figure.colorbar(drawn, ax=ax, label=str(color.name))
        if bar.solids is not None:
            bar.solids.set_alpha(1)
        return []
    if len(names) > _GROUPS:
        names[_GROUPS - 1 :] = [f"{len(names) - _GROUPS + 1:,} others"]
    tones = to_rgba_array([f"C{place}" for place in range(len(names))])
    # all at once, in the order of the jobs: none of the colours hides the others
    ax.scatter(x, y, color=tones[codes.clip(max=_GROUPS - 1)], **style)
    return [
        Line2D([], [], color=tone, marker="o", linestyle="", label=name)
        for tone, name in zip(tones, names, strict=True)
    ]


KINDS: Final[dict[str, Callable[[Axes, _Jobs, Chosen], None]]] = {
    "timeline": _timeline,
    "hist": _hist,
    "scatter": _scatter,
}
