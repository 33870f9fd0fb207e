"""mark.lua: how far a sweep has come is noted once, and only in the sweep that is meant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qnb.errors import BrokerError
from qnb.storage.studies import End, Studies, Study
from tests.storage.desk import Desk

SCAN = Study("scan", "scan-1", "f", "default", b"manifest", total=3, jobs=3, whole=True)


async def _made(desk: Desk) -> tuple[Studies, Study]:
    studies = Studies(desk.store)
    made = await studies.create(SCAN, [b"one"])
    assert made is not None
    return studies, made


async def _state(desk: Desk) -> list[Any]:
    sweep, points, digests = desk.keys.study("scan")
    return [
        await desk.raw("HGETALL", sweep),
        await desk.raw("TYPE", points),
        await desk.raw("TYPE", digests),
    ]


async def test_it_goes_forward_and_never_back(desk: Desk) -> None:
    studies, made = await _made(desk)
    for stored, most in ((2, 2), (10, 10), (9, 10), (0, 10)):
        await desk.raw("HSET", desk.keys.sweep("scan"), "b", 1)
        before = await desk.now_ms()
        assert await studies.mark(made, stored=stored)
        found = await studies.load("scan")
        assert found is not None
        assert found.stored == most
        assert before <= found.heard <= await desk.now_ms()  # also where it brought nothing new


async def test_only_news_of_jobs_says_that_somebody_stores_them(desk: Desk) -> None:
    studies, made = await _made(desk)
    before = await studies.load("scan")
    await desk.raw("HSET", desk.keys.sweep("scan"), "b", 1)
    assert await studies.held(made, "paused: at the first failures")
    found = await studies.load("scan")
    assert before is not None
    assert found == replace(before, heard=1, held="paused: at the first failures")
    assert await studies.held(made, "")
    assert await studies.load("scan") == replace(before, heard=1)


async def test_digests_stand_at_the_numbers_of_their_jobs(desk: Desk) -> None:
    studies, made = await _made(desk)
    assert await studies.mark(made, digests=(2, b"c" * 16 + b"d" * 16))
    assert await studies.mark(made, digests=(0, b"a" * 16))
    assert await studies.digests("scan") == b"a" * 16 + bytes(16) + b"c" * 16 + b"d" * 16
    assert 0 < await desk.ttl(desk.keys.study("scan")[2]) <= studies.ttl_ms


async def test_more_points_are_added_in_order_and_once_however_often_they_are_sent(
    desk: Desk,
) -> None:
    studies, made = await _made(desk)
    for _ in range(2):  # the reply was lost
        assert await studies.mark(made, points=[b"two", b"three"], fields={"t": 7, "j": 6})
    for _ in range(2):
        assert await studies.mark(made, points=[b"four"], stored=6)
    assert await studies.points("scan") == [b"one", b"two", b"three", b"four"]
    found = await studies.load("scan")
    assert found is not None
    assert (found.total, found.jobs, found.stored) == (7, 6, 6)


async def test_how_it_ended_is_noted_and_taken_back(desk: Desk) -> None:
    studies, made = await _made(desk)
    end = End({"done": 2, "failed": 1}, 1, 1_700_000_000_000)
    for said in (end, None):
        assert await studies.ended(made, said)
        found = await studies.load("scan")
        assert found is not None
        assert found.end == said


@pytest.mark.parametrize("other", [{"prefix": "scan-2"}, {"version": 2}, {"version": 0}])
async def test_another_sweep_or_other_points_are_left_alone(
    desk: Desk, other: dict[str, Any]
) -> None:
    studies, made = await _made(desk)
    before = await _state(desk)
    news: dict[str, Any] = {"stored": 3, "digests": (0, b"d" * 16), "points": [b"two"]}
    assert not await studies.mark(replace(made, **other), **news)
    assert await _state(desk) == before
    assert await studies.points("scan") == [b"one"]
    any_version = await studies.mark(replace(made, **other), any_version=True)
    assert any_version == ("prefix" not in other)


async def test_a_forgotten_one_does_not_come_back(desk: Desk) -> None:
    studies, made = await _made(desk)
    await studies.forget(made)
    assert not await studies.mark(
        made, stored=3, digests=(0, b"d" * 16), points=[b"two"], any_version=True
    )
    assert not await desk.raw("EXISTS", *desk.keys.study("scan"))


async def test_any_news_keeps_all_of_it_for_longer(desk: Desk) -> None:
    studies, made = await _made(desk)
    assert await studies.mark(made, digests=(0, b"d" * 16))
    for key in desk.keys.study("scan"):
        await desk.raw("PEXPIRE", key, 60_000)
    assert await studies.mark(made)
    assert all([await desk.ttl(key) > 60_000 for key in desk.keys.study("scan")])


@pytest.mark.parametrize("forged", ["soon", "nan", "1e999", "-5", ""])
async def test_a_number_that_is_none_is_put_right(desk: Desk, forged: str) -> None:
    studies, made = await _made(desk)
    await desk.raw("HSET", desk.keys.sweep("scan"), "s", forged)
    assert await studies.mark(made, stored=3)
    found = await studies.load("scan")
    assert found is not None
    assert found.stored == 3


@pytest.mark.parametrize("wrong", ["points", "digests", "no room"])
async def test_what_cannot_be_written_is_not_half_written(desk: Desk, wrong: str) -> None:
    studies, made = await _made(desk)
    _, points, digests = desk.keys.study("scan")
    if wrong != "no room":
        key = {"points": points, "digests": digests}[wrong]
        await desk.raw("DEL", key)
        await desk.raw("SADD", key, "of another type")
        await desk.raw("PEXPIRE", key, 60_000)
    before = await _state(desk)
    number = 2**25 if wrong == "no room" else 0
    with pytest.raises(BrokerError, match=r"wrong kind|WRONGTYPE|maximum"):
        await studies.mark(
            made, stored=3, digests=(number, b"d" * 16), points=[b"two"], fields={"t": 9}
        )
    assert await _state(desk) == before
