"""rerun.lua: the same call once more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qnb.errors import BrokerError
from qnb.models import JobSpec
from qnb.storage.keys import job_hex
from qnb.storage.records import Claimed, Finished
from qnb.storage.studies import Studies
from tests.storage.desk import DONE, LATER, LOST, Desk, call


async def _ended(desk: Desk, count: int) -> list[Claimed]:
    """Jobs that have run to their end."""
    await desk.put(*(call() for _ in range(count)))
    held = await desk.claim(count=count)
    assert all(await desk.worker().finish([Finished(claimed, DONE) for claimed in held]))
    return held


def _again(*jobs: Claimed) -> list[tuple[JobSpec, bytes]]:
    return [(replace(job.spec, nonce=f"{job.enqueue_time:x}"), b"again") for job in jobs]


@pytest.mark.parametrize("size", [4, 100_000])
async def test_a_finished_job_runs_again_as_a_fresh_run(desk: Desk, size: int) -> None:
    one = call("x", payload=b"L" * size)
    claimed = await desk.held(one)
    await desk.start(claimed)
    assert await desk.finish(claimed)
    again = replace(one.spec, channel="other", nonce="again")
    signed = b"R" * size  # the same arguments, signed anew
    assert await desk.store.rerun(again, signed)
    record = await desk.record("x")
    assert record is not None
    assert (record.status, record.tries, record.outcome, record.start) == ("queued", 0, None, None)
    [fresh] = await desk.claim()
    assert (fresh.spec, fresh.call) == (again, signed)
    assert (fresh.attempt, fresh.starts, fresh.lost) == (2, 0, 0)
    assert not await desk.finish(claimed)  # the run before cannot end this one
    assert await desk.finish(fresh)


async def test_it_is_later_than_the_run_before_and_indexed_by_its_time(desk: Desk) -> None:
    claimed = await desk.held(call("x"))
    assert await desk.finish(claimed)
    ahead = 2 * await desk.now_ms()
    await desk.raw("HSET", desk.keys.job("x"), "t", ahead)
    assert await desk.store.rerun(replace(claimed.spec, nonce="again"), b"call") == ahead + 1
    assert int(await desk.raw("ZSCORE", desk.keys.jobs, job_hex("x"))) == ahead + 1
    [again] = await desk.claim()
    assert again.enqueue_time == ahead + 1


async def test_sent_twice_it_runs_once(desk: Desk) -> None:
    claimed = await desk.held()
    assert await desk.finish(claimed)
    again = replace(claimed.spec, nonce="again")
    at = await desk.store.rerun(again, b"call")
    assert at
    assert await desk.store.rerun(again, b"call") == at  # the reply to the first was lost
    assert await desk.store.queue_size() == 1
    [fresh] = await desk.claim()
    assert await desk.finish(fresh)
    assert await desk.store.rerun(again, b"call") == at  # late, it changes nothing
    assert await desk.store.queue_size() == 0


async def test_only_a_finished_job_runs_again(desk: Desk) -> None:
    later = call(delay_ms=LATER)
    await desk.put(later)
    running = await desk.held()
    unknown = call()
    for spec in (later.spec, running.spec, unknown.spec):
        assert not await desk.store.rerun(replace(spec, nonce="again"), b"call")
    assert await desk.record(unknown.spec.task_id) is None
    assert await desk.store.sizes() == ({"default": 0}, 1)


async def test_a_crashed_job_gets_its_starts_anew(desk: Desk) -> None:
    await desk.put(call("x"))
    for _ in range(3):
        [claimed] = await desk.claim()
        await desk.worker().give_back(claimed, LOST, begun=True)
    assert await desk.ending("x") == "crashed"
    assert await desk.store.rerun(replace(claimed.spec, nonce="again"), b"call")
    [fresh] = await desk.claim()
    assert (fresh.starts, fresh.lost) == (0, 0)
    assert await desk.worker().give_back(fresh, LOST, begun=True)


async def test_many_run_again_in_their_order_each_judged_by_itself(desk: Desk) -> None:
    done = await _ended(desk, 3)
    running, unknown = await desk.held(), call()
    rows = [*_again(*done[:2], running), (unknown.spec, b"again"), *_again(done[2])]
    times = await Studies(desk.store).rerun("default", rows)
    assert [bool(time) for time in times] == [True, True, False, False, True]
    assert await Studies(desk.store).rerun("default", rows) == times  # the reply was lost
    fresh = await desk.claim(count=9)
    assert [(one.spec, one.call, one.attempt) for one in fresh] == [
        (spec, b"again", 2) for spec, _ in _again(*done)
    ]
    assert [one.enqueue_time for one in fresh] == [time for time in times if time]
    for one in fresh:
        assert await desk.finish(one)
    assert await Studies(desk.store).rerun("default", rows) == times  # late, it changes nothing
    assert await desk.store.queue_size() == 0


async def test_more_jobs_than_a_call_takes_all_run_again(desk: Desk) -> None:
    done = await _ended(desk, 1_100)
    rows = [(spec, b"L" * (0 if n else 5_000_000)) for n, (spec, _) in enumerate(_again(*done))]
    assert all(await Studies(desk.store).rerun("default", rows))
    assert [one.spec for one in await desk.claim(count=1_100)] == [spec for spec, _ in rows]
    assert await Studies(desk.store).rerun("default", []) == []


@pytest.mark.parametrize("forged", ["soon", "nan", "-7", "1e30", "9" * 30, ""])
async def test_a_number_that_is_none_does_not_stop_the_others(desk: Desk, forged: str) -> None:
    done = await _ended(desk, 3)
    before = await desk.now_ms()
    key = desk.keys.job(done[1].spec.task_id)
    await desk.raw("HSET", key, "t", forged, "a", forged)
    times = await Studies(desk.store).rerun("default", _again(*done))
    assert all(before <= time <= before + 60_000 for time in times)
    fresh = await desk.claim(count=3)
    assert [one.attempt for one in fresh] == [2, 1, 2]
    for one in fresh:
        assert await desk.finish(one)


async def test_a_lane_that_takes_nothing_costs_no_job(desk: Desk) -> None:
    done = await _ended(desk, 2)
    rows = [(replace(spec, lane="gone"), data) for spec, data in _again(*done)]
    await desk.raw("SET", desk.keys.lane("gone"), "of another type")
    with pytest.raises(BrokerError, match=r"wrong kind|WRONGTYPE"):
        await Studies(desk.store).rerun("gone", rows)
    assert [await desk.ending(job.spec.task_id) for job in done] == ["done", "done"]


async def test_its_function_is_kept_for_as_long_as_it_may_wait(desk: Desk) -> None:
    [done] = await _ended(desk, 1)
    await desk.store.put_function("ab", b"code")
    key = desk.keys.function("ab")
    await desk.raw("PEXPIRE", key, 60_000)
    [(spec, data)] = _again(done)
    assert all(await Studies(desk.store).rerun("default", [(replace(spec, function="ab"), data)]))
    assert await desk.ttl(key) > 60_000


async def test_a_key_of_another_type_is_no_job_and_spares_the_others(desk: Desk) -> None:
    foreign, good = await _ended(desk, 2)
    await desk.raw("SET", desk.keys.job(foreign.spec.task_id), "text", "PX", 60_000)
    first, second = await Studies(desk.store).rerun("default", _again(foreign, good))
    assert (first, bool(second)) == (0, True)
