"""A load of many jobs a second and a fault every few seconds, of every kind, for as long as asked.

``QNB_SOAK`` is the number of seconds (60; 3600 for a night), ``QNB_SOAK_SEED`` repeats a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
import statistics
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable

import psutil
import pytest

import qnb
from tests.faults.conftest import Figures
from tests.faults.ledger import Ledger, note
from tests.faults.stage import Proxy, Server, Stage, Worker, eventually, invariants

SECONDS = int(os.environ.get("QNB_SOAK", "60"))
SEED = int(os.environ.get("QNB_SOAK_SEED") or secrets.randbelow(10**6))
RATE = 200  # jobs a second
FAULTS = 22 * SECONDS // 60
QUIET = 5  # seconds before the end without a new fault
LEASE_MS = 3000
READ_AGAIN = 20  # seconds after which an outcome is read again: a stopped worker is back by then
OPTIONS = {"lease_ms": LEASE_MS, "result_ttl_ms": 600_000}
QUEUE = "soak"


async def body(x: int, path: str) -> str:
    """Says in the ledger what it returns, which no other run of it would."""
    run = secrets.token_hex(4)
    note(path, "start", x)
    await asyncio.sleep(x % 20 / 1000)
    note(path, "end", x, run)
    if x % 20 == 0:
        raise ValueError(run)
    return run


class Load:
    """A client that sends jobs at an even rate, and reads each outcome twice."""

    def __init__(self, app: qnb.App, path: str) -> None:
        self.task = app.task(body)
        self.sent = 0
        self.read: dict[int, str] = {}  #: the run whose outcome was read first, by job
        self.errors: Counter[str] = Counter()
        self.changed = 0
        self._path = path
        self._again: deque[tuple[float, qnb.Job[str], int]] = deque()

    async def run(self, seconds: float) -> float:
        """Seconds from the last job sent to the last outcome read."""
        reading = asyncio.create_task(self._read_again())
        loop, under_way = asyncio.get_running_loop(), set()
        began = loop.time()
        while self.sent < RATE * seconds:
            while self.sent < RATE * min(seconds, loop.time() - began):
                one = asyncio.create_task(self._one(self.sent))
                self.sent += 1
                under_way.add(one)
                one.add_done_callback(under_way.discard)
            await asyncio.sleep(0.01)
        ended = loop.time()
        await asyncio.gather(*under_way)
        drained = loop.time() - ended
        reading.cancel()
        await asyncio.sleep(max(0.0, LEASE_MS / 1000))
        await self._check(list(self._again))
        return drained

    async def _one(self, x: int) -> None:
        try:
            job = await self.task.enqueue(x, self._path)
            self.read[x] = await self._outcome(job)
            self._again.append((time.monotonic() + READ_AGAIN, job, x))
        except Exception as error:  # noqa: BLE001 - there is to be none
            self.errors[repr(error)[:200]] += 1

    @staticmethod
    async def _outcome(job: qnb.Job[str]) -> str:
        """The run that an outcome tells of."""
        result = await job.result(timeout=120)
        assert result is not None
        return result.value if result.success else str(result.failure.message)

    async def _read_again(self) -> None:
        while True:
            await asyncio.sleep(1)
            due = []
            while self._again and self._again[0][0] < time.monotonic():
                due.append(self._again.popleft())
            await self._check(due)

    async def _check(self, due: list[tuple[float, qnb.Job[str], int]]) -> None:
        again = await asyncio.gather(*(self._outcome(job) for _, job, _ in due))
        self.changed += sum(run != self.read[x] for run, (_, _, x) in zip(again, due, strict=True))


class Trouble:
    """Does one fault after another, of all kinds, each as often as the others."""

    def __init__(self, server: Server, proxy: Proxy, workers: list[Worker], stage: Stage) -> None:
        self.done: Counter[str] = Counter()
        self.workers = workers  #: the first is the witness: never killed itself
        self._server, self._proxy, self._stage = server, proxy, stage
        self._random = random.Random(SEED)
        self._down = asyncio.Lock()
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "child killed": self._kill_child,
            "worker killed": self._kill_worker,
            "worker stopped": self._suspend,
            "server killed": self._kill_server,
            "links cut": self._cut,
            "links silent": self._silence,
            "scripts flushed": self._flush,
        }

    async def run(self, seconds: float) -> None:
        names = list(self._kinds) * (FAULTS // len(self._kinds) + 1)
        names = names[:FAULTS]
        self._random.shuffle(names)
        whens = sorted(self._random.uniform(2, seconds - QUIET) for _ in names)
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for when, name in zip(whens, names, strict=True):
                await asyncio.sleep(max(0.0, began + when - time.monotonic()))
                group.create_task(self._kinds[name]())
                self.done[name] += 1

    async def _kill_child(self) -> None:
        children = [pid for w in self.workers if w.alive for pid in w.children()]
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._random.choice(children), signal.SIGKILL)

    async def _kill_worker(self) -> None:
        at = self._random.randrange(1, len(self.workers))
        kind = "inline" if at == 1 else "processes"
        self.workers[at].kill_all()
        self.workers[at] = self._stage.worker(
            self._proxy.url, QUEUE, kind=kind, options=OPTIONS, wait=False
        )

    async def _suspend(self) -> None:
        worker = self._random.choice(self.workers)
        worker.suspend()
        await asyncio.sleep(LEASE_MS / 1000 + 1)
        worker.resume()

    async def _kill_server(self) -> None:
        async with self._down:
            self._server.kill()
            await asyncio.sleep(0.5)
            await asyncio.to_thread(self._server.start)

    async def _cut(self) -> None:
        self._proxy.cut()

    async def _silence(self) -> None:
        self._proxy.silence()
        await asyncio.sleep(1)
        self._proxy.restore()

    async def _flush(self) -> None:
        async with self._down:
            await asyncio.to_thread(self._server.cli, "SCRIPT", "FLUSH")


async def _weigh(worker: Worker, weights: list[tuple[float, int]]) -> None:
    """Note the memory of a worker, each second from a third of the time on."""
    await asyncio.sleep(SECONDS / 3)
    while True:
        weights.append((time.monotonic(), psutil.Process(worker.pid).memory_info().rss))
        await asyncio.sleep(1)


def _slope(weights: list[tuple[float, int]]) -> float:
    """Growth in percent an hour."""
    times, sizes = zip(*weights, strict=True)
    line = statistics.linear_regression(times, sizes)
    return line.slope * 3600 / statistics.mean(sizes) * 100


@pytest.mark.on_demand
@pytest.mark.timeout(2 * SECONDS + 180)
async def test_load_and_faults_together_lose_nothing_and_change_nothing(
    stage: Stage, ledger: Ledger, figures: Figures
) -> None:
    print(f"QNB_SOAK={SECONDS} QNB_SOAK_SEED={SEED}")
    server = stage.server(tcp=True)
    proxy = stage.proxy(server)
    kinds = ("processes", "inline", "processes")
    workers = [stage.worker(proxy.url, QUEUE, kind=kind, options=OPTIONS) for kind in kinds]
    app = qnb.App(proxy.url, QUEUE, **OPTIONS)
    load, trouble = Load(app, ledger.path), Trouble(server, proxy, workers, stage)
    weights: list[tuple[float, int]] = []
    weighing = asyncio.create_task(_weigh(workers[0], weights))
    hurting = asyncio.create_task(trouble.run(SECONDS))
    drained = await load.run(SECONDS)
    await hurting
    weighing.cancel()

    ran = {(row[3], row[4]) for row in ledger.lines("end")}
    lost = sum((str(x), load.read.get(x, "")) not in ran for x in range(load.sent))
    exits = [worker.exit_status for worker in workers if not worker.alive]
    slope, kinds_done = _slope(weights), len(trouble.done)
    held = SECONDS < 1800 or slope < 1  # a minute says nothing of an hour
    figures(
        "G19",
        f"soak of {SECONDS} s, {trouble.done.total()} faults of {kinds_done} kinds, seed {SEED}",
        "200 jobs/s held: 0 lost, 0 changed outcomes, 0 errors, 0 exits, drain ≤ 5 s, "
        "memory < 1 %/h (1 h)",
        f"{load.sent:,} jobs: {lost} lost, {load.changed} changed, {load.errors.total()} errors, "
        f"{len(exits)} exits, drained in {drained:.1f} s, {ledger.extra()} extra runs, "
        f"memory {weights[0][1] / 1e6:.1f} → {weights[-1][1] / 1e6:.1f} MB ({slope:+.1f} %/h)",
        ok=not (lost or load.changed or load.errors or exits) and drained <= 5 and held,
    )
    assert not load.errors, load.errors
    eventually(lambda: _is_settled(server.url), "nothing is held any more")


def _is_settled(url: str) -> bool:
    with contextlib.suppress(AssertionError):
        invariants(url, QUEUE)
        return True
    return False
