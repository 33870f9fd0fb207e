"""Results are used again by content: what is the same is not computed twice, what is not, is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qnb


@pytest.fixture
def ran(tmp_path: Path) -> Callable[..., list[str]]:
    """What bodies have noted in a file: a list of theirs would be a part of their code."""
    ledger = tmp_path / "ran"
    ledger.touch()

    def note(what: object = "") -> list[str]:
        with ledger.open("a") as lines:
            lines.write(f"{what} " if what != "" else "")
        return ledger.read_text().split()

    return note


def test_changed_code_is_told_with_what_changed_and_nothing_is_run_again(
    serving: qnb.App,
) -> None:
    def loss(x: float) -> float:
        return x**2

    @serving.task
    def f(x: float) -> float:
        return loss(x)

    f.options(name="scan").map([1.0, 2.0]).wait(10)

    def loss(x: float) -> float:  # type: ignore[no-redef]  # noqa: F811 - a cell run again
        return abs(x)

    @serving.task  # type: ignore[no-redef]
    def f(x: float) -> float:
        return loss(x)

    with pytest.warns(qnb.CodeChanged, match=r"2 of 2 jobs of sweep 'scan'(.|\n)*loss") as told:
        sweep = f.options(name="scan").map([1.0, 2.0, 3.0])
    assert "-    return x**2" in str(told[0].message)
    assert "+    return abs(x)" in str(told[0].message)
    assert sweep.wait(10).results() == [1.0, 4.0, 3.0]
    with pytest.warns(qnb.CodeChanged, match="2 of 3"):  # as long as they are mixed
        f.options(name="scan").map([1.0, 2.0, 3.0])
    kept = f.options(name="scan", on_code_change="keep").map([1.0, 2.0]).wait(10)
    assert kept.results() == [1.0, 4.0]


def test_changed_code_is_run_again_where_that_is_wanted(
    serving: qnb.App, ran: Callable[..., list[str]]
) -> None:
    @serving.task
    def f(x: float) -> float:
        ran(x)
        return x

    f.options(name="scan").map([1.0, 2.0]).wait(10)

    @serving.task  # type: ignore[no-redef]
    def f(x: float) -> float:
        ran(x)
        return -x

    again = f.options(name="scan", on_code_change="rerun")
    assert again.map([1.0, 2.0, 3.0]).wait(10).results() == [-1.0, -2.0, -3.0]
    assert again.map([1.0, 2.0, 3.0]).wait(10).results() == [-1.0, -2.0, -3.0]
    assert sorted(ran()) == ["1.0", "1.0", "2.0", "2.0", "3.0"]
    f.options(name="scan").map([1.0, 2.0, 3.0])  # warns of nothing


def test_results_of_other_code_are_told_also_after_some_were_run_again(serving: qnb.App) -> None:
    @serving.task
    def f(x: int) -> int:
        return x

    f.options(name="m").map([1, 2, 3, 4]).wait(10)

    @serving.task  # type: ignore[no-redef]
    def f(x: int) -> int:
        return -x

    assert f.options(name="m", on_code_change="rerun").map([1, 2]).wait(10).results() == [-1, -2]
    with pytest.warns(qnb.CodeChanged, match="2 of 4 jobs"):
        sweep = f.options(name="m").map([1, 2, 3, 4])
    assert sweep.wait(10).results() == [-1, -2, 3, 4]


def test_a_comment_is_no_change(serving: qnb.App, ran: Callable[..., list[str]]) -> None:
    @serving.task
    def f(x: float) -> float:
        ran(x)
        return x

    f.options(name="scan").map([1.0]).wait(10)

    @serving.task  # type: ignore[no-redef]
    def f(x: float) -> float:
        # to count is what this is for
        ran(x)

        return x

    f.options(name="scan").map([1.0]).wait(10)
    assert ran() == ["1.0"]


def test_with_cache_equal_points_are_served_from_any_sweep_or_call(
    serving: qnb.App, ran: Callable[..., list[str]]
) -> None:
    @serving.task(cache=True)
    def f(x: int, y: Any = 0) -> dict[str, int]:
        ran(x)
        return {"double": 2 * x}

    f.map([1, 2]).wait(10)
    sweep = f.grid(x=[1, 2, 3]).wait(10)
    assert sweep.results() == [{"double": 2}, {"double": 4}, {"double": 6}]
    frame = sweep.frame()
    assert frame["cached"].tolist() == [True, True, False]
    assert sweep.progress().cached == 2
    assert f.submit(3).get(timeout=5) == {"double": 6}
    job = f.submit(x=2)
    assert (job.get(timeout=5), sorted(ran())) == ({"double": 4}, ["1", "2", "3"])
    result = asyncio.run(job.result())
    assert result is not None
    assert (result.success, result.tries) == (True, 0)
    assert serving.jobs_frame().loc[job.id, "cached"]
    array = np.arange(200_000.0)
    f.submit(7, array).get(timeout=5)
    other = array.copy()
    other[1000] += 1e-9
    f.submit(7, array.copy()).get(timeout=5)
    f.submit(7, other).get(timeout=5)
    assert sorted(ran()) == ["1", "2", "3", "7", "7"]


def test_a_failure_is_not_used_again(serving: qnb.App, ran: Callable[..., list[str]]) -> None:
    @serving.task(cache=True)
    def f(x: int) -> int:
        ran(x)
        raise ValueError(x)

    for _ in range(2):
        with pytest.raises(ValueError, match="1"):
            f.submit(1).get(timeout=5)
    assert ran() == ["1", "1"]


def test_a_dry_run_says_what_would_run_and_stores_nothing(serving: qnb.App) -> None:
    @serving.task
    def f(x: int) -> int:
        return x

    f.options(name="scan").map(range(10)).wait(10)
    size = len(serving.jobs_frame())
    dry = f.options(name="scan", dry_run=True).map(range(5, 25))
    assert "15 of 20 points would run, 5 have been computed" in dry.snapshot().note
    assert len(dry) == 20
    assert len(serving.jobs_frame()) == size
    assert len(serving.sweep("scan")) == 10


def test_why_says_where_a_result_comes_from_and_what_has_changed_since(serving: qnb.App) -> None:
    @serving.task(cache=True)
    def f(x: int) -> int:
        return x

    first = f.options(name="a").map([1, 2]).wait(10)
    second = f.options(name="b").map([2]).wait(10)
    assert f"used again: job {first[1].id!r}" in second[0].why()
    assert "is the same now" in first[0].why()

    @serving.task(cache=True)  # type: ignore[no-redef]
    def f(x: int) -> int:
        return -x

    assert "+    return -x" in first[0].why()
    third = f.options(name="c").map([1]).wait(10)
    assert third.results() == [-1]
    single = serving.task(name="plain")(lambda x: x).submit(1)
    assert "cache=True" in single.wait(5).why()


def test_keywords_are_not_taken_for_a_parameter_that_holds_them(serving: qnb.App) -> None:
    @serving.task(cache=True)
    def f(x: int, **kw: Any) -> Any:
        return x, kw

    @serving.task(cache=True)
    def g(*args: Any, **kw: Any) -> Any:
        return args, kw

    assert f.submit(1, y=2).get(timeout=5) == (1, {"y": 2})
    assert f.grid(x=[1], kw=[{"y": 2}]).wait(10).results() == [(1, {"kw": {"y": 2}})]
    assert f.submit(y=2, x=1).get(timeout=5) == (1, {"y": 2})
    assert g.submit(1, 2).get(timeout=5) == ((1, 2), {})
    assert g.grid(args=[(1, 2)]).wait(10).results() == [((), {"args": (1, 2)})]


def test_a_sweep_or_pool_that_a_task_mentions_is_refused_with_the_way_out(app: qnb.App) -> None:
    sweep = app.task(name="one")(abs).map([1])
    pool = app.pool()

    @app.task
    def f(x: int) -> Any:
        return sweep, x

    @app.task
    def g(x: int) -> Any:
        return pool, x

    with pytest.raises(qnb.EncodingError, match=r"variable 'sweep'.*calls app\.sweep\('one-"):
        f.submit(1)
    with pytest.raises(qnb.EncodingError, match=r"variable 'pool'.*calls app\.pool\(\)"):
        g.submit(1)
