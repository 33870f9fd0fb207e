"""Gates of sweeps hold on real workers, whoever has set them and whoever has died since."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

import qnb
from qnb.models import JobRecord, JobSpec
from qnb.storage.gates import Gate, Gates
from qnb.storage.keys import KeySpace, job_hex
from qnb.storage.records import Call
from qnb.storage.scripts import FRONT
from qnb.storage.store import Store
from qnb.task import PreparedCall
from tests.serving import serving

T = TypeVar("T")
Wait = Callable[..., Any]

#: seconds in which workers have heard of a gate
PROMPT = 0.2


def on_store(app: qnb.App, act: Callable[[Store], Awaitable[T]]) -> T:
    """What ``act`` does from a process that has nothing to do with the workers."""

    async def main() -> T:
        store = Store(app._client.url, app._client.options)
        await store.open()
        try:
            return await act(store)
        finally:
            await store.close()

    return asyncio.run(main())


def body(ledger: str, index: int, seconds: float, fails: bool) -> int:
    """Notes when it starts and ends, outside the store."""
    import os
    import time

    def note(what: str) -> None:
        file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{index} {os.getpid()} {what} {time.monotonic()}\n".encode())
        os.close(file)

    note("start")
    time.sleep(seconds)
    note("end")
    if fails:
        raise ValueError("no")
    return index


class Scan:
    """A sweep's jobs, made by hand: ``body`` for each index, and what they have noted."""

    def __init__(self, app: qnb.App, ledger: Path, **policy: Any) -> None:
        self.app, self.ledger, self.policy = app, ledger, policy
        self.prefix = "scan-1"
        self.task: Any = app.task(body)

    def put(self, indices: Iterable[int], seconds: float = 0.02, fails: int = -1) -> None:
        client = self.app._client
        calls: list[PreparedCall[Any]] = []
        for i in indices:
            args = (str(self.ledger), i, seconds, i == fails)
            plain: Call = self.task.prepare(*args).call
            spec = replace(
                plain.spec, task_id=f"{self.prefix}.{i}", sweep="scan", index=i,
                channel=self.prefix, policy=replace(plain.spec.policy, **self.policy),
            )  # fmt: skip
            payload = client.codec.pack_call(spec.task_id, args, {}, binding=spec.binding())
            calls.append(PreparedCall(replace(plain, spec=spec, payload=payload), client))
        asyncio.run(self.app.enqueue_many(calls))

    def gate(self, **gate: Any) -> float:
        """Set the gate; the time when that was done."""
        on_store(self.app, lambda store: Gates(store).set(self.prefix, **gate))
        return time.monotonic()

    def notes(self) -> list[tuple[int, int, str, float]]:
        """Index, process, what and when of each note."""
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        rows = (line.split() for line in lines)
        return [(int(index), int(pid), what, float(at)) for index, pid, what, at in rows]

    def starts(self) -> list[tuple[int, float]]:
        return [(index, at) for index, _, what, at in self.notes() if what == "start"]

    def most_at_once(self, killed: float = 0.0) -> int:
        """Bodies that ran together; one that never ended did so when its worker was ``killed``."""
        notes = self.notes()
        over = {(index, pid) for index, pid, what, _ in notes if what == "end"}
        lost = [(i, p, "end", max(killed, at)) for i, p, _, at in notes if (i, p) not in over]
        running = most = 0
        for *_, what, _ in sorted([*notes, *lost], key=lambda note: note[3]):
            running += 1 if what == "start" else -1
            most = max(most, running)
        return most

    def records(self, count: int) -> list[JobRecord]:
        ids = [f"{self.prefix}.{i}" for i in range(count)]
        return [r for r in on_store(self.app, lambda store: store.records(ids)) if r]

    def ended(self, count: int) -> bool:
        return all(record.outcome for record in self.records(count))

    def idle(self) -> bool:
        """Whether nothing runs, and nothing waits but at a paused gate."""
        notes = [what for *_, what, _ in self.notes()]
        startable = on_store(self.app, lambda store: Gates(store).startable())
        return not startable and notes.count("start") == notes.count("end")


@pytest.fixture
def workers(server_url: str, queue: str) -> Iterator[qnb.App]:
    """An app whose two workers of four slots each have short leases."""
    app = qnb.App(server_url, queue, lease_ms=1000)
    try:
        app.start_workers(4, linger="60 s")
        app.start_workers(8, linger="60 s")
        yield app
    finally:
        app.pool().stop()
        app.close()


@pytest.mark.parametrize("gated", [True, False])
def test_a_pause_holds_at_once_and_a_resume_goes_on_where_it_was(
    workers: qnb.App, tmp_path: Path, wait_until: Wait, gated: bool
) -> None:
    scan = Scan(workers, tmp_path / "ledger", gated=gated)
    scan.put(range(300))
    wait_until(lambda: len(scan.starts()) > 30, "it runs")
    paused = scan.gate(state="paused")
    wait_until(scan.idle, "what ran has ended, what waits is parked")
    last = max(at for _, at in scan.starts())
    assert last < paused + PROMPT
    before = len(scan.starts())
    assert 30 < before < 300
    assert workers.task(name="other")(os.getpid).submit().get(timeout=5)  # nobody is in its way
    assert len(scan.starts()) == before
    assert {record.status for record in scan.records(300)} == {"queued", "complete"}
    resumed = scan.gate()
    scan.put(range(300, 310))
    wait_until(lambda: scan.ended(310), "all have ended")
    order = [index for index, _ in scan.starts()]
    assert sorted(order) == list(range(310))  # each once
    strayed = max(abs(index - at) for at, index in enumerate(order))
    assert strayed < 2 * FRONT  # what workers kept ready, or handed back to the front
    assert min(at for _, at in scan.starts()[before:]) < resumed + PROMPT


def test_no_more_jobs_run_than_the_limit_even_when_a_worker_is_killed(
    workers: qnb.App, tmp_path: Path, wait_until: Wait
) -> None:
    """Of a worker that is gone it is known when its leases end: bodies are shorter than these."""
    scan = Scan(workers, tmp_path / "ledger", gated=True)
    scan.gate(limit=3)
    scan.put(range(60), seconds=0.05)
    wait_until(lambda: len(scan.starts()) > 15, "it runs")
    says = on_store(workers, lambda store: store.workers())
    busy = max(says.values(), key=lambda worker: worker["done"])
    os.kill(busy["pid"], signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: scan.ended(60), "all have ended", 15)
    assert {index for index, _ in scan.starts()} == set(range(60))
    assert len(scan.starts()) <= 63  # at worst what it held runs again
    assert all(record.outcome and record.outcome.success for record in scan.records(60))
    assert scan.most_at_once(killed) == 3


def test_after_the_first_failure_nothing_starts_and_what_runs_ends_well(
    workers: qnb.App, tmp_path: Path, wait_until: Wait
) -> None:
    scan = Scan(workers, tmp_path / "ledger", gated=True, stops=True)
    scan.put(range(400), fails=20)
    wait_until(lambda: scan.ended(400), "all have ended", 5)
    failed = next(at for index, _, what, at in scan.notes() if (index, what) == (20, "end"))
    assert max(at for _, at in scan.starts()) < failed + PROMPT
    records = scan.records(400)
    started = {index for index, _ in scan.starts()}
    why = "sweep 'scan' stops at its first failure, job 'scan-1.20': ValueError('no')"
    for record in records:
        assert record.outcome is not None
        if record.index in started:
            assert record.outcome.ending == ("failed" if record.index == 20 else "done")
        else:
            assert record.outcome.failure is not None
            assert record.outcome.failure.message == f"job {record.task_id!r} was aborted: {why}"
    gate = on_store(workers, lambda store: Gates(store).get("scan-1"))
    assert gate == Gate("stopped", None, why)


def test_a_sweep_stops_also_at_a_job_that_ends_its_process(
    workers: qnb.App, tmp_path: Path, wait_until: Wait
) -> None:
    scan = Scan(workers, tmp_path / "ledger", gated=True, stops=True)
    scan.gate(limit=1)

    def die(ledger: str, index: int, seconds: float, fails: bool) -> None:
        if fails:
            os._exit(1)

    scan.task = workers.task(die)
    scan.put(range(20), fails=3)
    wait_until(lambda: scan.ended(20), "all have ended")
    endings = [record.outcome and record.outcome.ending for record in scan.records(20)]
    assert endings[:4] == ["done"] * 3 + ["crashed"]
    assert set(endings[4:10]) <= {"done", "aborted"}  # its repeats wait behind others
    assert endings[10:] == ["aborted"] * 10


def test_what_a_dead_worker_left_undone_is_done_by_another(
    workers: qnb.App, tmp_path: Path, wait_until: Wait
) -> None:
    scan = Scan(workers, tmp_path / "ledger", gated=True)
    scan.gate(state="paused")
    scan.put(range(10))
    wait_until(scan.idle, "all are parked")

    async def open_unheard(store: Store) -> None:  # nobody is told, and nobody releases
        await store.server.call("HSET", store.keys.gates, job_hex(scan.prefix), "o2 1 ")

    on_store(workers, open_unheard)
    wait_until(lambda: scan.ended(10), "all have ended", 3)
    assert scan.most_at_once() <= 2


def test_a_worker_in_this_process_obeys_and_leaves_when_all_that_is_left_is_paused(
    app: qnb.App, tmp_path: Path, wait_until: Wait
) -> None:
    scan = Scan(app, tmp_path / "ledger", gated=True)
    scan.put(range(6))
    scan.gate(state="paused")
    app.burst = True

    async def drain() -> None:
        async with asyncio.timeout(5):
            await app.run()

    asyncio.run(drain())
    assert scan.starts() == []
    assert {record.status for record in scan.records(6)} == {"queued"}
    scan.gate(limit=1)  # a limit only delays: it stays until all are done
    asyncio.run(drain())
    assert scan.most_at_once() == 1
    assert [index for index, _ in scan.starts()] == list(range(6))
    assert scan.ended(6)


def test_jobs_kept_ready_by_a_worker_do_not_start_once_their_sweep_is_paused(
    server_url: str, queue: str, tmp_path: Path, until: Callable[..., Awaitable[Any]]
) -> None:
    app = qnb.App(server_url, queue, prefetch=20, concurrency=1)
    scan = Scan(app, tmp_path / "ledger")
    scan.put(range(12), seconds=0.3)

    async def main() -> None:
        async with serving(app):

            async def started() -> bool:
                return bool(scan.starts())

            await until(started, "the first one runs")
            await asyncio.to_thread(scan.gate, state="paused")

            async def idle() -> bool:
                return await asyncio.to_thread(scan.idle)

            await until(idle, "the others are parked")
            assert len(scan.starts()) <= 2

    asyncio.run(main())
    app.close()


def test_ten_thousand_jobs_are_cancelled_in_three_seconds_without_a_worker(app: qnb.App) -> None:
    lane = app.default_priority
    calls = [
        Call(JobSpec(f"scan-1.{i}", "f", lane, channel="scan-1", sweep="scan", index=i), b"call")
        for i in range(10_000)
    ]

    async def cancel(store: Store) -> float:
        assert all(await store.enqueue(calls))
        ids = [call.spec.task_id for call in calls]
        begun = time.monotonic()
        assert await Gates(store).cancel(ids, "me") == (10_000, 0)
        took = time.monotonic() - begun
        assert await Gates(store).cancel(ids, "me") == (0, 0)
        assert await store.queue_size() == 0
        return took

    assert on_store(app, cancel) < 3


def test_a_worker_clears_away_what_is_left_of_sweeps_long_gone_as_it_starts(
    app: qnb.App, until: Callable[..., Awaitable[Any]]
) -> None:
    keys = KeySpace(app.queue_name)

    async def left(store: Store) -> list[int]:
        return await store.server.pipeline([("HLEN", keys.gates), ("ZCARD", keys.sweeps)])

    async def leave(store: Store) -> None:
        await store.server.call("HSET", keys.gates, job_hex("gone"), "o1 1 ")
        await store.server.call("ZADD", keys.sweeps, 1, job_hex("gone"))

    on_store(app, leave)

    async def main() -> None:
        async with serving(app):

            async def tidy() -> bool:
                return await asyncio.to_thread(on_store, app, left) == [0, 0]

            await until(tidy, "nothing of it is left")

    asyncio.run(main())
