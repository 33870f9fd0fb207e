"""retry.lua: another attempt follows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.exceptions import ResponseError

from qnb.storage.keys import UNFINISHED_TTL_MS, job_hex
from qnb.storage.records import Claimed
from tests.storage.desk import FAILED, LATER, LOST, Desk, call


async def test_a_failed_attempt_is_followed_at_the_end_of_its_lane(desk: Desk) -> None:
    claimed = await desk.held()
    await desk.start(claimed)
    [other] = await desk.put(call())
    assert await desk.retry(claimed) == 1
    record = await desk.record(claimed.spec.task_id)
    assert record is not None
    assert (record.status, record.tries, record.failure) == ("queued", 1, FAILED.failure)
    assert (record.start, record.worker, record.report) == (None, None, None)
    first, second = await desk.claim(count=2)
    assert first.spec.task_id == other
    assert (second.attempt, second.starts, second.lost, second.call) == (2, 1, 0, claimed.call)
    assert second.enqueue_time == claimed.enqueue_time


async def test_a_delayed_one_waits_for_its_time(
    desk: Desk, until: Callable[..., Awaitable[list[Claimed]]]
) -> None:
    claimed = await desk.held()
    assert await desk.retry(claimed, LATER) == 1
    record = await desk.record(claimed.spec.task_id)
    assert record is not None
    assert record.status == "scheduled"
    assert record.scheduled_at is not None
    assert await desk.ttl(desk.keys.job(record.task_id)) > UNFINISHED_TTL_MS
    assert await desk.store.sizes() == ({"default": 0}, 1)
    assert await desk.entries() == 0

    soon = await desk.held()
    assert await desk.retry(soon, 5) == 1

    async def due() -> list[Claimed]:
        await desk.worker().tick()
        return await desk.claim()

    [again] = await until(due, "its time has come")
    assert (again.spec, again.attempt, again.starts) == (soon.spec, 2, 1)


async def test_a_delay_beyond_all_reckoning_is_a_very_long_one(desk: Desk) -> None:
    claimed = await desk.held()
    assert await desk.retry(claimed, 1_000 * 2**100) == 1
    assert await desk.status(claimed.spec.task_id) == "scheduled"
    assert await desk.abort(claimed.spec.task_id) == 1


async def test_a_retry_sent_twice_is_one(desk: Desk) -> None:
    now, later = await desk.held(), await desk.held()
    for _ in range(2):  # the reply to the first was lost
        assert await desk.retry(now) == 1
        assert await desk.retry(later, LATER) == 1
    assert await desk.store.sizes() == ({"default": 1}, 1)
    [again] = await desk.claim()
    assert await desk.retry(now) == 1  # late, it changes nothing
    assert await desk.finish(again)
    assert await desk.retry(now) == 0


async def test_a_stale_attempt_is_not_followed(desk: Desk) -> None:
    stale = await desk.held()
    assert await desk.worker().give_back(stale, LOST, begun=True)
    assert await desk.retry(stale) == 0
    assert await desk.store.queue_size() == 1
    [fresh] = await desk.claim()
    assert await desk.retry(stale, LATER) == 0
    assert await desk.finish(fresh)
    assert await desk.retry(fresh) == 0
    assert await desk.ending(stale.spec.task_id) == "done"


async def test_an_abort_meanwhile_wins(desk: Desk) -> None:
    claimed = await desk.held()
    await desk.start(claimed)
    assert await desk.abort(claimed.spec.task_id) == 2
    assert await desk.retry(claimed) == 2
    assert await desk.worker().unseen([]) == [claimed]  # for the caller to end it
    assert await desk.finish(claimed)
    assert await desk.store.queue_size() == 0


async def test_a_job_that_was_started_does_not_expire_between_its_attempts(
    desk: Desk, until: Callable[..., Awaitable[object]]
) -> None:
    claimed = await desk.held(call(expire_ms=1))
    assert await desk.retry(claimed) == 1

    async def swept() -> bool:
        await desk.worker().tick()
        return job_hex(claimed.spec.task_id) not in await desk.indexed("expiring")

    await until(swept, "it is off the index")
    assert await desk.status(claimed.spec.task_id) == "queued"
    [again] = await desk.claim()
    assert again.expires_at is None


async def test_a_large_call_is_carried_on(desk: Desk) -> None:
    large = await desk.held(call(payload=b"L" * 100_000))
    assert await desk.retry(large) == 1
    [again] = await desk.claim()
    assert again.call == b"L" * 100_000


@pytest.mark.parametrize("at, bad", [(0, "nan"), (1, 10**25), (1, "-5"), (2, "1e25")])
async def test_a_number_that_is_none_is_refused_before_anything_is_changed(
    desk: Desk, at: int, bad: object
) -> None:
    claimed = await desk.held(call("x"))
    before = await desk.raw("HGETALL", desk.keys.job("x"))
    numbers: list[Any] = [claimed.attempt, 1, 0]
    numbers[at] = bad
    with pytest.raises(ResponseError, match="nothing was changed"):
        await desk.store.server.scripts.retry(
            desk.keys.lane("default"), "x", "default", claimed.entry, *numbers, b"", "", b""
        )
    assert await desk.raw("HGETALL", desk.keys.job("x")) == before
    assert await desk.finish(claimed)
