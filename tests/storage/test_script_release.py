"""release.lua: parked jobs go on in order, as far as their gate permits; nothing stays behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from qnb.storage.gates import Gates
from qnb.storage.keys import job_hex
from qnb.storage.records import Call, unpack_notices
from qnb.storage.scripts import FRONT, INLINE
from tests.storage.desk import LATER, LOST, Desk, call

SWEEP = "scan-1"


async def _park(desk: Desk, *calls: Call) -> list[str]:
    """Enqueue ``calls`` and have a worker park them, one after the other."""
    await Gates(desk.store).set(SWEEP, state="paused")
    ids = await desk.put(*calls)
    while claimed := await desk.claim(count=100):
        assert await Gates(desk.store).admit(claimed) == ([], [])
    return ids


async def _go_on(desk: Desk, limit: int | None = None) -> None:
    gates = Gates(desk.store)
    await gates.set(SWEEP, limit=limit)
    await gates.release(job_hex(SWEEP), "default")


async def _order(desk: Desk, count: int = 100) -> list[str]:
    return [claimed.spec.task_id for claimed in await desk.claim(count=count)]


async def test_they_go_on_as_they_waited_and_before_what_came_later(desk: Desk) -> None:
    ids = await _park(desk, *(call(channel=SWEEP) for _ in range(12)))
    [later] = await desk.put(call(channel=SWEEP))
    await _go_on(desk)
    first = await desk.claim(count=4)
    assert [claimed.spec.task_id for claimed in first] == ids[:4]
    await Gates(desk.store).set(SWEEP, state="paused")  # in the middle of it
    assert await Gates(desk.store).admit(first[2:]) == ([], [])
    await _park(desk)
    await _go_on(desk)
    assert await _order(desk) == [*ids[2:], later]


async def test_many_go_on_a_few_at_a_time_so_that_the_front_stays_the_front(desk: Desk) -> None:
    gates, order = Gates(desk.store), []
    ids = await _park(desk, *(call(channel=SWEEP) for _ in range(3 * FRONT)))
    await _go_on(desk)
    assert await desk.entries() == FRONT
    assert await desk.store.sizes() == ({"default": 3 * FRONT}, 0)
    while claims := await desk.claim(count=20):
        order += [claimed.spec.task_id for claimed in claims]
        passed, open_ = await gates.admit(claims)
        assert passed == claims
        for place in open_:  # as long as there are more, who claims is told so
            await gates.release(*place)
    assert order == ids


async def test_each_has_its_place_before_anybody_claims_it(desk: Desk) -> None:
    gates = Gates(desk.store)
    ids = await _park(desk, *(call(channel=SWEEP) for _ in range(4)))
    for _ in range(2):
        await _go_on(desk, limit=2)
        assert await desk.entries() == 2
    [other] = await desk.put(call(channel=SWEEP))
    claims = await desk.claim(count=5)
    assert [claimed.spec.task_id for claimed in claims] == [*ids[:2], other]
    assert await gates.admit(claims) == (claims[:2], [])


async def test_what_a_job_is_survives_its_wait(desk: Desk) -> None:
    large = b"x" * (INLINE + 1)
    claimed = await desk.held(call(payload=large, channel=SWEEP, expire_ms=LATER))
    assert await desk.worker().give_back(claimed, LOST, begun=False)
    await _park(desk)
    await _go_on(desk)
    [again] = await desk.claim()
    assert (again.spec, again.call, again.expires_at) == (claimed.spec, large, claimed.expires_at)
    assert again.attempt > claimed.attempt + 1
    assert (again.starts, again.lost, again.enqueue_time) == (0, 0, claimed.enqueue_time)


async def test_those_of_a_sweep_that_has_stopped_end_and_say_why(
    desk: Desk, until: Callable[..., Awaitable[object]]
) -> None:
    ids = await _park(desk, *(call(channel=SWEEP) for _ in range(700)))
    gates = Gates(desk.store)
    why = "sweep 'scan' stops at its first failure, job 'scan.3': ValueError('no')"
    await gates._set(job_hex(SWEEP), "stopped", "=", why)
    async with desk.hearing(desk.keys.channel(SWEEP)) as heard:
        await gates.release(job_hex(SWEEP), "default")

        async def told() -> bool:
            return len(unpack_notices(b"".join(heard))) == 700

        await until(told, "all clients are told")
    assert await desk.store.sizes() == ({"default": 0}, 0)
    record = await desk.record(ids[-1])
    assert record is not None
    assert record.outcome is not None
    assert record.outcome.failure is not None
    assert record.outcome.ending == "aborted"
    assert record.outcome.failure.message == f"job {ids[-1]!r} was aborted: {why}"


@pytest.mark.parametrize("way", ["abort", "expire", "cancel"])
async def test_one_that_ends_while_it_is_parked_is_gone(desk: Desk, way: str) -> None:
    first, second = await _park(desk, *(call(channel=SWEEP, expire_ms=LATER) for _ in range(2)))
    if way == "abort":
        assert await desk.abort(first) == 1
    elif way == "cancel":
        assert await Gates(desk.store).cancel([first, "unknown"], "me") == (1, 0)
    else:
        await desk.raw("HSET", desk.keys.job(first), "x", 1)
        await desk.raw("ZADD", desk.keys.expiring("default"), 1, job_hex(first))
        await desk.worker().tick()
    assert await desk.ending(first) == ("expired" if way == "expire" else "aborted")
    assert await desk.store.sizes() == ({"default": 1}, 0)
    await _go_on(desk)
    assert await _order(desk) == [second]


async def test_what_a_stranger_has_parked_there_is_removed(desk: Desk) -> None:
    [id_] = await _park(desk, call(channel=SWEEP))
    parked, sweep = desk.keys.parked("default"), job_hex(SWEEP)
    place = f"{sweep}1{'0' * 15}-{'0' * 10}{job_hex('nobody')}"
    for member in (b"\xff", "!", f"{sweep}!", f"{sweep}\xff".encode("latin-1"), place):
        await desk.raw("ZADD", parked, 0, member)
    assert [sweep async for sweep in Gates(desk.store).parked("default")] == [sweep]
    await _go_on(desk)
    assert await desk.raw("EXISTS", parked) == 0
    assert await _order(desk) == [id_]


async def test_places_that_a_stranger_has_taken_are_free(desk: Desk) -> None:
    [id_] = await _park(desk, call(channel=SWEEP))
    await Gates(desk.store).set(SWEEP, limit=1)
    for field in (b"\xff", "x", job_hex("nobody")):
        await desk.raw("HSET", desk.keys.holders(job_hex(SWEEP)), field, "1-1")
    await _go_on(desk, limit=1)
    assert await _order(desk) == [id_]


async def test_a_place_is_free_also_when_the_sweep_has_stopped_meanwhile(desk: Desk) -> None:
    gates = Gates(desk.store)
    await gates.set(SWEEP, limit=1)
    await desk.put(*(call(channel=SWEEP) for _ in range(2)))
    [claimed], _ = await gates.admit(await desk.claim(count=2))
    await gates.set(SWEEP, limit=1, state="stopped")
    assert await desk.finish(claimed)
    await gates.release(job_hex(SWEEP), "default")
    assert await desk.raw("EXISTS", desk.keys.holders(job_hex(SWEEP))) == 0
    assert await desk.store.sizes() == ({"default": 0}, 0)
