"""Stop means stopped: aborts and timeouts of jobs that run in workers' own processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import qnb
from tests.serving import serving

Wait = Callable[..., Any]


@pytest.fixture
def pool(app: qnb.App) -> Iterator[qnb.Pool]:
    with app.start_workers(1, linger="60 s") as pool:
        yield pool


BODIES = {
    "a pure Python loop": "while True: pass",
    "a sleep": "import time; time.sleep(60)",
    "a C function that holds the GIL": ("import ctypes; ctypes.PyDLL(None).sleep(60)"),
    "one that swallows exceptions": """
import time
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
""",
    "one with a process of its own": """
import subprocess, sys, pathlib
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
pathlib.Path(path).write_text(str(child.pid))
child.wait()
""",
    "one whose process has left its session": """
import subprocess, sys, pathlib
child = subprocess.Popen(
    [sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)
pathlib.Path(path).write_text(str(child.pid))
child.wait()
""",
    "one that ignores signals": """
import signal, time
for number in range(1, signal.NSIG):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    time.sleep(60)
""",
    "an async body that never yields": "async: while True: pass",
}


@pytest.mark.parametrize("way", ["abort", "timeout"])
@pytest.mark.parametrize("body", BODIES)
def test_a_body_is_gone_and_its_slot_free_within_a_second(
    app: qnb.App, pool: qnb.Pool, body: str, way: str, tmp_path: Path, wait_until: Wait
) -> None:
    started, child = tmp_path / "started", tmp_path / "child"
    limit = 0.6 if way == "timeout" else None

    @app.task(timeout=limit)
    def run(code: str, started: str, path: str) -> None:
        Path(started).write_text(str(os.getpid()))
        exec(code, {"path": path})  # noqa: S102 - the test's own text

    @app.task(timeout=limit)
    async def run_async(code: str, started: str, path: str) -> None:
        Path(started).write_text(str(os.getpid()))  # noqa: ASYNC240 - it blocks by intention
        exec(code, {"path": path})  # noqa: S102

    @app.task
    def here() -> int:
        return os.getpid()

    here.submit().get(timeout=10)
    code = BODIES[body]
    task = run_async if code.startswith("async: ") else run
    job = task.submit(code.removeprefix("async: "), str(started), str(child))
    pid = int(wait_until(lambda: started.exists() and started.read_text(), "the body has started"))
    if "process" in body:
        wait_until(lambda: child.exists() and child.read_text(), "its process has started")
    if way == "abort":
        begun = time.monotonic()
        assert job.abort().result(5) is True
    else:
        job.wait(timeout=10)
        begun = time.monotonic()
    assert here.submit().get(timeout=5) != pid
    assert time.monotonic() - begun < 1.0
    assert not _lives(pid)
    if child.exists():
        assert not _lives(int(child.read_text()))
    error = qnb.JobAborted if way == "abort" else TimeoutError
    with pytest.raises(error):
        job.get(timeout=5)


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_waiting_job_is_aborted_at_once_and_never_runs(app: qnb.App) -> None:
    ran = []

    @app.task
    async def f() -> None:
        ran.append(1)

    async def main() -> None:
        queued, delayed = await f.enqueue(), await f.options(delay_ms=60_000).enqueue()
        assert await queued.abort() is True
        assert await app.abort(delayed.id) is True
        result = await delayed.result()
        assert result is not None
        assert (result.aborted, result.success, result.tries) == (True, False, 0)
        assert f"(process {os.getpid()})" in result.value  # who did it
        assert await queued.abort() is False  # it has ended
        assert await app.abort("nobody") is False
        assert await app.queue_size() == 0
        async with serving(app):
            await (await f.enqueue())
        assert len(ran) == 1

    asyncio.run(main())


def test_an_abort_in_a_plain_cell_is_sent_without_being_awaited(
    app: qnb.App, pool: qnb.Pool, tmp_path: Path, wait_until: Wait
) -> None:
    @app.task
    def nap(path: str) -> None:
        Path(path).touch()
        time.sleep(60)

    job = nap.submit(str(tmp_path / "up"))
    wait_until((tmp_path / "up").exists, "it runs")
    command = job.abort()
    with pytest.raises(qnb.JobAborted, match="aborted while it ran by"):
        job.get(timeout=5)
    assert command.result(5) is True
    assert "answered True" in repr(command)


def test_in_process_a_plain_function_cannot_be_stopped_and_the_outcome_says_so(
    app: qnb.App, until: Callable[..., Any]
) -> None:
    freed = []

    @app.task
    def nap() -> None:
        while not freed:
            time.sleep(0.01)

    @app.task
    async def doze() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            freed.append("the coroutine was cancelled")

    async def main() -> None:
        async with serving(app):
            sync, coroutine = await nap.enqueue(), await doze.enqueue()

            async def both_run() -> bool:
                return [await j.status() for j in (sync, coroutine)] == ["running"] * 2

            await until(both_run, "both run")
            assert await sync.abort() is True
            result = await sync.result()
            assert result is not None
            assert result.aborted
            assert "its thread cannot be stopped and runs on" in result.value
            assert not freed
            assert await coroutine.abort() is True
            assert freed

    asyncio.run(main())


def test_the_neighbours_of_a_coroutine_that_does_not_yield_are_put_back_unblamed(
    app: qnb.App, pool: qnb.Pool, tmp_path: Path, wait_until: Wait
) -> None:
    @app.task
    async def neighbour(path: str) -> int:
        tries = qnb.current_task().tries
        with Path(path).open("a") as file:  # noqa: ASYNC230 - one line
            file.write("start\n")
        await asyncio.sleep(0.5)
        return tries

    @app.task
    async def stuck(path: str) -> None:
        Path(path).touch()  # noqa: ASYNC240 - it blocks by intention
        while True:
            pass

    ledger = tmp_path / "starts"
    good = neighbour.submit(str(ledger))
    wait_until(ledger.exists, "the neighbour runs")
    bad = stuck.submit(str(tmp_path / "stuck"))
    wait_until((tmp_path / "stuck").exists, "it hangs")
    assert bad.abort().result(5) is True
    assert good.get(timeout=10) == 1
    assert len(ledger.read_text().splitlines()) == 2


def test_a_long_job_never_waits_in_a_busy_worker_beside_an_idle_one(
    server_url: str, queue: str, tmp_path: Path, wait_until: Wait
) -> None:
    app = qnb.App(server_url, queue)

    @app.task
    def work(seconds: float) -> int:
        time.sleep(seconds)
        return os.getppid()

    environment = {**os.environ, "QNB_REDIS_URL": server_url}
    command = [sys.executable, "-m", "qnb", "worker", "-n", "1", "--queue", queue]
    workers = [
        subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(2)
    ]
    try:
        wait_until(lambda: len(_workers(app)) == 2, "both are up")
        for job in [work.submit(0.0) for _ in range(200)]:  # short ones: they claim ahead
            job.get(timeout=10)
        begun = time.monotonic()
        jobs = [work.submit(1.0) for _ in range(2)]
        assert len({job.get(timeout=10) for job in jobs}) == 2
        assert time.monotonic() - begun < 1.7
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(10)
        app.close()


def _workers(app: qnb.App) -> dict[str, Any]:
    from qnb import bridge

    async def ask() -> dict[str, Any]:
        return await (await app._client.link()).store.workers()

    return bridge.run(ask())
