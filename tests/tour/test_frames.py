"""Tables of jobs on a real server with a real worker: they answer at any time, and stay small."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import qnb
from qnb.analysis import gather
from qnb.analysis.cubes import to_xarray


def _sweep_frame(app: qnb.App, jobs: list[qnb.Job[Any]], **points: Any) -> pd.DataFrame:
    return gather.sweep_frame(app._client, "s", [job.id for job in jobs], points)


def test_filters_choose_jobs_and_limit_takes_the_newest(app: qnb.App) -> None:
    @app.task
    def f(x: int) -> int:
        return x

    @app.task
    def g(x: int) -> int:
        return x

    jobs = [task.submit(x) for x in range(3) for task in (f, g)]
    jobs.append(f.options(delay_ms=3_600_000).submit(9))
    every = app.jobs_frame()
    assert set(every.index) == {job.id for job in jobs}
    assert set(app.jobs_frame(task=f)["fn_name"]) == {"f"}
    assert app.jobs_frame(status="scheduled").index.tolist() == [jobs[-1].id]
    newest = app.jobs_frame(limit=1, params="columns")
    assert newest["enqueue_time"].tolist() == [every["enqueue_time"].max()]
    assert len(app.jobs_frame(since=datetime.now(UTC) + timedelta(hours=1))) == 0
    assert len(app.jobs_frame(since=datetime.now(UTC) - timedelta(hours=1), task="g")) == 3


def test_a_job_is_in_the_frame_within_a_second_of_its_end(
    serving: qnb.App, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    latest = time.time() + 20  # so that it ends, whatever fails here

    @serving.task
    def wait(x: int) -> dict[str, float]:
        while x and not gate.exists() and time.time() < latest:
            time.sleep(0.01)
        return {"end": time.time(), "x": x}

    gate = tmp_path / "gate"
    jobs = [wait.submit(x) for x in (0, 1)]
    jobs[0].wait(10)
    wait_until(lambda: asyncio.run(jobs[1].status()) == "running", "the other one runs")
    seen = time.time()
    frame = _sweep_frame(serving, jobs, x=[0, 1])
    assert time.time() - seen < 1
    assert frame["end"].isna().tolist() == [False, True]
    assert frame["status"].tolist() == ["complete", "running"]
    gate.touch()
    jobs[1].wait(10)
    whole = _sweep_frame(serving, jobs, x=[0, 1])
    assert whole["end"].notna().all()
    assert whole.dtypes.map(str).equals(frame.dtypes.map(str))
    assert whole["worker"].nunique() == frame["worker"].nunique() == 1


def test_errors_are_grouped_by_the_line_that_raised_them(serving: qnb.App) -> None:
    @serving.task
    def picky(x: int) -> float:
        if x == 2:
            raise ValueError("two")
        return 1 / x

    jobs = [picky.submit(x).wait(10) for x in (0, 1, 2, 0)]  # they end one after the other
    frame = gather.errors_frame(serving._client, [job.id for job in jobs])
    assert frame[["error_type", "line", "count"]].to_numpy().tolist() == [
        ["ZeroDivisionError", "return 1 / x", 2],
        ["ValueError", 'raise ValueError("two")', 1],
    ]
    assert frame["task_ids"].iloc[0] == [jobs[0].id, jobs[3].id]
    assert frame["where"].str.endswith(tuple(f", line {number}" for number in range(999))).all()


def test_the_workers_of_a_queue_are_a_table(serving: qnb.App, wait_until: Any) -> None:
    [worker] = wait_until(lambda: [*serving.workers_frame().itertuples()], "the worker is heard of")
    assert worker.Index == f"{socket.gethostname()}:{os.getpid()}"
    assert (worker.slots, worker.lanes, worker.leaving) == (16, "default", False)
    assert worker.heard >= worker.started


def test_large_results_stay_in_the_store_until_asked_for(serving: qnb.App) -> None:
    @serving.task
    def field(size: int) -> np.ndarray:
        return np.full(size, 0.5)

    jobs = [field.submit(size) for size in (3, 40_000, 40_000)]
    for job in jobs:
        job.wait(20)
    frame = _sweep_frame(serving, jobs, size=[3, 40_000, 40_000])
    assert frame["value"].iloc[0].tolist() == [0.5] * 3
    large = frame["value"].iloc[1]
    assert isinstance(large, qnb.LazyValue)
    assert repr(large) == f"<320.1 kB result of job {jobs[1].id!r}>"
    assert large.nbytes >= 320_000
    assert large.get().shape == (40_000,)
    table = serving.jobs_frame(values=True).loc[[job.id for job in jobs]]
    assert [type(value) is qnb.LazyValue for value in table["value"]] == [False, True, True]
    cube = to_xarray(frame.iloc[1:], "task_id")
    assert cube["value"].shape == (2, 40_000)


def test_fields_that_are_missing_because_a_result_is_large_are_not_missing_unsaid(
    serving: qnb.App,
) -> None:
    @serving.task
    def walk(n: int) -> dict[str, Any]:
        return {"steps": n, "path": np.ones(n)}

    sweep = walk.map([3, 40_000]).wait(10)
    with pytest.warns(UserWarning, match=r"1 of 2 results .* more than 64 kB .* get\(\)") as told:
        frame = sweep.frame()
    assert told[0].filename == __file__
    assert frame["steps"].isna().tolist() == [False, True]
    assert frame["value"].iloc[1].get()["steps"] == 40_000
    assert "path" not in walk.map([40_000, 50_000]).wait(10).frame()  # none has fields here


def test_a_value_that_cannot_be_read_here_says_why_when_asked(
    serving: qnb.App, queue: str, server_url: str, tmp_path: Path
) -> None:
    @serving.task
    def f() -> int:
        return 1

    job = f.submit().wait(10)
    other = tmp_path / "other.key"
    other.write_text("ab" * 32 + "\n")
    other.chmod(0o600)
    stranger = qnb.App(server_url, queue, key_file=str(other))
    try:
        frame = _sweep_frame(stranger, [job], x=[0])
        assert frame["success"].all()
        with pytest.raises(qnb.SignatureError):
            frame["value"].iloc[0].get()
    finally:
        stranger.close()
