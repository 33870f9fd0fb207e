"""enqueue.lua: what is stored, once, and where it waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.exceptions import ResponseError

from qnb.storage.keys import UNFINISHED_TTL_MS, job_hex
from qnb.storage.records import pack_spec
from tests.storage.desk import LATER, LOST, Desk, call


async def test_a_call_is_stored_once_however_often_it_is_sent(desk: Desk) -> None:
    job, other = call("x"), call("y")
    first, second, again = await desk.store.enqueue([job, other, job])
    assert first <= second
    assert again == 0
    assert await desk.store.enqueue([job]) == [0]
    assert await desk.store.queue_size() == 2
    record = await desk.record("x")
    assert record is not None
    assert (record.status, record.call, record.tries) == ("queued", b"call", 0)
    assert record.enqueue_time == first


@pytest.mark.parametrize("when", [{}, {"delay_ms": LATER}], ids=["queued", "delayed"])
async def test_an_unfinished_id_stays_as_it_is(desk: Desk, when: dict[str, Any]) -> None:
    first = call("x", payload=b"first", **when)
    await desk.put(first)
    before = await desk.raw("HGETALL", desk.keys.job("x"))
    assert await desk.store.enqueue([call("x", payload=b"second")]) == [0]
    assert await desk.raw("HGETALL", desk.keys.job("x")) == before


async def test_a_running_id_stays_as_it_is(desk: Desk) -> None:
    claimed = await desk.held(call("x"))
    await desk.start(claimed)
    assert await desk.store.enqueue([call("x")]) == [0]
    assert await desk.status("x") == "running"
    assert await desk.entries() == 1


async def test_a_finished_id_runs_afresh_but_not_for_a_repeated_send(desk: Desk) -> None:
    first = call("x", payload=b"first")
    assert await desk.finish(await desk.held(first))
    assert await desk.store.enqueue([first]) == [0]  # its reply was lost; it is sent again
    assert await desk.ending("x") == "done"
    await desk.put(call("x", payload=b"second"))
    record = await desk.record("x")
    assert record is not None
    assert (record.status, record.outcome, record.call) == ("queued", None, b"second")


async def test_what_is_complete_is_left_alone_where_that_is_asked_for(desk: Desk) -> None:
    assert await desk.finish(await desk.held(call("done")))
    await desk.start(await desk.held(call("running")))
    await desk.put(call("waiting"))
    before = [await desk.raw("HGETALL", desk.keys.job(id_)) for id_ in ("done", "waiting")]
    rest = [call(id_, payload=b"other") for id_ in ("done", "waiting", "running", "new", "new")]
    times = await desk.store.enqueue(rest, fresh=False)
    assert [bool(time) for time in times] == [False, False, False, True, False]
    after = [await desk.raw("HGETALL", desk.keys.job(id_)) for id_ in ("done", "waiting")]
    assert after == before
    assert [await desk.status(id_) for id_ in ("running", "new")] == ["running", "queued"]
    assert await desk.store.enqueue(rest, fresh=False) == [0] * 5  # the reply was lost
    assert await desk.store.queue_size() == 2


async def test_whoever_goes_on_with_a_sweep_stores_only_what_is_not_there(desk: Desk) -> None:
    calls = [call(f"scan-1.{number}") for number in range(1_100)]
    await desk.put(*calls[:700])
    for claimed in await desk.claim(count=5):
        assert await desk.finish(claimed)
    times = await desk.store.enqueue([call(one.spec.task_id) for one in calls], fresh=False)
    assert [bool(time) for time in times] == [False] * 700 + [True] * 400
    assert await desk.store.queue_size() == 1_095


@pytest.mark.parametrize("forged", ["soon", "nan", "-7", "1e30", "9" * 30, ""])
async def test_what_a_stranger_wrote_as_a_number_does_not_stop_the_others(
    desk: Desk, forged: str
) -> None:
    assert await desk.finish(await desk.held(call("x")))
    await desk.raw("HSET", desk.keys.job("x"), "t", forged, "a", forged)
    before = await desk.now_ms()
    times = await desk.store.enqueue([call(), call("x"), call()])
    assert all(before <= time <= before + 60_000 for time in times)
    held = await desk.claim(count=3)
    assert [claimed.attempt for claimed in held] == [1, 1, 1]
    for claimed in held:
        assert await desk.finish(claimed)


async def test_a_fresh_run_is_later_than_the_run_before_it_however_fast(desk: Desk) -> None:
    await desk.finish(await desk.held(call("x")))
    ahead = 2 * await desk.now_ms()
    await desk.raw("HSET", desk.keys.job("x"), "t", ahead)
    assert await desk.store.enqueue([call("x")]) == [ahead + 1]
    assert int(await desk.raw("ZSCORE", desk.keys.jobs, job_hex("x"))) == ahead + 1
    [claimed] = await desk.claim()
    assert claimed.enqueue_time == ahead + 1


async def test_a_worker_of_the_run_before_cannot_end_the_fresh_run(desk: Desk) -> None:
    stale = await desk.held(call("x"))
    assert await desk.worker().give_back(stale, LOST, begun=True)
    assert await desk.finish((await desk.claim("b"))[0])
    await desk.put(call("x"))
    assert not await desk.finish(stale)
    assert await desk.status("x") == "queued"
    [fresh] = await desk.claim("c")
    assert await desk.finish(fresh)


async def test_a_job_waits_for_its_time_and_not_beyond(
    desk: Desk, until: Callable[..., Awaitable[object]]
) -> None:
    [now, soon, later] = await desk.put(call(), call(delay_ms=5), call(delay_ms=LATER))
    assert [await desk.status(id_) for id_ in (now, later)] == ["queued", "scheduled"]
    record = await desk.record(later)
    assert record is not None
    assert record.scheduled_at == record.enqueue_time + LATER

    async def moved() -> bool:
        await desk.worker().tick()
        return await desk.status(soon) == "queued"

    await until(moved, "its time has come")
    assert await desk.indexed("delayed") == [job_hex(later)]
    assert [c.spec.task_id for c in await desk.claim(count=3)] == [now, soon]


async def test_a_time_in_the_past_is_now_and_one_ahead_is_kept_to_the_millisecond(
    desk: Desk,
) -> None:
    await desk.store.server.sync_clock()
    at = round(desk.store.clock.now_ms()) + LATER
    [past, ahead] = await desk.put(call(schedule_ms=1_000), call(schedule_ms=at))
    assert await desk.status(past) == "queued"
    record = await desk.record(ahead)
    assert record is not None
    assert record.scheduled_at == at


async def test_a_delayed_record_outlives_its_delay(desk: Desk) -> None:
    year = 365 * 24 * 3600 * 1000
    [id_] = await desk.put(call(delay_ms=year))
    assert await desk.ttl(desk.keys.job(id_)) > year + UNFINISHED_TTL_MS - 10_000


@pytest.mark.parametrize(
    "lane, due, expiry",
    [
        (1, f"+{10**25}", ""), (1, f"@{10**25}", ""), (1, "+nan", ""), (1, "@-1e25", ""),
        (1, "5", ""), (1, "", 10**25), (1, "", "soon"), (2, "", ""), (0, "", ""), (10**25, "", ""),
    ],
)  # fmt: skip
async def test_numbers_that_cannot_be_counted_are_refused_before_anything_is_written(
    desk: Desk, lane: int, due: str, expiry: Any
) -> None:
    jobs = [desk.keys.job("fine"), desk.keys.job("bad")]
    calls: list[Any] = [
        (1, job_hex("fine"), pack_spec(call("fine").spec), b"call", "", 5),
        (lane, job_hex("bad"), pack_spec(call("bad").spec), b"call", due, expiry),
    ]
    with pytest.raises(ResponseError, match=r"job 2: .*nothing was stored"):
        await desk.store.server.scripts.enqueue(["default"], jobs, calls)
    for kind in ("jobs", "fine", "bad"):
        key = desk.keys.jobs if kind == "jobs" else desk.keys.job(kind)
        assert not await desk.raw("EXISTS", key)
    assert not await desk.indexed("expiring")
    assert await desk.entries() == 0


async def test_workers_are_told_when_something_will_be_due(
    desk: Desk, until: Callable[..., Awaitable[object]]
) -> None:
    async with desk.hearing(desk.keys.control) as heard:
        await desk.put(call())
        [first, second] = await desk.put(call(delay_ms=LATER), call(expire_ms=LATER // 2))

        async def told() -> bool:
            return bool(heard)

        await until(told, "workers are told")
    record = await desk.record(second)
    assert record is not None
    assert heard == [b"w%d" % (record.expires_at or 0)]
    assert await desk.indexed("delayed") == [job_hex(first)]
    assert await desk.indexed("expiring") == [job_hex(second)]


async def test_thousands_of_calls_arrive_in_order_and_in_their_lanes(two_lanes: Desk) -> None:
    calls = [call(lane=("low", "high")[n % 2]) for n in range(1_200)]
    await two_lanes.put(*calls)
    assert await two_lanes.store.sizes() == ({"low": 600, "high": 600}, 0)
    got = await two_lanes.claim(count=1_200)
    assert [c.spec for c in got] == [c.spec for c in calls[1::2] + calls[::2]]


async def test_the_farthest_time_that_can_be_counted_is_kept(desk: Desk) -> None:
    [id_] = await desk.put(call(delay_ms=10**14, expire_ms=10**14))
    record = await desk.record(id_)
    assert record is not None
    assert record.scheduled_at == record.expires_at == record.enqueue_time + 10**14
    assert await desk.abort(id_) == 1


async def test_a_key_of_another_type_in_the_place_of_a_job_counts_as_none(desk: Desk) -> None:
    first, second = call(), call()
    await desk.raw("SET", desk.keys.job(first.spec.task_id), "text", "PX", 60_000)
    await desk.put(first, second)
    assert [claimed.spec for claimed in await desk.claim(count=2)] == [first.spec, second.spec]
