"""What is asked of a sweep is done in the order in which it was asked, whatever else goes on."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

import pytest

import qnb
from qnb import bridge

Wait = Callable[..., Any]


def test_values_added_one_after_another_all_stay(app: qnb.App) -> None:
    @app.task
    def f(x: int) -> int:
        return x

    sweep = f.options(name="scan").grid(x=[1])
    asked = [sweep.extend(x=[x]) for x in (2, 3, 4)]
    assert [one.result(10) for one in asked] == [1, 1, 1]
    assert [point["x"] for point in sweep.design] == [1, 2, 3, 4]


def test_values_added_elsewhere_meanwhile_stay(app: qnb.App) -> None:
    @app.task
    def f(x: int) -> int:
        return x

    first = f.options(name="scan").grid(x=[1])
    second = app.sweep("scan")
    assert first.extend(x=[2]).result(10) == 1
    assert second.extend(x=[3]).result(10) == 1
    assert [point["x"] for point in second.design] == [1, 2, 3]


def test_a_sweep_that_was_cancelled_can_be_extended(serving: qnb.App) -> None:
    @serving.task
    async def f(x: int) -> int:
        await asyncio.sleep(60 if x < 2 else 0)
        return x

    sweep = f.grid(x=[0, 1])
    assert sweep.cancel().result(20) == 2
    assert sweep.extend(x=[5, 6]).result(10) == 2
    assert sweep.wait(10).results("coerce") == [None, None, 5, 6]


def test_a_pause_right_after_the_start_holds(app: qnb.App) -> None:
    from qnb.storage.gates import Gates

    @app.task
    def f(x: int) -> int:
        return x

    async def gate(prefix: str) -> str:
        return (await Gates((await app._client.link()).store).get(prefix)).state

    for _ in range(5):
        sweep = f.options(max_running=2).map(range(10))
        assert sweep.pause().result(5)
        sweep._driver.submitted.result(5)
        assert asyncio.run(gate(sweep._feed.study.prefix)) == "paused"
        asyncio.run(_closed(app))


async def _closed(app: qnb.App) -> None:
    await app._client.close()


def test_a_cancel_right_after_a_retry_ends_what_runs_again(serving: qnb.App) -> None:
    @serving.task
    async def f(x: int) -> int:
        if x < 0:
            await asyncio.sleep(60)
        raise ValueError

    sweep = f.map(range(9)).wait(10)

    @serving.task  # type: ignore[no-redef]
    async def f(x: int) -> int:
        await asyncio.sleep(60)
        return x

    sweep.retry()
    assert sweep.cancel().result(10) == 9
    assert sweep.wait(5).snapshot().counts["aborted"] == 9


def test_a_cancel_while_known_points_are_laid_out_holds(
    serving: qnb.App,
) -> None:
    @serving.task
    async def f(x: int) -> int:
        await asyncio.sleep(60 if x else 0)
        return x

    f.options(name="scan").map([0]).wait(10)
    sweep = f.options(name="scan").map(range(3000))
    sweep.cancel().result(20)
    counts = sweep.wait(10).snapshot().counts
    assert (counts["done"], counts["aborted"]) == (1, 2999)


def test_what_a_dry_run_names_cannot_be_ended_with_it(app: qnb.App) -> None:
    @app.task
    def f(x: int) -> int:
        return x

    sweep = f.options(name="scan").grid(x=[1, 2])
    sweep._driver.submitted.result(5)
    dry = f.options(name="scan", dry_run=True).grid(x=[1, 2])
    for act in (dry.cancel, dry.pause, dry.resume, dry.retry, lambda: dry.extend(x=[3])):
        with pytest.raises(qnb.QnbError, match="dry run"):
            act()
    assert asyncio.run(app.queue_size()) == 2


def test_after_some_run_again_the_other_errors_are_still_told(serving: qnb.App) -> None:
    @serving.task
    def f(x: int) -> int:
        raise ValueError(x)

    sweep = f.map([1, 2]).wait(10)
    assert sweep.retry([sweep[0]]).result(5) == 1
    assert sweep.wait(10).snapshot().errors == {"ValueError(1)": 1, "ValueError(2)": 1}


def test_a_choice_of_none_runs_none_again(serving: qnb.App) -> None:
    @serving.task
    def f(x: int) -> int:
        return x

    sweep = f.map([1, 2]).wait(10)
    frame = sweep.frame()
    assert sweep.retry(frame[frame.value > 9].index).result(5) == 0
    assert sweep.retry(~frame.success).result(5) == 0


def test_a_sweep_of_a_closed_app_says_so_at_once(server_url: str, queue: str) -> None:
    app = qnb.App(server_url, queue)

    @app.task
    def f(x: int) -> int:
        return x

    sweep = f.map([1, 2])
    sweep._driver.submitted.result(5)
    app.close()
    begun = time.monotonic()
    with pytest.raises(qnb.BrokerError, match="closed"):
        sweep.wait(10)
    assert time.monotonic() - begun < 5


def test_points_added_while_jobs_come_as_they_complete_come_too(serving: qnb.App) -> None:
    @serving.task
    async def f(x: int) -> int:
        return x

    sweep: qnb.Sweep[Any] = f.grid(x=[5, 6, 7]).wait(10)
    found: list[Any] = []
    for job in sweep.as_completed(timeout=10):
        if not found:
            f.options(name=sweep.name).grid(x=[7, 9, 6, 5])
            sweep.extend(x=[8]).result(5)
        found.append(job.get(timeout=5))
    assert sorted(found) == [5, 6, 7, 8, 9]


def test_what_happens_to_an_argument_after_the_call_changes_no_job(serving: qnb.App) -> None:
    @serving.task
    async def f(settings: dict[str, float]) -> float:
        return settings["rate"]

    settings = {"rate": 0.5}
    sweep = f.map([settings] * 3000)
    settings["rate"] = 7.0
    assert set(sweep.wait(20).results()) == {0.5}


def test_a_cancelled_sweep_of_which_some_run_again_stays_cut_short(
    app: qnb.App, elsewhere: qnb.App, wait_until: Wait
) -> None:
    @app.task
    def f(x: int) -> int:
        return x

    sweep = f.options(name="much").map(range(30_000))
    sweep.cancel().result(20)
    assert sweep.retry([sweep[3]]).result(5) == 1
    other = elsewhere.sweep("much")
    wait_until(lambda: other._driver.submitted.done(), "it is known what there is", 20)
    assert asyncio.run(app.queue_size()) == 1


def test_a_handle_that_nobody_holds_is_not_followed_any_more(
    app: qnb.App, wait_until: Wait
) -> None:
    @app.task
    def f(x: int) -> int:
        return x

    sweep = f.options(name="long").map(range(3))
    sweep._driver.submitted.result(5)

    async def followers() -> int:
        mine = f"qnb-follow {sweep._feed.study.prefix}"
        return sum(task.get_name() == mine for task in asyncio.all_tasks())

    kept = app.sweep("long")
    for _ in range(50):  # let go before, while and after they begin to be followed
        app.sweep("long")
    gc.collect()
    wait_until(lambda: bridge.run(followers()) == 2, "only what is held is followed")
    assert kept.cancel().result(10) == 3
    sweep.wait(10)


def test_another_code_is_told_of_before_more_points_run_with_it(serving: qnb.App) -> None:
    @serving.task
    def f(x: int) -> int:
        return x

    sweep = f.grid(x=[1]).wait(10)

    @serving.task  # type: ignore[no-redef]
    def f(x: int) -> int:
        return -x

    with pytest.warns(qnb.CodeChanged, match="1 of 1 jobs"):
        asked = sweep.extend(x=[2])
    assert asked.result(10) == 1
    assert sweep.wait(10).results() == [1, -2]


def test_a_job_that_was_only_just_added_can_be_asked_for(
    serving: qnb.App, wait_until: Wait
) -> None:
    @serving.task
    async def f(x: int) -> int:
        return x

    sweep: qnb.Sweep[Any] = f.grid(x=[0]).wait(10)
    sweep.extend(x=range(1, 3000))
    wait_until(lambda: len(sweep) == 3000, "they are laid out")
    assert sweep[-1].get(timeout=10) == 2999


def test_a_watcher_that_goes_wrong_does_not_end_the_sweep(serving: qnb.App) -> None:
    @serving.task
    def f(x: int) -> int:
        return x

    sweep = f.map(range(5))
    sweep.watch(lambda: 1 / 0)  # type: ignore[arg-type]
    assert sweep.wait(10).results() == list(range(5))


def test_a_handle_whose_points_were_replaced_can_be_gone_on_with(
    serving: qnb.App, elsewhere: qnb.App
) -> None:
    @serving.task
    async def f(x: int) -> int:
        return x

    first = f.options(name="scan").map(range(20_000))
    first[0].wait(10)  # what it computes has been noted
    second = f.options(name="scan").map(range(300))
    assert second.wait(10).results() == list(range(300))
    with pytest.raises(qnb.QnbError, match="given other points elsewhere"):
        first.wait(10)
    assert first.retry(first[:2]).result(10) == 2
    assert first.wait(10).results() == list(range(300))
