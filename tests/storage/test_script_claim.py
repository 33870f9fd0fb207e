"""claim.lua: who gets which job, and when."""

from __future__ import annotations

from tests.storage.desk import Desk, call


async def test_a_lane_is_first_in_first_out(desk: Desk) -> None:
    ids = await desk.put(*(call() for _ in range(5)))
    got = [*await desk.claim("a", 2), *await desk.claim("b", 9)]
    assert [claimed.spec.task_id for claimed in got] == ids
    assert await desk.claim("c", 9) == []


async def test_the_highest_lane_is_drained_first(two_lanes: Desk) -> None:
    low, high = [call(lane="low") for _ in range(3)], [call(lane="high") for _ in range(3)]
    await two_lanes.put(low[0], high[0], low[1], high[1], low[2], high[2])
    got = await two_lanes.claim(count=5)
    assert [claimed.spec for claimed in got] == [one.spec for one in (*high, *low[:2])]


async def test_the_first_attempt_carries_all_that_a_worker_needs(desk: Desk) -> None:
    one = call(payload=b"arguments", expire_ms=60_000)
    claimed = await desk.held(one)
    assert (claimed.spec, claimed.call, claimed.back) == (one.spec, b"arguments", False)
    assert (claimed.attempt, claimed.starts, claimed.lost) == (1, 0, 0)
    assert claimed.expires_at == claimed.enqueue_time + 60_000


async def test_a_call_too_large_for_the_lane_arrives_whole(desk: Desk) -> None:
    await desk.put(call(payload=b"L" * 100_000), call(payload=b"S"))
    assert [claimed.call for claimed in await desk.claim(count=2)] == [b"L" * 100_000, b"S"]
    [(_, flat), _] = await desk.raw("XRANGE", desk.keys.lane("default"), "-", "+")
    assert b"p" not in flat[::2]


async def test_a_waiting_claim_wakes_for_a_job_of_any_lane(two_lanes: Desk) -> None:
    import asyncio

    waiting = asyncio.create_task(two_lanes.worker().claim(4, 5_000))
    ids = await two_lanes.put(call(lane="low"))
    assert [claimed.spec.task_id for claimed in await waiting] == ids
    await two_lanes.worker().drop_claim()


async def test_what_was_delivered_to_a_lost_connection_is_told(desk: Desk) -> None:
    await desk.put(*(call() for _ in range(3)))
    held = await desk.claim(count=3)
    assert await desk.worker().unseen(held) == []
    assert await desk.worker().unseen(held[:1]) == held[1:]
    assert await desk.worker("other").unseen([]) == []


async def test_what_a_stranger_wrote_into_a_lane_is_removed(desk: Desk) -> None:
    await desk.raw("XADD", desk.keys.lane("default"), "*", "m", "\xc1", "a", "x")
    [id_] = await desk.put(call())
    assert [claimed.spec.task_id for claimed in await desk.claim(count=2)] == [id_]
    assert await desk.entries() == 1
