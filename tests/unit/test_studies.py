"""Sweeps as they stand in the store: whatever a stranger writes into one costs that one only."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from qnb.errors import QnbError
from qnb.storage.keys import job_hex
from qnb.storage.records import pack
from qnb.storage.studies import MOST_JOBS, End, Studies, Study
from tests.storage.desk import Desk, opened

SCAN = Study(
    "Größe 2", "Größe 2-ab", "f", "default", b"manifest", total=4, jobs=5, whole=True, held="paused"
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def _kept(desk: Desk, study: Study = SCAN) -> tuple[Studies, Study]:
    studies = Studies(desk.store)
    made = await studies.create(study, [])
    assert made
    assert await studies.mark(made, stored=4, fields={"h": "paused"})
    assert await studies.ended(made, End({"done": 3, "failed": 1}, 2, 1_700_000_000_000))
    found = await studies.load(study.name)
    assert found is not None
    return studies, found


async def test_a_sweep_comes_back_as_it_was(server_url: str, queue: str) -> None:
    async with opened(server_url, queue) as desk:
        _, found = await _kept(desk)
    end = End({"done": 3, "failed": 1}, 2, 1_700_000_000_000)
    assert found.created > 0
    assert found == replace(
        SCAN, stored=4, version=1, created=found.created, heard=found.heard, end=end
    )
    assert found.id(7) == "Größe 2-ab.7"


@pytest.mark.parametrize("field", ["t", "j", "s"])
async def test_the_most_jobs_are_those_whose_digests_fit_into_a_value(
    server_url: str, queue: str, field: str
) -> None:
    async with opened(server_url, queue) as desk:
        studies, _ = await _kept(desk)
        key = desk.keys.sweep(SCAN.name)
        await desk.raw("HSET", key, field, MOST_JOBS)
        assert await studies.load(SCAN.name)
        await desk.raw("HSET", key, field, MOST_JOBS + 1)
        with pytest.raises(QnbError, match="cannot be read"):
            await studies.load(SCAN.name)


@pytest.mark.parametrize(
    "field, forged",
    [
        *((field, text) for field in "tjsvcb" for text in ("x", "-1", "1.5", "1" * 20, "\u0661")),
        *((field, 253_402_300_800_000) for field in "cb"),  # in the year 10000
        *((field, b"\xff") for field in "npfl"),
        ("n", "another"),
        ("n", ""),
        *(
            ("z", value)
            for value in (
                b"\xc1", b"\x91" * 5_000, pack(5), pack([{}, 0]), pack([[], 0, 0]),
                pack([{"lost": 1}, 0, 0]), pack([{1: 1}, 0, 0]), pack([{"done": -1}, 0, 0]),
                pack([{"done": 1.5}, 0, 0]), pack([{"done": None}, 0, 0]),
                pack([{"done": 2**60}, 0, 0]), pack([{}, True, 0]), pack([{}, 0, "soon"]),
                pack([{}, 0, 2**60]), pack([{}, 0, float("nan")]),
            )
        ),
    ],
    ids=repr,
)  # fmt: skip
async def test_an_unreadable_sweep_is_told_of_and_left_out(
    server_url: str, queue: str, caplog: pytest.LogCaptureFixture, field: str, forged: Any
) -> None:
    async with opened(server_url, queue, watched=False) as desk:
        studies, _ = await _kept(desk)
        _, other = await _kept(desk, replace(SCAN, name="other", prefix="other-1"))
        await desk.raw("HSET", desk.keys.sweep(SCAN.name), field, forged)
        with caplog.at_level(logging.WARNING, "qnb.store"):
            assert await studies.all() == [other]
        with pytest.raises(QnbError, match="is stored, but cannot be read"):
            await studies.load(SCAN.name)  # not None: its name is taken
        assert [record.name for record in caplog.records] == ["qnb.store"]
        assert desk.keys.sweep(SCAN.name) in caplog.text


async def test_what_is_no_sweep_leaves_the_list(server_url: str, queue: str) -> None:
    async with opened(server_url, queue) as desk:
        studies, found = await _kept(desk)
        index = desk.keys.sweeps
        await desk.raw("ZADD", index, 9e15, "f" * 32, 8e15, "e" * 32, 7e15, "no hex", 6e15, b"\xff")
        key = f"{desk.keys.prefix}sweep:{'e' * 32}"
        await desk.raw("SET", key, "of another type", "PX", 60_000)
        assert await studies.all() == [found]
        await studies.tidy()
        assert await desk.raw("ZCARD", index) == 2  # of another type is not of nothing


async def test_the_newest_sweep_is_the_first(server_url: str, queue: str) -> None:
    async with opened(server_url, queue) as desk:
        for age, name in enumerate(("b", "a", "c")):
            studies, _ = await _kept(desk, replace(SCAN, name=name, prefix=name))
            await desk.raw("ZADD", desk.keys.sweeps, 9 - age, job_hex(name))
        assert [study.name for study in await studies.all()] == ["b", "a", "c"]


async def test_what_computes_a_content_is_found_by_it(server_url: str, queue: str) -> None:
    async with opened(server_url, queue) as desk:
        studies = Studies(desk.store)
        await studies.computes({"ab": "scan-1.0", "cd": "scan-1.1"})
        await studies.computes({"ab": "scan-2.0"})
        await studies.computes({})
        await desk.raw("SADD", desk.keys.cache("ef"), "of another type")
        await desk.raw("PEXPIRE", desk.keys.cache("ef"), 60_000)
        found = await studies.computing(["cd", "none", "ef", "ab"])
        assert found == ["scan-1.1", "", "", "scan-2.0"]
        assert await studies.code("12") is None
        await studies.keep_code("12", b"packed")
        assert await studies.code("12") == b"packed"
        for key in (desk.keys.cache("cd"), desk.keys.code("12")):
            assert studies.ttl_ms - 10_000 < await desk.ttl(key) <= studies.ttl_ms
