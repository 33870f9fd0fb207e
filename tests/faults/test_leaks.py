"""What stays when work is over: keys and memory of the server, memory and files of workers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psutil
import pytest
import redis

import qnb
from qnb.options import AppOptions
from qnb.storage.keys import STRUCTURAL, KeySpace
from qnb.storage.leases import Leases
from qnb.storage.store import Store
from tests.faults.conftest import Figures
from tests.faults.stage import Kind, Stage, Worker, eventually, invariants

QUEUE = "leaks"
SOON = {"result_ttl_ms": 1000}
LATER = {"result_ttl_ms": 10_000}  # so that a client has heard of thousands before they expire
LATE = pytest.mark.on_demand
MOST_KEYS, MOST_BYTES = 8, 100_000


def some(x: int) -> int:
    """One in ten fails, one in five prints."""
    if x % 5 == 0:
        print("a line of output")
    if x % 10 == 0:
        raise ValueError(x)
    return x


async def _all_ended(app: qnb.App, jobs: int) -> None:
    task = app.task(some)
    sent = await app.enqueue_many([task.prepare(x) for x in range(jobs)])
    results = await asyncio.gather(*(job.result(timeout=120) for job in sent))
    failed = [result for result in results if result is not None and not result.success]
    assert len(failed) == jobs // 10


class Books:
    """The keys of a server and its memory, now and since these books were opened."""

    def __init__(self, url: str) -> None:
        self._link = redis.Redis.from_url(url)
        self._before = self.memory()

    def memory(self) -> int:
        """Without what is on its way to a client or to the disk, and the log of slow commands."""
        self._link.slowlog_reset()
        used = []
        for _ in range(10):
            self._link.memory_purge()
            info: Any = self._link.info("memory")
            used.append(info["used_memory"] - info["mem_clients_normal"] - info["mem_aof_buffer"])
            time.sleep(0.02)
        return int(min(used))

    @property
    def keys(self) -> list[str]:
        return sorted(key.decode() for key in self._link.scan_iter(count=10_000))

    @property
    def growth(self) -> int:
        """Bytes more than at first; the server takes a moment to make its tables smaller."""
        deadline = time.monotonic() + 5
        while (growth := self.memory() - self._before) > MOST_BYTES:
            if time.monotonic() > deadline:
                break
        return growth

    def close(self) -> None:
        self._link.close()


async def _sweep_index(url: str) -> None:
    """What a worker does once a minute."""
    store = Store(url, AppOptions(queue_name=QUEUE, allow_volatile=True))
    await store.open()
    try:
        leases = Leases(store, "tidy")
        while await leases.sweep_index():
            pass
    finally:
        await store.close()


def _records(books: Books, *more: str) -> list[str]:
    """Keys that are not of the queue itself: of jobs, logs, sweeps, and ``more`` kinds."""
    kinds = ("job", "log", "sweep", "points", "digests", *more)
    return [key for key in books.keys if key.split(":")[2] in kinds]


@pytest.mark.parametrize("jobs", [500, pytest.param(5000, marks=LATE)])
def test_nothing_is_left_of_jobs_whose_time_is_over(
    stage: Stage, figures: Figures, jobs: int
) -> None:
    options = SOON if jobs < 1000 else LATER
    url = stage.server().url
    stage.worker(url, QUEUE, options=options)
    app = qnb.App(url, QUEUE, **options)
    asyncio.run(_all_ended(app, 100))  # what is made once has been made
    books = Books(url)
    asyncio.run(_all_ended(app, jobs))
    eventually(lambda: not _records(books), "all records have expired")
    asyncio.run(_sweep_index(url))
    assert not _records(books, "jobs")
    keys, growth = books.keys, books.growth
    figures(
        "G20",
        f"{jobs:,} jobs, 1 in 10 failing, after their time to live",
        "≤ 8 keys, ≤ 100 kB over the start",
        f"{len(keys)} keys, {growth / 1e3:+.1f} kB",
        ok=len(keys) <= MOST_KEYS and growth <= MOST_BYTES,
    )
    app.close()
    books.close()
    invariants(url, QUEUE)


@LATE
@pytest.mark.timeout(240)
def test_a_worker_takes_expired_jobs_off_the_index_by_itself(
    stage: Stage, figures: Figures
) -> None:
    url = stage.server().url
    stage.worker(url, QUEUE, options=LATER)
    app = qnb.App(url, QUEUE, **LATER)
    asyncio.run(_all_ended(app, 5000))
    began = time.monotonic()
    jobs = KeySpace(QUEUE).jobs
    with redis.Redis.from_url(url) as link:
        eventually(lambda: not link.exists(jobs), "the index is empty", 180)
    figures(
        "G20",
        "5,000 expired jobs leave the index by themselves",
        "≤ 120 s",
        f"{time.monotonic() - began:.0f} s",
        ok=time.monotonic() - began <= 120,
    )
    app.close()


@LATE
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["forgotten", "expired"])
def test_nothing_is_left_of_a_large_sweep(stage: Stage, figures: Figures, how: str) -> None:
    options = {"result_ttl_ms": 20_000} if how == "expired" else {}
    url = stage.server().url
    stage.worker(url, QUEUE, options=options)
    app = qnb.App(url, QUEUE, **options)

    @app.task
    async def nothing(x: int) -> int:
        return x

    nothing.map(range(100)).wait(30)
    assert app.forget(app.sweeps_frame().index[0]).result()
    books = Books(url)
    sweep = nothing.map(range(100_000))
    sweep.wait(240)
    full = books.memory()
    if how == "forgotten":
        assert app.forget(sweep.name).result()
    else:
        _let_expire(url)
        eventually(lambda: not _records(books), "all records have expired", 60)
        asyncio.run(_sweep_index(url))
    keys, growth = books.keys, books.growth
    app.close()
    books.close()
    figures(
        "G20",
        f"a sweep of 100,000 points, {how}",
        "≤ 8 keys, ≤ 100 kB over the start",
        f"{len(keys)} keys, {growth / 1e3:+.1f} kB, of {full / 1e6:.0f} MB",
        ok=len(keys) <= MOST_KEYS and growth <= MOST_BYTES,
    )


def _let_expire(url: str) -> None:
    """Have a sweep's own keys, which live for 30 days more, reach their end now."""
    with redis.Redis.from_url(url) as link:
        for key in link.scan_iter(match="*", count=10_000):
            kind = key.decode().split(":")[2]
            if kind in ("sweep", "points", "digests"):
                assert link.pttl(key) > 0, f"{key!r} never expires"
                link.pexpire(key, 1)
            elif kind not in STRUCTURAL:
                assert link.pttl(key) != -1, f"{key!r} never expires"


# -- workers ------------------------------------------------------------------------------------


def _weight(worker: Worker) -> tuple[int, int]:
    """Bytes of memory, and open files, of a worker and its children."""
    processes = [psutil.Process(pid) for pid in (worker.pid, *worker.children())]
    return (
        sum(process.memory_info().rss for process in processes),
        sum(process.num_fds() for process in processes),
    )


@pytest.mark.parametrize("kind", ["processes", "inline"])
@pytest.mark.parametrize(
    "jobs, most", [(500, 8_000_000), pytest.param(20_000, 4_000_000, marks=LATE)]
)
def test_a_worker_weighs_the_same_after_many_jobs(
    stage: Stage, figures: Figures, kind: Kind, jobs: int, most: int
) -> None:
    url = stage.server().url
    worker = stage.worker(url, QUEUE, kind=kind, options=LATER)
    app = qnb.App(url, QUEUE, **LATER)
    asyncio.run(_all_ended(app, jobs // 2))
    before, files = _weight(worker)
    asyncio.run(_all_ended(app, jobs))
    after, files_after = _weight(worker)
    app.close()
    figures(
        "G20",
        f"memory and open files of a worker ({kind}) after {jobs:,} more jobs",
        f"≤ {most / 1e6:.0f} MB more, no more files",
        f"{(after - before) / 1e6:+.1f} MB, {files_after - files:+d} files",
        ok=after - before <= most and files_after <= files,
    )
