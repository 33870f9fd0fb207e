"""start.lua: the mark of a running body."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from qnb.storage.keys import UNFINISHED_TTL_MS
from qnb.storage.records import unpack_notices
from tests.storage.desk import LOST, Desk, call


async def test_a_mark_says_when_where_and_which_try(desk: Desk) -> None:
    claimed = await desk.held()
    await desk.start(claimed, "host:1", at=5)
    record = await desk.record(claimed.spec.task_id)
    assert record is not None
    assert (record.status, record.start, record.worker) == ("running", 5, "host:1")
    assert record.tries == 1


async def test_only_the_attempt_that_holds_the_job_marks_it(desk: Desk) -> None:
    stale = await desk.held()
    id_ = stale.spec.task_id
    await desk.start(replace(stale, attempt=7))
    assert await desk.status(id_) == "queued"
    assert await desk.worker().give_back(stale, LOST, begun=False)
    await desk.start(stale)
    assert await desk.status(id_) == "queued"
    [fresh] = await desk.claim()
    assert await desk.finish(fresh)
    await desk.start(fresh)
    assert await desk.status(id_) == "complete"


async def test_each_client_is_told_of_its_jobs_and_once(
    desk: Desk, until: Callable[..., Awaitable[object]]
) -> None:
    await desk.put(call("a", channel="me"), call("b"), call("c", channel="me"))
    held = await desk.claim(count=3)
    async with desk.hearing(desk.keys.channel("me")) as heard:
        for _ in range(2):  # the reply to the first was lost
            await desk.worker().start("w", [(claimed, 5) for claimed in held])
        await desk.finish(held[0])

        async def ended() -> bool:
            return len(heard) == 2

        await until(ended, "the end is told")
    news = unpack_notices(b"".join(heard))
    assert [(n.task_id, n.status) for n in news] == [
        ("a", "running"), ("c", "running"), ("a", "complete"),
    ]  # fmt: skip


async def test_a_job_that_has_waited_for_weeks_does_not_expire_while_it_runs(desk: Desk) -> None:
    claimed = await desk.held()
    job = desk.keys.job(claimed.spec.task_id)
    await desk.raw("PEXPIRE", job, 60_000)
    await desk.start(claimed)
    assert await desk.ttl(job) > UNFINISHED_TTL_MS - 60_000
