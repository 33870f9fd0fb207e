"""A small workload with one of everything, and the processes that run it: forked from a warm one.

A client sends it, waits for all of it and notes what it read; the next one sends what is not there
and goes on. All ids are fixed, so that nothing may run twice because of a client.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import redis.asyncio.client  # noqa: F401 - what every process here would load, loaded once for all

import qnb
import qnb.running.serve
from qnb.models import UNFINISHED, JobState
from qnb.options import AppOptions
from qnb.storage.crashpoints import VARIABLE
from tests.faults.ledger import Ledger, note

#: seconds within which each wait ends
BOUND = 20.0

POINTS = 20


async def double(path: str, name: str, x: int) -> int:
    note(path, "start", name)
    return 2 * x


def flaky(path: str, name: str) -> str:
    note(path, "start", name)
    if Ledger(Path(path)).starts()[name] == 1:
        raise OSError("not yet")
    return name


def bad(path: str, name: str) -> None:
    note(path, "start", name)
    raise ValueError(name)


async def slow(path: str, name: str) -> None:
    note(path, "start", name)
    await asyncio.sleep(2 * BOUND)


async def point(path: str, x: int) -> int:
    note(path, "start", f"point{x}")
    return x * x


#: how everything ends, by name
ENDS = {
    **{f"quick{x}": f"done:{2 * x}" for x in range(4)},
    "flaky": "done:flaky",
    "bad": "failed:ValueError",
    "slow": "aborted:JobAborted",
    "later": "done:2000",
    **{f"point{x}": f"done:{x * x}" for x in range(POINTS)},
}

#: attempts that a body is given for its own failures
RETRIES = {"flaky": 1}


@dataclass(frozen=True)
class Place:
    """Where a run of the workload is, and how long a silent worker keeps its jobs."""

    url: str
    queue: str
    ledger: str
    log: str
    lease_ms: int

    def app(self) -> qnb.App:
        return qnb.App(self.url, self.queue, lease_ms=self.lease_ms, concurrency=4)


# -- the roles -----------------------------------------------------------------------------------


async def _client(place: Place) -> None:
    app, path = place.app(), place.ledger
    calls = [
        *(app.task(double).options(task_id=f"quick{x}").prepare(path, f"quick{x}", x)
          for x in range(4)),
        app.task(flaky, max_retries=1, backoff_ms=20)
        .options(task_id="flaky").prepare(path, "flaky"),
        app.task(bad).options(task_id="bad").prepare(path, "bad"),
        app.task(slow).options(task_id="slow").prepare(path, "slow"),
        app.task(double).options(task_id="later", delay_ms=150).prepare(path, "later", 1000),
    ]  # fmt: skip
    jobs = {call.job().id: call.job() for call in calls}
    new = [c for c in calls if await c.job().status() is JobState.NOT_FOUND]
    for job in await app.enqueue_many(new):
        note(path, "sent", job.id)
    sweep = await asyncio.to_thread(
        lambda: app.task(point).options(name="study").grid(path=path, x=range(POINTS))
    )
    while (state := await jobs["slow"].status()) in UNFINISHED:
        if state is JobState.RUNNING:
            await jobs["slow"].abort()
        await asyncio.sleep(0.02)
    await asyncio.to_thread(sweep.wait, BOUND)
    jobs |= {f"point{x}": sweep[x] for x in range(POINTS)}
    for word in ("read", "final"):
        for name, end in zip(
            jobs, await asyncio.gather(*map(_outcome, jobs.values())), strict=True
        ):
            note(path, word, name, end)


async def _outcome(job: qnb.Job[Any]) -> str:
    try:
        return f"done:{await asyncio.wait_for(job, BOUND)}"
    except qnb.JobAborted as error:
        return f"aborted:{type(error).__name__}"
    except Exception as error:  # noqa: BLE001 - noted, and compared with what is due
        return f"failed:{type(error).__name__}"


def client(place: Place) -> int:
    """Send what is not there yet, wait for all, note what was read, and read all once more."""
    asyncio.run(asyncio.wait_for(_client(place), 2 * BOUND))
    return 0


def inline(place: Place) -> int:
    """The worker that ``app.run()`` is, until SIGTERM."""
    app = place.app()
    for task in (double, flaky, bad, slow, point):
        app.task(task)

    async def serve() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.stop)
        await app.run()

    asyncio.run(serve())
    return 0


def processes(place: Place) -> int:
    """The supervisor that ``qnb worker`` is, until SIGTERM."""
    options = AppOptions(queue_name=place.queue, lease_ms=place.lease_ms)
    return asyncio.run(qnb.running.serve.serve(place.url, options, slots=2))


Role = Callable[[Place], int]

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["__main__", __name__])

#: one thread at a time starts a process or asks for its status: each looks at all of them
_turn = threading.Lock()


class Actor:
    """A process in ``role``; with ``crash``, it ends itself at that call of the store."""

    def __init__(self, role: Role, place: Place, crash: str = "") -> None:
        self._process = _forks.Process(target=_play, args=(role, place, crash))
        with _turn:
            self._process.start()
            self.pid, self.ends = self._process.pid or 0, self._process.sentinel

    @property
    def status(self) -> int | None:
        """Its exit status; None while it lives."""
        with _turn:
            return self._process.exitcode

    def ended(self, limit: float) -> int | None:
        """Its exit status, if it ends within so many seconds."""
        wait([self.ends], limit)
        return self.status

    def signal(self, number: int) -> None:
        if self.status is None:
            os.kill(self.pid, number)


def _play(role: Role, place: Place, crash: str) -> None:
    log = os.open(place.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    note(place.ledger, "begin", role.__name__, crash)
    if crash:
        os.environ[VARIABLE] = crash
    sys.exit(role(place))
