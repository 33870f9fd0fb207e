"""tally.lua: where jobs are, in a few bytes each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest

from qnb.models import JobSpec
from qnb.storage.studies import ABORTED, DONE, FAILED, QUEUED, RUNNING, UNKNOWN, Studies
from tests.storage import desk as parts
from tests.storage.desk import LATER, LOST, Desk, call


async def _ended(desk: Desk, **changes: Any) -> str:
    claimed = await desk.held()
    assert await desk.finish(claimed, replace(parts.DONE, **changes))
    return claimed.spec.task_id


async def test_each_job_says_where_it_is_and_from_when_to_when_it_ran(desk: Desk) -> None:
    done, failed = await _ended(desk), await desk.held()
    await desk.finish(failed, replace(parts.FAILED, start=30, finish=40))
    crashed = await desk.held()
    await desk.finish(crashed, LOST)
    running = await desk.held()
    await desk.start(running, at=7)
    again = await desk.held()
    await desk.start(again, at=8)
    assert await desk.retry(again, delay_ms=LATER) == 1
    [queued, delayed, aborted] = await desk.put(call(), call(delay_ms=LATER), call())
    assert await desk.abort(aborted) == 1
    ids = [done, failed.spec.task_id, crashed.spec.task_id, running.spec.task_id, queued, delayed]
    assert await Studies(desk.store).tally(ids) == [
        (DONE, 10, 20), (FAILED, 30, 40), (FAILED, 10, 20), (RUNNING, 7, 0), (QUEUED, 0, 0),
        (QUEUED, 0, 0),
    ]  # fmt: skip
    [(retried, *_), (ended, *_), unknown] = await Studies(desk.store).tally(
        [again.spec.task_id, aborted, "never seen"]
    )
    assert (retried, ended, unknown) == (QUEUED, ABORTED, (UNKNOWN, 0, 0))


async def test_no_body_has_started_for_a_result_that_is_used_again(desk: Desk) -> None:
    spec = JobSpec("scan-1.0", "f", "default", content="ab" * 16)
    studies = Studies(desk.store)
    assert all(await studies.adopt("", [(spec, b"call", replace(parts.DONE, cached="other.1"))]))
    assert await studies.tally(["scan-1.0"]) == [(DONE, 0, 20)]


async def test_more_jobs_than_a_call_takes_come_in_their_order(desk: Desk) -> None:
    ids = await desk.put(*(call() for _ in range(1_200)))
    for claimed in await desk.claim(count=700):
        await desk.start(claimed, at=9)
    found = await Studies(desk.store).tally([*ids[::-1], "unknown"])
    assert found == [(QUEUED, 0, 0)] * 500 + [(RUNNING, 9, 0)] * 700 + [(UNKNOWN, 0, 0)]
    assert await Studies(desk.store).tally([]) == []


async def test_large_records_make_no_large_answer(desk: Desk) -> None:
    failure = replace(LOST, failure=replace(LOST.failure, traceback="T" * 300_000))  # type: ignore[type-var]
    [id_] = await desk.put(call(payload=b"P" * 300_000))
    [claimed] = await desk.claim()
    assert await desk.finish(claimed, replace(failure, result=b"R" * 300_000))
    key = desk.keys.job(id_)
    assert await desk.store.server.scripts.tally([key] * 500) == [(b"ccrashed", 10, 20)] * 500


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"s": "r", "b": "nan"}, (RUNNING, 0, 0)),
        ({"s": "r", "b": "1e300"}, (RUNNING, 0, 0)),
        ({"s": "r", "b": "-5"}, (RUNNING, 0, 0)),
        ({"s": "r", "b": "soon"}, (RUNNING, 0, 0)),
        ({"s": "?"}, (UNKNOWN, 0, 0)),
        ({"s": "q" * 1_000_000}, (UNKNOWN, 0, 0)),
        ({"s": "c"}, (FAILED, 0, 0)),
        ({"s": "c", "o": b"\xc1"}, (FAILED, 0, 0)),
        ({"s": "c", "o": b"\x91" * 1_000_000}, (FAILED, 0, 0)),
        ({"s": "c", "o": msgpack.packb("done")}, (FAILED, 0, 0)),
        ({"s": "c", "o": msgpack.packb({"1": "done"})}, (FAILED, 0, 0)),
        ({"s": "c", "o": msgpack.packb([["done"], 1, [1], {"2": 2}])}, (FAILED, 0, 0)),
        ({"s": "c", "o": msgpack.packb(["d" * 1_000_000, 1, 10, 20])}, (FAILED, 10, 20)),
        ({"s": "c", "o": msgpack.packb(["done", 1, float("inf"), 2.5])}, (DONE, 0, 2)),
        ({"s": "c", "o": msgpack.packb(["done", 1, -(2**63), 2**64 - 1])}, (DONE, 0, 0)),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
async def test_what_a_stranger_wrote_costs_one_answer_and_is_small(
    desk: Desk, fields: dict[str, Any], said: tuple[int, int, int]
) -> None:
    [before, after] = await desk.put(call(), call())
    key = desk.keys.job("forged")
    await desk.raw("HSET", key, *(part for pair in fields.items() for part in pair))
    await desk.raw("PEXPIRE", key, 60_000)
    found = await Studies(desk.store).tally([before, "forged", after])
    assert found == [(QUEUED, 0, 0), said, (QUEUED, 0, 0)]
    [(state, *_)] = await desk.store.server.scripts.tally([key])
    assert len(state) <= 20


async def test_a_key_of_another_type_is_no_job(desk: Desk) -> None:
    await desk.raw("SET", desk.keys.job("x"), "text", "PX", 60_000)
    [other] = await desk.put(call())
    found = await Studies(desk.store).tally(["x", other])
    assert found == [(UNKNOWN, 0, 0), (QUEUED, 0, 0)]
