"""Waiting for a sweep: many waiters, late ones, in loops and threads, one feed for all."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import qnb
from tests.conftest import answers

Wait = Callable[..., Any]


def test_jobs_come_as_they_complete_in_a_loop(serving: qnb.App) -> None:
    @serving.task
    async def nap(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    sweep = nap.map([0.3, 0.0, 0.15])
    values = [job.get(timeout=5) for job in sweep.as_completed()]
    assert values == [0.0, 0.15, 0.3]
    late = [job.get(timeout=5) for job in sweep.as_completed(timeout=5)]
    assert late == values  # what has ended comes in the order in which it ended


async def test_jobs_come_as_they_complete_in_an_async_loop_of_any_thread(serving: qnb.App) -> None:
    @serving.task
    async def nap(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    sweep = nap.map([0.3, 0.0, 0.15])
    values = [await job async for job in sweep.as_completed()]
    assert values == [0.0, 0.15, 0.3]

    async def elsewhere() -> list[float]:
        return [await job async for job in sweep.as_completed(timeout=5)]

    with ThreadPoolExecutor(1) as pool:
        assert await asyncio.wrap_future(pool.submit(asyncio.run, elsewhere())) == values


def test_too_late_is_a_timeout_and_the_work_goes_on(serving: qnb.App) -> None:
    @serving.task
    async def nap(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    sweep = nap.map([0.0, 1.0])
    sweep[0].wait(10)
    coming = iter(sweep.as_completed(timeout=0.2))
    assert next(coming).get(timeout=5) == 0.0
    with pytest.raises(TimeoutError, match=r"within 0\.2 s; it goes on"):
        next(coming)
    assert sweep.wait(10).results() == [0.0, 1.0]


async def test_a_hundred_waiters_of_all_kinds_are_told_once(serving: qnb.App) -> None:
    @serving.task
    async def f(x: int) -> int:
        await asyncio.sleep(0.2)
        return x

    sweep = f.map(range(50))
    with ThreadPoolExecutor(20) as pool:
        blocking = [pool.submit(sweep.wait, 20) for _ in range(20)]
        each = [asyncio.ensure_future(job.result(20)) for job in sweep]
        whole = [asyncio.ensure_future(_await(sweep)) for _ in range(30)]
        assert await asyncio.gather(*whole) == [list(range(50))] * 30
        assert [r.value for r in await asyncio.gather(*each) if r] == list(range(50))
        assert all(waiter.result() is sweep for waiter in blocking)
    assert await sweep == list(range(50))  # late


async def _await(sweep: Any) -> Any:
    return await sweep


def test_the_jobs_of_a_sweep_can_be_asked_for_before_they_are_stored(serving: qnb.App) -> None:
    @serving.task
    async def f(x: int) -> int:
        return x

    sweep = f.map(range(5000))
    assert sweep[-1].get(timeout=20) == 4999
    assert asyncio.run(_value(f.map(range(3000))[-1])) == 2999


async def _value(job: Any) -> Any:
    return await job


def test_a_handle_elsewhere_hears_as_soon_as_the_one_that_sent(
    serving: qnb.App, elsewhere: qnb.App, wait_until: Wait, tmp_path: Path
) -> None:
    go = str(tmp_path / "go")

    @serving.task
    async def f(x: int, go: str) -> int:
        for _ in range(1_000 * x):
            if Path(go).exists():  # noqa: ASYNC240 - it is quick
                break
            await asyncio.sleep(0.01)
        return x

    sweep = f.options(name="both").map([0, 1], [go, go])
    other = elsewhere.sweep("both")
    wait_until(lambda: other.snapshot().counts["done"] == 1, "the first has ended")
    Path(go).touch()
    assert elsewhere.job(sweep[1].id).get(timeout=5) == 1
    wait_until(lambda: other.snapshot().finished, "the other handle knows", 0.3)
    retried = sweep.wait(5).retry([True, True])
    assert retried.result(5) == 2
    wait_until(lambda: sweep.snapshot().finished, "again")


@pytest.fixture
def own_server(tmp_path: Path, wait_until: Wait) -> Iterator[Callable[[], str]]:
    """Starts a server of this test's own, or ends it without warning and starts it again."""
    program = shutil.which("redis-server") or "redis-server"
    processes: list[subprocess.Popen[bytes]] = []

    def restart() -> str:
        end()
        command = [program, "--port", "0", "--unixsocket", "s", "--appendonly", "yes"]
        processes.append(subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL))
        wait_until(lambda: answers(tmp_path / "s"), "the server listens")
        return f"unix://{tmp_path}/s"

    def end() -> None:
        while processes:
            process = processes.pop()
            process.kill()
            process.wait()

    yield restart
    end()


def test_waiters_of_all_kinds_outlive_a_server_that_is_killed(
    own_server: Callable[[], str], wait_until: Wait
) -> None:
    app = qnb.App(own_server(), "restarted")
    worker = threading.Thread(target=lambda: asyncio.run(app.run()), daemon=True)
    worker.start()

    @app.task
    async def f(x: int) -> int:
        await asyncio.sleep(0.02)
        return x

    sweep = f.options(name="scan").map(range(600))
    wait_until(lambda: sweep.snapshot().counts["done"] > 20, "it has begun")
    with ThreadPoolExecutor(3) as pool:
        waiting = pool.submit(sweep.wait, 25)
        each = pool.submit(lambda: [job.id for job in sweep.as_completed(timeout=25)])
        awaited = pool.submit(asyncio.run, _await(sweep))
        own_server()
        assert waiting.result() is sweep
        assert len(each.result()) == 600
        assert awaited.result() == list(range(600))
    app.stop()
    worker.join()
    app.close()


def test_a_wait_that_no_worker_will_end_says_so(app: qnb.App, wait_until: Wait) -> None:
    @app.task
    def f(x: int) -> int:
        return x

    sweep = f.map(range(3))
    wait_until(lambda: "no worker serves" in sweep.snapshot().note, "its note")
    with pytest.raises(TimeoutError, match=r"no worker serves lane 'default': app\.start_workers"):
        sweep.wait(0.1)
    with pytest.raises(TimeoutError, match=r"no worker serves lane 'default'"):
        list(sweep.as_completed(timeout=0.1))
