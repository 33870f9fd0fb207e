"""Processes that die: a child, a supervisor, a whole host; and bodies that end their own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import qnb
from tests.faults.conftest import Figures
from tests.faults.ledger import Ledger, note
from tests.faults.stage import Kind, Stage, Worker, eventually, invariants

QUEUE = "faults"
ON_ITS_WAY = 20_000_000  # ns that an outcome may take to the store
LATE = pytest.mark.on_demand
KINDS = pytest.mark.parametrize("kind", ["processes", "inline"])

#: what a body does to its process, and what is said of it
PILLS = {
    "os._exit": "exited with status 3",
    "SIGSEGV": "ended by signal SIGSEGV",
    "SIGKILL": "ended by signal SIGKILL",
}


def die(how: str) -> None:
    if how == "os._exit":
        os._exit(3)
    os.kill(os.getpid(), getattr(signal, how))


def lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def executing(ledger: Ledger, pid: int, at: int | None = None) -> set[str]:
    """The bodies that ``pid`` has started and not ended; or ended so shortly before ``at``
    (monotonic ns) that their outcomes were on their way."""
    running: set[str] = set()
    for row in ledger.lines():
        if int(row[0]) == pid and row[2] == "start":
            running.add(row[3])
        elif (
            int(row[0]) == pid and row[2] == "end" and (at is None or int(row[1]) < at - ON_ITS_WAY)
        ):
            running.discard(row[3])
    return running


def again(ledger: Ledger, name: str, since: int, limit: float) -> float:
    """Seconds from ``since`` (monotonic ns) to the second start of a body."""
    eventually(lambda: ledger.starts()[name] == 2, f"{name} starts again", limit)
    rows = [row for row in ledger.lines("start") if row[3] == name]
    return (int(rows[1][1]) - since) / 1e9


def closed(app: qnb.App, url: str) -> None:
    """Nothing is left of what an app has asked for."""
    app.close()
    invariants(url, QUEUE)


# -- one child dies -----------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("jobs, kills", [(60, 2), pytest.param(1000, 10, marks=LATE)])
def test_killed_processes_lose_no_job_and_rerun_only_what_they_ran(
    stage: Stage, ledger: Ledger, figures: Figures, kind: Kind, jobs: int, kills: int
) -> None:
    url = stage.server().url
    options = {"lease_ms": 15_000 if kind == "processes" else 1000}
    takes = 5 / jobs  # all have not ended before the last one is killed
    workers = [stage.worker(url, QUEUE, 4, kind=kind, options=options)]
    app = qnb.App(url, QUEUE)

    @app.task
    def body(x: int, path: str) -> int:
        note(path, "start", x)
        time.sleep(takes)
        note(path, "end", x)
        return x

    @app.task
    async def beside(x: int, path: str) -> int:
        note(path, "start", x)
        await asyncio.sleep(takes)
        note(path, "end", x)
        return x

    handles = [(body, beside)[x % 2].submit(x, ledger.path) for x in range(jobs)]
    killed: set[int] = set()
    ran = just_over = 0  # bodies where it was killed
    for kill in range(kills):
        due = (kill + 1) * jobs // (kills + 2)
        eventually(lambda due=due: ledger.ends().total() > due, f"{due} bodies have run", 60)
        pid = _victim(ledger, workers[-1])
        since = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: not lives(pid), "it is gone")
        killed.add(pid)
        ran += len(executing(ledger, pid))
        just_over += len(executing(ledger, pid, since)) - len(executing(ledger, pid))
        if kind == "inline":  # nobody else starts it again
            workers.append(stage.worker(url, QUEUE, 4, kind=kind, options=options, wait=False))
    done = [job.get(timeout=60) for job in handles]
    lost = jobs - len(set(done))
    _only_killed_ones_ran_again(ledger, killed)
    assert set(ledger.starts()) == {str(x) for x in range(jobs)}
    if kind == "processes":
        assert workers[0].alive
    closed(app, url)
    figures(
        "G1", f"{kills} SIGKILLs in {jobs:,} jobs, {kind}",
        "0 lost, extra runs ≤ bodies that ran where it was killed, or had just ended",
        f"{lost} lost, {ledger.extra()} extra runs; {ran} ran, {just_over} had ended in 20 ms",
        lost == 0 and ledger.extra() <= ran + just_over,
    )  # fmt: skip


def _victim(ledger: Ledger, worker: Worker) -> int:
    """A process of ``worker`` that runs a body."""

    def found() -> int | None:
        pids = [worker.pid, *worker.children()]
        busy = [pid for pid in pids if executing(ledger, pid)]
        return random.choice(busy) if busy else None

    return int(eventually(found, "a body runs"))


def _only_killed_ones_ran_again(ledger: Ledger, killed: set[int]) -> None:
    """Each run of a job but its last one was in a process that was killed."""
    runs: dict[str, list[int]] = {}
    for pid, _, _, name in ledger.lines("start"):
        runs.setdefault(name, []).append(int(pid))
    spared = {name: pids for name, pids in runs.items() if not set(pids[:-1]) <= killed}
    assert not spared, f"run again although their process lived: {spared}"


@pytest.mark.parametrize("times", [4, pytest.param(20, marks=LATE)])
def test_a_dead_child_is_seen_at_once_whatever_the_lease(
    stage: Stage, ledger: Ledger, figures: Figures, times: int
) -> None:
    url = stage.server().url
    stage.worker(url, QUEUE, 2)  # with the default lease, 15 s
    app = qnb.App(url, QUEUE)

    @app.task
    def body(x: int, path: str) -> int:
        note(path, "start", x)
        time.sleep(60 if qnb.current_task().tries == 1 else 0)
        return x

    @app.task
    async def beside(x: int, path: str) -> int:
        note(path, "start", x)
        await asyncio.sleep(60 if qnb.current_task().tries == 1 else 0)
        return x

    took = []
    for x in range(times):
        assert _serve(app, 2, f"{ledger.path}-{x}") == 2  # the pool is whole
        job = (body, beside)[x % 2].submit(x, ledger.path)
        eventually(lambda x=x: ledger.starts()[str(x)], "it runs")
        pid, since = int(ledger.lines("start")[-1][0]), time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        took.append(again(ledger, str(x), since, 20))
        assert job.get(timeout=10) == x
    closed(app, url)
    figures(
        "G2", f"a child dies, worst of {times}, default lease", "≤ 1.0 s until its job runs again",
        f"{max(took):.2f} s", max(took) <= 1.0,
    )  # fmt: skip


# -- a whole host goes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, lease, times",
    [
        ("processes", 0.6, 1),
        pytest.param("processes", 15.0, 2, marks=LATE),
        pytest.param("inline", 15.0, 2, marks=LATE),
    ],
)
def test_jobs_of_a_host_that_is_gone_run_elsewhere_after_a_lease(
    stage: Stage,
    ledger: Ledger,
    figures: Figures,
    kind: Kind,
    lease: float,
    times: int,
) -> None:
    url = stage.server().url
    options = {"lease_ms": round(lease * 1000)} if lease != 15 else {}
    app = qnb.App(url, QUEUE)

    @app.task
    def body(x: int, path: str) -> int:
        note(path, "start", x)
        time.sleep(60 if qnb.current_task().tries == 1 else 0)
        return x

    took = []
    for x in range(times):
        host = stage.worker(url, QUEUE, 1, kind=kind, options=options)
        job = body.submit(x, ledger.path)
        eventually(lambda x=x: ledger.starts()[str(x)], "it runs")
        other = stage.worker(url, QUEUE, 1, kind=kind, options=options)
        since = time.monotonic_ns()
        host.kill_all()
        took.append(again(ledger, str(x), since, 2 * lease + 10))
        assert job.get(timeout=10) == x
        assert other.terminate() == 0
    closed(app, url)
    figures(
        "G3", f"a host is gone, lease {lease:g} s, worst of {times}, {kind}",
        f"≤ {lease + 1:g} s until its job runs elsewhere",
        f"{max(took):.2f} s", max(took) <= lease + 1,
    )  # fmt: skip


@LATE
def test_children_die_with_their_supervisor(stage: Stage, ledger: Ledger, figures: Figures) -> None:
    url = stage.server().url
    worker = stage.worker(url, QUEUE, 2, options={"lease_ms": 1000})
    app = qnb.App(url, QUEUE)

    @app.task
    def body(x: int, path: str) -> int:
        note(path, "start", x)
        time.sleep(2 if qnb.current_task().tries == 1 else 0)
        note(path, "end", x)
        return x

    jobs = [body.submit(x, ledger.path) for x in range(6)]
    eventually(lambda: ledger.starts().total() == 2, "both slots run one")
    children = worker.children()
    since = time.monotonic()
    worker.kill()
    eventually(lambda: not any(map(lives, children)), "its children are gone", 5)
    took = time.monotonic() - since
    stage.worker(url, QUEUE, 2, options={"lease_ms": 1000})
    assert [job.get(timeout=20) for job in jobs] == list(range(6))
    starts = ledger.starts()
    assert starts["0"] == starts["1"] == 2
    closed(app, url)
    figures(
        "G1", "the supervisor is killed, 2 of 6 jobs run", "0 lost, 2 extra runs, no child ≤ 1 s",
        f"0 lost, {ledger.extra()} extra runs, children gone after {took:.2f} s",
        ledger.extra() == 2 and took <= 1.0,
    )  # fmt: skip


# -- bodies that take their process with them ----------------------------------------------------


@pytest.mark.parametrize(
    "shape, how",
    [
        ("async", "SIGSEGV"),
        *(
            pytest.param(shape, how, marks=LATE)
            for shape, how in itertools.product(("sync", "async"), PILLS)
            if (shape, how) != ("async", "SIGSEGV")
        ),
    ],
)
def test_a_pill_is_tried_three_times_and_those_beside_it_are_done(
    stage: Stage, ledger: Ledger, figures: Figures, how: str, shape: str
) -> None:
    url = stage.server().url
    worker = stage.worker(url, QUEUE, 4)
    app = qnb.App(url, QUEUE)
    pill, sound = _pill(app, shape)
    since = time.monotonic()
    bad = pill.submit("pill", how, ledger.path)
    good = [sound.submit(x, ledger.path) for x in range(20)]
    done = [job.get(timeout=30) for job in good]
    took = time.monotonic() - since
    with pytest.raises(qnb.WorkerCrashed) as crashed:
        bad.get(timeout=30)
    assert PILLS[how] in str(crashed.value)
    assert done == list(range(20))
    starts = ledger.starts()["pill"]
    serve = _serve(app, 4, ledger.path)
    assert worker.alive
    closed(app, url)
    figures(
        "G5",
        f"a pill ({shape}, {how}) in a worker of 4",
        "4 of 4 serve",
        f"{serve} of 4",
        serve == 4,
    )
    figures(
        "G4", f"a pill ({shape}, {how}) beside 20 sound jobs",
        "3 starts, then failed naming it; 20 of 20 sound ones ≤ 15 s",
        f"{starts} starts, {len(done)} of 20 in {took:.1f} s", starts == 3 and took <= 15,
    )  # fmt: skip


def _pill(app: qnb.App, shape: str) -> tuple[Any, Any]:
    @app.task(name="pill")
    def pill(name: str, how: str, path: str) -> None:
        note(path, "start", name)
        time.sleep(0.05)
        die(how)

    @app.task(name="async pill")
    async def async_pill(name: str, how: str, path: str) -> None:
        note(path, "start", name)
        await asyncio.sleep(0.05)
        die(how)

    @app.task(name="sound")
    def sound(x: int, path: str) -> int:
        note(path, "start", x)
        time.sleep(0.1)
        return x

    @app.task(name="async sound")
    async def async_sound(x: int, path: str) -> int:
        note(path, "start", x)
        await asyncio.sleep(0.1)
        return x

    return (pill, sound) if shape == "sync" else (async_pill, async_sound)


def _serve(app: qnb.App, slots: int, path: str) -> int:
    """How many processes run a body at the same time, once ``slots`` of them are waited for."""

    @app.task(name="where")
    def where(path: str, slots: int) -> int:
        note(path, "here")
        eventually(lambda: len(Ledger(Path(path)).lines("here")) >= slots, "all run at once", 10)
        return os.getpid()

    return len({job.get(timeout=20) for job in [where.submit(path, slots) for _ in range(slots)]})


@LATE
def test_a_pool_keeps_its_size(stage: Stage, ledger: Ledger, figures: Figures) -> None:
    url = stage.server().url
    app = qnb.App(url, QUEUE, allow_volatile=True)
    with app.start_workers(4, linger="60 s") as pool:
        pill, _ = _pill(app, "sync")
        since = time.monotonic()
        bad = [pill.submit(f"pill {how}", how, ledger.path) for how in PILLS]
        for job in bad:
            with pytest.raises(qnb.WorkerCrashed):
                job.get(timeout=30)
        eventually(lambda: time.monotonic() - since > 10, "ten seconds have passed", 15)
        assert pool.slots == 4
        serve = _serve(app, 4, ledger.path)
    closed(app, url)
    figures(
        "G5", "3 pills in a pool of 4", "4 of 4 serve 10 s later", f"{serve} of 4 serve", serve == 4
    )


@LATE
def test_a_pill_in_the_users_own_process_is_tried_three_times_by_whoever_starts_it_again(
    stage: Stage, ledger: Ledger, figures: Figures
) -> None:
    url = stage.server().url
    options = {"lease_ms": 1000}
    app = qnb.App(url, QUEUE)
    pill, sound = _pill(app, "sync")
    since = time.monotonic()
    bad = pill.submit("pill", "SIGSEGV", ledger.path)
    good = [sound.submit(x, ledger.path) for x in range(20)]
    deaths = []
    while len(deaths) < 3:
        worker = stage.worker(url, QUEUE, 4, kind="inline", options=options)
        eventually(lambda worker=worker: not worker.alive, "the pill has ended it", 20)
        deaths.append(worker.exit_status)
    last = stage.worker(url, QUEUE, 4, kind="inline", options=options)
    done = [job.get(timeout=30) for job in good]
    took = time.monotonic() - since
    with pytest.raises(qnb.WorkerCrashed, match="fell silent"):
        bad.get(timeout=30)
    assert last.alive
    assert deaths == [-signal.SIGSEGV] * 3
    starts = ledger.starts()["pill"]
    closed(app, url)
    figures(
        "G4", "a pill in app.run(), started again each time, lease 1 s",
        "3 starts, then failed; 20 of 20 sound ones ≤ 15 s",
        f"{starts} starts, {len(done)} of 20 in {took:.1f} s", starts == 3 and took <= 15,
    )  # fmt: skip


@LATE
def test_a_pill_in_a_process_of_its_own_spares_the_users(
    stage: Stage, ledger: Ledger, figures: Figures
) -> None:
    url = stage.server().url
    worker = stage.worker(url, QUEUE, 4, kind="inline")
    app = qnb.App(url, QUEUE)

    @app.task(isolation="process")
    def pill(path: str) -> None:
        note(path, "start", "pill")
        die("SIGSEGV")

    @app.task(isolation="process")
    def where(path: str) -> None:
        note(path, "start", "where")
        time.sleep(60)

    bad = pill.submit(ledger.path)
    with pytest.raises(qnb.WorkerCrashed, match=PILLS["SIGSEGV"]):
        bad.get(timeout=30)
    starts = ledger.starts()["pill"]
    assert worker.alive
    where.submit(ledger.path)
    eventually(lambda: ledger.starts()["where"], "it runs")
    pid = int(ledger.lines("start")[-1][0])
    worker.kill()
    eventually(lambda: not lives(pid), "it dies with the user's process", 2)
    app.close()
    figures(
        "G4", "a pill with isolation='process' in app.run()",
        "3 starts, then failed naming it; the user's process lives", f"{starts} starts",
        starts == 3,
    )  # fmt: skip
