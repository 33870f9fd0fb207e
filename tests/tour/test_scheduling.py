"""When a job runs: delays, times, expiry, schedules. All by the server's clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

import qnb
from tests.serving import serving

Until = Callable[..., Awaitable[object]]


def test_a_delayed_job_is_scheduled_and_runs_when_it_is_due(app: qnb.App) -> None:
    @app.task
    async def stamp() -> float:
        return time.time()

    async def main() -> None:
        async with serving(app):
            await (await stamp.enqueue())  # the worker is up
            sent = time.time()
            job = await stamp.options(delay_ms=400).enqueue()
            assert await job.status() == "scheduled"
            info = await job.info()
            assert info is not None
            assert info.scheduled_at is not None
            assert abs(info.scheduled_at - (sent + 0.4) * 1000) < 200
            assert await app.queue_size() == 1
            assert 0.39 <= await job - sent < 0.9  # a worker is woken when it is due

    asyncio.run(main())


def test_a_time_in_the_past_means_at_once(app: qnb.App) -> None:
    @app.task
    async def f() -> int:
        return 1

    async def main() -> None:
        job = await f.options(schedule_ms=1_000).enqueue()
        assert await job.status() == "queued"
        later = await f.options(schedule_ms=int(time.time() * 1000) + 300).enqueue()
        assert await later.status() == "scheduled"
        async with serving(app):
            assert await job == 1
            assert await later == 1

    asyncio.run(main())


@pytest.mark.parametrize("worker", [False, True])
def test_a_job_that_nobody_started_in_time_ends_as_expired_and_its_waiters_are_told(
    app: qnb.App, worker: bool
) -> None:
    ran = []

    @app.task
    async def f() -> None:
        ran.append(1)

    async def main() -> None:
        job = await f.options(expire_ms=200, delay_ms=100 if worker else 0).enqueue()
        begun = time.monotonic()
        if worker:  # it is busy with something else until after the expiry
            blocked = qnb.App(app._client._url, app.queue_name, ["other"])
            async with serving(blocked):
                result = await job.result(timeout=5)
        else:  # nobody serves the queue at all
            result = await job.result(timeout=5)
        assert time.monotonic() - begun < 1.6
        assert result is not None
        assert (result.success, result.tries) == (False, 0)
        assert "was not started before its expiry" in result.value
        with pytest.raises(qnb.JobExpired):
            await job
        assert await job.status() == "complete"
        async with serving(app):
            await (await f.enqueue())
        assert await app.queue_size() == 0

    asyncio.run(main())
    assert len(ran) <= 1


def test_an_occurrence_runs_once_whoever_serves(server_url: str, queue: str, until: Until) -> None:
    ran: list[tuple[str, str]] = []

    def make() -> qnb.App:
        app = qnb.App(server_url, queue)

        @app.cron(every=1)
        async def tick() -> None:
            ran.append((app.worker_id or "", qnb.current_task().task_id))

        assert app.crons == ["tick"]
        return app

    async def main() -> None:
        apps = [make() for _ in range(3)]
        async with serving(*apps):

            async def three() -> bool:
                return len(ran) >= 3

            await until(three, "three occurrences have run")

    asyncio.run(main())
    ids = [task_id for _, task_id in ran]
    assert len(ids) == len(set(ids))
    seconds = [int(task_id.removesuffix("Z")[-2:]) for task_id in ids]
    assert all((b - a) % 60 == 1 for a, b in pairwise(seconds))


@pytest.mark.parametrize("skew_s", [-3600, -1.5, 1.5, 3600])
def test_a_worker_whose_clock_is_wrong_neither_repeats_nor_misses(
    server_url: str, queue: str, skew_s: float, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    from qnb import clock

    real = time.time_ns
    monkeypatch.setattr(clock.time, "time_ns", lambda: real() + int(skew_s * 1e9))
    app = qnb.App(server_url, queue)
    ran: list[str] = []

    @app.cron(every=1)
    async def tick() -> None:
        ran.append(qnb.current_task().task_id)

    @app.task
    async def now() -> float:
        return time.monotonic()

    async def main() -> None:
        async with serving(app):
            sent = time.monotonic()
            job = await now.options(delay_ms=500).enqueue()
            assert 0.49 <= await job - sent < 1.0

            async def two() -> bool:
                return len(ran) >= 2

            await until(two, "two occurrences have run")

    asyncio.run(main())
    assert len(ran) == len(set(ran))
