"""Each transition of a job, against both kinds of server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from qnb.models import Ending, Failure, JobSpec, JobState, Outcome
from qnb.options import AppOptions
from qnb.storage.store import Store

OUTCOME = Outcome(Ending.DONE, 1, 10, 20, result=b"value", worker="host:1")
LOST = Outcome(Ending.CRASHED, 3, 10, 20, failure=Failure("WorkerCrashed", "gone", "gone"))
_numbers = itertools.count()


def spec(lane: str = "default", task_id: str | None = None, nonce: str = "") -> JobSpec:
    return JobSpec(task_id or f"job {next(_numbers)}", "f", lane, nonce=nonce)


def on_store(
    url: str,
    queue: str,
    body: Callable[[Store], Awaitable[None]],
    lanes: tuple[str, ...] = ("default",),
) -> None:
    async def main() -> None:
        store = Store(url, AppOptions(queue_name=queue, priorities=lanes))
        await store.open()
        await store.join()
        try:
            await body(store)
        finally:
            await store.close()

    asyncio.run(main())


async def state(store: Store, job: JobSpec) -> JobState | None:
    [record] = await store.records([job.task_id])
    return record.status if record else None


def test_enqueue_stores_once_however_often_it_is_sent(any_url: str, queue: str) -> None:
    async def body(store: Store) -> None:
        job, other = spec(), spec()
        assert await store.enqueue([(job, b"call"), (other, b"call"), (job, b"call")]) == [
            True, True, False,
        ]  # fmt: skip
        assert await store.enqueue([(job, b"call")]) == [False]
        assert await store.queue_size() == 2
        [record] = await store.records([job.task_id], call=True)
        assert record is not None
        assert (record.status, record.call, record.tries) == ("queued", b"call", 0)

    on_store(any_url, queue, body)


def test_a_finished_id_runs_afresh_but_not_for_a_repeated_send(any_url: str, queue: str) -> None:
    async def body(store: Store) -> None:
        first, again = spec(task_id="x", nonce="1"), spec(task_id="x", nonce="2")
        await store.enqueue([(first, b"")])
        [claimed] = await store.claim("w~100", 1, 0)
        assert await store.finish([_end(claimed)]) == [True]
        assert await store.enqueue([(first, b"")]) == [
            False
        ]  # its reply was lost; it is sent again
        assert await state(store, first) == "complete"
        assert await store.enqueue([(again, b"")]) == [True]
        assert await state(store, first) == "queued"

    on_store(any_url, queue, body)


def _end(claimed: object, outcome: Outcome = OUTCOME) -> object:
    from qnb.storage.records import Finished

    return Finished(claimed, outcome)  # type: ignore[arg-type]


def test_claim_takes_the_highest_lane_first_and_no_job_twice(any_url: str, queue: str) -> None:
    async def body(store: Store) -> None:
        jobs = [spec(lane) for lane in ("low", "high", "low", "high")]
        await store.enqueue([(job, b"") for job in jobs])
        got = [*await store.claim("a~100", 3, 0), *await store.claim("b~100", 3, 0)]
        assert [claimed.spec for claimed in got] == [jobs[1], jobs[3], jobs[0], jobs[2]]
        assert await store.claim("c~100", 3, 50) == []
        assert await store.queue_size() == 0

    on_store(any_url, queue, body, ("low", "high"))


def test_a_call_too_large_for_the_lane_arrives_whole(any_url: str, queue: str) -> None:
    async def body(store: Store) -> None:
        small, large = spec(), spec()
        await store.enqueue([(large, b"L" * 100_000), (small, b"S")])
        assert [claimed.call for claimed in await store.claim("w~100", 2, 0)] == [
            b"L" * 100_000, b"S",
        ]  # fmt: skip

    on_store(any_url, queue, body)


def test_start_marks_only_the_attempt_that_holds_the_job(any_url: str, queue: str) -> None:
    async def body(store: Store) -> None:
        job = spec()
        await store.enqueue([(job, b"")])
        [claimed] = await store.claim("w~100", 1, 0)
        await store.start("w", [(replace(claimed, attempt=7), 5)])
        assert await state(store, job) == "queued"
        await store.start("w", [(claimed, 5)])
        [record] = await store.records([job.task_id])
        assert record is not None
        assert (record.status, record.start, record.worker, record.tries) == ("running", 5, "w", 1)

    on_store(any_url, queue, body)


def test_finish_is_atomic_repeatable_and_final(any_url: str, queue: str) -> None:
    async def body(store: Store) -> None:
        job = spec()
        await store.enqueue([(job, b"")])
        [claimed] = await store.claim("w~100", 1, 0)
        assert await store.finish([_end(claimed)]) == [True]
        assert await store.finish([_end(claimed)]) == [True]  # the reply was lost
        assert await store.finish([_end(claimed, replace(OUTCOME, finish=99))]) == [False]
        [record] = await store.records([job.task_id], result=True)
        assert record is not None
        assert record.outcome == OUTCOME
        assert await store.unseen("w~100", []) == []

    on_store(any_url, queue, body)


def test_a_silent_holder_loses_the_job_and_is_fenced(
    any_url: str, queue: str, until: Callable[..., Awaitable[list[tuple[JobSpec, str, int, str]]]]
) -> None:
    async def body(store: Store) -> None:
        job = spec()
        await store.enqueue([(job, b"call")])
        [stale] = await store.claim("old~100", 1, 0)
        assert await store.recover(job, stale.entry, 60_000, LOST) == 0  # its lease still runs
        await until(lambda: store.overdue(100), "its lease is over")
        assert await store.renew("old~100", [stale]) == {stale.entry}
        assert await store.recover(job, stale.entry, 100, LOST) == 0  # renewed just in time
        overdue = await until(lambda: store.overdue(100), "its lease is over")
        [(found, entry, lease, holder)] = overdue
        assert (found, entry, lease, holder) == (job, stale.entry, 100, "old~100")
        assert await store.recover(found, entry, lease, LOST) == 1
        assert await store.renew("old~100", [stale]) == set()
        assert await store.finish([_end(stale)]) == [False]
        [fresh] = await store.claim("new~100", 1, 0)
        assert (fresh.attempt, fresh.starts, fresh.call) == (2, 1, b"call")
        assert fresh.enqueue_time == stale.enqueue_time
        assert await store.finish([_end(fresh)]) == [True]

    on_store(any_url, queue, body)


def test_a_job_that_loses_three_starts_ends_and_one_handed_back_does_not(
    any_url: str, queue: str
) -> None:
    async def body(store: Store) -> None:
        job = spec()
        await store.enqueue([(job, b"")])
        for _ in range(5):
            [claimed] = await store.claim("w~100", 1, 0)
            assert await store.give_back(claimed, LOST, begun=False)
        for lives in (True, True, False):
            [claimed] = await store.claim("w~100", 1, 0)
            assert await store.give_back(claimed, LOST, begun=True) is lives
        assert await state(store, job) == "complete"
        assert await store.claim("w~100", 1, 0) == []

    on_store(any_url, queue, body)


@pytest.mark.parametrize("flushed", [True, False])
def test_scripts_run_on_a_server_that_has_never_seen_them(
    any_url: str, queue: str, flushed: bool
) -> None:
    async def body(store: Store) -> None:
        if flushed:
            await store._server.call("SCRIPT", "FLUSH")
        await store.enqueue([(spec(), b"")])
        assert len(await store.claim("w~100", 1, 0)) == 1

    on_store(any_url, queue, body)
