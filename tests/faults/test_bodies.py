"""Bodies that take all memory, leave things behind, or return what cannot be sent; a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import qnb
from qnb.storage import server as embedded
from tests.conftest import unavailable
from tests.faults.conftest import Figures
from tests.faults.ledger import Ledger, note
from tests.faults.stage import Kind, Stage, Worker, eventually, invariants

QUEUE = "faults"
LATE = pytest.mark.on_demand
KINDS = pytest.mark.parametrize("kind", ["processes", pytest.param("inline", marks=LATE)])

MB = 1 << 20


def ends(job: qnb.Job[Any], limit: float = 30) -> str:
    """How a job ended: ``"value"``, or the name of what it raised."""
    try:
        job.get(timeout=limit)
    except Exception as error:  # noqa: BLE001 - that is the answer
        return type(error).__name__
    return "value"


def lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def sounds(app: qnb.App, count: int, seconds: float = 0) -> list[qnb.Job[int]]:
    """So many jobs that have nothing wrong with them."""

    @app.task
    def sound(x: int, seconds: float) -> int:
        time.sleep(seconds)
        return x

    return [sound.submit(x, seconds) for x in range(count)]


def all_done(jobs: list[qnb.Job[int]]) -> None:
    assert [job.get(timeout=10) for job in jobs] == list(range(len(jobs)))


# -- what cannot be sent ------------------------------------------------------------------------


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("no copy of this, please")


class TwoWords(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class Holding(Exception):
    def __init__(self) -> None:
        super().__init__("it holds a lock")
        self.lock = threading.Lock()


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("nothing to say")


def deep() -> list[Any]:
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    return nest


#: what a body returns or raises, and how its job may end
ODD: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "a lock": (threading.Lock, {"ResultError"}),
    "a generator": (lambda: (x for x in "ab"), {"ResultError"}),
    "an open file": (lambda: open(os.devnull, "w"), {"ResultError"}),  # noqa: SIM115, PTH123
    "one that refuses to be copied": (Unpicklable, {"ResultError"}),
    "100,000 nested lists": (deep, {"ResultError"}),
    "an exception with a lock": (Holding, {"Holding", "RemoteError"}),
    "an exception of two words": (lambda: TwoWords("a", "b"), {"TwoWords", "RemoteError"}),
    "an exception without text": (Mute, {"Mute", "RemoteError"}),
}


@KINDS
def test_what_cannot_be_sent_ends_its_job_at_once_by_its_name(
    stage: Stage, ledger: Ledger, figures: Figures, kind: Kind
) -> None:
    url = stage.server().url
    worker = stage.worker(url, QUEUE, 2, kind=kind)
    app = qnb.App(url, QUEUE)

    @app.task
    def odd(name: str, make: Any, path: str) -> Any:
        note(path, "start", name.replace(" ", "-"))
        made = make()
        if isinstance(made, Exception):
            raise made
        return made

    assert odd.submit("warm", int, ledger.path).get(timeout=10) == 0
    told, worst = {}, 0.0
    for name, (make, _) in ODD.items():
        since = time.monotonic()
        told[name] = ends(odd.submit(name, make, ledger.path), 10)
        worst = max(worst, time.monotonic() - since)
    wrong = {name: how for name, how in told.items() if how not in ODD[name][1]}
    assert not wrong
    assert odd.submit("after", int, ledger.path).get(timeout=10) == 0
    assert worker.alive
    extra = ledger.extra()
    app.close()
    invariants(url, QUEUE)
    figures(
        "G15", f"{len(ODD)} kinds of results and exceptions that cannot be sent, {kind}",
        "all end ≤ 1 s as a named failure, run once, the worker lives",
        f"{len(told)} of {len(ODD)}, slowest {worst:.2f} s, {extra} extra runs",
        worst <= 1 and extra == 0,
    )  # fmt: skip


# -- memory -------------------------------------------------------------------------------------


def _with_little_memory(worker: Worker) -> None:
    """Let no process of ``worker`` take more than 256 MB beyond what it has, nor those to come."""
    for pid in (worker.pid, *worker.children()):
        room = psutil.Process(worker.pid).memory_info().vms + 256 * MB
        resource.prlimit(pid, resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))


@KINDS
def test_a_body_that_takes_all_memory_fails_by_name_and_harms_no_other(
    stage: Stage, ledger: Ledger, figures: Figures, kind: Kind
) -> None:
    url = stage.server().url
    worker = stage.worker(url, QUEUE, 2, kind=kind)
    app = qnb.App(url, QUEUE)

    @app.task
    def big(path: str) -> int:
        note(path, "start", "big")
        return len(bytearray(4096 * MB))

    @app.task
    def creeping(path: str) -> None:
        note(path, "start", "creeping")
        kept: list[Any] = []
        while True:
            kept.append(bytearray(MB))

    all_done(sounds(app, 4))
    _with_little_memory(worker)
    for task in (big, creeping):
        job = task.submit(ledger.path)
        with pytest.raises(MemoryError):
            job.get(timeout=20)
        all_done(sounds(app, 4))
    assert worker.alive
    extra = ledger.extra()
    app.close()
    invariants(url, QUEUE)
    figures(
        "G15", f"bodies that take all memory there is, {kind}",
        "fail with MemoryError, run once; sound jobs after them are done",
        f"so it is, {extra} extra runs", extra == 0,
    )  # fmt: skip


@LATE
def test_a_body_that_leaves_no_memory_to_report_with_ends_by_name(
    stage: Stage, ledger: Ledger, figures: Figures
) -> None:
    url = stage.server().url
    worker = stage.worker(url, QUEUE, 2)
    app = qnb.App(url, QUEUE)

    @app.task
    def crumbs(path: str) -> None:
        note(path, "start", "crumbs")
        kept = vars(sys)["crumbs"] = []  # it stays when this has failed
        while True:
            kept.append([None])

    _with_little_memory(worker)
    bad = crumbs.submit(ledger.path)
    all_done(sounds(app, 20, 0.02))
    how = ends(bad)
    runs = ledger.starts()["crumbs"]
    all_done(sounds(app, 1))
    assert worker.alive
    app.close()
    invariants(url, QUEUE)
    figures(
        "G4", "a body that leaves no memory to report with", "ends by name after at most 3 starts",
        f"{how} after {runs} starts", how in ("MemoryError", "WorkerCrashed") and runs <= 3,
    )  # fmt: skip


@LATE
def test_a_body_above_its_max_memory_fails_naming_it(
    stage: Stage, ledger: Ledger, figures: Figures
) -> None:
    url = stage.server().url
    worker = stage.worker(url, QUEUE, 2)
    app = qnb.App(url, QUEUE)

    @app.task(max_memory="150 MB")
    def big(path: str) -> int:
        note(path, "start", "big")
        kept = [bytearray(MB) for _ in range(300)]
        time.sleep(20)
        return len(kept)

    since = time.monotonic()
    bad = big.submit(ledger.path)
    all_done(sounds(app, 20, 0.02))
    with pytest.raises(qnb.MemoryLimitExceeded, match="its max_memory is 150,000,000"):
        bad.get(timeout=10)
    took = time.monotonic() - since
    assert worker.alive
    app.close()
    invariants(url, QUEUE)
    figures(
        "G15", "a body of 300 MB with max_memory of 150 MB", "fails naming both figures, run once",
        f"after {took:.2f} s, {ledger.starts()['big']} run", ledger.starts()["big"] == 1,
    )  # fmt: skip


# -- what is left behind ------------------------------------------------------------------------

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def leave_thread() -> int:
    def beat() -> None:
        while True:
            time.sleep(0.05)

    threading.Thread(target=beat).start()
    return os.getpid()


def leave_process() -> int:
    return subprocess.Popen(SLEEPER).pid


def leave_session() -> int:
    return subprocess.Popen(SLEEPER, start_new_session=True).pid


def leave_orphan() -> int:
    """Its parent has ended, and it has left its session."""
    shell = ["sh", "-c", "setsid sleep 60 > /dev/null 2>&1 & echo $!"]
    return int(subprocess.run(shell, stdout=subprocess.PIPE, check=True).stdout)


async def leave_async() -> int:
    child = await asyncio.create_subprocess_exec(*SLEEPER)
    return child.pid


LEAVERS: list[Callable[[], Any]] = [
    leave_thread, leave_process, leave_session, leave_orphan, leave_async,
]  # fmt: skip


@LATE
def test_nothing_of_a_body_outlives_it(stage: Stage, ledger: Ledger, figures: Figures) -> None:
    url = stage.server().url
    worker = stage.worker(url, QUEUE, 2)
    app = qnb.App(url, QUEUE)

    slowest, left = 0.0, 0
    for leave in LEAVERS:
        task = app.task(leave)
        all_done(sounds(app, 1))
        pid = task.submit().get(timeout=10)
        since = time.monotonic()
        all_done(sounds(app, 4))
        slowest = max(slowest, time.monotonic() - since)
        try:
            eventually(lambda pid=pid: not lives(pid), "it is gone", 1)
        except AssertionError:
            left += 1
            psutil.Process(pid).kill()
    assert worker.alive
    app.close()
    invariants(url, QUEUE)
    figures(
        "G15", "bodies that leave a thread, processes, an orphan behind",
        "gone ≤ 1 s after the body; 4 jobs behind it ≤ 1 s",
        f"{left} of {len(LEAVERS)} left, slowest jobs behind {slowest:.2f} s",
        left == 0 and slowest <= 1,
    )  # fmt: skip


# -- a full disk --------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk of a few megabytes: call it with its size, again to make it larger."""
    place = tmp_path / "disk"
    place.mkdir(mode=0o700)
    mounted = False

    def sized(size: str) -> Path:
        nonlocal mounted
        how = f"remount,size={size}" if mounted else f"size={size},mode=700"
        command = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            unavailable("the right to mount a small disk")
        mounted = True
        return place

    yield sized
    if mounted:
        embedded.stop(place)
        subprocess.run(["umount", str(place)], check=True)


@LATE
@pytest.mark.parametrize("killed", [False, True], ids=["lives", "killed"])
def test_a_full_disk_refuses_work_by_name_and_loses_none(
    stage: Stage,
    ledger: Ledger,
    figures: Figures,
    disk: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    killed: bool,
) -> None:
    folder = disk("6m")
    monkeypatch.setenv("QNB_DATA_DIR", str(folder))
    url = embedded.ensure()
    worker = stage.worker(url, QUEUE, 2)
    app = qnb.App(url, QUEUE)

    @app.task
    def body(x: int, path: str, load: bytes) -> int:
        note(path, "start", x)
        time.sleep(0.02)
        return x

    accepted, refused = _fill(lambda x: body.submit(x, ledger.path, os.urandom(100_000)))
    assert worker.alive
    if killed:
        pid = embedded.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not lives(pid), "the server is gone")
    disk("64m")
    told = [ends(job, 60) for job in accepted]
    lost, extra = len(told) - told.count("value"), ledger.extra()
    assert worker.alive
    assert body.submit(1000, ledger.path, b"").get(timeout=20) == 1000
    app.close()
    invariants(url, QUEUE)
    # The call that filled it was taken into memory; the server writes it once it can.
    most = 1 if killed else 0
    figures(
        "G17", f"the disk of the embedded server is full{', and it is killed then' * killed}",
        f"enqueue raises StoreFull; of what was accepted ≤ {most} lost; goes on by itself",
        f"{type(refused).__name__}; {lost} of {len(accepted)} lost, {extra} extra runs",
        lost <= most and isinstance(refused, qnb.StoreFull) and (killed or extra == 0),
    )  # fmt: skip


def _fill(submit: Callable[[int], qnb.Job[int]]) -> tuple[list[qnb.Job[int]], qnb.QnbError]:
    """Submit until that is refused: what was accepted, and what the refusal said."""
    accepted: list[qnb.Job[int]] = []
    while len(accepted) < 300:
        try:
            accepted.append(submit(len(accepted)))
        except qnb.QnbError as error:
            return accepted, error
    raise AssertionError("it was never full")
