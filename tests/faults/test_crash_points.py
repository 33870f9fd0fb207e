"""A worker, a supervisor or a client ends at any of its calls of the store: nothing is lost by it.

Each call in turn, once before it is sent and once when its reply has come; then another one does
the rest. What must hold is counted from the ledger, after each.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import redis

from qnb.storage.crashpoints import STATUS, VARIABLE
from tests.faults import crashing
from tests.faults.conftest import Figures
from tests.faults.crashing import BOUND, ENDS, RETRIES, Actor, Place, Role
from tests.faults.ledger import Ledger
from tests.faults.stage import Stage, eventually, invariants

#: scenarios that are played at a time: each waits most of the time
AT_ONCE = 4

ROLES = {"worker": crashing.inline, "supervisor": crashing.processes, "client": crashing.client}


class Play:
    """One run of the workload in which ``role`` ends at ``crash``, and what came of it."""

    def __init__(self, url: str, folder: Path, role: Role, crash: str) -> None:
        name = f"t-{secrets.token_hex(6)}"
        self.crash = crash
        self.ledger = Ledger(folder / f"{name}.ledger")
        lease_ms = 800 if role is not crashing.client else 20_000  # no worker is lost with a client
        self.place = Place(url, name, self.ledger.path, str(folder / f"{name}.log"), lease_ms)
        self.reached = self._run(role)
        self.extra = 0
        self._check(role)

    def _run(self, role: Role) -> bool:
        """Play it; was the crash point reached?"""
        is_client = role is crashing.client
        serve = crashing.inline if is_client else role
        worker = Actor(serve, self.place, "" if is_client else self.crash)
        client = Actor(crashing.client, self.place, self.crash if is_client else "")
        began = [worker, client]
        try:
            wait([worker.ends, client.ends], 2 * BOUND)
            if client.status == STATUS:
                client = Actor(crashing.client, self.place)
            elif worker.status == STATUS:
                worker = Actor(serve, self.place)
            began += [worker, client]
            assert client.ended(2 * BOUND) == 0, self._said("the client", client.status)
            eventually(lambda: self._serves(worker) or worker.status is not None, "it serves")
            worker.signal(signal.SIGTERM)
            assert worker.ended(BOUND) in (0, STATUS), self._said("the worker", worker.status)
            return STATUS in [actor.status for actor in began]
        finally:
            for actor in began:
                actor.signal(signal.SIGKILL)

    def _serves(self, worker: Actor) -> bool:
        with redis.Redis.from_url(self.place.url) as link:
            listed = link.zrange(f"qnb:{{{self.place.queue}}}:workers", 0, -1)
        return any(f":{worker.pid}:".encode() in name for name in listed)

    def _said(self, who: str, status: int | None) -> str:
        log = Path(self.place.log)
        said = log.read_text()[-3000:] if log.exists() else "nothing"
        return f"{self.crash}: {who} ended with {status}: {said}"

    def _check(self, role: Role) -> None:
        """The invariants: I1 to I5 of any fault."""
        read, final, starts = (self.ledger.lines(word) for word in ("read", "final", "start"))
        sent = {row[3] for row in self.ledger.lines("sent")}
        ends = {row[3]: row[4] for row in final}
        at = f"crash at {self.crash}"
        assert sent <= ends.keys(), f"{at}: these were acknowledged and lost: {sent - ends.keys()}"
        assert ends == ENDS, f"{at}: {sorted(ends.items() ^ ENDS.items())}"
        changed = [row[3] for row in read if row[4] != ends[row[3]]]
        assert not changed, f"{at}: outcomes that were read have changed: {changed}"
        counts = self.ledger.starts()
        spare = 0 if role is crashing.client else 1  # one start may be lost with its worker
        for name, count in counts.items():
            due = 1 + RETRIES.get(name, 0)
            assert count <= due + spare, f"{at}: {name} started {count} times"
            self.extra += max(0, count - due)
        assert counts.keys() | {"slow"} == ENDS.keys(), at  # it may be aborted before it starts
        assert len(starts) == counts.total()
        invariants(self.place.url, self.place.queue)


def _play(url: str, folder: Path, role: Role, crashes: Iterable[str]) -> list[Play]:
    """A play for each crash point, until one is not reached."""
    plays: list[Play] = []
    waiting: Iterator[str] = iter(crashes)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while True:
            some = list(itertools.islice(waiting, AT_ONCE))
            plays += pool.map(lambda crash: Play(url, folder, role, crash), some)
            if len(some) < AT_ONCE or not all(play.reached for play in plays):
                return [play for play in plays if play.reached]


PROGRAM = """
import asyncio, os, sys
import qnb

asyncio.run(qnb.App(*sys.argv[1:]).queue_size())
print(os.environ.get("QNB_CRASH_AT", "not told"))
"""


@pytest.mark.parametrize(
    "crash, status, said",
    [
        ("2:after", STATUS, ""),
        ("99", 0, "not told\n"),
        ("soon", 1, "expected the number of a call"),
    ],
)
def test_a_process_has_its_crash_point_from_its_environment_and_hands_it_to_no_other(
    server_url: str, queue: str, crash: str, status: int, said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, server_url, queue], env={**os.environ, VARIABLE: crash},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, said in done.stdout) == (status, True), done.stdout


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "who, crashes",
    [
        ("worker", ["11", "17:after"]),
        ("supervisor", ["14:after"]),
        ("client", ["4:after", "9"]),
    ],
)
def test_a_crash_at_a_call_of_the_store_loses_nothing(
    stage: Stage, tmp_path: Path, who: str, crashes: list[str]
) -> None:
    played = _play(stage.server().url, tmp_path, ROLES[who], crashes)
    assert [play.crash for play in played] == crashes


@pytest.mark.on_demand
@pytest.mark.timeout(900)
@pytest.mark.parametrize("when", ["", ":after"], ids=["before", "after"])
@pytest.mark.parametrize("who", ROLES)
def test_a_crash_at_any_call_of_the_store_loses_nothing(
    stage: Stage, tmp_path: Path, figures: Figures, who: str, when: str
) -> None:
    every = (f"{n}{when}" for n in itertools.count(1))
    played = _play(stage.server().url, tmp_path, ROLES[who], every)
    extra = sum(play.extra for play in played)
    figures(
        goal="L2",
        what=f"{who} ends {'after the reply to' if when else 'before'} its n-th call of the store",
        target="every n: nothing lost, nothing changed, ≤ 1 extra run a job, nothing left behind",
        figure=f"{len(played)} of {len(played)} crash points held, {extra} extra runs in all",
        ok=len(played) > 10,
    )
