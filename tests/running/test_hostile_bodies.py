"""Bodies that end their process, fork it, or raise what is no error: only they suffer."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qnb

Wait = Callable[..., Any]


@pytest.fixture
def pool(app: qnb.App) -> Iterator[qnb.Pool]:
    with app.start_workers(1, linger="60 s") as pool:
        yield pool


HOSTILE = {
    "exit": "import sys; sys.exit(3)",
    "interrupt": "raise KeyboardInterrupt",
    "generator": "raise GeneratorExit",
    "own": "class Stop(BaseException): pass\nraise Stop('now')",
    "surrogate": "raise ValueError('bad \\udcff')",
    "cancelled": "import asyncio; raise asyncio.CancelledError",
}


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("body", HOSTILE)
def test_whatever_a_body_raises_fails_that_job_once_and_no_other(
    app: qnb.App, kind: str, body: str
) -> None:
    runs = []

    @app.task
    def sync(code: str) -> None:
        runs.append(1)
        exec(code, {})  # noqa: S102 - the test's own text

    @app.task(name="async")
    async def other(code: str) -> None:
        runs.append(1)
        exec(code, {})  # noqa: S102

    @app.task
    async def sound(x: int) -> int:
        return x

    async def main() -> None:
        bad = await (sync if kind == "sync" else other).enqueue(HOSTILE[body])
        good = [await sound.enqueue(x) for x in range(2)]
        app.burst = True
        await app.run()
        result = await bad.result(timeout=5)
        assert result is not None
        assert (result.success, result.tries, len(runs)) == (False, 1, 1)
        assert [await job for job in good] == [0, 1]

    asyncio.run(main())
    [bad] = app.jobs_frame(status="complete").query("not success").index
    with pytest.raises((qnb.RemoteError, ValueError)):  # and the I/O thread lives on
        app.job(bad).get(timeout=5)
    assert sound.submit(1).id


def test_the_same_in_a_child_process(app: qnb.App, pool: qnb.Pool) -> None:
    @app.task
    def run(code: str) -> int:
        exec(code, {})  # noqa: S102 - the test's own text
        return os.getpid()

    first = run.submit("").get(timeout=10)
    for body in HOSTILE.values():
        with pytest.raises((qnb.RemoteError, ValueError)):
            run.submit(body).get(timeout=10)
    assert run.submit("").get(timeout=10) == first  # the process has served them all


def test_a_body_that_forks_leaves_its_worker_in_order(app: qnb.App, pool: qnb.Pool) -> None:
    @app.task
    def fork(x: int) -> int:
        os.fork()
        return x

    @app.task
    def same(x: int) -> int:
        return x

    assert fork.submit(1).get(timeout=10) == 1
    assert [same.submit(x).get(timeout=10) for x in range(4)] == [0, 1, 2, 3]


def test_a_child_that_dies_is_seen_though_its_fork_lives(app: qnb.App, pool: qnb.Pool) -> None:
    @app.task
    def die() -> None:
        if os.fork() == 0:
            time.sleep(20)
        os.kill(os.getpid(), signal.SIGKILL)

    begun = time.monotonic()
    with pytest.raises(qnb.WorkerCrashed, match="SIGKILL"):
        die.submit().get(timeout=10)
    assert time.monotonic() - begun < 8


def test_a_worker_that_is_stopped_hard_hands_its_job_to_the_next(
    app: qnb.App, server_url: str, queue: str, tmp_path: Path, wait_until: Wait
) -> None:
    ledger = tmp_path / "starts"

    @app.task
    def once_slow(path: str) -> int:
        with Path(path).open("a") as file:
            file.write("start\n")
        starts = len(Path(path).read_text().splitlines())
        time.sleep(20 if starts == 1 else 0)
        return starts

    job = once_slow.submit(str(ledger))
    environment = {**os.environ, "QNB_REDIS_URL": server_url}
    command = [sys.executable, "-m", "qnb", "worker", "-n", "1", "--queue", queue]
    said = tmp_path / "log"
    with said.open("w") as log, subprocess.Popen(command, env=environment, stderr=log) as worker:
        wait_until(ledger.exists, "the body has started")
        worker.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in said.read_text(), "it has heard the first signal")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(10) == 1
    with app.start_workers(1):
        assert job.get(timeout=10) == 2


def test_an_in_process_worker_that_is_cancelled_hands_its_jobs_back(app: qnb.App) -> None:
    started = asyncio.Event()

    @app.task
    async def forever() -> None:
        started.set()
        await asyncio.sleep(30)

    async def main() -> None:
        job = await forever.enqueue()
        running = asyncio.create_task(app.run())
        async with asyncio.timeout(10):
            await started.wait()
        running.cancel()
        await asyncio.wait([running])
        assert await job.status() == "queued"
        assert await app.queue_size() == 1

    asyncio.run(main())


def test_what_waits_in_a_worker_that_is_cancelled_is_not_begun(
    server_url: str, queue: str, until: Callable[..., Awaitable[Any]]
) -> None:
    app = qnb.App(server_url, queue, concurrency=1, prefetch=4)
    begun: list[int] = []

    @app.task
    async def forever(x: int) -> None:
        begun.append(x)
        await asyncio.sleep(30)

    async def main() -> None:
        jobs = [await forever.enqueue(x) for x in range(5)]
        running = asyncio.create_task(app.run())

        async def all_are_held() -> bool:
            return bool(begun) and not await app.queue_size()

        await until(all_are_held, "one runs and the others wait in the worker")
        running.cancel()
        await asyncio.wait([running])
        assert begun == [0]
        assert await app.queue_size() == 5
        assert {await job.status() for job in jobs} == {"queued"}

    asyncio.run(main())


def test_a_sweep_outlasts_a_server_that_is_away(
    tmp_path: Path, queue: str, monkeypatch: pytest.MonkeyPatch, wait_until: Wait
) -> None:
    from qnb.storage import connection, server

    monkeypatch.setattr(connection, "PATIENCE", 0.2)
    url = server.ensure(tmp_path)
    try:
        app = qnb.App(url, queue)

        @app.task
        def work(x: int) -> int:
            time.sleep(0.02)
            return x

        with app.start_workers(2):
            sweep = work.map(range(60))
            wait_until(lambda: sweep.snapshot().counts["done"] > 5, "some are done")
            pid = server.status(tmp_path).pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: sweep.snapshot().note == "reconnecting", "it says so")
            assert server.ensure(tmp_path) == url
            sweep.wait(20)
            assert sweep.frame()["value"].tolist() == list(range(60))
        app.close()
    finally:
        server.stop(tmp_path)
