"""due.lua: what has come due, and when the next one will."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from qnb.storage.keys import job_hex
from tests.storage.desk import LATER, Desk, call


async def test_nothing_is_due_where_nothing_waits(desk: Desk) -> None:
    await desk.put(call())
    assert await desk.store.server.scripts.due(["default"], 10) == (-1, [[[], []]])
    assert await desk.worker().tick() is None


async def test_the_next_one_is_told_of_all_lanes(two_lanes: Desk) -> None:
    await two_lanes.put(call(lane="low", delay_ms=LATER), call(lane="high", expire_ms=LATER // 2))
    until, found = await two_lanes.store.server.scripts.due(["high", "low"], 10)
    assert LATER // 2 - 10_000 < until <= LATER // 2
    assert found == [[[], []], [[], []]]
    seconds = await two_lanes.worker().tick()
    assert seconds is not None
    assert LATER / 2_000 - 10 < seconds <= LATER / 2_000


async def test_each_lane_tells_what_is_due_and_what_is_over(
    two_lanes: Desk, until: Callable[..., Awaitable[object]]
) -> None:
    ids = await two_lanes.put(
        call(lane="low", delay_ms=1),
        call(lane="high", delay_ms=1),
        call(lane="high", expire_ms=1),
        call(lane="high", delay_ms=2),
        call(lane="high", delay_ms=LATER),
    )
    low, first, over, second, _ = [job_hex(id_).encode() for id_ in ids]

    async def due() -> bool:
        _, found = await two_lanes.store.server.scripts.due(["high", "low"], 10)
        return found == [[[first, second], [over]], [[low], []]]

    await until(due, "all but one are due")
    _, found = await two_lanes.store.server.scripts.due(["high", "low"], 1)
    assert found == [[[first], [over]], [[low], []]]
