"""Every wait ends, with a named outcome: each way for a job to end, each way to wait for it."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

import qnb
from qnb.models import JobState
from qnb.storage.keys import KeySpace
from tests.faults.conftest import Figures
from tests.faults.ledger import Ledger, note
from tests.faults.stage import eventually

#: seconds within which a wait is told of an end that no worker reports: a record that is gone, an
#: expiry that nobody saw to
G16 = 1.0

#: seconds beyond which no wait here may last
BOUND = 25.0


async def gated(x: str, path: str) -> str:
    """Runs until there is a file at ``path.open``."""
    note(path, "start", x)
    while not os.access(f"{path}.open", os.F_OK):  # noqa: ASYNC110 - it may be another process
        await asyncio.sleep(0.01)
    if x == "raise":
        raise ValueError(x)
    return x


def deadly(x: str, path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# -- ways to wait --------------------------------------------------------------------------------


def _named(wait: Callable[[], Any]) -> str:
    """How a wait has ended: "done", or the name of what it raised."""
    try:
        wait()
    except ExceptionGroup as group:
        return type(group.exceptions[0]).__name__
    except Exception as error:  # noqa: BLE001 - its name is what is asked for
        return type(error).__name__
    return "done"


def _in_a_loop(what: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await what()

    return asyncio.run(main())


def _told(job: qnb.Job[Any]) -> str:
    """The name of the outcome that ``job.result(timeout)`` gives."""
    result = _in_a_loop(lambda: job.result(BOUND))
    return "done" if result.success else str(result.value).partition("(")[0]


def _seen(job: qnb.Job[Any]) -> str:
    """The name of the outcome that a job shows after ``job.wait()``."""
    record = job.wait(BOUND).snapshot()
    if record.status is JobState.NOT_FOUND:
        return "JobLost"
    assert record.outcome is not None
    return record.outcome.failure.type if record.outcome.failure else "done"


def _first(sweep: qnb.Sweep[Any]) -> Any:
    [job] = sweep.as_completed(BOUND)
    return job.get(BOUND)


async def _first_of(sweep: qnb.Sweep[Any]) -> Any:
    [job] = [job async for job in sweep.as_completed(BOUND)]
    return await job


JOB_WAYS: dict[str, Callable[[qnb.Job[Any]], str]] = {
    "job.get()": lambda job: _named(lambda: job.get(BOUND)),
    "await job": lambda job: _named(lambda: _in_a_loop(lambda: job)),
    "job.result(timeout)": _told,
    "job.wait()": _seen,
}

SWEEP_WAYS: dict[str, Callable[[qnb.Sweep[Any]], str]] = {
    "sweep.wait()": lambda sweep: _named(lambda: sweep.wait(BOUND)[0].get(BOUND)),
    "await sweep": lambda sweep: _named(lambda: _in_a_loop(lambda: sweep)),
    "sweep.results()": lambda sweep: _named(sweep.results),
    "for job in sweep.as_completed()": lambda sweep: _named(lambda: _first(sweep)),
    "async for job in sweep.as_completed()": lambda sweep: _named(
        lambda: _in_a_loop(lambda: _first_of(sweep))
    ),
}


class Waits:
    """A job, a sweep of one and a future of an executor, all waited for in every way at once."""

    def __init__(self, app: qnb.App, task: qnb.Task[..., Any], x: str, ledger: Ledger) -> None:
        self._ledger = ledger
        self.job = task.submit(x, ledger.path)
        self.sweep = task.options(name=f"of {x}").map([x], [ledger.path])
        self.future = app.executor().submit(task, x, ledger.path)
        self.ids = [self.job.id, self.sweep[0].id, self.future.job.id]
        eventually(lambda: asyncio.run(_all_known(self)), "all are stored")
        self._pool = ThreadPoolExecutor(10)
        self._ends: dict[str, Future[tuple[str, float]]] = {}
        for way, wait in JOB_WAYS.items():
            self._ends[way] = self._pool.submit(_timed, wait, self.job)
        for way, wait_for in SWEEP_WAYS.items():
            self._ends[way] = self._pool.submit(_timed, wait_for, self.sweep)
        self._ends["future.result()"] = self._pool.submit(
            _timed, lambda future: _named(lambda: future.result(BOUND)), self.future
        )

    def begun(self) -> None:
        """Return when the bodies of all three run."""
        eventually(lambda: self._ledger.starts().total() >= 3, "their bodies run")

    def open(self) -> None:
        """Let the bodies go on."""
        Path(f"{self._ledger.path}.open").touch()

    def ends(self) -> dict[str, str]:
        """How each of them ended."""
        return {way: end.result(BOUND + 5)[0] for way, end in self._ends.items()}

    def latest(self) -> float:
        """When the last of them did, on the monotonic clock."""
        return max(end.result(BOUND + 5)[1] for end in self._ends.values())

    def close(self) -> None:
        self.open()  # whatever runs on
        self._pool.shutdown()


def _timed(wait: Callable[[Any], str], what: Any) -> tuple[str, float]:
    return wait(what), time.monotonic()


async def _all_known(waits: Waits) -> bool:
    jobs = (waits.job, waits.sweep[0], waits.future.job)
    return all([await job.status() is not JobState.NOT_FOUND for job in jobs])


def _expect(name: str) -> dict[str, str]:
    return dict.fromkeys([*JOB_WAYS, *SWEEP_WAYS, "future.result()"], name)


# -- ways to end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("x, end", [("value", "done"), ("raise", "ValueError")])
def test_every_wait_for_work_that_ends_by_itself_is_told(
    serving: qnb.App, ledger: Ledger, x: str, end: str
) -> None:
    waits = Waits(serving, serving.task(gated), x, ledger)
    waits.begun()
    opened = time.monotonic()
    waits.open()
    assert waits.ends() == _expect(end)
    assert waits.latest() - opened < G16
    waits.close()


def test_every_wait_for_work_that_is_aborted_is_told(serving: qnb.App, ledger: Ledger) -> None:
    waits = Waits(serving, serving.task(gated), "aborted", ledger)
    waits.begun()
    for command in (waits.job.abort(), waits.sweep.cancel(), waits.future.job.abort()):
        assert command.result(BOUND)
    assert waits.ends() == _expect("JobAborted")
    waits.close()


def test_every_wait_for_work_that_keeps_crashing_is_told(serving: qnb.App, ledger: Ledger) -> None:
    waits = Waits(serving, serving.task(deadly, isolation="process"), "crashed", ledger)
    assert waits.ends() == _expect("WorkerCrashed")
    waits.close()


def test_every_wait_for_work_of_another_key_is_told_that_it_was_refused(
    app: qnb.App, server_url: str, queue: str, tmp_path: Path, ledger: Ledger
) -> None:
    waits = Waits(app, app.task(gated), "refused", ledger)
    key = tmp_path / "other.key"
    key.touch(mode=0o600)
    key.write_text(secrets.token_hex(32))
    other = qnb.App(server_url, queue, key_file=key)
    thread = threading.Thread(target=lambda: asyncio.run(other.run()))
    thread.start()
    try:
        assert waits.ends() == _expect("SignatureError")
    finally:
        other.stop()
        thread.join(BOUND)
        waits.close()


def test_every_wait_for_an_expired_job_ends_at_once_without_any_worker(
    app: qnb.App, figures: Figures, ledger: Ledger
) -> None:
    began = time.monotonic()
    waits = Waits(app, app.task(gated).options(expire_ms=1000), "expired", ledger)
    enqueued = time.monotonic()
    ends = waits.ends()
    late = waits.latest() - enqueued - 1
    figures(
        goal="G16",
        what="an expired job, no worker there: ten ways to wait",
        target="JobExpired ≤ 1 s after its time",
        figure=f"{sorted(set(ends.values()))}, latest {late:.2f} s after",
        ok=ends == _expect("JobExpired") and late < G16 and waits.latest() - began > 1,
    )
    waits.close()


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_every_wait_for_a_job_whose_record_goes_ends_at_once(
    app: qnb.App, server_url: str, queue: str, figures: Figures, ledger: Ledger, when: str,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if when == "running":
        request.getfixturevalue("serving")
    waits = Waits(app, app.task(gated), "lost", ledger)
    if when == "running":
        waits.begun()
    keys = KeySpace(queue)
    with redis.Redis.from_url(server_url) as link:
        assert link.delete(*map(keys.job, waits.ids)) == 3
    gone = time.monotonic()
    ends, late = waits.ends(), waits.latest() - gone
    figures(
        goal="G16",
        what=f"the record of a {when} job is deleted or evicted: ten ways to wait",
        target="JobLost ≤ 1 s after",
        figure=f"{sorted(set(ends.values()))}, latest {late:.2f} s after",
        ok=ends == _expect("JobLost") and late < G16,
    )
    waits.close()


def test_every_wait_ends_at_once_when_the_whole_store_is_purged(
    app: qnb.App, server_url: str, queue: str, figures: Figures, ledger: Ledger
) -> None:
    sweep = (
        app.task(gated)
        .options(name="large")
        .grid(x=[str(x) for x in range(2500)], path=ledger.path)
    )
    waits = Waits(app, app.task(gated), "purged", ledger)
    large = ThreadPoolExecutor(1).submit(_timed, lambda sweep: _named(sweep.results), sweep)
    assert asyncio.run(sweep[2499].status()) is JobState.QUEUED  # all are stored
    with redis.Redis.from_url(server_url) as link:
        for key in link.scan_iter(match=f"qnb:[{{]{queue}[}}]:*", count=1000):
            link.delete(key)
    gone = time.monotonic()
    ends = {**waits.ends(), "results of a sweep of 2,500": large.result(BOUND)[0]}
    late = max(waits.latest(), large.result()[1]) - gone
    figures(
        goal="G16",
        what="the whole queue is purged: ten ways to wait, and a sweep of 2,500",
        target="JobLost ≤ 1 s after; the large sweep ≤ 2 s",
        figure=f"{sorted(set(ends.values()))}, {waits.latest() - gone:.2f} s; {late:.2f} s",
        ok=set(ends.values()) == {"JobLost"} and waits.latest() - gone < G16 and late < 2 * G16,
    )
    waits.close()


async def test_every_wait_for_an_unknown_job_ends_at_once(app: qnb.App, figures: Figures) -> None:
    job = app.job("never enqueued")
    await job.status()  # the link is open
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(wait, job) for wait in JOB_WAYS.values()]
        ends = [await asyncio.wrap_future(wait) for wait in waits]
    late = time.monotonic() - began
    figures(
        goal="G16",
        what="a job that nobody has enqueued: four ways to wait",
        target="JobLost ≤ 1 s",
        figure=f"{sorted(set(ends))}, latest {late:.2f} s",
        ok=set(ends) == {"JobLost"} and late < G16,
    )
