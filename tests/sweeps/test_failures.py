"""What goes wrong in a sweep: told together, run again, held back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

import qnb

Wait = Callable[..., Any]


def test_what_failed_runs_again_with_the_function_of_now(serving: qnb.App) -> None:
    runs: Counter[int] = Counter()

    @serving.task
    def f(x: int) -> float:
        runs[x] += 1
        return 1 / (x % 3)

    sweep = f.map(range(9)).wait(10)
    assert sweep.snapshot().counts["failed"] == 3

    @serving.task  # type: ignore[no-redef]
    def f(x: int) -> float:
        runs[x] += 1
        return -x

    retried = sweep.retry()
    assert sweep.wait(10).results()[::3] == [0, -3, -6]
    assert retried.result(1) == 3
    assert runs == {x: 1 + (x % 3 == 0) for x in range(9)}
    assert sweep.retry().result(5) == 0


def test_a_mask_or_ids_say_what_runs_again(serving: qnb.App) -> None:
    runs: Counter[int] = Counter()

    @serving.task
    def f(x: int) -> int:
        runs[x] += 1
        return x * runs[x]

    sweep = f.map(range(5)).wait(10)
    assert sweep.retry(sweep.frame()["value"] > 2).result(5) == 2
    assert sweep.wait(10).results() == [0, 1, 2, 6, 8]
    assert sweep.retry(sweep.frame().query("x == 1").index).result(5) == 1
    assert sweep.retry([sweep[1]]).result(5) in (0, 1)  # it may not have ended yet
    sweep.wait(10)
    with pytest.raises(qnb.InvalidOption, match="expected a bool for each of the 5 points"):
        sweep.retry([True])
    with pytest.raises(qnb.InvalidOption, match="is none of"):
        sweep.retry(["nobody"])


def test_results_raise_or_return_or_leave_out_what_failed(serving: qnb.App) -> None:
    @serving.task
    def f(x: int) -> float:
        return 1 / x

    sweep = f.map([0, 2])
    assert sweep.results("coerce") == [None, 0.5]
    error, value = sweep.results("return")
    assert (type(error), value) == (ZeroDivisionError, 0.5)
    with pytest.raises(ExceptionGroup) as raised:
        sweep.results()
    assert "point {'x': 0}" in raised.value.exceptions[0].__notes__[0]
    with pytest.raises(qnb.InvalidOption, match="'raise', 'coerce' or 'return'"):
        sweep.results("ignore")  # type: ignore[arg-type]


def test_a_paused_sweep_starts_nothing_until_it_is_resumed(
    serving: qnb.App, wait_until: Wait
) -> None:
    runs: list[int] = []

    @serving.task
    async def f(x: int) -> None:
        runs.append(x)

    sweep = f.map(range(3000))
    assert sweep.pause().result(5) is True
    at = len(runs)
    other = f.map([-1]).wait(10)  # others are not held back
    assert other.snapshot().counts["done"] == 1
    assert sweep.snapshot().note == "paused"
    assert sweep.progress().state == "paused"
    started = len([x for x in runs if x >= 0])
    assert started <= at + 600  # what a worker had claimed goes on
    assert sweep.resume().result(5) is True
    sweep.wait(20)
    assert Counter(runs) == dict.fromkeys(range(-1, 3000), 1)


def test_cancel_ends_all_that_has_not_ended(serving: qnb.App) -> None:
    @serving.task
    async def f(x: int) -> int:
        if x:
            import asyncio

            await asyncio.sleep(60)
        return x

    sweep = f.options(name="long").map(range(2000))
    sweep[0].get(timeout=10)
    ended = sweep.cancel().result(20)
    sweep.wait(20)
    assert ended >= 1900
    assert sweep.snapshot().counts["done"] + sweep.snapshot().counts["aborted"] == 2000
    assert serving.sweep("long").wait(10).snapshot().counts["aborted"] == ended


def test_no_more_jobs_run_at_once_than_allowed(serving: qnb.App, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ledger.touch()

    @serving.task
    def f(x: int) -> int:
        for step in (1, -1):
            with ledger.open("a") as lines:
                lines.write(f"{step}\n")
            time.sleep(0.003)
        return x

    sweep = f.options(max_running=3).map(range(60)).wait(20)
    assert sweep.results() == list(range(60))
    running = list(accumulate(map(int, ledger.read_text().split())))
    assert (max(running), len(running)) == (3, 120)


def test_on_error_stop_ends_the_sweep_at_its_first_failure(serving: qnb.App) -> None:
    @serving.task
    def f(x: int) -> float:
        time.sleep(0.002)
        return 1 / (x - 20)

    sweep = f.options(on_error="stop").map(range(2000)).wait(20)
    counts = sweep.snapshot().counts
    assert counts["failed"] >= 1
    assert counts["aborted"] > 1500
    with pytest.raises(qnb.JobAborted, match=r"stops at its first failure|ZeroDivision"):
        sweep[-1].get(timeout=5)


def test_a_sweep_whose_first_jobs_all_fail_in_one_place_is_held_back(
    serving: qnb.App, wait_until: Wait
) -> None:
    runs: list[int] = []

    @serving.task
    def f(x: int) -> int:
        runs.append(x)
        time.sleep(0.002)
        raise KeyError("temperature")

    sweep = f.map(range(5000))
    wait_until(lambda: sweep.snapshot().note.startswith("paused"), "it is held back")
    assert "jobs all failed" in sweep.snapshot().note
    assert "KeyError('temperature')" in sweep.snapshot().note
    assert ", line " in sweep.snapshot().note
    assert len(runs) < 5000

    @serving.task  # type: ignore[no-redef]
    def f(x: int) -> int:
        return x

    assert sweep.retry().result(10) > 10  # also what waited gets the new function
    sweep.wait(20)
    sweep.retry()  # of what ran just then
    assert sweep.wait(20).snapshot().counts["done"] == 5000


def test_what_was_cancelled_can_be_run_again_at_once(serving: qnb.App) -> None:
    @serving.task
    async def f(x: int) -> int:
        import asyncio

        await asyncio.sleep(0.0001 * x)
        return x

    sweep = f.map(range(1000))
    sweep[5].get(timeout=10)
    left = sweep.cancel().result(20)
    assert sweep.snapshot().counts["aborted"] == left
    assert sweep.retry().result(10) == left
    assert sweep.wait(20).results() == list(range(1000))


def test_a_cancel_from_elsewhere_ends_the_storing_too(
    app: qnb.App, elsewhere: qnb.App, wait_until: Wait
) -> None:
    @app.task
    def f(x: int) -> int:
        return x

    sweep = f.options(name="much").map(range(40_000))
    wait_until(lambda: sweep.snapshot().note.startswith("stored"), "it is being stored")
    elsewhere.sweep("much").cancel().result(25)
    sweep.wait(25)
    assert sweep.snapshot().counts["aborted"] == 40_000
    assert elsewhere.sweep("much").wait(20).snapshot().counts["aborted"] == 40_000
    wait_until(lambda: asyncio.run(app.queue_size()) == 0, "nothing waits")


def test_a_sweep_some_of_whose_jobs_succeed_is_not_held_back(serving: qnb.App) -> None:
    @serving.task
    def f(x: int) -> float:
        return 1 / (x % 100)

    assert f.map(range(1, 400)).wait(20).snapshot().counts["failed"] == 3
