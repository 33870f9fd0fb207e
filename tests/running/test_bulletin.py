"""What a worker says of itself is true, small, and said as often as somebody looks, but no more."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgpack
import pytest

from qnb.models import Ending, Failure, JobSpec, Outcome
from qnb.running import bulletin
from qnb.running.bulletin import Bulletin


def _spec(id_: str) -> JobSpec:
    return JobSpec(id_, "simulate", "default")


def _outcome(text: str, **more: Any) -> Outcome:
    return Outcome(Ending.FAILED, 1, 5, 9, failure=Failure("E", text, text), **more)


async def test_it_names_what_runs_the_longest_and_the_last_failures() -> None:
    told = Bulletin()
    for n in range(40):
        told.begun(f"ref{n}", _spec(f"job{n}"), n)
    told.ended("ref0")
    for n in range(9):
        told.outcome(_spec(f"job{n}"), _outcome(f"no luck with {n}"))
    told.outcome(_spec("again"), _outcome("will be tried again", retry_in_ms=5))
    told.outcome(_spec("good"), Outcome(Ending.DONE, 1, 5, 9))
    aborted = Failure("JobAborted", "by somebody", "")
    told.outcome(_spec("aborted"), Outcome(Ending.ABORTED, 1, 5, 9, failure=aborted))
    says = await told.says()
    assert says["jobs"] == [[f"job{n}", "simulate", n] for n in range(1, 17)]
    assert [row[3] for row in says["failed"]] == [f"no luck with {n}" for n in range(4, 9)]
    assert says["memory"] > 5_000_000


async def test_however_long_the_names_are_it_is_small_and_can_be_sent() -> None:
    told = Bulletin()
    for n in range(40):
        told.begun(f"ref{n}", JobSpec("\U0001f600" * 9_999, "\ud800" * 9_999, "default"), n)
        told.outcome(_spec("x" * 9_999), _outcome("\udfff" * 9_999))
    assert len(msgpack.packb(await told.says())) < 20_000


async def test_many_who_look_make_one_heartbeat_in_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bulletin, "PAUSE", 0.05)
    told, spoken = Bulletin(), []

    async def speak() -> None:
        spoken.append(asyncio.get_running_loop().time())

    answering = asyncio.ensure_future(told.answer(speak))
    while len(spoken) < 4:
        told.asked.set()
        await asyncio.sleep(0)
    answering.cancel()
    assert all(later - earlier >= 0.049 for earlier, later in itertools.pairwise(spoken))
