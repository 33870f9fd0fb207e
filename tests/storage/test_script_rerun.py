"""rerun.lua: the same call once more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qnb.storage.keys import job_hex
from tests.storage.desk import LATER, LOST, Desk, call


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
