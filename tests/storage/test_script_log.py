"""log.lua: what was put out since one looked last, in one step."""

from __future__ import annotations

import asyncio

from qnb.models import Report
from tests.storage.desk import Desk, call


async def test_each_reader_gets_what_is_new_to_it(desk: Desk) -> None:
    claimed = await desk.held(call("x"))
    log = desk.store.server.scripts.log
    born = claimed.enqueue_time
    assert list(await log("x", born, 0)) == [0, b""]
    await desk.worker().report([(claimed, None, "one\n"), (claimed, Report(1), "two\n")])
    assert list(await log("x", born, 0)) == [0, b"one\ntwo\n"]
    assert list(await log("x", born, 4)) == [0, b"two\n"]
    assert list(await log("x", born, 8)) == [0, b""]


async def test_a_log_is_not_fetched_while_nothing_is_new(desk: Desk) -> None:
    claimed = await desk.held(call("x"))
    await desk.worker().report([(claimed, None, "x" * 100_000)])
    await desk.raw("DEL", desk.keys.log("x", claimed.enqueue_time))
    await desk.raw("SET", desk.keys.log("x", claimed.enqueue_time), "not a list", "PX", 60_000)
    log = desk.store.server.scripts.log  # it would stop there, were it to look
    assert list(await log("x", claimed.enqueue_time, 100_000)) == [0, b""]


async def test_no_byte_is_shown_twice_or_missed_while_the_ring_turns(desk: Desk) -> None:
    claimed = await desk.held(call("x"))
    record = await desk.record("x")
    assert record is not None
    written = [f"{number:>9999}\n" for number in range(150)]

    async def write() -> None:
        for piece in written:
            await desk.worker().report([(claimed, None, piece)])

    read, end = "", 0
    writing = asyncio.create_task(write())
    while not writing.done() or end < 1_500_000:
        text, end = await desk.store.log(record, end)
        read += text
    assert read == "".join(written)


async def test_the_output_of_an_earlier_run_is_measured_by_itself(desk: Desk) -> None:
    claimed = await desk.held(call("x"))
    await desk.worker().report([(claimed, None, "first run\n")])
    first = await desk.record("x")
    assert await desk.finish(claimed, has_log=True)
    fresh = await desk.held(call("x"))
    await desk.worker().report([(fresh, None, "2\n")])
    assert first is not None
    assert await desk.store.log(first) == ("first run\n", 10)
    assert await desk.store.log(first, 6) == ("run\n", 10)
