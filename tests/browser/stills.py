"""Jobs, sweeps, pools and apps that stand still, in every state, and full of hostile text.

Imported in the kernel of a browser test.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from IPython.display import HTML

from qnb import display
from qnb.clock import now_ms
from qnb.closeup import tail
from qnb.models import (
    Ending,
    FailedJob,
    Failure,
    JobRecord,
    JobState,
    Outcome,
    PoolSnapshot,
    QueueSnapshot,
    Report,
    RunningJob,
    SweepInfo,
    SweepSnapshot,
    WorkerInfo,
)
from tests.hostile import CORPUS

AT = now_ms()
JOBS = [
    *("scheduled", "queued", "running", "not_found"),
    *("done", "failed", "aborted", "expired", "crashed", "refused"),
]
SWEEPS = ["queued", "running", "paused", "done", "finished", "aborted"]
POOLS = ["looking", "serving", "idle", "starting", "leaving", "stopped", "reconnecting"]
APPS = ["looking", "busy", "idle", "unserved", "reconnecting"]


class Still(display.Displayed):
    """Shows one snapshot; ``pressed`` says which buttons have come through."""

    def __init__(self, snapshot: Any) -> None:
        self._snapshot = snapshot
        self.pressed: list[str] = []
        self._lookout = self

    def snapshot(self) -> Any:
        return self._snapshot

    def watch(self, _changed: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    def look(self, *_: object, **__: object) -> None:
        pass

    def card(self) -> HTML:
        """Its static card, as it is in a file."""
        return HTML(self._repr_html_())

    def _press(self, name: str) -> Future[None]:
        self.pressed.append(name)
        done: Future[None] = Future()
        done.set_result(None)
        return done


class Job(Still):
    def abort(self) -> Future[None]:
        return self._press("abort")

    def retry(self) -> Future[None]:
        return self._press("retry")


class Sweep(Still):
    def pause(self) -> Future[None]:
        return self._press("pause")

    def resume(self) -> Future[None]:
        return self._press("resume")

    def cancel(self) -> Future[None]:
        return self._press("cancel")

    def retry(self) -> Future[None]:
        return self._press("retry")


class Pool(Still):
    def scale(self, n: int) -> Future[None]:
        return self._press(f"scale {n}")

    def stop(self) -> Future[None]:
        return self._press("stop")


class App(Still):
    pass


# -- every state -------------------------------------------------------------------------------


def a_job(word: str) -> Job:
    """A job in the state ``word``."""
    unfinished = word in ("scheduled", "queued", "running", "not_found")
    started = word not in ("scheduled", "queued", "not_found")
    failure = Failure(
        "ValueError", "the step is too large", "ValueError('the step is too large')",
        '  File "<cell 3>", line 12, in simulate\n    check(step)\n' * 12,
    )  # fmt: skip
    outcome = None
    if not unfinished:
        failed = None if word == "done" else failure
        outcome = Outcome(Ending(word), 1, AT - 4_000, AT, failure=failed, worker="node3:4711")
    return Job(
        JobRecord(
            "01K0QW6E7Z4M", "simulate", "default",
            JobState(word) if unfinished else JobState.COMPLETE, AT - 5_000,
            tries=int(started), start=AT - 4_000 if started else None,
            worker="node3:4711" if started else None,
            report=Report(31, 50, "epoch 31", {"loss": 0.25}) if word == "running" else None,
            outcome=outcome, arguments="3, step=0.1",
            log="\n".join(f"epoch {n}" for n in range(40)) if started else "",
        )
    )  # fmt: skip


def a_sweep(word: str) -> Sweep:
    """A sweep in the state ``word``."""
    mixed = bytes([2, 2, 2, 3, 4, 1, 1, 0, 0, 0] * 6)
    cells = {
        "queued": bytes(60), "running": mixed, "paused": mixed, "done": bytes([2] * 60),
        "finished": bytes([2, 2, 3] * 20), "aborted": bytes([2, 4] * 30),
    }[word]  # fmt: skip
    left = 20.0 if word == "running" else None
    return Sweep(
        SweepSnapshot(
            "scan", "simulate", 60, cells, elapsed=0 if word == "queued" else 83.4, eta=left,
            errors={"ValueError('no luck')": cells.count(3)} if 3 in cells else {},
            state="paused" if word == "paused" else "finished" if 0 not in cells else "running",
        )
    )  # fmt: skip


def some_workers(count: int = 4) -> tuple[WorkerInfo, ...]:
    """Workers: busy, idle, leaving and silent ones."""
    return tuple(
        WorkerInfo(
            f"w{n}", "node3", 4711 + n, 2, int(n % 4 == 0), 120, AT - 60_000, AT,
            load=0.7, memory=10**8, leaving=n % 4 == 2, silent=n % 4 == 3,
            jobs=(RunningJob(f"01K{n}", "simulate", AT - 3_000),) if n % 4 == 0 else (),
        )
        for n in range(count)
    )  # fmt: skip


def a_pool(word: str) -> Pool:
    """A pool in the state ``word``."""
    if word == "looking":
        return Pool(PoolSnapshot("default", "node3", most=8))
    workers = () if word == "stopped" else some_workers()
    note = word if word == "reconnecting" else ""
    state: Any = "serving" if note else word
    slots = 0 if word == "stopped" else 6
    wanted = 8 if word == "starting" else None
    return Pool(PoolSnapshot("default", "node3", AT, state, workers, slots, wanted, 8, note))


def an_app(word: str) -> App:
    """An app in the state ``word``."""
    if word == "looking":
        return App(QueueSnapshot("default"))
    workers = {"unserved": (), "idle": some_workers(2)[1:]}.get(word, some_workers())
    counts = {"queued": 20, "running": 4, "done": 30, "failed": 5, "aborted": 1}
    states: tuple[Any, ...] = ("running", "paused", "stopped", "finished", "incomplete")
    return App(
        QueueSnapshot(
            "default", AT, {"bulk": 0 if word == "idle" else 20, "urgent": 0}, 3, workers,
            sweeps=tuple(
                SweepInfo(f"scan-{state}", "simulate", "bulk", AT, 60, 60, counts, state=state)
                for state in states
            ),
            failures=(FailedJob("01K7", "simulate", AT - 9_000, "ValueError('no luck')"),),
            rates=tuple(float(n % 7) for n in range(30)), since=AT - 150_000, rate=3.2,
            note=word if word == "reconnecting" else "",
        )
    )  # fmt: skip


# -- full of hostile text ----------------------------------------------------------------------


def hostile_sweeps() -> Iterator[Sweep]:
    """All of the corpus, eight strings a sweep."""
    for name, task, note, *errors in _parts(8):
        cells = bytes([2, 3, 3, 1, 0])
        found = {text: 9 - place for place, text in enumerate(errors)}
        yield Sweep(SweepSnapshot(name, task, 5, cells, 3.0, errors=found, note=note))


def hostile_jobs() -> Iterator[Job]:
    """All of the corpus, eight strings for a job that runs and one that has failed."""
    for task, ident, worker, given, log, kind, message, frame in _parts(8):
        facts: dict[str, Any] = {"worker": worker, "arguments": given, "log": tail(log)}
        said = Report(1, 2, message, {kind: frame})
        yield Job(JobRecord(ident, task, "x", JobState.RUNNING, AT, start=AT, report=said, **facts))
        failure = Failure(kind, message, message, frame)
        outcome = Outcome(Ending.FAILED, 1, AT, AT + 1, failure=failure, worker=worker)
        yield Job(JobRecord(ident, task, "x", JobState.COMPLETE, AT, outcome=outcome, **facts))


def _worker(texts: tuple[str, ...]) -> WorkerInfo:
    ident, host, *jobs = texts
    running = tuple(RunningJob(ident, text, AT) for text in jobs)
    return WorkerInfo(ident, host, 1, len(jobs), len(jobs), 3, AT, AT, jobs=running)


def hostile_pools() -> Iterator[Pool]:
    """All of the corpus, as what workers run."""
    for texts in _parts(64):
        workers = tuple(_worker(texts[n : n + 8]) for n in range(0, 64, 8))
        yield Pool(PoolSnapshot(texts[0], texts[1], AT, "serving", workers, 6, note=texts[2]))


def hostile_apps() -> Iterator[App]:
    """All of the corpus, as lanes, names, errors and hosts."""
    counts = {"queued": 1, "running": 0, "done": 2, "failed": 0, "aborted": 0}
    for texts in _parts(48):
        name, note, *rest = texts
        pairs = list(zip(rest[::2], rest[1::2], strict=True))
        yield App(
            QueueSnapshot(
                name, AT, dict.fromkeys(rest[:16], 3),
                workers=tuple(_worker((*pair, *pair)) for pair in pairs[:4]),
                sweeps=tuple(SweepInfo(*pair, pair[0], 0, 3, 3, counts) for pair in pairs[4:14]),
                failures=tuple(FailedJob(*pair, AT, pair[1]) for pair in pairs[14:]),
                rates=(1.0, None), note=note,
            )
        )  # fmt: skip


def _parts(size: int) -> Iterator[tuple[str, ...]]:
    texts = itertools.cycle(CORPUS)
    for _ in range(-(-len(CORPUS) // size)):
        yield tuple(itertools.islice(texts, size))
