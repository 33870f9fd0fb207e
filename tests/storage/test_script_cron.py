"""cron.lua: one run of an occurrence, whoever asks and whatever their clocks say."""

from __future__ import annotations

import asyncio

from qnb.models import JobSpec, Policy
from qnb.registry import Cron
from tests.storage.desk import LATER, Desk

TICK = Cron("tick", "@30", "default", Policy())
MARKER_TTL = 660_000


async def _ask(desk: Desk, occurrence: int, worker: str = "w") -> int:
    spec = JobSpec(f"tick@{occurrence}", "tick", "default", nonce=worker)
    return await desk.worker(worker).run_cron(TICK, occurrence, MARKER_TTL, spec, b"call")


async def test_one_of_two_workers_enqueues_it(desk: Desk) -> None:
    at = await desk.now_ms()
    assert sorted(await asyncio.gather(_ask(desk, at, "a"), _ask(desk, at, "b"))) == [-1, 0]
    assert await desk.store.queue_size() == 1
    [claimed] = await desk.claim()
    assert (claimed.spec.task_id, claimed.call) == (f"tick@{at}", b"call")
    assert (claimed.attempt, claimed.starts) == (1, 0)
    assert await desk.finish(claimed)
    assert await _ask(desk, at, "b") == -1
    assert await desk.ending(f"tick@{at}") == "done"


async def test_a_worker_whose_clock_is_ahead_is_told_to_wait(desk: Desk) -> None:
    at = await desk.now_ms() + LATER
    early = await _ask(desk, at)
    assert LATER - 10_000 < early <= LATER
    assert await desk.store.queue_size() == 0
    assert await desk.raw("EXISTS", desk.keys.cron("tick", at)) == 0


async def test_the_marker_outlives_two_periods_and_not_more(desk: Desk) -> None:
    at = await desk.now_ms()
    assert await _ask(desk, at) == 0
    assert MARKER_TTL - 10_000 < await desk.ttl(desk.keys.cron("tick", at)) <= MARKER_TTL


async def test_each_occurrence_is_its_own(desk: Desk) -> None:
    at = await desk.now_ms()
    assert [await _ask(desk, at - 2), await _ask(desk, at - 1), await _ask(desk, at)] == [0, 0, 0]
    assert await desk.store.queue_size() == 3


async def test_an_occurrence_whose_marker_is_gone_is_still_not_run_twice(desk: Desk) -> None:
    at = await desk.now_ms()
    assert await _ask(desk, at) == 0
    await desk.raw("DEL", desk.keys.cron("tick", at))
    assert await _ask(desk, at) == -1
    assert await desk.store.queue_size() == 1


async def test_one_whose_record_has_expired_is_not_run_again(desk: Desk) -> None:
    at = await desk.now_ms()
    assert await _ask(desk, at) == 0
    [claimed] = await desk.claim()
    assert await desk.finish(claimed)
    await desk.raw("DEL", desk.keys.job(claimed.spec.task_id))
    assert await _ask(desk, at) == -1
    assert await desk.store.queue_size() == 0
