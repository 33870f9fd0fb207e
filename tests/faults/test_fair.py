"""Short jobs among long ones: a slot that is free anywhere takes the next job."""

from __future__ import annotations

import asyncio
import random

import pytest

import qnb
from tests.faults.conftest import Figures
from tests.faults.ledger import Ledger
from tests.faults.stage import Kind, Stage, invariants

QUEUE = "faults"
LONG = 1.0

TASKS = """
import asyncio, time
from tests.faults.ledger import note

@app.task
{form} nap(name, seconds, path):
    note(path, "start", name)
    {sleep}(seconds)
    note(path, "end", name)
"""
FORMS = {
    "processes": TASKS.format(form="def", sleep="time.sleep"),
    "inline": TASKS.format(form="async def", sleep="await asyncio.sleep"),
}


@pytest.mark.parametrize("kind", ["processes", "inline"])
def test_no_short_job_waits_behind_a_long_one_while_a_slot_is_free_anywhere(
    stage: Stage, ledger: Ledger, figures: Figures, kind: Kind
) -> None:
    """On 2 × 2 slots, 3 long jobs leave one: all short ones end before the first long one does."""
    url = stage.server().url
    workers = [stage.worker(url, QUEUE, 2, kind=kind, tasks=FORMS[kind]) for _ in range(2)]
    app = qnb.App(url, QUEUE)
    nap = app.ref("nap")
    shorts = [(f"short-{number}", (0.001, 0.01)[number % 2]) for number in range(30)]

    async def run(name: str, order: list[tuple[str, float]]) -> list[str]:
        """Those short ones that ended after a long one."""
        calls = [nap.prepare(f"{name}-{what}", took, ledger.path) for what, took in order]
        await asyncio.gather(*await app.enqueue_many(calls))
        ends = [row[3] for row in ledger.lines("end") if row[3].startswith(name)]
        first = next(at for at, what in enumerate(ends) if "long" in what)
        return [what for what in ends[first:] if "short" in what]

    async def behind() -> list[str]:
        longs = [(f"long-{number}", LONG) for number in range(3)]
        warm = [nap.prepare(f"warm-{number}", 0.05, ledger.path) for number in range(8)]
        await asyncio.gather(*await app.enqueue_many(warm))
        among = longs + shorts
        random.Random(3).shuffle(among)
        return [*await run("before", longs + shorts), *await run("among", among)]

    late = asyncio.run(behind())
    assert [worker.terminate() for worker in workers] == [0, 0]
    app.close()
    invariants(url, QUEUE)
    figures(
        goal="fair",
        what=f"60 short jobs, before and among which 6 of {LONG:g} s are queued, 2 × 2 {kind}",
        target="0 end after a long one that holds no more than 3 of the 4 slots",
        figure=f"{len(late)} of 60 in each order",
        ok=not late,
    )
