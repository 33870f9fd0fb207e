"""abort.lua: a waiting job ends at once; a held one is its worker's to stop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from qnb.errors import BrokerError
from qnb.storage.gates import Gates
from qnb.storage.records import unpack_notices
from tests.storage.desk import LATER, LOST, Desk, call


async def _queued(desk: Desk) -> str:
    [id_] = await desk.put(call(expire_ms=LATER))
    return id_


async def _delayed(desk: Desk) -> str:
    [id_] = await desk.put(call(delay_ms=LATER, expire_ms=2 * LATER))
    return id_


async def _handed_back(desk: Desk) -> str:
    claimed = await desk.held()
    assert await desk.worker().give_back(claimed, LOST, begun=True)
    return claimed.spec.task_id


async def _waiting_for_its_retry(desk: Desk) -> str:
    claimed = await desk.held()
    assert await desk.retry(claimed, LATER) == 1
    return claimed.spec.task_id


WAITING = [_queued, _delayed, _handed_back, _waiting_for_its_retry]


@pytest.mark.parametrize("arrive", WAITING)
async def test_a_waiting_job_ends_at_once_and_for_good(
    desk: Desk, arrive: Callable[[Desk], Awaitable[str]]
) -> None:
    id_ = await arrive(desk)
    assert await desk.abort(id_) == 1
    record = await desk.record(id_)
    assert record is not None
    assert record.outcome is not None
    assert record.outcome.failure is not None
    assert (record.outcome.ending, record.outcome.failure.type) == ("aborted", "JobAborted")
    assert await desk.is_gone_from(id_)
    assert await desk.claim() == []
    assert await desk.abort(id_) == 0
    assert await desk.ttl(desk.keys.job(id_)) <= desk.store.options.result_ttl_ms


@pytest.mark.parametrize("running", [False, True])
async def test_the_worker_of_a_held_job_is_asked(
    desk: Desk, until: Callable[..., Awaitable[object]], running: bool
) -> None:
    claimed = await desk.held(call("x y"))
    if running:
        await desk.start(claimed)
    async with desk.hearing(desk.keys.control) as heard:
        assert await desk.abort("x y") == 2

        async def asked() -> bool:
            return heard == [b"ax y"]

        await until(asked, "the workers are asked")
    assert await desk.status("x y") == ("running" if running else "queued")
    assert await desk.worker().asked([claimed]) == {claimed.ref: "me"}
    assert await desk.worker().renew([claimed]) == ({claimed.ref}, {claimed.ref: "me"})
    assert await desk.finish(claimed)
    assert await desk.field("x y", "k") is None


async def test_a_held_job_that_was_handed_back_before_is_found(desk: Desk) -> None:
    claimed = await desk.held()
    assert await desk.worker().give_back(claimed, LOST, begun=False)
    [again] = await desk.claim()
    assert again.back
    assert await desk.abort(claimed.spec.task_id) == 2
    assert await desk.finish(again)


async def test_the_unknown_and_the_finished_are_left_alone(desk: Desk) -> None:
    claimed = await desk.held()
    record = await desk.record(claimed.spec.task_id)
    assert record is not None
    assert await desk.finish(claimed)
    assert await desk.store.abort(record, "me") == 0
    assert await desk.ending(claimed.spec.task_id) == "done"
    await desk.raw("DEL", desk.keys.job(claimed.spec.task_id))
    assert await desk.store.abort(record, "me") == 0
    assert await desk.record(claimed.spec.task_id) is None


async def test_a_job_whose_entry_was_lost_can_still_be_ended(desk: Desk) -> None:
    claimed = await desk.held()
    await desk.start(claimed)
    await desk.raw("DEL", desk.keys.lane("default"))  # its group is gone too
    assert await desk.abort(claimed.spec.task_id) == 1
    assert await desk.ending(claimed.spec.task_id) == "aborted"


async def test_a_queue_that_no_worker_ever_served_can_be_aborted(desk: Desk) -> None:
    await desk.raw("DEL", desk.keys.lane("default"))
    [id_] = await desk.put(call())
    assert await desk.abort(id_) == 1
    assert await desk.ending(id_) == "aborted"


async def test_the_client_that_waits_is_told(
    desk: Desk, until: Callable[..., Awaitable[object]]
) -> None:
    [id_] = await desk.put(call(channel="me"))
    async with desk.hearing(desk.keys.channel("me")) as heard:
        assert await desk.abort(id_) == 1

        async def told() -> bool:
            return bool(heard)

        await until(told, "the client is told")
    [news] = unpack_notices(heard[0])
    assert (news.task_id, news.status) == (id_, "complete")


async def test_who_may_not_ask_who_holds_a_job_does_not_end_it_as_if_it_waited(
    desk: Desk, queue: str
) -> None:
    claimed = await desk.held()
    await desk.start(claimed)
    await desk.raw("ACL", "SETUSER", queue, "-xpending")
    with pytest.raises(BrokerError, match=r"xpending|can't run this command"):
        await desk.abort(claimed.spec.task_id)
    assert await desk.status(claimed.spec.task_id) == "running"
    assert await desk.finish(claimed)


@pytest.mark.parametrize("entry", ["junk", "b1-", "9" * 30 + "-1", ""])
async def test_a_job_whose_entry_is_nonsense_ends_and_spares_the_others(
    desk: Desk, entry: str
) -> None:
    bad, good = await desk.put(call(), call())
    await desk.raw("HSET", desk.keys.job(bad), "e", entry)
    assert await Gates(desk.store).cancel([bad, good], "me") == (2, 0)
    assert [await desk.ending(id_) for id_ in (bad, good)] == ["aborted"] * 2
