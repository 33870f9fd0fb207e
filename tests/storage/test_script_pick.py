"""pick.lua, and the reading of tables that stands on it: what fits, the newest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from qnb.models import Ending, JobState
from qnb.options import FrameOptions
from qnb.storage import rows
from qnb.storage.records import Call, pack
from qnb.storage.rows import Row
from tests.storage.desk import DONE, FAILED, LATER, Desk, call


def _of(name: str, sweep: str | None = None, content: str = "") -> Call:
    one = call()
    return replace(one, spec=replace(one.spec, fn_name=name, sweep=sweep, content=content))


async def _found(desk: Desk, **wanted: Any) -> list[str]:
    return [row.task_id for row in await rows.find(desk.store, FrameOptions(**wanted))]


async def test_the_server_sends_what_fits_and_nothing_else(desk: Desk) -> None:
    f, g, swept, late, odd = await desk.put(
        _of("f"), _of("g"), _of("f", "scan", content="ab" * 16), call("late", delay_ms=LATER),
        _of("g", "f"),
    )  # fmt: skip
    assert set(await _found(desk)) == {f, g, swept, late, odd}
    assert set(await _found(desk, task="f")) == {f, swept, late}
    assert await _found(desk, sweep="scan", task="f") == [swept]
    assert await _found(desk, sweep="scan", task="g") == []
    assert await _found(desk, status="scheduled") == ["late"]
    assert await _found(desk, status="not_found") == []
    [picked] = await desk.store.server.scripts.pick(
        [desk.keys.job(g)], "f", "", "", ("t",), ("p",), 9
    )
    assert picked is None


async def test_a_row_tells_what_the_record_of_the_job_tells(desk: Desk) -> None:
    for outcome in (DONE, FAILED, replace(DONE, cached="other")):
        assert await desk.finish(await desk.held(_of("f", "scan")), replace(outcome, result=b"r"))
    running = await desk.held()
    await desk.start(running)
    await desk.put(call(delay_ms=LATER))
    found = await rows.find(desk.store, FrameOptions(values=True), 10)
    assert len(found) == 5
    for row in found:
        record = await desk.record(row.task_id)
        assert record is not None
        assert row == Row.of(record)
    assert {row.ending for row in found} == {Ending.DONE, Ending.FAILED, None}


async def test_a_limit_reads_the_newest_and_no_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "PAGE", 4)
    made = [(await desk.put(_of("f" if number % 2 else "g")))[0] for number in range(20)]
    times = {row.task_id: row.enqueue_time for row in await rows.find(desk.store, FrameOptions())}
    assert sorted(times) == sorted(made)
    asked = _counting(desk, monkeypatch)
    newest = await _found(desk, limit=3)
    assert sorted(times[id_] or 0 for id_ in newest) == sorted(t or 0 for t in times.values())[-3:]
    assert asked == [3]
    assert len(await _found(desk, task="f", limit=3)) == 3
    assert sum(asked) < 15


def _counting(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many jobs each call of the script is asked for from now on."""
    scripts, asked = desk.store.server.scripts, list[int]()
    pick: Callable[..., Any] = scripts.pick

    async def counted(self: object, jobs: list[str], *rest: Any) -> Any:
        asked.append(len(jobs))
        return await pick(jobs, *rest)

    monkeypatch.setattr(type(scripts), "pick", counted)
    return asked


async def test_jobs_of_one_millisecond_are_all_found_once_however_small_the_page(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await desk.put(*(call() for _ in range(23)))
    monkeypatch.setattr(rows, "PAGE", 5)
    monkeypatch.setattr(rows, "LISTED", 5)
    for id_ in ids:
        hex_ = desk.keys.job(id_).rpartition(":")[2]
        await desk.raw("ZADD", desk.keys.jobs, 7, hex_)
    assert sorted(await _found(desk)) == sorted(ids)
    assert sorted(await _found(desk, since=datetime.fromtimestamp(0.007, UTC))) == sorted(ids)
    assert await _found(desk, since=datetime.fromtimestamp(0.008, UTC)) == []


async def test_large_results_are_not_read_and_large_calls_are(desk: Desk) -> None:
    for size in (10, 11):
        one = call(f"r{size}", payload=b"p" * 40_000)
        assert await desk.finish(await desk.held(one), replace(DONE, result=b"r" * size))
    [small, large] = await rows.look(desk.store, ["r10", "r11"], 10)
    assert (small.result, large.result) == (b"r" * 10, b"")
    assert (small.call, large.ending) == (b"", Ending.DONE)
    found = await rows.find(desk.store, FrameOptions())
    assert [len(row.call) for row in found] == [40_000, 40_000]
    assert {row.result for row in found} == {b""}


async def test_what_is_no_job_costs_only_itself(desk: Desk) -> None:
    [good] = await desk.put(_of("f"))
    for number, (id_, *command) in enumerate(
        [
            ("text", "SET", "text"),
            ("list", "RPUSH", "x"),
            ("spec", "HSET", "s", "q", "m", b"\x9cnonsense"),
            ("short", "HSET", "s", "q", "m", b""),
            ("state", "HSET", "s", "?"),
        ]
    ):
        key, verb, *rest = desk.keys.job(id_), *command
        await desk.raw(verb, key, *rest)
        await desk.raw("PEXPIRE", key, 60_000)
        await desk.raw("ZADD", desk.keys.jobs, number, key.rpartition(":")[2])
    await desk.raw("ZADD", desk.keys.jobs, 1, "no hex")
    assert await _found(desk) == [good]
    assert await _found(desk, task="f") == [good]
    looked = await rows.look(desk.store, ["text", "spec", "unknown", good])
    assert [row.status for row in looked] == [
        JobState.NOT_FOUND, JobState.COMPLETE, JobState.NOT_FOUND, JobState.QUEUED,
    ]  # fmt: skip
    assert looked[1].failure is not None
    assert (looked[1].task_id, looked[1].failure.type) == ("spec", "JobLost")


@pytest.mark.parametrize(
    "field, value",
    [
        ("t", 2**63 - 1),
        ("o", pack(["done", 2**64 - 1, 10, 20, "host:1", 5, None, None, None])),
        ("o", pack(["done", 1, 10, 2**60, "host:1", 5, None, None, None])),
        ("o", pack(["done", 1, 10, 20, "host:1", 2**64 - 1, None, None, None])),
    ],
)
async def test_a_figure_that_no_table_can_hold_costs_only_its_row(
    desk: Desk, field: str, value: object
) -> None:
    for id_ in ("bad", "good"):
        assert await desk.finish(await desk.held(call(id_)))
    await desk.raw("HSET", desk.keys.job("bad"), field, value)
    assert await _found(desk) == ["good"]
