"""expire.lua: what nobody starts in time ends, and says so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from qnb.storage.keys import job_hex
from qnb.storage.records import unpack_notices
from tests.storage.desk import LATER, LOST, Desk, call

Until = Callable[..., Awaitable[object]]


async def _over(desk: Desk, until: Until, *ids: str) -> None:
    """Wait until the expiry of each is over by the server's clock."""
    records = [await desk.record(id_) for id_ in ids]
    last = max((record and record.expires_at) or 0 for record in records)

    async def over() -> bool:
        return await desk.now_ms() > last

    await until(over, "the expiry is over")


async def _queued(desk: Desk) -> str:
    [id_] = await desk.put(call(expire_ms=5, channel="me"))
    return id_


async def _delayed(desk: Desk) -> str:
    [id_] = await desk.put(call(delay_ms=LATER, expire_ms=5, channel="me"))
    return id_


async def _handed_back(desk: Desk) -> str:
    claimed = await desk.held(call(expire_ms=50, channel="me"))
    assert await desk.worker().give_back(claimed, LOST, begun=False)
    return claimed.spec.task_id


@pytest.mark.parametrize("arrive", [_queued, _delayed, _handed_back])
async def test_a_waiting_job_ends_and_its_client_is_told(
    desk: Desk, until: Until, arrive: Callable[[Desk], Awaitable[str]]
) -> None:
    id_ = await arrive(desk)
    await _over(desk, until, id_)
    async with desk.hearing(desk.keys.channel("me")) as heard:
        await desk.worker().tick()
        assert await desk.ending(id_) == "expired"

        async def told() -> bool:
            return bool(heard)

        await until(told, "the client is told")
    [news] = unpack_notices(heard[0])
    assert (news.task_id, news.status) == (id_, "complete")
    assert await desk.is_gone_from(id_)
    assert await desk.claim() == []
    assert await desk.ttl(desk.keys.job(id_)) <= desk.store.options.result_ttl_ms


async def test_the_time_is_judged_by_the_server(desk: Desk) -> None:
    [id_] = await desk.put(call(expire_ms=LATER))
    desk.store.clock.set(10 * desk.store.clock.now_ms())  # a client whose clock is far ahead
    assert await desk.store.expire("default", [job_hex(id_)]) == 0
    assert await desk.status(id_) == "queued"
    assert await desk.indexed("expiring") == [job_hex(id_)]


@pytest.mark.parametrize("running", [False, True])
async def test_a_held_job_is_left_to_its_worker(desk: Desk, until: Until, running: bool) -> None:
    claimed = await desk.held(call(expire_ms=5))
    id_ = claimed.spec.task_id
    await _over(desk, until, id_)
    if running:
        await desk.start(claimed)
    assert await desk.store.expire("default", [job_hex(id_)]) == 0
    assert await desk.status(id_) == ("running" if running else "queued")
    assert await desk.finish(claimed)
    assert await desk.ending(id_) == "done"
    await desk.worker().tick()
    assert await desk.indexed("expiring") == []


async def test_it_happens_once_and_where_no_worker_ever_was(desk: Desk, until: Until) -> None:
    await desk.raw("DEL", desk.keys.lane("default"))  # and with it, its group
    [id_] = await desk.put(call(expire_ms=1))
    await _over(desk, until, id_)
    assert await desk.store.expire("default", [job_hex(id_)]) == 1
    assert await desk.store.expire("default", [job_hex(id_)]) == 0
    assert await desk.ending(id_) == "expired"


async def test_a_job_without_an_expiry_stays(desk: Desk) -> None:
    [id_] = await desk.put(call())
    assert await desk.store.expire("default", [job_hex(id_)]) == 0
    assert await desk.status(id_) == "queued"


async def test_a_record_that_is_gone_leaves_the_index(desk: Desk, until: Until) -> None:
    [id_] = await desk.put(call(expire_ms=1))
    await _over(desk, until, id_)
    await desk.raw("DEL", desk.keys.job(id_))
    await desk.worker().tick()
    assert await desk.indexed("expiring") == []
    assert await desk.record(id_) is None


async def test_the_expiry_of_an_earlier_run_does_not_end_the_fresh_one(
    two_lanes: Desk, until: Until
) -> None:
    desk = two_lanes
    first = await desk.held(call("x", "low", expire_ms=1))
    await _over(desk, until, "x")
    assert await desk.finish(first)
    await desk.put(call("x", "high", expire_ms=LATER))
    await desk.worker().tick()
    assert await desk.status("x") == "queued"
    assert await desk.indexed("expiring", "low") == []
    assert await desk.indexed("expiring", "high") == [job_hex("x")]


async def test_who_may_not_ask_who_holds_a_job_leaves_its_end_to_others(
    desk: Desk, until: Until, queue: str
) -> None:
    claimed = await desk.held(call(expire_ms=5))
    id_ = claimed.spec.task_id
    await _over(desk, until, id_)
    await desk.raw("ACL", "SETUSER", queue, "-xpending")
    assert await desk.store.expire("default", [job_hex(id_)]) == 0
    assert await desk.status(id_) == "queued"
    assert await desk.finish(claimed)
