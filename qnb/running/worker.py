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
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Container
from functools import partial
from typing import Any

from qnb.batching import Batcher
from qnb.clock import backoff, jittered
from qnb.errors import BrokerError
from qnb.models import Ending, Failure, JobSpec, Outcome
from qnb.registry import Registry
from qnb.running.attempt import Attempt, lost_outcome, retry_delay
from qnb.running.bulletin import Bulletin
from qnb.running.executors import Executor, SlotDied, SlotLost
from qnb.running.gatekeeper import Gatekeeper
from qnb.running.intake import LEAVE, Intake
from qnb.running.newsroom import Newsroom
from qnb.running.timers import Timers
from qnb.storage.keys import UNFINISHED_TTL_MS
from qnb.storage.leases import Leases
from qnb.storage.records import Claimed, Finished
from qnb.storage.store import Store, aborted, expired
from qnb.wire.codec import Codec

__all__ = ["Worker"]

log = logging.getLogger("qnb.worker")

#: shipped functions kept as bytes, to hand to executors
KEPT_CODE = 64

#: seconds after which a lingering worker believes that its server will not come back
GIVE_UP = 600.0


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
        self._leases = Leases(store, f"{self.id}~{self._options.lease_ms}")
        self._timers = Timers(self._leases, registry, codec)
        self._news = Newsroom(self._leases)
        self._bulletin = Bulletin()
        self._gates = Gatekeeper(store)
        self._intake = Intake(
            self._leases, executor, registry or Registry(), self._gates, burst=burst, linger=linger
        )
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, str] = {}  # refs of jobs to be aborted, and by whom
        self._begun: set[str] = set()  # refs whose body has been started, and not reported yet
        self._running: set[str] = set()  # refs whose body runs
        self._code: OrderedDict[str, bytes] = OrderedDict()
        self._done = 0
        self._marks: Batcher[tuple[Claimed, int], None] = Batcher(self._send_marks)
        self._ends: Batcher[Finished, bool] = Batcher(self._send_ends)

    def stop(self) -> None:
        """Claim nothing more, let running jobs finish, then leave. Call it on the worker's loop."""
        self._intake.stop()

    async def run(self) -> None:
        """Serve until stopped."""
        try:
            if not await self._ready():
                return
            self._started = self._clock.now_ms()
            await self._describe()
            await self._heartbeat()
            await self._gates.look()
            async with asyncio.TaskGroup() as group:
                work = {
                    "renew": self._every(self._lease / 3, self._renew),
                    "recover": self._every(self._lease / 3, self._recover),
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
                await self._intake.run(partial(self._launch, group), self._reclaim)
                for loop in loops:
                    loop.cancel()
        finally:
            await self._executor.close()
            with contextlib.suppress(BrokerError, TimeoutError):  # else their leases run out
                async with asyncio.timeout(LEAVE):
                    await self._marks.flush()
                    await self._ends.flush()
                    await self._release(await self._leases.unseen(()), begun=self._begun)
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
            lost = _lost(claimed, now, f"worker {self.id} was stopped")
            await self._leases.give_back(claimed, lost, begun=claimed.ref in begun)
            self._gates.left(claimed.spec)

    # -- running -------------------------------------------------------------------------------

    def _launch(self, group: asyncio.TaskGroup, claimed: Claimed) -> None:
        task = group.create_task(self._attempt(claimed), name="qnb-attempt")
        self._attempts[claimed.ref] = task
        task.add_done_callback(lambda _: self._let_go(claimed))

    def _let_go(self, claimed: Claimed) -> None:
        del self._attempts[claimed.ref]
        self._asked.pop(claimed.ref, None)
        self._news.forget(claimed.ref)
        self._done += 1
        self._gates.left(claimed.spec)
        self._intake.let_go(claimed)

    async def _attempt(self, claimed: Claimed) -> None:
        """Run a held job once, and say in the store what became of it."""
        outcome = await self._outcome(claimed)
        if outcome is None:  # it was handed back
            return
        self._intake.took(outcome.finish - outcome.start)
        self._bulletin.outcome(claimed.spec, outcome)
        if outcome.retry_in_ms is not None:
            await self._news.flush([claimed.ref])
            answer = await self._patiently(partial(self._leases.retry, claimed, outcome))
            if answer == 2:  # an abort was asked for while it ran
                outcome = self._aborted(claimed, outcome.start, "before its next attempt")
            elif answer == 0:
                self._stale(claimed)
        # before its end is stored: whoever dies in between, no sweep goes on after its failure
        await self._patiently(partial(self._gates.failed, claimed.spec, outcome))
        if outcome.retry_in_ms is None and not await self._ends.put(
            Finished(claimed, outcome, self._news.has_log(claimed.ref))
        ):
            self._stale(claimed)
        self._begun.discard(claimed.ref)

    async def _outcome(self, claimed: Claimed) -> Outcome | None:
        """How the attempt ended; None if its process was lost and the job has been put back."""
        spec, start = claimed.spec, self._clock.now_ms()
        if claimed.expires_at is not None and claimed.expires_at <= start:
            self._intake.entered(claimed)
            return expired(spec.task_id, claimed.starts, start)
        try:
            code = await self._code_for(spec)
            if claimed.ref in self._asked:
                return self._aborted(claimed, start, "before it was started")
            attempt = Attempt(
                spec, claimed.attempt, claimed.starts + 1, claimed.call, code,
                claimed.lost,
            )  # fmt: skip
            start = self._clock.now_ms()
            self._running.add(claimed.ref)
            return await self._run(claimed, attempt)
        except SlotDied as death:
            log.warning("job %r of task %r: %s", spec.task_id, spec.fn_name, death)
            await self._crashed(claimed, str(death), start)
            return None
        except SlotLost as loss:
            log.warning("job %r of task %r: %s", spec.task_id, spec.fn_name, loss)
            back = _lost(claimed, self._clock.now_ms(), str(loss), start)
            await self._patiently(lambda: self._leases.give_back(claimed, back, begun=False))
            self._begun.discard(claimed.ref)
            return None
        except asyncio.CancelledError:
            if claimed.ref not in self._asked:
                raise
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            return self._aborted(claimed, start, "while it ran", self._runs_on(spec))
        finally:
            self._intake.entered(claimed)
            self._running.discard(claimed.ref)
            self._bulletin.ended(claimed.ref)

    async def _run(self, claimed: Claimed, attempt: Attempt) -> Outcome:
        hear, limit = partial(self._news.hear, claimed), claimed.spec.policy.timeout_ms
        loop, start, watch = asyncio.get_running_loop(), 0, asyncio.timeout(None)

        def begun() -> None:  # what it has waited for a place to run in does not count
            nonlocal start
            start = self._clock.now_ms()
            self._begun.add(claimed.ref)
            self._bulletin.begun(claimed.ref, claimed.spec, start)
            self._marks.put((claimed, start)).add_done_callback(_retrieved)
            if limit is not None:
                watch.reschedule(loop.time() + limit / 1000)

        self._intake.entered(claimed)
        if limit is None:
            return await self._executor.run(attempt, hear, begun)
        try:
            async with watch:
                return await self._executor.run(attempt, hear, begun)
        except TimeoutError:
            if not watch.expired():
                raise
        return await self._overtime(attempt, start, limit)

    async def _overtime(self, attempt: Attempt, start: int, limit: int) -> Outcome:
        spec, delay = attempt.spec, retry_delay(attempt.spec.policy, attempt.failures)
        message = f"job {spec.task_id!r} ran longer than its timeout of {limit / 1000:g} s"
        message += self._runs_on(spec)
        await self._executor.report_failure(
            attempt, "TimeoutError", message, will_retry=delay is not None
        )
        return Outcome(
            ending=Ending.FAILED,
            tries=attempt.tries,
            start=start,
            finish=self._clock.now_ms(),
            failure=Failure("TimeoutError", message, f"TimeoutError({message!r})"),
            retry_in_ms=delay,
        )

    async def _crashed(self, claimed: Claimed, how: str, start: int) -> None:
        """A body has ended its process: the job is put back, or ended if that was too often."""
        lost = _lost(claimed, self._clock.now_ms(), how, start)
        await self._news.flush([claimed.ref])
        lives = await self._patiently(lambda: self._leases.give_back(claimed, lost, begun=True))
        self._begun.discard(claimed.ref)
        if not lives:
            await self._patiently(partial(self._gates.failed, claimed.spec))
        if not lives and lost.failure is not None:
            attempt = Attempt(claimed.spec, claimed.attempt, claimed.starts + 1, claimed.call)
            await self._executor.report_failure(
                attempt, "WorkerCrashed", lost.failure.message, will_retry=False
            )

    def _aborted(self, claimed: Claimed, start: int, when: str, but: str = "") -> Outcome:
        how = f"aborted {when} by {self._asked.get(claimed.ref, 'its client')}{but}"
        now = self._clock.now_ms()
        return aborted(claimed.spec.task_id, claimed.starts + 1, now, how, start)

    def _runs_on(self, spec: JobSpec) -> str:
        if self._executor.stops(spec):
            return ""
        here = spec.is_async and spec.policy.isolation != "thread"
        return f"; its {'coroutine' if here else 'thread'} cannot be stopped and runs on"

    def _stale(self, claimed: Claimed) -> None:
        log.warning(
            "job %r of task %r: another worker had taken it over; attempt %d is dropped",
            claimed.spec.task_id, claimed.spec.fn_name, claimed.attempt,
        )  # fmt: skip

    async def _code_for(self, spec: JobSpec) -> bytes | None:
        if not self._executor.needs_code(spec):
            return None
        code = self._code.get(spec.function)
        if code is None:
            code = await self._patiently(lambda: self._store.function(spec.function))
            if code is not None:
                self._code[spec.function] = code
                if len(self._code) > KEPT_CODE:
                    self._code.popitem(last=False)
        return code

    async def _patiently(self, act: Callable[[], Awaitable[Any]]) -> Any:
        """``act``, again and again until the store has taken it.

        Only a worker with a ``linger`` gives up: its server may be gone with its user's session.
        """
        loop = asyncio.get_running_loop()
        attempt, since = 0, loop.time()
        while True:
            try:
                return await act()
            except BrokerError as error:
                log.warning("%s", error)
                if self._linger is not None and loop.time() - since > max(self._linger, GIVE_UP):
                    raise
                await asyncio.sleep(backoff(attempt))
                attempt += 1

    async def _send_marks(self, marks: list[tuple[Claimed, int]]) -> list[None]:
        # A body that is over already needs no mark: its end says all.
        still = [mark for mark in marks if mark[0].ref in self._running]
        if still:
            await self._leases.start(self.id, still)
        return [None] * len(marks)

    async def _send_ends(self, ends: list[Finished]) -> list[bool]:
        await self._news.flush([end.claimed.ref for end in ends])
        accepted: list[bool] = await self._patiently(lambda: self._leases.finish(ends))
        return accepted

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
                self._abort(await self._leases.asked(list(self._intake.held.values())))

    def _abort(self, asked: dict[str, str]) -> None:
        for ref, who in asked.items():
            if ref in self._asked:
                continue
            self._asked[ref] = who
            if ref in self._running:
                self._attempts[ref].cancel()
            else:
                self._intake.start_now(ref)  # if it waits here; its attempt ends at once

    async def _renew(self) -> None:
        """Keep what is held; stop what another worker has taken over, or what is to be aborted."""
        held = dict(self._intake.held)
        kept, asked = await self._leases.renew(list(held.values()))
        for ref in held.keys() - kept:
            if task := self._attempts.get(ref):
                log.warning("job %r was taken over; stopping it", held[ref].spec.task_id)
                self._begun.discard(ref)
                task.cancel()
            else:
                self._intake.drop(ref)
        self._abort({ref: who for ref, who in asked.items() if ref in self._intake.held})
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
                "running": len(self._running),
                "done": self._done,
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
        for overdue in await self._leases.overdue():
            spec, *_, holder = overdue
            reason = f"worker {holder.rpartition('~')[0]} fell silent"
            lost = lost_outcome(spec, self._clock.now_ms(), reason)
            if answer := await self._leases.recover(overdue, lost):
                log.warning("job %r of task %r: %s", spec.task_id, spec.fn_name, reason)
                self._gates.left(spec)
                if answer == 2:
                    await self._gates.failed(spec)


def _lost(claimed: Claimed, now: int, reason: str, start: int | None = None) -> Outcome:
    return lost_outcome(claimed.spec, now, reason, claimed.starts + 1, start)


def _retrieved(future: asyncio.Future[None]) -> None:
    """A lost start mark changes nothing but what is shown meanwhile."""
    if not future.cancelled():
        future.exception()
