"""A worker: claims jobs, has them run by an executor, and reports how they ended.

One task group of short loops. It owns the link to the store and the leases of what it holds; user
code runs only through the executor. A store that goes away is waited for; the worker never leaves
because of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Container
from typing import Any

from qnb.clock import backoff, jittered
from qnb.errors import BrokerError
from qnb.registry import Registry
from qnb.running.attempt import lost_outcome
from qnb.running.bulletin import Bulletin
from qnb.running.executors import Executor
from qnb.running.gatekeeper import Gatekeeper
from qnb.running.intake import LEAVE, Intake
from qnb.running.newsroom import Newsroom
from qnb.running.runs import Runs, lost
from qnb.running.timers import Timers
from qnb.storage.keys import UNFINISHED_TTL_MS
from qnb.storage.leases import Leases
from qnb.storage.records import Claimed
from qnb.storage.store import Store
from qnb.wire.codec import Codec

__all__ = ["Worker"]

log = logging.getLogger("qnb.worker")

#: seconds between two looks for workers that have fallen silent, at most
RECOVER = 0.8

#: seconds beyond a lease that others are given to renew what they hold after an outage: they
#: reconnect at random moments
GRACE = 2.0


class Worker:
    """Serves one queue until :meth:`stop`, or until its lanes are empty if ``burst``.

    Belongs to the event loop that runs :meth:`run`. ``linger`` seconds without a job end it too.
    ``registry`` has the schedules it starts, ``codec`` signs their calls and knows the blob store.
    """

    def __init__(  # noqa: PLR0913 - its parts, and how it leaves
        self,
        store: Store,
        executor: Executor,
        *,
        registry: Registry | None,
        codec: Codec,
        burst: bool = False,
        linger: float | None = None,
        says: dict[str, Any] | None = None,
        environment: tuple[str, bytes] | None = None,
    ) -> None:
        self.id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._store = store
        self._clock = store.clock
        self._executor = executor
        self._options = store.options
        self._says = says or {}
        self._environment = environment
        self._linger = linger
        self._blobs = codec.blobs
        self._started = 0
        self.consumer = f"{self.id}~{self._options.lease_ms}"  #: its name as a holder of leases
        self.renewed = time.monotonic()  #: when it has last renewed them
        self._looked = 0.0  # at others' leases, by the server's clock
        self._fair_from = 0.0  # when on the monotonic clock they may be judged
        self._leases = Leases(store, self.consumer)
        self._timers = Timers(self._leases, registry, codec)
        self._news = Newsroom(self._leases)
        self._bulletin = Bulletin()
        self._gates = Gatekeeper(store)
        self._intake = Intake(
            self._leases, executor, registry or Registry(), self._gates, burst=burst, linger=linger
        )
        self._runs = Runs(
            self.id, self._leases, executor, self._intake, self._gates, self._news, self._bulletin,
            linger=linger,
        )  # fmt: skip

    def stop(self) -> None:
        """Claim nothing more, let running jobs finish, then leave. Call it on the worker's loop."""
        self._intake.stop()

    async def run(self) -> None:
        """Serve until stopped."""
        try:
            if not await self._ready():
                return
            self._started = self._clock.now_ms()
            self._looked = self._clock.now_ms() / 1000
            await self._describe()
            await self._heartbeat()
            await self._gates.look()
            async with asyncio.TaskGroup() as group:
                self._runs.serve(group)
                work = {
                    "renew": self._every(self._lease / 3, self._renew),
                    "recover": self._every(min(self._lease / 3, RECOVER), self._recover),
                    "sweep": self._every(60, self._leases.sweep_index),
                    "tidy": self._every(3600, self._tidy),
                    "timers": self._timers.run(),
                    "news": self._news.run(),
                    "gates": self._gates.run(self._intake.reconsider),
                    "control": self._obey(),
                    "leaving": self._say_leaving(),
                    "looked at": self._bulletin.answer(self._heartbeat),
                }
                loops = [group.create_task(each, name=f"qnb-{name}") for name, each in work.items()]
                try:
                    await self._intake.run(self._runs.launch, self._reclaim)
                finally:
                    self._runs.serve(None)
                for loop in loops:
                    loop.cancel()
        finally:
            self._runs.serve(None)
            await self._executor.close()
            with contextlib.suppress(BrokerError, TimeoutError):  # else their leases run out
                async with asyncio.timeout(LEAVE):
                    await self._runs.flush()
                    await self._release(await self._leases.unseen(()), begun=self._runs.unreported)
                    await self._gates.flush()
                    await self._leases.leave(self.id)
            await self._leases.drop_claim()

    async def _ready(self) -> bool:
        """Get ready to serve; False if told to stop before that was done."""
        await self._store.open()
        await self._leases.join()
        starting = asyncio.ensure_future(self._executor.start())
        stopped = asyncio.ensure_future(self._intake.stopped.wait())
        try:
            await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
            return starting.done()
        finally:
            for task in (starting, stopped):
                task.cancel()
            await asyncio.gather(starting, stopped, return_exceptions=True)

    async def _say_leaving(self) -> None:
        """Tell at once that this worker takes no more."""
        await self._intake.stopped.wait()
        with contextlib.suppress(BrokerError):  # the next renewal says so too
            await self._heartbeat()

    @property
    def held(self) -> list[Claimed]:
        """The jobs that it holds now; from any thread."""
        return list(self._intake.held.values())

    @property
    def _lease(self) -> float:
        return self._options.lease_ms / 1000

    async def _every(self, seconds: float, act: Callable[[], Awaitable[object]]) -> None:
        while True:
            await asyncio.sleep(jittered(seconds))
            try:
                await act()
            except BrokerError as error:
                log.warning("%s", error)

    async def _reclaim(self) -> list[Claimed]:
        """After a lost connection: what was delivered on it, and never seen."""
        await self._leases.join()
        await self._heartbeat()
        await self._gates.look()
        return await self._leases.unseen(self._intake.held.values())

    async def _release(self, jobs: list[Claimed], begun: Container[str] = ()) -> None:
        """Hand jobs back; those whose body had ``begun`` lose a start by it."""
        now = self._clock.now_ms()
        for claimed in jobs:
            loss = lost(claimed, now, f"worker {self.id} was stopped")
            await self._leases.give_back(claimed, loss, begun=claimed.ref in begun)
            self._gates.left(claimed.spec)

    # -- leases and commands -------------------------------------------------------------------

    async def _obey(self) -> None:
        """Hear what clients ask of all workers; what was said unheard is found in the store."""
        again = asyncio.Event()

        def heard_anew() -> None:
            again.set()
            self._timers.due_at(self._clock.now_ms())  # what was said of due times was not heard

        catching_up = asyncio.ensure_future(self._catch_up(again))
        failures = 0
        try:
            while True:
                try:
                    async for message in self._store.hear(self._store.keys.control, heard_anew):
                        failures = 0
                        self._told(message, again)
                except BrokerError as error:  # it may not listen: renewals ask instead
                    log.warning("%s", error)
                    await asyncio.sleep(backoff(failures, most=self._lease))
                    failures += 1
        finally:
            catching_up.cancel()

    def _told(self, message: bytes, again: asyncio.Event) -> None:
        """Anybody who may publish can say anything: what is no command is not heard."""
        kind, said = message[:1], message[1:].decode("utf-8", "replace")
        if kind == b"w" and said.isdecimal() and len(said) < 20:
            self._timers.due_at(float(said))
        elif kind == b"g":
            self._gates.wake()
        elif kind == b"s":
            self._bulletin.asked.set()
        elif kind == b"a" and any(c.spec.task_id == said for c in self._intake.held.values()):
            again.set()

    async def _catch_up(self, again: asyncio.Event) -> None:
        while True:
            await again.wait()
            again.clear()
            self._gates.wake()  # it may have been said unheard, too
            with contextlib.suppress(BrokerError):  # the next renewal asks again
                self._runs.abort(await self._leases.asked(list(self._intake.held.values())))

    async def _renew(self) -> None:
        """Keep what is held; stop what another worker has taken over, or what is to be aborted."""
        held = dict(self._intake.held)
        kept, asked = await self._leases.renew(list(held.values()))
        self.renewed = time.monotonic()
        for ref in held.keys() - kept:
            self._runs.taken_over(held[ref])
        self._runs.abort({ref: who for ref, who in asked.items() if ref in self._intake.held})
        await self._heartbeat()

    async def _describe(self) -> None:
        """Keep the description of this environment where clients find it."""
        if self._environment is not None:
            await self._leases.put_environment(*self._environment)

    async def _tidy(self) -> None:
        await self._describe()
        await self._gates.tidy()
        if self._blobs is not None:
            longest = UNFINISHED_TTL_MS + self._options.result_ttl_ms
            await asyncio.to_thread(self._blobs.sweep, longest / 1000)

    async def _heartbeat(self) -> None:
        bulletin = await self._bulletin.says()
        await self._leases.heartbeat(
            self.id,
            {
                "slots": self._executor.slots,
                "lanes": list(self._options.priorities),
                "running": self._runs.running,
                "done": self._runs.done,
                "started": self._started,
                "env": self._environment[0] if self._environment else "",
                "leaving": self._intake.stopped.is_set(),
                **bulletin,
                **self._says,
            },
            self._options.lease_ms,
        )

    async def _recover(self) -> None:
        """Take jobs from workers that have fallen silent."""
        found = await self._leases.overdue()
        for overdue in () if self._was_cut_off() else found:
            spec, entry, *_, holder = overdue
            if holder == self.consumer and any(held.entry == entry for held in self.held):
                continue  # this loop has stood still: it is about to renew that itself
            reason = f"worker {holder.rpartition('~')[0]} fell silent"
            end = lost_outcome(spec, self._clock.now_ms(), reason)
            if answer := await self._leases.recover(overdue, end):
                log.warning("job %r of task %r: %s", spec.task_id, spec.fn_name, reason)
                self._gates.left(spec)
                if answer == 2:
                    await self._gates.failed(spec)

    def _was_cut_off(self) -> bool:
        """Was the store out of reach a while ago, this machine asleep, or the server's clock set?

        Then those who live may not have renewed yet.
        """
        now, before = self._clock.now_ms() / 1000, self._looked
        self._looked = now
        if now - before > RECOVER + max(self._lease / 3, RECOVER):
            self._fair_from = time.monotonic() + self._lease + GRACE
        return time.monotonic() < self._fair_from
