"""size.lua: how many jobs wait."""

from __future__ import annotations

from tests.storage.desk import LATER, LOST, Desk, call


async def test_waiting_jobs_are_counted_and_held_ones_not(two_lanes: Desk) -> None:
    desk = two_lanes
    assert await desk.store.sizes() == ({"low": 0, "high": 0}, 0)
    await desk.put(*(call(lane="low") for _ in range(4)), call(lane="high", delay_ms=LATER))
    assert await desk.store.sizes() == ({"low": 4, "high": 0}, 1)
    held = [*await desk.claim("a", 2), *await desk.claim("b")]
    assert await desk.store.sizes() == ({"low": 1, "high": 0}, 1)
    assert await desk.worker("a").give_back(held[0], LOST, begun=True)
    assert await desk.store.sizes() == ({"low": 2, "high": 0}, 1)
    assert await desk.finish(held[1])
    assert await desk.store.sizes() == ({"low": 2, "high": 0}, 1)
    assert await desk.store.queue_size() == 3


async def test_a_queue_that_no_worker_ever_served_is_counted(desk: Desk) -> None:
    for key in (desk.keys.lane("default"), desk.keys.back("default")):
        await desk.raw("DEL", key)
    assert await desk.store.queue_size() == 0
    await desk.put(call(), call())
    assert await desk.store.queue_size() == 2
