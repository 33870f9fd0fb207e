"""pass.lua: a claimed job goes on, or waits aside; a place is held by what the record names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from qnb.storage.gates import Gates
from qnb.storage.records import Claimed
from tests.storage.desk import DONE, LATER, LOST, Desk, call, overdue

SWEEP = "scan-1"


async def _claims(desk: Desk, count: int) -> list[Claimed]:
    await desk.put(*(call(channel=SWEEP) for _ in range(count)))
    claimed = await desk.claim(count=count)
    assert len(claimed) == count
    return claimed


async def test_a_job_without_a_gate_goes_on(desk: Desk) -> None:
    claims = await _claims(desk, 2)
    assert await Gates(desk.store).admit(claims) == (claims, [])
    assert await desk.raw("EXISTS", desk.keys.parked("default"), desk.keys.gates) == 0


async def test_a_paused_job_waits_aside_and_its_old_holder_is_fenced(desk: Desk) -> None:
    gates = Gates(desk.store)
    await gates.set(SWEEP, state="paused")
    [claimed] = await _claims(desk, 1)
    [other] = await desk.put(call())
    for _ in range(2):  # the reply to the first is lost
        assert await gates.admit([claimed]) == ([], [])
    assert await desk.status(claimed.spec.task_id) == "queued"
    assert await desk.store.sizes() == ({"default": 2}, 0)
    assert await gates.startable() == 1
    assert [c.spec.task_id for c in await desk.claim(count=5)] == [other]  # nobody is in its way
    assert not await desk.finish(claimed)
    assert await desk.worker().renew([claimed]) == (set(), {})
    assert await desk.status(claimed.spec.task_id) == "queued"


async def test_as_many_go_on_as_there_are_places_however_often_they_ask(desk: Desk) -> None:
    gates = Gates(desk.store)
    await gates.set(SWEEP, limit=2)
    claims = await _claims(desk, 4)
    assert await gates.admit(claims[:1]) == (claims[:1], [])
    for _ in range(2):
        assert await gates.admit(claims) == (claims[:2], [])
    await gates.set(SWEEP, limit=1)  # one that was not started yet gives up its place
    assert len((await gates.admit(claims[:2]))[0]) == 1


async def _finish(desk: Desk, claimed: Claimed) -> None:
    assert await desk.finish(claimed, DONE)


async def _retry_now(desk: Desk, claimed: Claimed) -> None:
    assert await desk.retry(claimed) == 1


async def _retry_later(desk: Desk, claimed: Claimed) -> None:
    assert await desk.retry(claimed, LATER) == 1


async def _give_back(desk: Desk, claimed: Claimed) -> None:
    assert await desk.worker().give_back(claimed, LOST, begun=False)


async def _lose_the_worker(desk: Desk, claimed: Claimed) -> None:
    await desk.start(claimed)
    assert await desk.worker("other").recover(overdue(claimed), LOST) == 1


async def _lose_the_record(desk: Desk, claimed: Claimed) -> None:
    await desk.raw("DEL", desk.keys.job(claimed.spec.task_id))


FATES = [_finish, _retry_now, _retry_later, _give_back, _lose_the_worker, _lose_the_record]


@pytest.mark.parametrize("fate", FATES)
async def test_whatever_becomes_of_a_job_its_place_is_free(
    desk: Desk, fate: Callable[[Desk, Claimed], Awaitable[None]]
) -> None:
    gates = Gates(desk.store)
    await gates.set(SWEEP, limit=1)
    first, second = await _claims(desk, 2)
    assert await gates.admit([first, second]) == ([first], [])
    await fate(desk, first)
    [sweep] = [sweep async for sweep in gates.parked("default")]
    await gates.release(sweep, "default")
    again = await desk.claim(count=5)
    passed, _ = await gates.admit(again)
    assert [c.spec.task_id for c in passed] == [second.spec.task_id]


async def test_nobody_passes_those_who_wait_at_his_gate(desk: Desk) -> None:
    gates = Gates(desk.store)
    await gates.set(SWEEP, state="paused")
    [first] = await _claims(desk, 1)
    assert await gates.admit([first]) == ([], [])
    await gates.set(SWEEP)
    [second] = await _claims(desk, 1)
    passed, [(sweep, lane)] = await gates.admit([second])
    assert (passed, lane) == ([], "default")
    await gates.release(sweep, lane)
    order = [claimed.spec.task_id for claimed in await desk.claim(count=5)]
    assert order == [first.spec.task_id, second.spec.task_id]


async def test_a_job_that_is_to_be_aborted_goes_on_to_be_ended(desk: Desk) -> None:
    gates = Gates(desk.store)
    await gates.set(SWEEP, state="paused")
    [claimed] = await _claims(desk, 1)
    assert await desk.abort(claimed.spec.task_id) == 2
    assert await gates.admit([claimed]) == ([claimed], [])


async def test_a_claim_that_another_worker_has_taken_over_is_refused(desk: Desk) -> None:
    gates = Gates(desk.store)
    await gates.set(SWEEP, limit=5)
    [claimed] = await _claims(desk, 1)
    assert await desk.worker("other").recover(overdue(claimed), LOST) == 1
    assert await gates.admit([claimed]) == ([], [])
    [again] = await desk.claim("other")
    assert await gates.admit([again]) == ([again], [])
    assert await desk.finish(again)
