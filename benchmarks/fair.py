"""Short jobs among long ones: does one wait behind a long one while a slot is free anywhere?

Bodies that sleep 1, 10, 100 ms and 1 s, shuffled, on one worker of 1 to 8 slots and on two, as
child processes and in process. Each returns where and when it ran. From that follow, for every
slot, the gaps between two of its jobs during which others waited: the longest of them is the
longest that a job waited while a slot was free.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rows import markdown

import qnb

HERE = Path(__file__).parent

#: for each slot: how many bodies of how many seconds
MIX = {1.0: 1, 0.1: 8, 0.01: 40, 0.001: 60}
QUICK = {0.3: 1, 0.05: 4, 0.01: 10, 0.001: 20}

#: workers, and slots of each
SETUPS = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4))

_SERVE = {
    "processes": "import sys, qnb.cli; sys.argv[1:] = ['worker', 'fair:app', '-n', '{slots}']; "
    "qnb.cli.main()",
    "inline": "import asyncio, fair; asyncio.run(fair.app.run())",
}


def app_of(url: str, queue: str, slots: int, kind: str) -> qnb.App:
    app = qnb.App(url, queue, concurrency=slots)
    if kind == "inline":

        @app.task(name="nap")
        async def nap(seconds: float) -> tuple[int, float, float]:
            began = time.monotonic()
            await asyncio.sleep(seconds)
            return os.getpid(), began, time.monotonic()

    else:

        @app.task(name="nap")
        def nap(seconds: float) -> tuple[int, float, float]:
            began = time.monotonic()
            time.sleep(seconds)
            return os.getpid(), began, time.monotonic()

    return app


if "FAIR_URL" in os.environ:  # in a worker
    app = app_of(
        os.environ["FAIR_URL"], os.environ["FAIR_QUEUE"], int(os.environ["FAIR_SLOTS"]),
        os.environ["FAIR_KIND"],
    )  # fmt: skip


@dataclass(frozen=True)
class Fairness:
    """What a run was like."""

    efficiency: float  #: time in bodies, of all the time of all slots
    stood_free: float  #: the longest that a slot was free while a job waited, in seconds
    slots: int  #: how many ran jobs

    @classmethod
    def of(cls, spans: Sequence[tuple[int, float, float]], slots: int) -> Fairness:
        """From ``(process, start, end)`` of every body on ``slots`` slots, all queued at first."""
        spans = sorted(spans, key=lambda span: span[1])
        first, last_start = spans[0][1], spans[-1][1]
        lanes = _lanes(spans)
        gaps = [0.0]
        for lane in lanes:
            edges = [first, *(edge for _, *edges in lane for edge in edges), last_start]
            # start of the run, start, end, start, end, …, end of the waiting
            gaps += [later - sooner for sooner, later in list(pairwise(edges))[::2]]
        if len(lanes) < slots:
            gaps.append(last_start - first)
        busy = sum(end - start for _, start, end in spans)
        took = max(end for *_, end in spans) - first
        return cls(busy / (slots * took), max(gaps), len(lanes))


def _lanes(spans: Sequence[tuple[int, float, float]]) -> list[list[tuple[int, float, float]]]:
    """The jobs of each slot: one goes to the slot of its process that has been free for longest."""
    lanes: list[list[tuple[int, float, float]]] = []
    for span in spans:
        free = [lane for lane in lanes if lane[0][0] == span[0] and lane[-1][2] <= span[1]]
        if free:
            min(free, key=lambda lane: lane[-1][2]).append(span)
        else:
            lanes.append([span])
    return lanes


def order(mix: dict[float, int], slots: int) -> list[float]:
    """The bodies, shuffled. The longest begin in the first half: how the end is packed is luck."""
    chance = random.Random(slots)  # noqa: S311 - the same each time
    longest = max(mix)
    naps = [seconds for seconds in mix if seconds != longest for _ in range(mix[seconds] * slots)]
    chance.shuffle(naps)
    for _ in range(mix[longest] * slots):
        naps.insert(chance.randrange(len(naps) // 2), longest)
    return naps


def start(url: str, queue: str, kind: str, slots: int) -> subprocess.Popen[bytes]:
    env = os.environ | {"FAIR_URL": url, "FAIR_QUEUE": queue, "FAIR_SLOTS": str(slots),
                        "FAIR_KIND": kind}  # fmt: skip
    command = [sys.executable, "-c", _SERVE[kind].format(slots=slots)]
    return subprocess.Popen(command, cwd=HERE, env=env, stderr=subprocess.DEVNULL)


async def scenario(
    url: str, kind: str, workers: int, slots: int, mix: dict[float, int]
) -> Fairness:
    """Run ``mix`` for each slot, on so many workers of so many slots."""
    app = app_of(url, f"fair-{secrets.token_hex(4)}", slots, kind)
    nap, every = app.ref("nap"), workers * slots
    started = [start(url, app.queue_name, kind, slots) for _ in range(workers)]
    try:
        ready: set[int] = set()  # the processes that run bodies
        while len(ready) < (every if kind == "processes" else workers):
            jobs = await app.enqueue_many([nap.prepare(0.05) for _ in range(every)])
            ready |= {pid for pid, *_ in await asyncio.gather(*jobs)}
        # After many that take no time a worker takes more of them at once.
        await asyncio.gather(*await app.enqueue_many([nap.prepare(0) for _ in range(40 * every)]))
        calls = [nap.prepare(seconds) for seconds in order(mix, every)]
        return Fairness.of(await asyncio.gather(*await app.enqueue_many(calls)), every)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(20)
        app.close()


def measured(url: str, *, quick: bool) -> dict[str, Fairness]:
    """By ``kind workers slots``."""
    return {
        f"{kind} {workers} {slots}": asyncio.run(
            scenario(url, kind, workers, slots, QUICK if quick else MIX)
        )
        for kind in ("processes", "inline")
        for workers, slots in (SETUPS[-1:] if quick else SETUPS)
    }


def table(found: dict[str, Fairness]) -> str:
    lines = [["workers × slots", "time in bodies, of all slots' time",
              "longest that a job waited while a slot was free"], ["---"] * 3]  # fmt: skip
    for key, fairness in found.items():
        kind, workers, slots = key.split()
        where = "child processes" if kind == "processes" else "in process"
        lines.append([f"{workers} × {slots}, {where}", f"{fairness.efficiency:.0%}",
                      f"{fairness.stood_free * 1e3:.0f} ms"])  # fmt: skip
    return markdown(lines)
