"""What a worker takes on, and when: claims as long as there is room, a little ahead of short jobs.

With ``prefetch="auto"`` a claimed job waits here only while the bodies before it are short. If it
has to wait longer than ``HOLD``, it is handed back to the front of its lane, where an idle worker
finds it: a long job never waits in a busy worker beside an idle one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from qnb.clock import backoff
from qnb.errors import BrokerError
from qnb.registry import Registry
from qnb.running.executors import Executor
from qnb.running.gatekeeper import Gatekeeper
from qnb.storage.leases import Leases
from qnb.storage.records import Claimed

__all__ = ["LEAVE", "Intake"]

log = logging.getLogger("qnb.worker")

#: seconds a claim waits for a job before it looks around
CLAIM_BLOCK = 1.0

#: seconds that a cancelled claim has to end before its connection is closed
CANCEL = 0.05

#: seconds of work per slot that is claimed ahead with prefetch="auto", and most jobs in all
AHEAD = 0.02
AHEAD_JOBS = 256

#: seconds that a claimed job may wait here for a slot
HOLD = 0.1

#: jobs that must wait which others may pass, those that need less room
BEHIND = 8

#: seconds that a server which is away may keep a worker from leaving
LEAVE = 3.0

#: weight of the newest duration in the running mean
NEWEST = 0.1


class Intake:
    """The jobs that a worker holds: ``held`` by ref. Belongs to the worker's loop."""

    def __init__(  # noqa: PLR0913 - its parts, and how it leaves
        self,
        leases: Leases,
        executor: Executor,
        registry: Registry,
        gates: Gatekeeper,
        *,
        burst: bool,
        linger: float | None,
    ) -> None:
        self.held: dict[str, Claimed] = {}
        self._leases = leases
        self._executor = executor
        self._registry = registry
        self._gates = gates
        executor.on_room = self.roomier
        self._burst = burst
        self._linger = linger
        self._prefetch = leases.store.options.prefetch
        self._waiting: dict[str, tuple[Claimed, float]] = {}  # claimed, not launched: since when
        self._asking: set[str] = set()  # of these, those whose gates are being asked again
        self._filling = False  # is a look for room due in this turn of the loop?
        self._entering: set[str] = set()  # launched, and not begun
        self._mean: float | None = None  # seconds that a body takes
        self._last: Claimed | None = None  # the job launched last: the next one may be like it
        self._launch: Callable[[Claimed], None] = lambda _: None
        self._changed = asyncio.Event()
        self.stopped = asyncio.Event()

    def stop(self) -> None:
        """Claim nothing more."""
        self.stopped.set()
        self._changed.set()

    def took(self, milliseconds: int) -> None:
        """A body has ended after so long."""
        took = milliseconds / 1000
        mean = took if self._mean is None else self._mean
        self._mean = mean + NEWEST * (took - mean)

    def entered(self, claimed: Claimed) -> None:
        """The executor knows of the job from now on, and counts it."""
        self._entering.discard(claimed.ref)

    def let_go(self, claimed: Claimed) -> None:
        """A launched job is held no more."""
        self.held.pop(claimed.ref, None)
        self._entering.discard(claimed.ref)
        self.roomier()

    def roomier(self) -> None:
        """There may be more room than before: fill it, once for all that end in this turn."""
        if not self._filling:
            self._filling = True
            asyncio.get_running_loop().call_soon(self._refill)

    def _refill(self) -> None:
        self._filling = False
        self._fill()
        if not self.held or self._room() >= self._least():
            self._changed.set()

    def start_now(self, ref: str) -> None:
        """Launch a job that waits here, whether there is room or not."""
        if ref in self._waiting:
            claimed, _ = self._waiting.pop(ref)
            self._launch(claimed)

    def drop(self, ref: str) -> None:
        """Another worker has taken over a job that waits here."""
        self._waiting.pop(ref, None)
        self.held.pop(ref, None)

    async def reconsider(self) -> None:
        """Ask the gates again about the jobs that wait here: one may have closed."""
        waiting = [claimed for claimed, _ in self._waiting.values()]
        asked = [claimed for claimed in waiting if self._gates.asks(claimed.spec)]
        self._asking = {claimed.ref for claimed in asked}
        try:
            passed = {claimed.ref for claimed in await self._gates.admit(asked)}
            for ref in self._asking - passed:
                self.drop(ref)
        finally:
            self._asking = set()
        if self.stopped.is_set():
            await self._hand_back(0)
        self.roomier()

    async def run(
        self,
        launch: Callable[[Claimed], None],
        reclaim: Callable[[], Coroutine[Any, Any, list[Claimed]]],
    ) -> None:
        """Claim and launch until stopped, or until it is time to leave; then wait for what runs.

        ``reclaim`` finds, after an outage, what was delivered and never seen.
        """
        self._launch = launch
        loop = asyncio.get_running_loop()
        idle_since, failures = loop.time(), 0
        while not self.stopped.is_set():
            try:
                jobs = await (self._unless_stopped(reclaim()) if failures else self._next())
                jobs = await self._gates.admit(jobs)
                failures = 0
                self._take(jobs)
                if self.held:
                    idle_since = loop.time()
                elif await self._may_leave(loop.time() - idle_since):
                    break
                if self._prefetch == "auto":  # a number says how many may wait here
                    await self._hand_back(HOLD)
            except BrokerError as error:
                log.warning("%s", error)
                if self._linger is not None and loop.time() - idle_since >= self._linger:
                    raise  # nobody has needed this worker, and its server is gone
                await self._unless_stopped(_pause(backoff(failures)))
                failures += 1
        with contextlib.suppress(BrokerError, TimeoutError):  # else their leases run out
            async with asyncio.timeout(LEAVE):
                await self._give_back(await self._leases.unseen(self.held.values()))
                await self._hand_back(0)
        while self.held:
            self._changed.clear()
            await self._changed.wait()

    # -- claiming ------------------------------------------------------------------------------

    def _take(self, jobs: list[Claimed]) -> None:
        now = asyncio.get_running_loop().time()
        for job in jobs:
            known = self._registry.as_registered(job.spec)
            claimed = job if known is job.spec else replace(job, spec=known)
            self.held[claimed.ref] = claimed
            self._waiting[claimed.ref] = (claimed, now)
        self._fill()

    def _fill(self) -> None:
        """Launch what there is room for, first come first served."""
        ready: list[Claimed] = []
        behind = 0
        for ref, (claimed, _) in self._waiting.items():
            if ref in self._asking:
                continue
            if self._executor.room(claimed.spec) <= len(self._entering):
                behind += 1
                if behind == BEHIND:
                    break
            else:
                self._entering.add(ref)
                ready.append(claimed)
        for claimed in ready:
            del self._waiting[claimed.ref]
        for claimed in ready:
            self._last = claimed
            self._launch(claimed)

    def _room(self) -> int:
        """How many more jobs are wanted."""
        room = self._executor.room()
        if self._last is not None:  # a body like the last one may share a process with others
            room = max(room, self._executor.room(self._last.spec))
        return room - len(self._entering) + self._ahead() - len(self._waiting)

    def _ahead(self) -> int:
        if self._prefetch != "auto":
            return self._prefetch
        if self._mean is None or self._mean > AHEAD:
            return 0
        return min(AHEAD_JOBS, int(self._executor.slots * AHEAD / max(self._mean, 1e-4)))

    def _least(self) -> int:
        """How many jobs are worth a call: while others wait here, half of those claimed ahead."""
        return max(1, self._ahead() // 2) if self._waiting else 1

    async def _next(self) -> list[Claimed]:
        """The next jobs; none if there is no room, or after a while without any."""
        room = self._room()
        if room < self._least():
            await self._change(HOLD if self._waiting else None)
            return []
        if self._waiting or self._burst or not self._leases.dry:  # else wait for one at once
            jobs = await self._leases.claim(room)
            if jobs:
                return jobs
            if self._waiting or (self._burst and self.held):
                await self._change(HOLD if self._waiting else None)
            if self._waiting or self._burst:
                return []
        return await self._wait_for_jobs(room)

    async def _wait_for_jobs(self, count: int) -> list[Claimed]:
        claim = asyncio.ensure_future(self._leases.claim(count, int(CLAIM_BLOCK * 1000)))
        stop = asyncio.ensure_future(self.stopped.wait())
        try:
            await asyncio.wait((claim, stop), return_when=asyncio.FIRST_COMPLETED)
            if claim.done():
                return claim.result()
        finally:
            stop.cancel()
            if not claim.done():  # what it was about to get is found by `unseen`
                claim.cancel()
                await asyncio.wait((claim,), timeout=CANCEL)
                await self._leases.drop_claim()  # ends it, should it have missed that
                await asyncio.wait((claim,))
                if not claim.cancelled():
                    claim.exception()
        return []

    async def _unless_stopped(self, work: Coroutine[Any, Any, list[Claimed]]) -> list[Claimed]:
        """What ``work`` gives; nothing as soon as this worker is told to stop."""
        working = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self.stopped.wait())
        try:
            await asyncio.wait((working, stop), return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else []
        finally:
            working.cancel()
            stop.cancel()
            await asyncio.gather(working, stop, return_exceptions=True)

    async def _change(self, limit: float | None) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._changed.wait()

    async def _may_leave(self, idle: float) -> bool:
        if self._burst:
            done = await self._gates.all_done()
            if not done:  # it is another worker's turn: of a claim, or of a sweep with a limit
                await self._change(HOLD)
            return done
        return self._linger is not None and idle >= self._linger

    # -- handing back --------------------------------------------------------------------------

    async def _hand_back(self, limit: float) -> None:
        """Give up what has waited here for ``limit`` seconds; claim nothing ahead for a while."""
        now = asyncio.get_running_loop().time()
        late = [
            claimed for claimed, since in self._waiting.values()
            if now - since >= limit and claimed.ref not in self._asking  # perhaps parked
        ]  # fmt: skip
        if late:
            self._last = None
            self._mean = max(self._mean or 0.0, 2 * AHEAD)
        for claimed in late:
            self.drop(claimed.ref)
        await self._give_back(late)

    async def _give_back(self, jobs: list[Claimed]) -> None:
        await self._leases.hand_back(jobs)
        for claimed in jobs:
            self._gates.left(claimed.spec)


async def _pause(seconds: float) -> list[Claimed]:
    await asyncio.sleep(seconds)
    return []
