from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_hex

from qnb.analysis.columns import MISSING
from qnb.analysis.frames import DataFrame, sweep_frame
from qnb.analysis.plots import KINDS, plot
from qnb.errors import InvalidOption
from qnb.models import Ending, JobState
from qnb.storage.rows import Row

NOW = 1_790_000_000_000
DONE, FAILED, RUNNING = "#3da35a", "#e5534b", "#2f8fe6"


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    with mpl.rc_context({"backend": "agg"}):
        before = dict(mpl.rcParams)
        yield
        pyplot.close("all")
        assert dict(mpl.rcParams) == before  # the reader's style is left alone


def job(
    index: int,
    start: float | None = None,
    took: float | None = None,
    ending: Ending = Ending.DONE,
    *,
    worker: str = "host:1",
    cached: bool = False,
) -> Row:
    """A job that was started after so many seconds."""
    row = Row(f"s.{index}", "f", "s", index, "default", JobState.QUEUED, cached=cached)
    if start is None:
        return row
    row = row._replace(status=JobState.RUNNING, worker=worker, start=NOW + round(start * 1000))
    if took is None:
        return row
    return row._replace(
        status=JobState.COMPLETE, finish=NOW + round((start + took) * 1000), ending=ending
    )


def frame_of(rows: Sequence[Row], values: Sequence[Any] = (), **points: Sequence[Any]) -> DataFrame:
    points = points or {"i": range(len(rows))}
    return sweep_frame("s", points, rows, values or [MISSING] * len(rows))


def draw(frame: DataFrame, kind: Any, **options: Any) -> Axes:
    """The drawing, when it has really been drawn."""
    ax = plot(frame, kind, parameters=frame.attrs["parameters"], **options)
    ax.figure.canvas.draw()
    return ax


def bars(ax: Axes) -> dict[str, list[tuple[float, float, float, float]]]:
    """Left, right, bottom and top of the bars of a timeline, by their colour."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for drawn in ax.collections:
        assert isinstance(drawn, PolyCollection)
        extents = [path.get_extents() for path in drawn.get_paths()]
        found[to_hex(drawn.get_facecolor()[0])] = [(e.x0, e.x1, e.y0, e.y1) for e in extents]
    return found


def legend(ax: Axes) -> list[str]:
    found = ax.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def ticks(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


# ---- when and where ----


def test_a_timeline_has_a_row_for_each_worker_and_a_bar_from_start_to_finish() -> None:
    frame = frame_of(
        [
            job(0, 0.0, 2.0, worker="box:11"),
            job(1, 0.5, 3.0, Ending.FAILED, worker="box:12"),
            job(2, 2.0, 2.0, worker="box:11"),
            job(3, 3.5, worker="box:12"),
            job(4),
            job(5, -9999.0, 1.0, cached=True),  # what it reuses ran elsewhere
        ]
    )
    ax = draw(frame, "timeline")
    assert ticks(ax.yaxis) == ["11", "12"]
    assert ax.get_ylabel() == "worker process on box"
    assert ax.get_xlabel() == "seconds since 2026-09-21 14:13:20 UTC"
    found = bars(ax)
    assert [bar[:2] for bar in found[DONE]] == [(0, 2), (2, 4)]
    assert [bar[:2] for bar in found[FAILED]] == [(0.5, 3.5)]
    assert [bar[:2] for bar in found[RUNNING]] == [(3.5, 4)]  # to the end of what is known
    assert {round((bottom + top) / 2) for _, _, bottom, top in found[DONE]} == {0}
    assert {round((bottom + top) / 2) for _, _, bottom, top in found[FAILED]} == {1}
    assert legend(ax) == ["done (2)", "running (1)", "failed (1)"]


def test_jobs_that_one_process_runs_at_once_lie_side_by_side() -> None:
    frame = frame_of([job(i, 0.1 * i, 1.0) for i in range(5)] + [job(5, 1.01, 1.0)])
    lanes = [(bottom, top) for _, _, bottom, top in bars(draw(frame, "timeline"))[DONE]]
    assert len(set(lanes)) == 5
    assert lanes[5] == lanes[0]
    assert sum(top - bottom for bottom, top in set(lanes)) == pytest.approx(0.8)


def test_many_workers_are_counted_not_named() -> None:
    frame = frame_of([job(i, 0, 60 + i, worker=f"box{i % 2}:{i}") for i in range(100)])
    ax = draw(frame, "timeline")
    assert ax.get_ylabel() == "100 worker processes on 2 hosts"
    assert not ticks(ax.yaxis)
    assert ax.get_xlabel().startswith("minutes since")


# ---- how long ----


def heights(ax: Axes) -> dict[str, list[float]]:
    return {
        to_hex(container[0].get_facecolor()): [bar.get_height() for bar in container]
        for container in ax.containers
    }


def test_a_histogram_counts_what_ended_and_shows_the_failed_apart() -> None:
    rows = [job(i, i, 1 + 0.01 * i) for i in range(100)]
    rows += [job(100 + i, i, 1.5, Ending.FAILED) for i in range(10)] + [job(110, 0), job(111)]
    ax = draw(frame_of(rows), "hist")
    found = heights(ax)
    assert sum(found[DONE]) == 100
    assert sum(found[FAILED]) == 10
    assert ax.get_xlabel() == "duration (seconds)"
    assert ax.get_xscale() == "linear"
    assert legend(ax) == ["done (100)", "failed (10)", "median 1.5 seconds"]


def test_durations_of_every_size_have_a_logarithmic_axis() -> None:
    rows = [job(i, i, 0.01 * 1.1 ** (i % 100)) for i in range(1000)]
    ax = draw(frame_of(rows), "hist")
    assert ax.get_xscale() == "log"
    assert ticks(ax.xaxis) == ["10 ms", "100 ms", "1 s", "10 s", "1 min"]
    assert sum(heights(ax)[DONE]) == 1000


def test_bins_are_no_narrower_than_the_milliseconds_that_are_measured() -> None:
    ax = draw(frame_of([job(i, i, 0.001 * (i % 5)) for i in range(1000)]), "hist")
    assert heights(ax)[DONE] == [200] * 5
    assert ax.get_xlabel() == "duration (milliseconds)"


# ---- what came of what ----


def test_a_scatter_takes_the_first_that_varies_the_first_result_and_colours_by_the_next() -> None:
    rows = [job(i, i, 1.0, Ending.FAILED if i == 7 else Ending.DONE) for i in range(12)]
    values = [MISSING if i == 7 else {"note": "x", "score": i / 10} for i in range(12)]
    frame = frame_of(rows, values, fixed=[1] * 12, n=[*range(12)], kernel=["rbf", "poly"] * 6)
    ax = draw(frame, "scatter")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("n", "score")
    (points,) = [drawn for drawn in ax.collections if isinstance(drawn, PathCollection)]
    offsets = np.asarray(points.get_offsets())
    assert offsets[:, 0].tolist() == [i for i in range(12) if i != 7]
    assert offsets[:, 1] == pytest.approx([i / 10 for i in range(12) if i != 7])
    assert legend(ax) == ["rbf", "poly", "failed (1)"]
    assert ax.get_legend().get_title().get_text() == "kernel"
    (failed,) = ax.lines
    assert failed.get_xdata().tolist() == [7]


def test_without_a_numeric_result_it_is_the_duration_and_columns_may_be_named() -> None:
    frame = frame_of([job(i, i, 0.5 + i) for i in range(4)], a=["p", "q"] * 2, b=[None, 1, None, 2])
    ax = draw(frame, "scatter")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "duration (seconds)")
    assert ticks(ax.xaxis) == ["p", "q"]
    assert legend(ax) == ["None", "1", "2"]
    ax = draw(frame, "scatter", x="duration", y="start", color="worker")
    assert ax.get_xlabel() == "duration (seconds)"
    assert legend(ax) == ["host:1"]


@pytest.mark.parametrize("days", [1e-5, 0.1, 400])
def test_times_along_an_axis_are_written_apart(days: float) -> None:
    frame = frame_of([job(i, i * days * 86_400, 1.0) for i in range(10)], range(10))
    ax = draw(frame, "scatter", x="start", y="value")
    boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
    assert len(boxes) > 2
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


def test_what_spans_much_has_a_logarithmic_axis_and_many_colours_a_bar() -> None:
    rates = [10.0**-i for i in range(1, 6)] * 20
    frame = frame_of(
        [job(i, i, 1.0) for i in range(100)], [float(i) for i in range(100)],
        rate=rates, depth=range(100),
    )  # fmt: skip
    ax = draw(frame, "scatter")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert not legend(ax)
    bar = ax.figure.axes[1]
    assert bar.get_ylabel() == "depth"


def test_parameters_named_as_the_bookkeeping_are_not_taken_for_it() -> None:
    frame = frame_of(
        [job(i, i, 1.0) for i in range(4)], [{"duration": i} for i in range(4)],
        start=[5, 6, 7, 8], success=[0, 0, 1, 1], worker=["a"] * 4,
    )  # fmt: skip
    assert legend(draw(frame, "timeline")) == ["done (4)"]
    assert legend(draw(frame, "hist"))[0] == "done (4)"
    ax = draw(frame, "scatter")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("start", "duration")


# ---- at every size ----


def many(count: int) -> DataFrame:
    draw = np.random.default_rng(0)
    took = np.exp(draw.standard_normal(count))
    ends = np.where(draw.random(count) < 0.02, Ending.FAILED, Ending.DONE)
    rows = [
        job(i, i / 8, took[i], Ending(ends[i]), worker=f"box:{i % 8}") for i in range(count)
    ]  # fmt: skip
    values = [took[i] if ends[i] is Ending.DONE else MISSING for i in range(count)]
    return frame_of(rows, values, n=[i % 10 for i in range(count)], c=[*"uvwxy"] * (count // 5))


@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_jobs_are_drawn_in_less_than_two_seconds(kind: str) -> None:
    frame = many(10_000)
    begun = time.thread_time()
    draw(frame, kind)
    assert time.thread_time() - begun < 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 10])
@pytest.mark.parametrize("state", ["queued", "running", "done"])
def test_every_frame_can_be_drawn(kind: str, count: int, state: str) -> None:
    times: Mapping[str, Callable[[int], Row]] = {
        "queued": job, "running": lambda i: job(i, i), "done": lambda i: job(i, i, 0.0)
    }  # fmt: skip
    frame = frame_of([times[state](i) for i in range(count)], a=[[i] for i in range(count)])
    assert isinstance(draw(frame, kind), Axes)


def test_it_draws_on_the_axes_that_are_given_and_opens_no_figure() -> None:
    figure, (left, right) = pyplot.subplots(1, 2)
    frame = many(10)
    assert plot(frame, "hist", ax=left) is left
    assert plot(frame, "timeline", ax=right) is right
    assert pyplot.get_fignums() == [figure.number]


# ---- what cannot be drawn ----


def test_an_option_that_does_not_fit_is_refused_with_what_does() -> None:
    frame = many(10)
    with pytest.raises(InvalidOption, match=r"timeline, hist, scatter.*Did you mean 'hist'"):
        plot(frame, "histo")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match=r"y='valeu'.*Did you mean 'value'.*It has n, c, value"):
        plot(frame, "scatter", y="valeu")
    with pytest.raises(InvalidOption, match="only kind='scatter' takes color="):
        plot(frame, "hist", color="n")
    assert not pyplot.get_fignums()


def test_without_matplotlib_the_remedy_is_named() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; import qnb.analysis.plots"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("qnb.errors.InvalidOption: plots need matplotlib")
    assert last.endswith("install it with pip install 'qnb[plot]'")
