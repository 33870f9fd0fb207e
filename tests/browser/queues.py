"""Stand-ins for a pool and an app that stand still, imported in the kernel of a browser test."""

from __future__ import annotations

import math
import time
from typing import Any

from stills import Still

from qnb.models import (
    FailedJob,
    PoolSnapshot,
    QueueSnapshot,
    RunningJob,
    SweepInfo,
    WorkerInfo,
)

NOW = time.time_ns() // 1_000_000


def worker(pid: int, running: int, **more: Any) -> WorkerInfo:
    jobs = tuple(
        RunningJob(f"scan.{pid % 100 + n}", "simulate", NOW - 3_200 - 61_000 * n)
        for n in range(running)
    )
    usual = {"load": 3.21, "memory": 371_000_000, "lanes": ("default",), "pool": True, "at": NOW}
    return WorkerInfo(
        f"vm:{pid}:ab", "vm", pid, slots=4, running=running, done=pid, started=NOW - 5_000_000,
        jobs=jobs, **{**usual, **more},
    )  # fmt: skip


WORKERS = (
    worker(4711, 3), worker(4712, 0), worker(4713, 1, leaving=True),
    worker(4714, 4, silent=True, at=NOW - 9_000),
)  # fmt: skip
SERVED = {"looking": (), "stopped": (), "idle": (worker(4711, 0),), "leaving": (WORKERS[2],)}


class Pool(Still):
    """One that is in this state."""

    def __init__(self, state: str, **more: Any) -> None:
        workers = SERVED.get(state, WORKERS)
        at, slots = NOW * (state != "looking"), 4 * sum(not w.leaving for w in workers)
        found = PoolSnapshot("shop", "vm", at, state, workers, slots, most=32, **more)  # type: ignore[arg-type]
        super().__init__(found)


class App(Still):
    """One with much going on, or one that is idle."""

    def __init__(self, *, busy: bool = True, **more: Any) -> None:
        states = ("running", "paused", "incomplete", "stopped", "finished", "finished")
        counts = {"queued": 0, "running": 4, "done": 600, "failed": 40, "aborted": 0}
        sweeps = tuple(
            SweepInfo(
                f"scan-{n}", "simulate", "bulk", NOW, 1_000, 1_000,
                {**counts, "failed": 40 * (n != 5), "aborted": 200 * (n == 3)}, state=state,  # type: ignore[arg-type]
                estimated=n == 0,
            )
            for n, state in enumerate(states)
        )  # fmt: skip
        failures = tuple(
            FailedJob(f"scan-0.{n}", "simulate", NOW - 70_000 * n, "ValueError('no luck')")
            for n in range(3)
        )
        rates = [30 + 20 * math.sin(n / 6) for n in range(110)]
        much = {
            "lanes": {"bulk": 81_234, "normal": 0, "urgent": 12}, "delayed": 3, "workers": WORKERS,
            "sweeps": sweeps, "more_sweeps": 12, "failures": failures, "rate": 43.2,
            "rates": (*rates[:60], *[None] * 10, *rates[70:]), "since": NOW - 550_000,
        }  # fmt: skip
        few = {"lanes": {"default": 0}}
        super().__init__(QueueSnapshot("shop", NOW, **{**(much if busy else few), **more}))
