"""promote.lua: from the delayed jobs into the lane, when the time has come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from qnb.storage.keys import job_hex
from tests.storage.desk import LATER, Desk, call

Until = Callable[..., Awaitable[object]]


async def _due(desk: Desk, until: Until, count: int) -> list[str]:
    async def due() -> list[bytes]:
        _, [(hexes, _)] = await desk.store.server.scripts.due(["default"], 10)
        return hexes if len(hexes) == count else []

    found = await until(due, "they are due")
    assert isinstance(found, list)
    return [hex_.decode() for hex_ in found]


async def test_the_time_is_judged_by_the_server(desk: Desk) -> None:
    [id_] = await desk.put(call(delay_ms=LATER))
    assert await desk.store.server.scripts.promote("default", [job_hex(id_)]) == 0
    assert await desk.status(id_) == "scheduled"
    assert await desk.indexed("delayed") == [job_hex(id_)]


async def test_a_due_job_waits_in_its_lane_whole_and_once(desk: Desk, until: Until) -> None:
    small, large = call(delay_ms=1, expire_ms=LATER), call(payload=b"L" * 100_000, delay_ms=2)
    await desk.put(small, large)
    hexes = await _due(desk, until, 2)
    assert await desk.store.server.scripts.promote("default", hexes) == 2
    assert await desk.store.server.scripts.promote("default", hexes) == 0  # two workers saw it
    first, second = await desk.claim(count=3)
    assert (first.spec, first.call, first.attempt, first.starts) == (small.spec, b"call", 1, 0)
    assert first.expires_at == first.enqueue_time + LATER
    assert (second.spec, second.call, second.expires_at) == (large.spec, large.payload, None)
    assert await desk.field(small.spec.task_id, "d") is None
    assert await desk.indexed("delayed") == []


async def test_what_is_no_longer_delayed_leaves_the_index(desk: Desk) -> None:
    [gone, queued] = await desk.put(call(delay_ms=LATER), call())
    await desk.raw("DEL", desk.keys.job(gone))
    await desk.raw("ZADD", desk.keys.delayed("default"), 1, job_hex(queued))
    hexes = [job_hex(gone), job_hex(queued)]
    assert await desk.store.server.scripts.promote("default", hexes) == 0
    assert await desk.indexed("delayed") == []
    assert await desk.entries() == 1


async def test_a_backlog_of_due_jobs_moves_in_the_order_of_their_times(
    desk: Desk, until: Until
) -> None:
    calls = [call(delay_ms=500 - n) for n in range(450)]
    await desk.put(*calls)

    async def moved() -> bool:
        await desk.worker().tick()
        return await desk.store.sizes() == ({"default": 450}, 0)

    await until(moved, "all are in the lane")
    got = [c.spec.task_id for c in await desk.claim(count=450)]
    times = {c.spec.task_id: -n for n, c in enumerate(calls)}
    assert got == sorted(got, key=times.__getitem__)
