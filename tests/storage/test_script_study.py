"""study.lua: a sweep is created once, and given other points by one at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qnb.errors import BrokerError, QnbError
from qnb.storage.keys import job_hex
from qnb.storage.studies import End, Studies, Study
from tests.storage.desk import Desk

SCAN = Study("scan", "scan-1", "f", "default", b"manifest", total=3, jobs=3, whole=True)
OTHER = replace(SCAN, prefix="scan-2", manifest=b"other")


async def _state(desk: Desk) -> list[Any]:
    """All that is stored of the sweep, and its place in the index."""
    sweep, points, digests = desk.keys.study("scan")
    return [
        await desk.raw("HGETALL", sweep),
        await desk.raw("LRANGE", points, 0, -1),
        await desk.raw("GET", digests),
        await desk.raw("ZRANGE", desk.keys.sweeps, 0, -1, "WITHSCORES"),
    ]


async def test_a_new_sweep_is_stored_whole_listed_and_kept_for_its_time(desk: Desk) -> None:
    studies, before = Studies(desk.store), await desk.now_ms()
    assert await studies.create(SCAN, [b"one", b"two"]) == replace(SCAN, version=1)
    found = await studies.load("scan")
    assert found is not None
    assert before <= found.created == found.heard <= await desk.now_ms()
    assert found == replace(SCAN, version=1, created=found.created, heard=found.heard)
    assert await studies.points("scan") == [b"one", b"two"]
    assert await studies.all() == [found]
    assert int(await desk.raw("ZSCORE", desk.keys.sweeps, job_hex("scan"))) == found.created
    sweep, points, _ = desk.keys.study("scan")
    for key in (sweep, points):
        assert studies.ttl_ms - 10_000 < await desk.ttl(key) <= studies.ttl_ms


async def test_of_one_name_there_is_one_and_the_first_is_left_as_it_is(desk: Desk) -> None:
    studies = Studies(desk.store)
    assert await studies.create(SCAN, [b"one"])
    before = await _state(desk)
    assert await studies.create(OTHER, [b"two"]) is None
    assert await _state(desk) == before


async def test_other_points_come_with_a_new_version_and_leave_what_is_stored(desk: Desk) -> None:
    studies = Studies(desk.store)
    first = await studies.create(SCAN, [b"one"])
    assert first
    assert await studies.mark(first, stored=3, digests=(0, b"d" * 48))
    assert await studies.ended(first, End({"done": 3}, 0, 5))
    await desk.raw("ZADD", desk.keys.sweeps, 1, job_hex("scan"))
    for key in desk.keys.study("scan"):
        await desk.raw("PEXPIRE", key, 60_000)
    more = replace(first, total=5, jobs=5, manifest=b"more")
    assert await studies.replace(more, [b"two", b"three"]) == replace(more, version=2)
    found = await studies.load("scan")
    assert found is not None
    assert (found.version, found.total, found.jobs, found.manifest) == (2, 5, 5, b"more")
    assert (found.stored, found.end) == (3, None)
    assert await studies.points("scan") == [b"two", b"three"]
    assert await studies.digests("scan") == b"d" * 48
    assert int(await desk.raw("ZSCORE", desk.keys.sweeps, job_hex("scan"))) == found.heard
    assert all([await desk.ttl(key) > 60_000 for key in desk.keys.study("scan")])


@pytest.mark.parametrize("change", [{"version": 1}, {"version": 3}, {"prefix": "scan-2"}])
async def test_points_are_replaced_only_in_the_sweep_that_was_looked_at(
    desk: Desk, change: dict[str, Any]
) -> None:
    studies = Studies(desk.store)
    first = await studies.create(SCAN, [b"one"])
    assert first
    second = await studies.replace(first, [b"two"])
    assert second
    before = await _state(desk)
    assert await studies.replace(replace(second, **change), [b"three"]) is None
    assert await _state(desk) == before


async def test_one_that_was_forgotten_is_given_no_points(desk: Desk) -> None:
    studies = Studies(desk.store)
    assert await studies.replace(replace(SCAN, version=1), [b"one"]) is None
    assert not await desk.raw("EXISTS", desk.keys.sweeps, *desk.keys.study("scan"))


async def test_sent_twice_it_is_done_once_and_answered_twice(desk: Desk) -> None:
    scripts, fields = desk.store.server.scripts, {"n": "scan", "f": "f"}
    for version, points in ((None, [b"one"]), (1, [b"two", b"three"])):
        call = ("scan", "scan-1", version, 60_000, f"nonce {version}", fields, points)
        done = await scripts.study(*call)
        before = await _state(desk)
        assert await scripts.study(*call) == done == (version or 0) + 1  # the reply was lost
        assert await _state(desk) == before


async def test_what_an_old_sweep_left_behind_is_not_the_new_ones(desk: Desk) -> None:
    sweep, points, digests = desk.keys.study("scan")
    await desk.raw("HSET", sweep, "h", "paused", "v", "x")
    await desk.raw("SET", points, "of another type")
    await desk.raw("SADD", digests, "of another type")
    studies = Studies(desk.store)
    assert await studies.create(SCAN, [b"one"]) == replace(SCAN, version=1)
    assert await studies.points("scan") == [b"one"]
    assert await studies.digests("scan") == b""
    found = await studies.load("scan")
    assert found is not None
    assert found.held == ""


@pytest.mark.parametrize("kind", ["sweeps", "sweep"])
async def test_where_a_key_is_of_another_type_nothing_is_written(desk: Desk, kind: str) -> None:
    keys = [desk.keys.sweeps, *desk.keys.study("scan")]
    wrong = desk.keys.sweeps if kind == "sweeps" else keys[1]
    await desk.raw("SET", wrong, "text", "PX", 60_000)
    with pytest.raises(BrokerError, match=r"wrong kind|WRONGTYPE"):
        await Studies(desk.store).create(SCAN, [b"one"])
    assert [key for key in keys if await desk.raw("EXISTS", key)] == [wrong]
    assert await desk.raw("GET", wrong) == b"text"


async def test_a_version_that_cannot_be_counted_on_changes_nothing(desk: Desk) -> None:
    studies = Studies(desk.store)
    made = await studies.create(SCAN, [b"one"])
    assert made
    await desk.raw("HSET", desk.keys.sweep("scan"), "v", 2**63 - 1)
    *before, _ = await _state(desk)
    with pytest.raises(BrokerError, match="overflow"):
        await studies.replace(replace(made, version=2**63 - 1), [b"two"])
    *after, _ = await _state(desk)
    assert after == before


async def test_a_large_manifest_and_hundreds_of_parts_come_back(desk: Desk) -> None:
    studies, large = Studies(desk.store), replace(SCAN, manifest=b"M" * 8_000_000)
    parts = [b"%d" % n * 20_000 for n in range(300)]
    assert await studies.create(large, parts)
    found = await studies.load("scan")
    assert found is not None
    assert found.manifest == large.manifest
    assert await studies.points("scan") == parts


@pytest.mark.parametrize("field, value", [("c", 10**18), ("z", b"\xc1"), ("p", ""), ("n", "other")])
async def test_a_sweep_that_cannot_be_read_keeps_its_name_and_is_not_listed(
    desk: Desk, field: str, value: object
) -> None:
    studies = Studies(desk.store)
    assert await studies.create(SCAN, [b"one"])
    await desk.raw("HSET", desk.keys.sweep("scan"), field, value)
    with pytest.raises(QnbError, match="sweep 'scan' is stored, but cannot be read"):
        await studies.load("scan")
    assert await studies.all() == []


async def test_expired_sweeps_are_taken_off_the_list_by_workers_and_by_nobody_who_looks(
    desk: Desk,
) -> None:
    studies = Studies(desk.store)
    await studies.create(SCAN, [b"one"])
    kept = await studies.create(replace(OTHER, name="kept"), [])
    await desk.raw("ZADD", desk.keys.sweeps, 1, b"\xff")
    await desk.raw("DEL", desk.keys.sweep("scan"))
    assert [study.name for study in await studies.all()] == ["kept"]
    assert await desk.raw("ZCARD", desk.keys.sweeps) == 3
    await studies.tidy()
    assert kept
    assert await desk.raw("ZRANGE", desk.keys.sweeps, 0, -1) == [job_hex("kept").encode()]
