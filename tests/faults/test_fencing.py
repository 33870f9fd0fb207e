"""Workers that stand still: stopped, blocked, busy beyond a lease. Nothing runs twice, nothing that
was read changes."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from typing import Any

import pytest

import qnb
from tests.faults.conftest import Figures
from tests.faults.ledger import Ledger, note
from tests.faults.stage import Kind, Stage, eventually, invariants

QUEUE = "faults"
LATE = pytest.mark.on_demand
KINDS = pytest.mark.parametrize("kind", [pytest.param("processes", marks=LATE), "inline"])

#: a lease that is over soon; seconds of five of them
SHORT = {"lease_ms": 600}
FIVE = 3


def each(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


# -- stopped ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, what, pause",
    [
        ("inline", "app.run()", 2),
        pytest.param("inline", "app.run()", 6, marks=LATE),
        pytest.param("processes", "the supervisor and its children", 6, marks=LATE),
        pytest.param("processes", "the supervisor alone", 6, marks=LATE),
    ],
)
def test_an_outcome_that_was_read_stays_when_a_stopped_worker_goes_on(
    stage: Stage, ledger: Ledger, figures: Figures, kind: Kind, what: str, pause: int
) -> None:
    options = {"lease_ms": 1000 if pause > 5 else 600}
    url = stage.server().url
    first = stage.worker(url, QUEUE, 8, kind=kind, options=options)
    app = qnb.App(url, QUEUE)

    @app.task
    def body(x: int, path: str) -> str:
        note(path, "start", x)
        time.sleep(1.0)
        note(path, "end", x)
        return f"{os.getpid()} {time.monotonic_ns()}"

    jobs = [body.submit(x, ledger.path) for x in range(8)]
    eventually(lambda: ledger.starts().total() == 8, "all of them run")
    since = time.monotonic()
    stopped = [first.pid, *(first.children() if "children" in what else ())]
    each(stopped, signal.SIGSTOP)
    stage.worker(url, QUEUE, 8, kind=kind, options=options)
    read = {job.id: job.get(timeout=30) for job in jobs}
    eventually(lambda: time.monotonic() - since > pause, "it has stood still long enough")
    each(stopped, signal.SIGCONT)
    eventually(lambda: _dropped(first.log()) >= 8, "it says that its attempts are dropped", 10)
    app.close()
    fresh = qnb.App(url, QUEUE)  # which has read nothing yet
    later = {job.id: fresh.job(job.id).get(timeout=10) for job in jobs}
    replaced = sum(read[name] != later[name] for name in read)
    dropped = _dropped(first.log())
    assert first.terminate() == 0
    fresh.close()
    invariants(url, QUEUE)
    figures(
        "G11", f"{what}: stopped for {pause} s, lease {options['lease_ms']} ms",
        "0 of 8 outcomes replaced after they were read; 8 stale attempts logged",
        f"{replaced} replaced, {dropped} logged", replaced == 0 and dropped == 8,
    )  # fmt: skip


def _dropped(log: str) -> int:
    """How many jobs a worker says to have lost to another one."""
    lines = [line for line in log.splitlines() if "taken over" in line or "taken it over" in line]
    return len({line.split("job '")[1].split("'")[0] for line in lines})


# -- blocked ------------------------------------------------------------------------------------


def _blocking(app: qnb.App, how: str) -> Any:
    """A task that holds its loop, or its process's GIL too."""

    @app.task(name=f"blocks: {how}")
    async def blocks(name: str, seconds: int, path: str) -> str:
        note(path, "start", name)
        if how == "GIL":
            ctypes.PyDLL(None).sleep(seconds)
        else:
            time.sleep(seconds)  # noqa: ASYNC251 - it blocks by intention
        note(path, "end", name)
        return name

    return blocks


def _small(app: qnb.App) -> tuple[Any, Any]:
    @app.task(name="small")
    def small(x: int, path: str) -> int:
        note(path, "start", f"small-{x}")
        return x

    @app.task(name="small async")
    async def small_async(x: int, path: str) -> int:
        note(path, "start", f"small-{x}")
        return x

    return small, small_async


@pytest.mark.parametrize("how", ["loop", pytest.param("GIL", marks=LATE)])
def test_a_blocked_child_keeps_its_job_and_stops_no_other(
    stage: Stage, ledger: Ledger, figures: Figures, how: str
) -> None:
    url = stage.server().url
    for _ in range(2):
        stage.worker(url, QUEUE, 2, options=SHORT)
    app = qnb.App(url, QUEUE)
    small = _small(app)
    job = _blocking(app, how).submit("blocked", FIVE, ledger.path)
    eventually(lambda: ledger.starts()["blocked"], "it blocks")
    waits = []
    for x in range(40):
        since = time.monotonic()
        assert small[x % 2].submit(x, ledger.path).get(timeout=20) == x
        waits.append(time.monotonic() - since)
    assert job.get(timeout=20) == "blocked"
    extra = ledger.extra()
    app.close()
    invariants(url, QUEUE)
    figures(
        "G12", f"{how} blocked for 5 leases in a child, two workers",
        "0 extra runs; small jobs ≤ 0.5 s",
        f"{extra} extra runs, slowest of {len(waits)} small jobs {max(waits):.2f} s",
        extra == 0 and max(waits) <= 0.5,
    )  # fmt: skip


@LATE
@pytest.mark.parametrize("how", ["loop", "GIL"])
def test_a_blocked_child_is_cancelled_and_stays_so(
    stage: Stage, ledger: Ledger, figures: Figures, how: str
) -> None:
    url = stage.server().url
    stage.worker(url, QUEUE, 2, options=SHORT)
    app = qnb.App(url, QUEUE)
    job = _blocking(app, how).submit("blocked", 3, ledger.path)
    eventually(lambda: ledger.starts()["blocked"], "it blocks")
    since = time.monotonic()
    command = job.abort()
    with pytest.raises(qnb.JobAborted):
        job.get(timeout=10)
    took = time.monotonic() - since
    assert command.result(5) is True
    eventually(lambda: time.monotonic() - since > 3.5, "it would have ended by itself")
    app.close()
    fresh = qnb.App(url, QUEUE)
    with pytest.raises(qnb.JobAborted):
        fresh.job(job.id).get(timeout=5)
    ran_on = ledger.ends()["blocked"]
    fresh.close()
    invariants(url, QUEUE)
    figures(
        "G12", f"cancel of a child whose {how} is blocked", "≤ 2 s and final, its body gone",
        f"{took:.2f} s, final, {ran_on} ran on", took <= 2 and ran_on == 0,
    )  # fmt: skip


@pytest.mark.parametrize(
    "how, beside, most",
    [
        ("loop", "inline", 0),
        pytest.param("loop", None, 0, marks=LATE),
        pytest.param("GIL", None, 0, marks=LATE),
        # Nobody can say in its stead that it lives: its jobs may run elsewhere too.
        pytest.param("GIL", "processes", 4, marks=LATE),
    ],
)
def test_an_in_process_worker_whose_loop_is_blocked_keeps_its_jobs(
    stage: Stage, ledger: Ledger, figures: Figures, how: str, beside: Kind | None, most: int
) -> None:
    url = stage.server().url
    stage.worker(url, QUEUE, 4, kind="inline", options=SHORT)
    app = qnb.App(url, QUEUE)
    blocked = _blocking(app, how)

    @app.task
    async def waits(name: str, path: str) -> str:
        note(path, "start", name)
        await asyncio.sleep(0.5)
        return name

    neighbours = [waits.submit(f"waits-{x}", ledger.path) for x in range(3)]
    eventually(lambda: ledger.starts().total() == 3, "the neighbours run")
    job = blocked.submit("blocked", FIVE, ledger.path)
    eventually(lambda: ledger.starts()["blocked"], "it blocks")
    if beside:
        stage.worker(url, QUEUE, 4, kind=beside, options=SHORT)
    assert job.get(timeout=20) == "blocked"
    assert [n.get(timeout=20) for n in neighbours] == [f"waits-{x}" for x in range(3)]
    extra = ledger.extra()
    app.close()
    invariants(url, QUEUE)
    figures(
        "G12",
        f"{how} of app.run() blocked for 5 leases, beside it: {beside}",
        f"≤ {most} extra runs of 4, each ends well", f"{extra} extra runs", extra <= most,
    )  # fmt: skip


@LATE
def test_a_cancel_that_a_blocked_loop_cannot_hear_is_answered_truly(
    stage: Stage, ledger: Ledger, figures: Figures
) -> None:
    url = stage.server().url
    stage.worker(url, QUEUE, 2, kind="inline", options=SHORT)
    app = qnb.App(url, QUEUE)
    job = _blocking(app, "loop").submit("blocked", FIVE, ledger.path)
    eventually(lambda: ledger.starts()["blocked"], "it blocks")
    stopped = job.abort().result(FIVE + 5)
    how = asyncio.run(job.result(timeout=5))
    assert how is not None
    app.close()
    invariants(url, QUEUE)
    figures(
        "G12", "cancel while the loop of app.run() is blocked",
        "the answer and the outcome agree, and are final",
        f"abort() is {stopped}, the outcome {'aborted' if how.aborted else 'done'}",
        stopped is how.aborted,
    )  # fmt: skip


# -- busy beyond the lease ----------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("prefetch", [8, pytest.param("auto", marks=LATE)])
def test_jobs_that_wait_in_a_busy_worker_past_the_lease_run_once(
    stage: Stage, ledger: Ledger, figures: Figures, kind: Kind, prefetch: int | str
) -> None:
    url = stage.server().url
    options = {**SHORT, "prefetch": prefetch}
    stage.worker(url, QUEUE, 1, kind=kind, options=options)
    app = qnb.App(url, QUEUE)

    @app.task
    def body(x: int, path: str) -> int:
        note(path, "start", x)
        time.sleep(3 if x == 0 else 0.05)
        return x

    jobs = [body.submit(x, ledger.path) for x in range(9)]
    eventually(lambda: ledger.starts().total() == 1, "it is busy")
    stage.worker(url, QUEUE, 1, kind=kind, options=options)
    assert [job.get(timeout=20) for job in jobs] == list(range(9))
    twice = sum(count > 1 for count in ledger.starts().values())
    app.close()
    invariants(url, QUEUE)
    figures(
        "G7", f"8 jobs wait in a busy worker for 3 leases, prefetch={prefetch}, {kind}",
        "0 of 8 run twice", f"{twice} run twice", twice == 0,
    )  # fmt: skip


@LATE
@pytest.mark.parametrize("kind", ["processes", "inline"])
def test_bodies_longer_than_the_lease_run_once(
    stage: Stage, ledger: Ledger, figures: Figures, kind: Kind
) -> None:
    url = stage.server().url
    for _ in range(2):
        stage.worker(url, QUEUE, 8, kind=kind, options=SHORT)
    app = qnb.App(url, QUEUE)

    @app.task
    def body(x: int, path: str) -> int:
        note(path, "start", x)
        time.sleep(3)
        return x

    jobs = [body.submit(x, ledger.path) for x in range(16)]
    assert [job.get(timeout=30) for job in jobs] == list(range(16))
    twice = sum(count > 1 for count in ledger.starts().values())
    app.close()
    invariants(url, QUEUE)
    figures(
        "G7",
        f"16 bodies of 3 leases, {kind}",
        "0 of 16 run twice",
        f"{twice} run twice",
        twice == 0,
    )


# -- bodies past their timeout ------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, slots",
    [
        ("processes", 2),
        pytest.param("processes", 4, marks=LATE),
        pytest.param("inline", 4, marks=LATE),
    ],
)
def test_bodies_past_their_timeout_free_their_slots_and_blame_no_other(
    stage: Stage, ledger: Ledger, figures: Figures, kind: Kind, slots: int
) -> None:
    url = stage.server().url
    worker = stage.worker(url, QUEUE, slots, kind=kind)
    app = qnb.App(url, QUEUE)

    @app.task(timeout=0.6)
    def hangs(name: str, path: str) -> None:
        note(path, "start", name)
        for _ in range(60):
            time.sleep(0.1)
            note(path, "beat", name)
        note(path, "end", name)

    @app.task(timeout=0.5)
    def quick(x: int, path: str) -> int:
        note(path, "start", x)
        return x

    bad = [hangs.submit(f"hung-{x}", ledger.path) for x in range(slots + 1)]
    eventually(lambda: len(ledger.starts()) == slots, "they fill all slots")
    since = time.monotonic()
    good = [quick.submit(x, ledger.path) for x in range(20)]
    assert [job.get(timeout=20) for job in good] == list(range(20))
    took = time.monotonic() - since
    for job in bad:
        with pytest.raises(TimeoutError, match="ran longer than its timeout of"):
            job.get(timeout=20)
    said = [_why(job) for job in bad]
    ran_on = _ran_on(ledger)
    twice = sum(count > 1 for count in ledger.starts().values())
    if kind == "processes":
        assert not any("runs on" in why for why in said)
        fine = ran_on == 0
    else:  # a thread cannot be ended
        fine = all("its thread cannot be stopped and runs on" in why for why in said)
        worker.kill()
    app.close()
    invariants(url, QUEUE)
    figures(
        "G13",
        f"{slots + 1} sync bodies of 6 s with timeout 0.6 s on {slots} slots, {kind}",
        "0 run on > 1 s past it" + ("" if kind == "processes" else ", or it says so")
        + "; 20 quick ones behind ≤ 2 s; none twice",
        f"{ran_on} run on, quick ones {took:.2f} s, {twice} twice",
        fine and took <= 2 and twice == 0,
    )  # fmt: skip


def _why(job: qnb.Job[Any]) -> str:
    with pytest.raises(TimeoutError) as error:
        job.get(timeout=5)
    return str(error.value)


def _ran_on(ledger: Ledger) -> int:
    """How many hung bodies still ran a second past their timeout."""
    late = {row[3]: int(row[1]) + 1.6e9 for row in ledger.lines("start")}
    eventually(lambda: time.monotonic_ns() > max(late.values()) + 0.2e9, "a second has passed")
    return len({row[3] for row in ledger.lines("beat") if int(row[1]) > late[row[3]]})
