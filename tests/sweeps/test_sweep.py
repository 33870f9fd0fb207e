"""A sweep on real workers: a sequence, awaited, waited for, tabulated."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import qnb


def test_a_grid_is_a_sequence_of_jobs_in_the_designs_order(serving: qnb.App) -> None:
    @serving.task
    async def area(w: int, h: int, unit: str) -> dict[str, object]:
        return {"area": w * h, "unit": unit}

    sweep = area.grid(w=[1, 2], h=range(3), unit="m")
    assert len(sweep) == 6
    assert sweep.wait(10) is sweep
    assert sweep[-1].get(timeout=5) == {"area": 4, "unit": "m"}
    assert [job.get(timeout=5)["area"] for job in sweep[1:3]] == [1, 2]
    assert [value["area"] for value in asyncio.run(_await(sweep))] == [0, 1, 2, 0, 2, 4]
    frame = sweep.frame()
    assert list(frame.columns[:5]) == ["w", "h", "unit", "area", "unit_result"]
    assert frame["area"].tolist() == [0, 1, 2, 0, 2, 4]
    assert frame.attrs["sweep"] == sweep.name
    assert sweep.snapshot().counts["done"] == 6
    assert repr(sweep) == (
        f"<Sweep {sweep.name!r} of 'area': 6/6 finished, 0 failed; app.sweep({sweep.name!r})>"
    )


async def _await(sweep: Any) -> Any:
    return await sweep


def test_map_calls_by_position_with_equally_long_iterables(serving: qnb.App) -> None:
    @serving.task
    def power(x: int, y: int, /) -> int:
        return x**y

    assert asyncio.run(_await(power.map([2, 3], iter([3, 2])))) == [8, 9]
    with pytest.raises(qnb.InvalidOption, match=r"map\(\) was given 3"):
        power.map([1], [1], [1])
    with pytest.raises(qnb.InvalidOption):
        power.map([1, 2], [1])


def test_the_failures_of_a_sweep_come_together_after_all_have_ended(serving: qnb.App) -> None:
    @serving.task
    async def picky(x: int) -> int:
        if x % 2:
            raise ValueError(f"odd: {x}")
        return x

    sweep = picky.map(range(5))
    with pytest.raises(ExceptionGroup, match="2 of 5 jobs") as raised:
        asyncio.run(_await(sweep))
    assert [str(error) for error in raised.value.exceptions] == ["odd: 1", "odd: 3"]
    assert "point {'x': 1}" in raised.value.exceptions[0].__notes__[0]
    frame = sweep.frame()
    assert frame["value"].tolist() == [0, pd.NA, 2, pd.NA, 4]
    assert frame["error"].dropna().tolist() == ["odd: 1", "odd: 3"]
    assert sweep.snapshot().errors == {"ValueError('odd: 1')": 1, "ValueError('odd: 3')": 1}


def test_an_empty_sweep_has_ended_and_has_a_frame(app: qnb.App) -> None:
    @app.task
    def f(x: int) -> int:
        return x

    sweep = f.map([])
    assert asyncio.run(_await(sweep.wait(1))) == []
    assert len(sweep.frame()) == 0


def test_a_large_sweep_returns_its_handle_at_once_and_says_how_far_it_is(
    app: qnb.App, wait_until: Callable[..., Any]
) -> None:
    @app.task
    def f(x: int) -> int:
        return x

    begun = time.monotonic()
    sweep = f.map(range(20_000))
    assert time.monotonic() - begun < 0.5
    assert sweep.snapshot().total == 20_000
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.05 s; it goes on"):
        sweep.wait(0.05)
    wait_until(lambda: sweep.snapshot().whole, "all is stored", 25)
    assert asyncio.run(_size(app)) == 20_000


async def _size(app: qnb.App) -> int:
    return await app.queue_size()


def test_an_argument_that_cannot_be_sent_is_refused_at_once_by_its_place(app: qnb.App) -> None:
    @app.task
    def f(x: object) -> None: ...

    with pytest.raises(qnb.ArgumentError, match="lock") as raised:
        f.map([1, 2, threading.Lock()])
    assert "point 2 of sweep" in raised.value.__notes__[0]


def test_jobs_frame_has_every_column_also_when_empty(app: qnb.App, tmp_path: Any) -> None:
    dtypes = {
        "fn_name": "category", "sweep": "category", "priority": "category", "worker": "category",
        "success": "boolean", "aborted": "boolean", "cached": "boolean", "tries": "Int64",
        "enqueue_time": "datetime64[us, UTC]", "scheduled_at": "datetime64[us, UTC]",
        "start": "datetime64[us, UTC]", "finish": "datetime64[us, UTC]",
        "wait": "timedelta64[us]", "duration": "timedelta64[us]", "total": "timedelta64[us]",
        "progress": "Float64", "message": "string", "error": "string", "error_type": "category",
        "result_nbytes": "Int64", "peak_memory": "Int64", "cpu_time": "timedelta64[us]",
    }  # fmt: skip
    empty = app.jobs_frame()
    assert empty.index.name == "task_id"

    @app.task
    def f(x: int) -> int:
        return x

    f.submit(1)
    f.grid(x=[1, 2])
    for frame in (empty, app.jobs_frame(status="queued")):
        for column, dtype in dtypes.items():
            assert str(frame[column].dtype) == dtype, column
        assert frame["status"].cat.ordered
    assert app.jobs_frame(task=f, limit=1)["fn_name"].tolist() == ["f"]
    assert len(app.jobs_frame(task="nothing")) == 0
    app.jobs_frame(params="text").to_parquet(tmp_path / "jobs.parquet")


def test_every_way_to_fan_out_gives_its_points_in_order(serving: qnb.App) -> None:
    @serving.task
    async def pair(x: float, y: float = 0) -> tuple[float, float]:
        return x, y

    frame = pd.DataFrame({"x": [1, 2], "y": [3, 4], "note": ["a", "b"]})
    space = qnb.grid(x=[1, 2]) * qnb.zip(y=[3, 4]) + qnb.points([{"x": 9}])
    sweeps = {
        "starmap": (pair.starmap([(1, 2), (3, 4)]), [(1, 2), (3, 4)]),
        "zip": (pair.zip(x=[1, 2], y=5), [(1, 5), (2, 5)]),
        "star": (pair.star({"x": 0, "y": 0}, x=[0, 1], y=[2]), [(0, 0), (1, 0), (0, 2)]),
        "rows": (pair.rows(frame, ["x", "y"]), [(1, 3), (2, 4)]),
        "space": (pair.sweep(space), [(1, 3), (1, 4), (2, 3), (2, 4), (9, 0)]),
        "dicts": (pair.sweep([{"x": 1}, {"x": 2, "y": 3}]), [(1, 0), (2, 3)]),
        "union": (pair.sweep([{"x": [1, 2]}, {"x": [3], "y": [4]}]), [(1, 0), (2, 0), (3, 4)]),
    }
    for way, (sweep, points) in sweeps.items():
        assert [tuple(v) for v in asyncio.run(_await(sweep.wait(10)))] == points, way
    found = sweeps["space"][0].frame()
    assert found["x"].tolist() == [1, 1, 2, 2, 9]
    assert found["y"].isna().tolist() == [False] * 4 + [True]
    drawn = pair.sample(8, seed=1, x=(0, 3), y=(0.0, 1.0)).wait(10).frame()
    assert set(drawn["x"]) <= {0, 1, 2, 3}
    assert drawn["y"].between(0, 1).all()
    again = pair.sample(8, seed=1, x=(0, 3), y=(0.0, 1.0)).wait(10).frame()
    assert drawn["y"].tolist() == again["y"].tolist()
    taken = pair.sweep({"x": i} for i in range(3)).wait(10)
    assert taken.results() == [(0, 0), (1, 0), (2, 0)]


def test_a_script_that_ends_after_a_sweep_has_stored_all_of_it(
    app: qnb.App, server_url: str, queue: str, tmp_path: Path
) -> None:
    script = tmp_path / "last.py"
    script.write_text(
        f"import qnb\napp = qnb.App({server_url!r}, {queue!r})\n"
        "@app.task\ndef f(x): return x\n"
        "sweep = f.grid(x=range(3000))\n"
    )
    subprocess.run([sys.executable, script], check=True, timeout=25)
    assert len(app.jobs_frame()) == 3000
