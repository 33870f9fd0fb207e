"""finish.lua: the end of an attempt, in one step and once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from qnb.storage.records import Finished, unpack_notices
from tests.storage.desk import DONE, FAILED, LOST, Desk, call


async def test_an_end_is_stored_whole_and_gives_up_the_lease(desk: Desk) -> None:
    claimed = await desk.held()
    await desk.start(claimed)
    assert await desk.finish(claimed)
    record = await desk.record(claimed.spec.task_id)
    assert record is not None
    assert (record.status, record.outcome) == ("complete", DONE)
    assert await desk.worker().unseen([]) == []
    assert await desk.entries() == 0
    ttl = await desk.ttl(desk.keys.job(claimed.spec.task_id))
    assert ttl <= desk.store.options.result_ttl_ms


async def test_the_same_end_twice_is_accepted_and_another_is_refused(desk: Desk) -> None:
    claimed = await desk.held()
    assert await desk.finish(claimed)
    assert await desk.finish(claimed)  # the reply was lost
    assert not await desk.finish(claimed, replace(DONE, finish=99))
    record = await desk.record(claimed.spec.task_id)
    assert record is not None
    assert record.outcome == DONE


async def test_a_job_that_was_recovered_is_safe_from_its_old_holder(desk: Desk) -> None:
    stale = await desk.held()
    assert await desk.worker().give_back(stale, LOST, begun=True)
    assert not await desk.finish(stale)
    [fresh] = await desk.claim("b")
    assert not await desk.finish(stale, FAILED)
    assert await desk.worker("b").unseen([]) == [fresh]
    assert await desk.finish(fresh, name="b")
    assert not await desk.finish(stale, FAILED)
    assert await desk.ending(stale.spec.task_id) == "done"


async def test_a_batch_is_judged_job_by_job_and_lane_by_lane(two_lanes: Desk) -> None:
    await two_lanes.put(*(call(lane=lane) for lane in ("low", "high", "low", "high")))
    held = await two_lanes.claim(count=4)
    worker = two_lanes.worker()
    assert await worker.give_back(held[3], LOST, begun=True)
    again = await two_lanes.claim("b")
    ends = [Finished(claimed, DONE) for claimed in (*held, *again)]
    assert await worker.finish(ends) == [True, True, True, False, True]
    assert await two_lanes.entries("low") == await two_lanes.entries("high") == 0


async def test_an_unknown_job_is_refused_and_leaves_nothing_behind(desk: Desk) -> None:
    claimed = await desk.held()
    await desk.raw("DEL", desk.keys.job(claimed.spec.task_id))
    assert not await desk.finish(claimed)
    assert await desk.entries() == 0
    assert await desk.record(claimed.spec.task_id) is None


async def test_the_log_lives_as_long_as_the_outcome(desk: Desk) -> None:
    claimed = await desk.held()
    await desk.worker().report([(claimed, None, "said\n")])
    log = desk.keys.log(claimed.spec.task_id, claimed.enqueue_time)
    assert await desk.ttl(log) > desk.store.options.result_ttl_ms
    assert await desk.finish(claimed, has_log=True)
    assert await desk.ttl(log) <= desk.store.options.result_ttl_ms


async def test_a_client_gets_small_results_with_the_news_and_large_ones_not(
    desk: Desk, until: Callable[..., Awaitable[object]]
) -> None:
    await desk.put(call("small", channel="me"), call("large", channel="me"))
    small, large = await desk.claim(count=2)
    async with desk.hearing(desk.keys.channel("me")) as heard:
        big = replace(DONE, result=b"L" * 100_000)
        await desk.worker().finish([Finished(small, DONE), Finished(large, big)])

        async def told() -> bool:
            return bool(heard)

        await until(told, "the client is told")
    first, second = unpack_notices(b"".join(heard))
    assert first.record is not None
    assert (first.task_id, first.record.outcome) == ("small", DONE)
    assert (second.task_id, second.status, second.record) == ("large", "complete", None)
