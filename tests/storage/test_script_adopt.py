"""adopt.lua: a job whose result is known is complete from the start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from redis.exceptions import ResponseError

from qnb.errors import BrokerError
from qnb.models import JobSpec, Outcome
from qnb.storage.keys import job_hex
from qnb.storage.records import pack_outcome, pack_spec, unpack_notices
from qnb.storage.studies import Studies
from tests.storage.desk import DONE, Desk, call

AGAIN = replace(DONE, tries=0, start=5, finish=5, result=b"known", cached="other.7")

Row = tuple[JobSpec, bytes, Outcome]


def _row(number: int, outcome: Outcome = AGAIN) -> Row:
    spec = JobSpec(f"scan-1.{number}", "f", "default", "scan-1", content="ab" * 16, code="cd" * 16)
    return spec, b"call", outcome


async def test_it_is_complete_with_the_result_and_no_worker_sees_it(desk: Desk) -> None:
    spec, payload, outcome = _row(0)
    [time] = await Studies(desk.store).adopt("scan-1", [(spec, payload, outcome)])
    record = await desk.record("scan-1.0")
    assert record is not None
    assert (record.status, record.spec, record.outcome) == ("complete", spec, outcome)
    assert (record.cached, record.tries, record.call) == (True, 0, payload)
    assert record.enqueue_time == time
    assert int(await desk.raw("ZSCORE", desk.keys.jobs, job_hex("scan-1.0"))) == time
    most = desk.store.options.result_ttl_ms
    assert most - 10_000 < await desk.ttl(desk.keys.job("scan-1.0")) <= most
    assert await desk.entries() == 0
    assert await desk.claim() == []


async def test_a_job_that_is_known_is_left_as_it_is(desk: Desk) -> None:
    done = await desk.held(call("scan-1.0"))
    assert await desk.finish(done)
    await desk.put(call("scan-1.1"))
    await desk.raw("SET", desk.keys.job("scan-1.2"), "of another type", "PX", 60_000)
    keys = [desk.keys.job(f"scan-1.{n}") for n in range(3)]
    before = [await desk.raw("DUMP", key) for key in keys]
    times = await Studies(desk.store).adopt("", [_row(n) for n in range(4)])
    assert [bool(time) for time in times] == [False, False, False, True]
    assert [await desk.raw("DUMP", key) for key in keys] == before


async def test_sent_twice_it_is_stored_and_told_once(
    desk: Desk, until: Callable[..., Awaitable[object]]
) -> None:
    studies = Studies(desk.store)
    async with desk.hearing(desk.keys.channel("scan-1")) as heard:
        assert all(await studies.adopt("scan-1", [_row(0), _row(1)]))
        before = await desk.raw("DUMP", desk.keys.job("scan-1.0"))
        assert await studies.adopt("scan-1", [_row(0), _row(1)]) == [0, 0]  # the reply was lost
        first, *others = await studies.adopt("scan-1", [_row(0), _row(2), _row(2)])
        assert (first, *map(bool, others)) == (0, True, False)

        async def told() -> bool:
            return len(heard) >= 2

        await until(told, "the sweep hears of its jobs")
    told_of = [[notice.task_id for notice in unpack_notices(data)] for data in heard]
    assert told_of == [["scan-1.0", "scan-1.1"], ["scan-1.2"]]
    assert await desk.raw("DUMP", desk.keys.job("scan-1.0")) == before


async def test_it_runs_like_any_other_when_it_is_to_be_run_again(desk: Desk) -> None:
    spec, *_ = row = _row(0)
    await Studies(desk.store).adopt("", [row])
    assert await desk.store.rerun(replace(spec, nonce="again"), b"call")
    [claimed] = await desk.claim()
    assert (claimed.attempt, claimed.starts) == (1, 0)
    assert await desk.finish(claimed)
    record = await desk.record("scan-1.0")
    assert record is not None
    assert (record.outcome, record.cached) == (DONE, False)


async def test_many_and_large_ones_go_in_calls_that_a_server_takes(
    desk: Desk, until: Callable[..., Awaitable[object]]
) -> None:
    large = replace(AGAIN, result=b"R" * 1_500_000)
    rows = [*(_row(n) for n in range(1_100)), *(_row(n, large) for n in range(1_100, 1_105))]
    async with desk.hearing(desk.keys.channel("scan-1")) as heard:
        times = await Studies(desk.store).adopt("scan-1", rows)

        async def told() -> bool:
            return sum(len(unpack_notices(data)) for data in heard) == len(rows)

        await until(told, "the sweep hears of them all")
    assert [len(unpack_notices(data)) for data in heard] == [500, 500, 102, 2, 1]  # one a call
    assert all(times)
    assert len(times) == len(rows)
    assert await desk.raw("ZCARD", desk.keys.jobs) == len(rows)
    record = await desk.record("scan-1.1104")
    assert record is not None
    assert record.outcome == large


async def test_what_does_not_fit_together_is_refused_whole(desk: Desk) -> None:
    spec, payload, outcome = _row(0)
    row = (job_hex(spec.task_id), pack_spec(spec), payload, pack_outcome(outcome), b"known", b"")
    jobs = [desk.keys.job("scan-1.0"), desk.keys.job("scan-1.1")]
    with pytest.raises(ResponseError, match="do not fit each other"):
        await desk.store.server.scripts.adopt(jobs, 60_000, "", [row])
    assert not await desk.raw("EXISTS", desk.keys.jobs, *jobs)


async def test_a_job_that_cannot_be_indexed_is_not_stored(desk: Desk) -> None:
    await desk.raw("SET", desk.keys.jobs, "of another type")
    with pytest.raises(BrokerError, match=r"wrong kind|WRONGTYPE"):
        await Studies(desk.store).adopt("", [_row(0)])
    assert not await desk.raw("EXISTS", desk.keys.job("scan-1.0"))
