"""recover.lua: a job outlives its worker, but not any number of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from qnb.storage.keys import job_hex
from qnb.storage.leases import Overdue
from tests.storage.desk import LATER, LOST, Desk, call, overdue


async def test_a_silent_holder_loses_the_job_and_a_renewing_one_does_not(
    desk: Desk, until: Callable[..., Awaitable[list[Overdue]]]
) -> None:
    old, other = desk.worker("old", lease_ms=100), desk.worker("other")
    await desk.put(call())
    [stale] = await old.claim(1)
    assert await other.recover(overdue(stale, LATER), LOST) == 0  # its lease still runs
    await until(other.overdue, "its lease is over")
    assert await old.renew([stale]) == ({stale.ref}, {})
    assert await other.recover(overdue(stale, 100), LOST) == 0  # renewed just in time
    [late] = await until(other.overdue, "its lease is over")
    assert late == (stale.spec, stale.entry, False, 100, "old~100")
    assert await other.recover(late, LOST) == 1
    assert await other.recover(late, LOST) == 0  # another worker saw it too
    assert await old.renew([stale]) == (set(), {})
    [fresh] = await desk.claim("new")
    assert (fresh.attempt, fresh.starts, fresh.lost, fresh.call) == (2, 1, 1, b"call")
    assert fresh.enqueue_time == stale.enqueue_time


async def test_each_holder_is_judged_by_its_own_lease_however_many_hold(
    desk: Desk, until: Callable[..., Awaitable[list[Overdue]]]
) -> None:
    await desk.put(*(call() for _ in range(251)))
    patient, hasty = desk.worker("patient"), desk.worker("hasty", lease_ms=100)
    assert len(await patient.claim(250)) == 250
    [last] = await hasty.claim(1)
    [late] = await until(patient.overdue, "the hasty one's lease is over")
    assert late[:2] == (last.spec, last.entry)


async def test_what_is_put_back_is_served_first(desk: Desk) -> None:
    ids = await desk.put(*(call() for _ in range(5)))
    held = await desk.claim(count=3)
    for claimed in held[1:]:
        assert await desk.worker().give_back(claimed, LOST, begun=False)
    got = await desk.claim("b", 4)
    assert [c.spec.task_id for c in got] == [ids[1], ids[2], ids[3], ids[4]]
    assert [c.back for c in got] == [True, True, False, False]


async def test_a_job_ends_with_its_third_lost_start(desk: Desk) -> None:
    await desk.put(call("x"))
    for lost in (1, 2):
        [claimed] = await desk.claim()
        await desk.start(claimed)
        assert await desk.worker().recover(overdue(claimed), LOST) == 1
        assert await desk.field("x", "c") == b"%d" % lost
    [claimed] = await desk.claim()
    assert await desk.worker().recover(overdue(claimed), LOST) == 2
    record = await desk.record("x")
    assert record is not None
    assert record.outcome == LOST
    assert await desk.is_gone_from("x")
    assert not await desk.finish(claimed)
    assert await desk.ttl(desk.keys.job("x")) <= desk.store.options.result_ttl_ms


async def test_retries_use_up_no_lost_starts_nor_the_other_way_round(desk: Desk) -> None:
    await desk.put(call("x"))
    for _ in range(4):
        [claimed] = await desk.claim()
        assert await desk.retry(claimed) == 1
    for lost in (1, 2):
        [claimed] = await desk.claim()
        assert (claimed.starts, claimed.lost) == (3 + lost, lost - 1)
        assert await desk.worker().give_back(claimed, LOST, begun=True)
    [claimed] = await desk.claim()
    assert await desk.retry(claimed) == 1
    [claimed] = await desk.claim()
    assert (claimed.starts, claimed.lost) == (7, 2)
    assert not await desk.worker().give_back(claimed, LOST, begun=True)
    assert await desk.ending("x") == "crashed"


@pytest.mark.parametrize("marked", [True, False])
async def test_what_had_not_begun_is_not_blamed(desk: Desk, marked: bool) -> None:
    await desk.put(call("x"))
    for _ in range(5):
        [claimed] = await desk.claim()
        if marked:
            await desk.start(claimed)
        assert await desk.worker().give_back(claimed, LOST, begun=False)
    [claimed] = await desk.claim()
    assert (claimed.attempt, claimed.starts, claimed.lost) == (6, 0, 0)
    record = await desk.record("x")
    assert record is not None
    assert (record.status, record.start, record.worker) == ("queued", None, None)


async def test_a_job_that_was_to_be_aborted_ends_as_aborted(desk: Desk) -> None:
    claimed = await desk.held()
    await desk.start(claimed)
    assert await desk.abort(claimed.spec.task_id) == 2
    assert await desk.worker().recover(overdue(claimed), LOST) == 2
    assert await desk.ending(claimed.spec.task_id) == "aborted"
    assert await desk.is_gone_from(claimed.spec.task_id)


async def test_what_has_ended_or_moved_on_is_only_taken_off_the_lane(desk: Desk) -> None:
    claimed = await desk.held()
    lane = desk.keys.lane("default")
    [(_, flat)] = await desk.raw("XRANGE", lane, claimed.entry, claimed.entry)
    assert await desk.finish(claimed)
    assert await desk.worker().recover(overdue(claimed), LOST) == 0
    await desk.raw("XADD", lane, "*", *flat)  # a copy of it, as no script of ours makes one
    [copy] = await desk.claim()
    assert await desk.worker().recover(overdue(copy), LOST) == 0
    assert await desk.entries() == 0
    assert await desk.ending(claimed.spec.task_id) == "done"


async def test_an_expiry_runs_on_only_for_what_has_not_begun(
    desk: Desk, until: Callable[..., Awaitable[object]]
) -> None:
    unbegun = await desk.held(call("unbegun", expire_ms=30))
    begun = await desk.held(call("begun", expire_ms=30))
    assert await desk.worker().give_back(unbegun, LOST, begun=False)
    assert await desk.worker().give_back(begun, LOST, begun=True)

    async def swept() -> bool:
        await desk.worker().tick()
        return await desk.indexed("expiring") == []

    await until(swept, "the expiry is over")
    assert await desk.ending("unbegun") == "expired"
    assert await desk.status("begun") == "queued"
    [again] = await desk.claim()
    assert (again.spec.task_id, again.expires_at) == ("begun", None)


async def test_a_large_call_and_the_index_survive(desk: Desk) -> None:
    large = await desk.held(call("x", payload=b"L" * 100_000, expire_ms=LATER))
    assert await desk.worker().give_back(large, LOST, begun=False)
    [again] = await desk.claim()
    assert again == replace(
        large, entry=again.entry, back=True, attempt=2, expires_at=large.expires_at
    )
    assert await desk.indexed("expiring") == [job_hex("x")]
