"""Due times, leases and schedules follow the server's clock, whatever other clocks say."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import qnb
from tests.faults.clocks import Clock
from tests.faults.conftest import Figures
from tests.faults.ledger import Ledger
from tests.faults.stage import Kind, Stage, Worker, eventually, invariants

HOUR = 3600.0

#: seconds that a body may start after its time, on a machine that others use too
LATE = 0.8

Clocks = Callable[[float], Clock]


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    """Makes clocks that are so many seconds ahead of the server's."""
    return lambda ahead: Clock(tmp_path / f"clock-{secrets.token_hex(4)}", ahead)


def _wall(row: list[str]) -> float:
    """When a line of the ledger was written, by this machine's true clock."""
    return int(row[1]) / 1e9 + time.time() - time.monotonic()


# -- schedules -----------------------------------------------------------------------------------

TICK = """
from tests.faults.ledger import note

@app.cron(every={every})
def tick():
    note({path!r}, "start", qnb.current_task().task_id)
"""


class Ticking:
    """Two workers that serve one schedule, their clocks apart."""

    def __init__(
        self, stage: Stage, ledger: Ledger, url: str, clocks: list[Clock], kind: Kind, every: int
    ) -> None:
        self.every, self.clocks = every, clocks
        self._ledger = ledger
        tasks = TICK.format(every=every, path=ledger.path)
        queue = f"t-{secrets.token_hex(6)}"
        for clock in clocks:
            stage.worker(url, queue, 1, kind=kind, tasks=tasks, env=clock.env)
        self.begun = time.time()

    def due(self, count: int) -> list[int]:
        """The first ``count`` occurrences after both served."""
        first = int(self.begun // self.every + 1) * self.every
        return [first + n * self.every for n in range(count)]

    def runs(self) -> dict[int, list[float]]:
        """When each occurrence ran, by the second that it is named after."""
        found: dict[int, list[float]] = {}
        for row in self._ledger.lines("start"):
            at = datetime.fromisoformat(row[3].partition("@")[2].replace("Z", "+00:00"))
            found.setdefault(int(at.timestamp()), []).append(_wall(row))
        return found

    def judge(self, count: int) -> tuple[int, int, float]:
        """How many of ``count`` occurrences ran, extra runs of any, and the latest start."""
        runs, due = self.runs(), self.due(count)
        ran = [at for at in due if at in runs]
        late = max((start - at for at in ran for start in runs[at]), default=0.0)
        assert all(start >= at for at in ran for start in runs[at]), "one ran before its time"
        return len(ran), sum(len(starts) - 1 for starts in runs.values()), late


def test_each_occurrence_of_a_schedule_runs_once_though_clocks_differ_and_jump(
    stage: Stage, ledger: Ledger, clocks: Clocks, figures: Figures
) -> None:
    url = stage.server().url
    ticking = Ticking(stage, ledger, url, [clocks(-1.5), clocks(HOUR)], "inline", 1)
    eventually(lambda: ticking.due(1)[-1] in ticking.runs(), "one has run")
    ticking.clocks[1].jump(-2 * HOUR)
    eventually(lambda: ticking.due(3)[-1] in ticking.runs(), "three have run")
    ran, extra, late = ticking.judge(3)
    figures(
        goal="G14",
        what="cron every=1 s, two workers: 1.5 s slow; 1 h fast, then 1 h slow",
        target="3 of 3 occurrences, 0 extra",
        figure=f"{ran} of 3, {extra} extra, latest {late:.2f} s after its time",
        ok=ran == 3 and extra == 0 and late < LATE,
    )


@pytest.mark.on_demand
@pytest.mark.timeout(120)
def test_ten_occurrences_of_a_schedule_run_once_each_though_clocks_differ(
    stage: Stage, tmp_path: Path, clocks: Clocks, figures: Figures
) -> None:
    url = stage.server().url
    cases: list[tuple[float, float, Kind]] = [
        (1.5, -1.5, "inline"), (HOUR, -HOUR, "inline"),
        (0, -1.5, "processes"), (HOUR, -HOUR, "processes"),
    ]  # fmt: skip
    all_ticking = [
        Ticking(stage, Ledger(tmp_path / str(at)), url, [clocks(one), clocks(other)], kind, 2)
        for at, (one, other, kind) in enumerate(cases)
    ]
    for ticking in all_ticking:
        eventually(lambda t=ticking: t.due(11)[-1] in t.runs(), "eleven have run", 40)
    for (one, other, kind), ticking in zip(cases, all_ticking, strict=True):
        ran, extra, late = ticking.judge(10)
        figures(
            goal="G14",
            what=f"cron every=2 s, two workers ({kind}) whose clocks are off {one:+g} {other:+g} s",
            target="10 of 10 occurrences, 0 extra",
            figure=f"{ran} of 10, {extra} extra, latest {late:.2f} s after its time",
            ok=ran == 10 and extra == 0 and late < LATE,
        )


# -- due times and expiries ----------------------------------------------------------------------

BODIES = """
import asyncio
from tests.faults.ledger import Ledger, note
from pathlib import Path

@app.task
def touch(path: str, name: str) -> str:
    note(path, "start", name)
    if name == "retried" and Ledger(Path(path)).starts()[name] == 1:
        raise OSError("not yet")
    return name

@app.task
async def nap(path: str, name: str, seconds: float) -> str:
    note(path, "start", name)
    await asyncio.sleep(seconds)
    note(path, "end", name)
    return name
"""

#: a client in a process of its own: what it is told of the time is not what the server is
CLIENT = """
import asyncio, sys
import qnb
from tests.faults.ledger import note

url, queue, path, scheduled = sys.argv[1:]
app = qnb.App(url, queue, ["nobody", "default"], default_priority="default")
touch, nap = app.ref("touch"), app.ref("nap")

async def outcome(name, job):
    try:
        word = await job
    except Exception as error:
        word = type(error).__name__
    note(path, "read", name, word)

async def main():
    jobs = {{}}
    async def send(name, task, *args, **options):
        note(path, "sending", name)
        jobs[name] = await task.options(task_id=name, **options).enqueue(path, name, *args)
        note(path, "sent", name)
{sends}
    await asyncio.gather(*(outcome(name, job) for name, job in jobs.items()))

asyncio.run(main())
"""


class Client:
    """A client process that has sent something, and waits for all of it."""

    def __init__(self, sends: str, clock: Clock, *told: object) -> None:
        program = CLIENT.format(sends="\n".join(f"    await {line}" for line in sends.split("\n")))
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, told)],
            env={**os.environ, **clock.env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def until(self, true: Callable[[], Any], what: str) -> None:
        """Return once it is ``true``; an error if this client ends before that."""

        def seen() -> Any:
            assert true() or self.process.poll() is None, self.process.communicate()[0].decode()
            return true()

        eventually(seen, what)

    def ended(self, limit: float = 20) -> None:
        said, _ = self.process.communicate(timeout=limit)
        assert self.process.returncode == 0, said.decode()


@pytest.fixture
def begin() -> Iterator[Callable[..., Client]]:
    """Starts clients; what is left of them ends with the test."""
    clients: list[Client] = []

    def start(*given: Any) -> Client:
        clients.append(Client(*given))
        return clients[-1]

    yield start
    for client in clients:
        if client.process.poll() is None:
            client.process.kill()
            client.process.communicate()


#: what is sent; and the seconds from then to its start, or to its end if it never starts
DUE = {"now": 0.0, "delayed": 1.0, "scheduled": 0.0, "retried": 0.5, "in_time": 0.0, "expired": 1.0}
SENDS = """\
send("now", touch)
send("delayed", touch, delay_ms=1000)
send("scheduled", touch, schedule_ms=int(scheduled))
send("retried", touch, max_retries=1, backoff_ms=500)
send("in_time", touch, expire_ms=2000)
send("expired", touch, expire_ms=1000, priority="nobody")"""


def _after(ledger: Ledger, word: str, scheduled: float) -> list[float]:
    """By how much each came after its time, counted from when its client noted ``word``."""
    came = {row[3]: _wall(row) for row in ledger.lines("start")}  # the last start of each
    came |= {row[3]: _wall(row) for row in ledger.lines("read") if row[4] == "JobExpired"}
    due = {row[3]: _wall(row) + DUE[row[3]] for row in ledger.lines(word)}
    due["scheduled"] = max(due["scheduled"], scheduled)
    return [came[name] - due[name] for name in DUE]


@pytest.mark.parametrize(
    "client_ahead, worker_ahead, kind, jump",
    [
        pytest.param(HOUR, -HOUR, "inline", -2 * HOUR, id="hours"),
        pytest.param(-HOUR, HOUR, "processes", 0, id="others", marks=pytest.mark.on_demand),
        pytest.param(1.5, -1.5, "inline", 3 * HOUR, id="seconds", marks=pytest.mark.on_demand),
        pytest.param(-1.5, 1.5, "processes", -HOUR, id="back", marks=pytest.mark.on_demand),
    ],
)
def test_jobs_start_and_expire_at_their_time_though_clocks_are_wrong_and_jump(
    stage: Stage, ledger: Ledger, clocks: Clocks, begin: Callable[..., Client], figures: Figures,
    client_ahead: float, worker_ahead: float, kind: Kind, jump: float,
) -> None:  # fmt: skip
    server, queue = stage.server(), f"t-{secrets.token_hex(6)}"
    url, expiries = server.url, f"qnb:{{{queue}}}:expiring:default"
    there, here = clocks(worker_ahead), clocks(client_ahead)
    stage.worker(url, queue, kind=kind, tasks=BODIES, env=there.env)
    scheduled = round(time.time() + 2, 3)
    client = begin(SENDS, here, url, queue, ledger.path, int(scheduled * 1000))
    client.until(lambda: len(ledger.lines("sent")) == 6, "all is sent")
    here.jump(jump)
    there.jump(-jump)
    client.ended()
    assert {row[3]: row[4] for row in ledger.lines("read")} == {
        **{name: name for name in DUE}, "expired": "JobExpired",
    }  # fmt: skip
    early, late = (_after(ledger, word, scheduled) for word in ("sending", "sent"))
    told = _told(url, queue, ledger)
    figures(
        goal="G14",
        what=f"a client {client_ahead:+g} s and a worker ({kind}) {worker_ahead:+g} s off, then "
        f"{jump:+g} s more: jobs now, delayed, scheduled, retried, expiring",
        target=f"each at its time, never before, ≤ {LATE} s late; stamped by the server's clock",
        figure=f"6 of 6, {min(early):+.3f} to {max(late):+.3f} s; stamps ≤ {told:.2f} s off",
        ok=min(early) >= -0.002 and max(late) <= LATE and told < 0.3,
    )
    eventually(lambda: not server.cli("ZCARD", expiries), "what ended in time is struck off")
    invariants(url, queue)


def _told(url: str, queue: str, ledger: Ledger) -> float:
    """How far the start that qnb tells of is from the true one, at most."""
    app = qnb.App(url, queue)
    true = {row[3]: _wall(row) for row in ledger.lines("start")}

    async def off() -> float:
        results = {name: await app.result(name) for name in true}
        return max(abs(r.start / 1000 - true[name]) for name, r in results.items() if r)

    return asyncio.run(off())


# -- leases --------------------------------------------------------------------------------------


@pytest.mark.on_demand
def test_a_lease_lasts_as_long_as_its_holder_lives_though_clocks_jump(
    stage: Stage, ledger: Ledger, clocks: Clocks, begin: Callable[..., Client], figures: Figures
) -> None:
    url, queue, lease = stage.server().url, f"t-{secrets.token_hex(6)}", 1.0
    holder = clocks(HOUR)
    given = {"tasks": BODIES, "options": {"lease_ms": 1000}}
    worker = stage.worker(url, queue, 1, env=holder.env, **given)
    client = begin('send("long", nap, 3.0)', clocks(-HOUR), url, queue, ledger.path, 0)
    client.until(lambda: ledger.starts()["long"], "it runs")
    other = stage.worker(url, queue, 1, env=clocks(-1.5).env, **given)
    for _ in range(2):
        holder.jump(HOUR)
    client.ended()
    kept = ledger.extra()
    other.terminate()
    client = begin('send("next", nap, 3.0)', holder, url, queue, ledger.path, 0)
    client.until(lambda: ledger.starts()["next"], "it runs")
    stage.worker(url, queue, 1, env=clocks(-HOUR).env, **given)
    killed = time.monotonic()
    worker.kill_all()
    eventually(lambda: ledger.starts()["next"] == 2, "another one has taken it over")
    taken = time.monotonic() - killed
    client.ended()
    figures(
        goal="G14",
        what="leases of 1 s: a holder whose clock jumps 1 h twice; then it is killed",
        target="0 extra runs; taken over ≤ lease + 1 s",
        figure=f"{kept} extra runs; taken over after {taken:.2f} s",
        ok=kept == 0 and taken <= lease + 1,
    )


# -- sleep ---------------------------------------------------------------------------------------

SLEEPY = """\
send("running", nap, 1.0)
send("waiting", nap, 0.0)
send("delayed", touch, delay_ms=1000)
send("expired", touch, expire_ms=1000, priority="nobody")"""


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.on_demand)])
@pytest.mark.parametrize("kind", ["inline", pytest.param("processes", marks=pytest.mark.on_demand)])
def test_after_a_laptop_has_slept_all_that_was_under_way_ends_truly(
    stage: Stage, ledger: Ledger, clocks: Clocks, begin: Callable[..., Client], figures: Figures,
    workers: int, kind: Kind,
) -> None:  # fmt: skip
    url, queue, asleep, clock = stage.server().url, f"t-{secrets.token_hex(6)}", 2.0, clocks(0)
    pool = [stage.worker(url, queue, 1, kind=kind, tasks=BODIES, env=clock.env,
                         options={"lease_ms": 600}) for _ in range(workers)]  # fmt: skip
    client = begin(SLEEPY, clock, url, queue, ledger.path, 0)
    client.until(lambda: ledger.starts()["running"] and len(ledger.lines("sent")) == 4, "it runs")
    pids = [client.process.pid, *(pid for worker in pool for pid in _family(worker))]
    _signal(pids, signal.SIGSTOP)
    wakes = time.monotonic() + asleep
    eventually(lambda: time.monotonic() >= wakes, "it has slept")
    clock.missed(asleep)
    woken = time.monotonic()
    _signal(pids, signal.SIGCONT)
    client.ended()
    took = {row[3]: int(row[1]) / 1e9 + asleep - woken for row in ledger.lines("read")}
    read = {row[3]: row[4] for row in ledger.lines("read")}
    figures(
        goal="G11",
        what=f"a laptop sleeps {asleep:g} s with leases of 0.6 s, {workers} workers ({kind}), a "
        "kernel that waits",
        target="all end as they should ≤ 2.5 s after, what has expired ≤ 1 s after; 0 extra runs",
        figure=f"{len(read)} of 4 after {max(took.values()):.2f} s, the expired one after "
        f"{took['expired']:.2f} s, {ledger.extra()} extra runs",
        ok=read == {n: n for n in ("running", "waiting", "delayed")} | {"expired": "JobExpired"}
        and max(took.values()) <= 2.5 and took["expired"] <= 1 and ledger.extra() == 0,
    )  # fmt: skip
    invariants(url, queue)


HOURS = """\
send("running", nap, 2.0)
send("delayed", touch, delay_ms=1_800_000)
send("expired", touch, expire_ms=600_000, priority="nobody")"""


@pytest.mark.on_demand
@pytest.mark.parametrize("kind", ["inline", "processes"])
@pytest.mark.parametrize("slept", [True, False], ids=["slept", "set"])
def test_an_hour_that_passes_at_once_ends_only_what_it_should(
    stage: Stage, ledger: Ledger, clocks: Clocks, begin: Callable[..., Client], figures: Figures,
    monkeypatch: pytest.MonkeyPatch, slept: bool, kind: Kind,
) -> None:  # fmt: skip
    clock, queue = clocks(0), f"t-{secrets.token_hex(6)}"
    with monkeypatch.context() as around:
        for name, value in clock.for_a_server().items():
            around.setenv(name, value)
        url = stage.server().url
    tasks = BODIES + TICK.format(every=600, path=ledger.path)
    pool = [stage.worker(url, queue, 1, kind=kind, tasks=tasks, env=clock.env) for _ in range(2)]
    app = qnb.App(url, queue)
    later = app.ref("touch").options(delay_ms=7_200_000).submit(ledger.path, "later")
    client = begin(HOURS, clock, url, queue, ledger.path, 0)
    client.until(lambda: ledger.starts()["running"] and len(ledger.lines("sent")) == 3, "it runs")
    pids = [client.process.pid, *(pid for worker in pool for pid in _family(worker))]
    _signal(pids, signal.SIGSTOP)
    woken = time.monotonic()
    clock.slept(HOUR) if slept else clock.jump(HOUR)
    _signal(pids, signal.SIGCONT)
    client.ended(40)
    took = {row[3]: int(row[1]) / 1e9 - woken for row in ledger.lines("read")}
    read = {row[3]: row[4] for row in ledger.lines("read")}
    ticks = {name: count for name, count in ledger.starts().items() if name.startswith("tick@")}
    bound = 6 if slept else 15
    figures(
        goal="G11",
        what=f"{'laptop sleeps an hour' if slept else 'server clock is set 1 h forward'}, two "
        f"workers ({kind}), leases of 15 s",
        target=f"all end as they should ≤ {bound} s after, 0 extra runs, one tick of a schedule, "
        "what is due later waits",
        figure=f"{len(read)} of 3 after {max(took.values()):.2f} s, {ledger.extra()} extra runs, "
        f"{len(ticks)} tick",
        ok=read == {"running": "running", "delayed": "delayed", "expired": "JobExpired"}
        and max(took.values()) <= bound and ledger.extra() == 0 and len(ticks) in (1, 2)
        and asyncio.run(later.status()) is qnb.JobState.SCHEDULED,
    )  # fmt: skip


def _family(worker: Worker) -> list[int]:
    return [worker.pid, *worker.children()]


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)
