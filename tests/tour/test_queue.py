"""The queue as its users know it, one idea each, on a real server."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

import qnb


async def drain(app: qnb.App) -> None:
    app.burst = True
    await app.run()


def test_calling_a_task_runs_it_here(app: qnb.App) -> None:
    @app.task
    def double(x: int) -> int:
        return 2 * x

    assert double(4) == 8
    assert app.tasks == ["double"]


def test_whoever_asks_again_for_a_value_has_it_at_once(serving: qnb.App) -> None:
    @serving.task
    def double(x: int) -> int:
        return 2 * x

    job = double.submit(4)
    assert job.wait(timeout=10).get(timeout=0.5) == 8
    assert job.get(timeout=0.5) == 8


async def _seed(app: qnb.App) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    @app.task
    def fail(why: str) -> None:
        raise KeyError(why)

    job = await add.enqueue(2, b=3)
    assert await job.status() == "queued"
    assert await job.result() is None
    info = await job.info()
    assert info is not None
    assert (info.task_id, info.fn_name, info.args, info.kwargs) == (job.id, "add", (2,), {"b": 3})
    assert (info.status, info.tries, info.scheduled_at) == ("queued", 0, None)
    assert await app.queue_size() == 1
    bad = await fail.enqueue("no such row")
    await drain(app)
    result = await job.result(timeout=5)
    assert result is not None
    assert (result.success, result.value, result.tries, result.aborted) == (True, 5, 1, False)
    assert result.enqueue_time <= result.start <= result.finish
    assert result.duration_ms == result.finish - result.start
    assert await job == 5
    assert await job.status() == "complete"
    assert await job.info() is None
    assert await app.queue_size() == 0
    failed = await app.result(bad.id, timeout=timedelta(seconds=5))
    assert failed is not None
    assert (failed.success, failed.value) == (False, "KeyError('no such row')")
    with pytest.raises(KeyError, match="no such row") as raised:
        await bad
    assert "raise KeyError(why)" in str(raised.value.__cause__)
    assert await app.status("never heard of") == "not_found"
    assert await app.info("never heard of") is None


def test_a_job_can_be_asked_for_status_info_and_result(app: qnb.App) -> None:
    asyncio.run(_seed(app))


@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_the_same_on_every_server(kind: str, request: pytest.FixtureRequest, queue: str) -> None:
    url = request.getfixturevalue("server_url" if kind == "embedded" else "redis_url")
    asyncio.run(_seed(qnb.App(url, queue)))


def test_lanes_are_drained_highest_first_and_each_in_order(server_url: str, queue: str) -> None:
    app = qnb.App(server_url, queue, ["low", "mid", "high"], concurrency=1)
    ran: list[str] = []

    @app.task
    async def note(word: str) -> None:
        ran.append(word)

    async def main() -> None:
        for lane in ("low", "high", "mid"):
            for number in (1, 2):
                await note.options(priority=lane).enqueue(f"{lane}{number}")
        await note.enqueue("default")
        await drain(app)

    asyncio.run(main())
    assert app.default_priority == "mid"
    assert ran == ["high1", "high2", "mid1", "mid2", "default", "low1", "low2"]


def test_enqueue_many_keeps_order_and_gives_a_job_for_each(app: qnb.App) -> None:
    @app.task
    async def square(x: int) -> int:
        return x * x

    async def main() -> list[int]:
        jobs = await app.enqueue_many([square.prepare(x) for x in range(1200)])
        app.burst = True
        await app.run()
        return list(await asyncio.gather(*jobs))

    assert asyncio.run(main()) == [x * x for x in range(1200)]


def test_the_same_task_id_is_the_same_job_until_it_has_ended(app: qnb.App) -> None:
    runs: list[int] = []

    @app.task
    async def once(x: int) -> int:
        runs.append(x)
        return x

    async def main() -> None:
        named = once.options(task_id="tonight's run")
        first, second = await named.enqueue(1), await named.enqueue(2)
        assert first == second
        await drain(app)
        assert await second == 1
        again = await named.enqueue(3)
        assert await again.result() is None  # the old result no longer answers
        await drain(app)
        assert await again == 3
        assert runs == [1, 3]

    asyncio.run(main())


def test_a_wait_that_times_out_leaves_the_job_alone(app: qnb.App) -> None:
    @app.task
    def never(x: int) -> None: ...

    job = never.submit(1)
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.05 s; it goes on"):
        job.get(timeout=0.05)
    with pytest.raises(TimeoutError):
        asyncio.run(_result(job))
    assert asyncio.run(_status(job)) == "queued"


async def _result(job: qnb.Job[Any]) -> object:
    return await job.result(timeout=0.05)


async def _status(job: qnb.Job[Any]) -> object:
    return await job.status()


def test_waiting_for_an_unknown_job_ends_at_once_with_a_name(app: qnb.App) -> None:
    with pytest.raises(qnb.JobLost, match="never enqueued"):
        app.job("nobody").get(timeout=5)


def test_current_task_knows_its_job(app: qnb.App) -> None:
    @app.task
    async def who() -> tuple[str, str, int]:
        task = qnb.current_task()
        return task.task_id, task.name, task.tries

    async def main() -> None:
        job = await who.enqueue()
        await drain(app)
        assert await job == (job.id, "who", 1)

    asyncio.run(main())
    with pytest.raises(qnb.QnbError, match="outside of a task"):
        qnb.current_task()


def test_stop_lets_running_jobs_finish_and_keeps_the_rest(server_url: str, queue: str) -> None:
    app = qnb.App(server_url, queue, concurrency=1)
    started = asyncio.Event()

    @app.task
    async def slow(x: int) -> int:
        started.set()
        await asyncio.sleep(0.2)
        return x

    async def main() -> None:
        first, second = await slow.enqueue(1), await slow.enqueue(2)
        running = asyncio.create_task(app.run())
        await started.wait()
        app.stop()
        await running
        assert await first == 1
        assert await second.status() == "queued"

    asyncio.run(main())
