"""gate.lua: what holds a sweep back is said once, for all workers, and needs nobody to stay."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import qnb
from qnb.models import JobSpec, Outcome, Policy
from qnb.storage.gates import UNUSED_MS, Gate, Gates
from qnb.storage.keys import job_hex
from tests.storage.desk import DONE, FAILED, Desk, call

STOPS = JobSpec("scan.3", "f", "default", channel="scan-1", sweep="scan", policy=Policy(stops=True))


async def test_a_gate_is_read_as_it_was_set_and_the_workers_are_told(
    desk: Desk, until: Callable[..., Awaitable[object]]
) -> None:
    gates = Gates(desk.store)
    assert await gates.get("scan-1") == Gate("open", None, "")
    async with desk.hearing(desk.keys.control) as heard:
        for gate in (Gate("open", 3), Gate("paused", 3), Gate("paused"), Gate("stopped", 1)):
            await gates.set("scan-1", limit=gate.limit, state=gate.state)
            assert await gates.get("scan-1") == gate

        async def told() -> bool:
            return heard == [b"g" + job_hex("scan-1").encode()] * 4

        await until(told, "the workers are told of each change")
    assert await gates.get("another") == Gate()


async def test_an_open_gate_without_a_limit_is_none(desk: Desk) -> None:
    gates = Gates(desk.store)
    await gates.set("scan-1", limit=1)
    claimed = await desk.held(call(channel="scan-1"))
    assert await gates.admit([claimed]) == ([claimed], [])
    assert await desk.raw("HLEN", desk.keys.holders(job_hex("scan-1"))) == 1
    await gates.set("scan-1")
    assert await desk.raw("EXISTS", desk.keys.gates, desk.keys.holders(job_hex("scan-1"))) == 0


async def test_the_first_failure_stops_a_sweep_and_is_the_one_that_is_named(desk: Desk) -> None:
    gates = Gates(desk.store)
    await gates.set("scan-1", limit=2)
    other = JobSpec("scan.4", "f", "default", channel="scan-1", sweep="scan", policy=STOPS.policy)
    await gates.failed(STOPS, FAILED)
    await gates.failed(other, FAILED)
    why = "sweep 'scan' stops at its first failure, job 'scan.3': ValueError('no')"
    assert await gates.get("scan-1") == Gate("stopped", 2, why)
    await gates.set("scan-1", limit=2)  # by hand it can be opened again, to be stopped afresh
    await gates.failed(other, FAILED)
    assert "'scan.4'" in (await gates.get("scan-1")).why


@pytest.mark.parametrize(
    "spec, outcome",
    [
        (STOPS, DONE),
        (STOPS, Outcome(qnb.models.Ending.ABORTED, 1, 1, 2)),
        (STOPS, Outcome(qnb.models.Ending.FAILED, 1, 1, 2, retry_in_ms=0)),
        (JobSpec("scan.3", "f", "default", channel="scan-1", sweep="scan"), FAILED),
    ],
    ids=["done", "aborted", "to be retried", "of a sweep that goes on"],
)
async def test_nothing_else_stops_a_sweep(desk: Desk, spec: JobSpec, outcome: Outcome) -> None:
    await Gates(desk.store).failed(spec, outcome)
    assert await Gates(desk.store).get("scan-1") == Gate()


async def test_gates_of_sweeps_long_gone_are_removed_and_others_stay(desk: Desk) -> None:
    gates = Gates(desk.store)
    await gates.set("new", limit=1)
    await gates.set("old", limit=1)
    long_ago = await desk.now_ms() - UNUSED_MS - 1
    await desk.raw("HSET", desk.keys.gates, job_hex("old"), f"o1 {long_ago} ")
    await desk.raw("HSET", desk.keys.gates, job_hex("used"), f"o1 {long_ago} ")
    await desk.raw("HSET", desk.keys.gates, "what is this", b"\xff")
    await gates.admit([await desk.held(call(channel="used"))])
    await gates.tidy()
    left = await desk.raw("HKEYS", desk.keys.gates)
    assert sorted(left) == sorted(job_hex(name).encode() for name in ("new", "used"))


@pytest.mark.parametrize(
    "gate, message",
    [
        ({"state": "closed"}, "state='closed': a gate is one of 'open', 'paused', 'stopped'"),
        ({"limit": 0}, "max_running=0: pass a whole number from 1 on, or None"),
        ({"limit": True}, "max_running=True"),
    ],
)
async def test_what_is_no_gate_is_refused(desk: Desk, gate: dict[str, Any], message: str) -> None:
    with pytest.raises(qnb.errors.InvalidOption) as caught:
        await Gates(desk.store).set("scan-1", **gate)
    assert message in str(caught.value)
