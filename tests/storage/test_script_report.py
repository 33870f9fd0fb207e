"""report.lua: what bodies say while they run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from qnb.models import Report
from qnb.storage.records import unpack_notices
from qnb.storage.scripts import LOG_BYTES
from tests.storage.desk import LOST, Desk, call

HALF = Report(1, 2, "half way", {"loss": 0.5})


async def test_progress_and_output_are_read_while_it_runs(desk: Desk) -> None:
    claimed = await desk.held()
    await desk.worker().report([(claimed, HALF, "one\n"), (claimed, None, "two €\n")])
    record = await desk.record(claimed.spec.task_id)
    assert record is not None
    assert record.report == HALF
    text, end = await desk.store.log(record)
    assert text == "one\ntwo €\n"
    assert end == len(text.encode())
    await desk.worker().report([(claimed, None, "three\n")])
    assert await desk.store.log(record, end) == ("three\n", end + 6)


async def test_a_log_is_a_ring_that_says_what_it_dropped(desk: Desk) -> None:
    claimed = await desk.held()
    for number in range(11):
        await desk.worker().report([(claimed, None, f"{number:>99999}\n")])
    record = await desk.record(claimed.spec.task_id)
    assert record is not None
    text, end = await desk.store.log(record)
    note, *lines = text.splitlines()
    assert note == "[100,000 bytes of earlier output were dropped]"
    assert [int(line) for line in lines] == list(range(1, 11))
    assert end == 1_100_000
    key = desk.keys.log(claimed.spec.task_id, claimed.enqueue_time)
    assert sum(map(len, await desk.raw("LRANGE", key, 0, -1))) <= LOG_BYTES
    assert await desk.store.log(record, 1_050_000) == (f"{10:>50000}"[-49_999:] + "\n", end)


async def test_of_one_output_larger_than_the_ring_the_end_is_kept(desk: Desk) -> None:
    claimed = await desk.held()
    await desk.worker().report([(claimed, None, "x" * LOG_BYTES + "the end")])
    record = await desk.record(claimed.spec.task_id)
    assert record is not None
    text, end = await desk.store.log(record)
    note, said = text.splitlines()
    assert note.endswith("bytes of earlier output were dropped]")
    assert said.endswith("xthe end")
    assert LOG_BYTES * 0.95 < len(said) <= LOG_BYTES
    assert end == LOG_BYTES + len("the end")


async def test_what_a_stale_attempt_says_is_dropped(desk: Desk) -> None:
    stale = await desk.held()
    assert await desk.worker().give_back(stale, LOST, begun=True)
    await desk.worker().report([(stale, HALF, "stale\n")])
    record = await desk.record(stale.spec.task_id)
    assert record is not None
    assert record.report is None
    assert await desk.store.log(record) == ("", 0)
    [fresh] = await desk.claim("b")
    assert await desk.finish(fresh)
    await desk.worker("b").report([(fresh, HALF, "after its end\n")])
    assert await desk.store.log(record) == ("", 0)
    assert await desk.field(stale.spec.task_id, "g") is None


async def test_attempts_share_a_log_and_runs_do_not(desk: Desk) -> None:
    claimed = await desk.held(call("x"))
    await desk.worker().report([(claimed, HALF, "first\n")])
    assert await desk.retry(claimed) == 1
    [again] = await desk.claim()
    await desk.worker().report([(again, None, "second\n")])
    record = await desk.record("x")
    assert record is not None
    assert record.report is None
    assert await desk.store.log(record) == ("first\nsecond\n", 13)
    assert await desk.finish(again)
    [fresh] = [await desk.held(call("x"))]
    await desk.worker().report([(fresh, None, "fresh\n")])
    record = await desk.record("x")
    assert record is not None
    assert await desk.store.log(record) == ("fresh\n", 6)


async def test_clients_hear_of_progress_and_not_of_output(
    desk: Desk, until: Callable[..., Awaitable[object]]
) -> None:
    await desk.put(call("a", channel="me"), call("b", channel="me"))
    a, b = await desk.claim(count=2)
    async with desk.hearing(desk.keys.channel("me")) as heard:
        await desk.worker().report([(a, None, "output\n"), (b, HALF, "")])

        async def told() -> bool:
            return bool(heard)

        await until(told, "progress is told")
    [news] = unpack_notices(b"".join(heard))
    assert (news.task_id, news.status, news.report) == ("b", "running", HALF)
