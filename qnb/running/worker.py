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
from typing import Any

from qnb.batching import Batcher
from qnb.clock import backoff, jittered
from qnb.errors import BrokerError
from qnb.models import Ending, Failure, JobSpec, Outcome
from qnb.options import AppOptions
from qnb.running.attempt import Attempt
from qnb.running.executors import Executor, SlotDied
from qnb.storage.records import MAX_LOST_STARTS, Claimed, Finished
from qnb.storage.store import Store

__all__ = ["Worker"]

log = logging.getLogger("qnb.worker")

#: seconds a claim waits for a job before it looks around
CLAIM_BLOCK = 1.0

#: shipped functions kept as bytes, to hand to executors
KEPT_CODE = 64


class Worker:
    """Serves one queue until :meth:`stop`, or until it is drained if ``burst``.

    Belongs to the event loop that runs :meth:`run`. ``linger`` seconds without a job end it too.
    """

    def __init__(  # noqa: PLR0913 - its parts, and how it leaves
        self,
        store: Store,
        executor: Executor,
        options: AppOptions,
        *,
        burst: bool = False,
        linger: float | None = None,
        says: dict[str, Any] | None = None,
    ) -> None:
        self.id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._consumer = f"{self.id}~{options.lease_ms}"
        self._store = store
        self._executor = executor
        self._options = options
        self._burst = burst
        self._linger = linger
        self._says = says or {}
        self._held: dict[str, Claimed] = {}
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._begun: set[str] = set()  # entries whose body has been started, and not reported yet
        self._running: set[str] = set()  # entries whose body runs
        self._code: OrderedDict[str, bytes] = OrderedDict()
        self._done = 0
        self._changed = asyncio.Event()  # a slot is free, or the worker should stop
        self._stopping = False
        self._marks: Batcher[tuple[Claimed, int], None] = Batcher(self._send_marks)
        self._ends: Batcher[Finished, bool] = Batcher(self._send_ends)

    def stop(self) -> None:
        """Claim nothing more, let running jobs finish, then leave. Call it on the worker's loop."""
        self._stopping = True
        self._changed.set()

    async def run(self) -> None:
        """Serve until stopped."""
        await self._store.open()
        await self._store.join()
        await self._executor.start()
        await self._heartbeat()
        try:
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(self._every(self._lease / 3, self._renew), name="qnb-renew"),
                    group.create_task(
                        self._every(self._lease / 3, self._recover), name="qnb-recover"
                    ),
                    group.create_task(self._every(60, self._store.sweep_index), name="qnb-sweep"),
                ]
                await self._claim_all(group)
                for loop in loops:
                    loop.cancel()
        finally:
            await self._executor.close()
            with contextlib.suppress(BrokerError):  # else they are recovered by their leases
                await self._marks.flush()
                await self._ends.flush()
                left = await self._store.unseen(self._consumer, ())
                await self._release(left, begun=self._begun)
                await self._store.leave(self.id, self._consumer)

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

    # -- claiming ------------------------------------------------------------------------------

    async def _claim_all(self, group: asyncio.TaskGroup) -> None:
        """Claim as many jobs as there are free slots, until it is time to leave."""
        loop = asyncio.get_running_loop()
        idle_since = loop.time()
        failures = 0
        while not self._stopping:
            free = self._executor.slots - len(self._held)
            if free <= 0:
                self._changed.clear()
                await self._changed.wait()
                continue
            try:
                jobs = await (self._reclaim() if failures else self._claim(free))
                failures = 0
                for claimed in jobs:
                    self._launch(claimed, group)
                if jobs or self._held:
                    idle_since = loop.time()
                elif await self._may_leave(loop.time() - idle_since):
                    return
            except BrokerError as error:
                log.warning("%s", error)
                if self._linger is not None and loop.time() - idle_since >= self._linger:
                    raise  # nobody has needed this worker, and its server is gone
                await asyncio.sleep(backoff(failures))
                failures += 1
        with contextlib.suppress(BrokerError):  # else they are recovered when the lease is over
            await self._release(await self._store.unseen(self._consumer, self._held))
        while self._held:
            self._changed.clear()
            await self._changed.wait()

    async def _reclaim(self) -> list[Claimed]:
        """After a lost connection: what was delivered on it, and never seen."""
        await self._store.join()
        await self._heartbeat()
        return await self._store.unseen(self._consumer, self._held)

    async def _may_leave(self, idle: float) -> bool:
        if self._burst:
            return await self._store.queue_size() == 0
        return self._linger is not None and idle >= self._linger

    async def _claim(self, count: int) -> list[Claimed]:
        if self._burst:
            jobs = await self._store.claim(self._consumer, count, 0)
            if not jobs and self._held:
                self._changed.clear()
                await self._changed.wait()
            return jobs
        claim = asyncio.ensure_future(
            self._store.claim(self._consumer, count, int(CLAIM_BLOCK * 1000))
        )
        stop = asyncio.ensure_future(self._until_stopping())
        try:
            await asyncio.wait((claim, stop), return_when=asyncio.FIRST_COMPLETED)
            if claim.done():
                return claim.result()
        finally:
            stop.cancel()
            if not claim.done():  # what it was about to get is found by `unseen`
                claim.cancel()
                with contextlib.suppress(asyncio.CancelledError, BrokerError):
                    await claim
                await self._store.drop_claim()
        return []

    async def _until_stopping(self) -> None:
        while not self._stopping:
            self._changed.clear()
            await self._changed.wait()

    async def _release(self, jobs: list[Claimed], begun: Container[str] = ()) -> None:
        """Hand jobs back; those whose body had ``begun`` lose a start by it."""
        now = self._store.clock.now_ms()
        for claimed in jobs:
            lost = _lost(claimed.spec, now, f"worker {self.id} was stopped")
            await self._store.give_back(claimed, lost, begun=claimed.entry in begun)

    # -- running -------------------------------------------------------------------------------

    def _launch(self, claimed: Claimed, group: asyncio.TaskGroup) -> None:
        self._held[claimed.entry] = claimed
        task = group.create_task(self._attempt(claimed), name="qnb-attempt")
        self._attempts[claimed.entry] = task
        task.add_done_callback(lambda _: self._let_go(claimed.entry))

    def _let_go(self, entry: str) -> None:
        self._held.pop(entry, None)
        self._attempts.pop(entry, None)
        self._done += 1
        self._changed.set()

    async def _attempt(self, claimed: Claimed) -> None:
        attempt = Attempt(
            claimed.spec, claimed.attempt, claimed.starts + 1, claimed.call,
            await self._code_for(claimed.spec),
        )  # fmt: skip
        start = self._store.clock.now_ms()
        self._begun.add(claimed.entry)
        self._running.add(claimed.entry)
        self._marks.put((claimed, start)).add_done_callback(_retrieved)
        try:
            outcome = await self._executor.run(attempt)
        except SlotDied as death:
            log.warning("job %r of task %r: %s", claimed.spec.task_id, claimed.spec.fn_name, death)
            lost = _lost(claimed.spec, self._store.clock.now_ms(), str(death), start)
            await self._patiently(lambda: self._store.give_back(claimed, lost, begun=True))
            self._begun.discard(claimed.entry)
            return
        finally:
            self._running.discard(claimed.entry)
        accepted = await self._ends.put(Finished(claimed, outcome))
        self._begun.discard(claimed.entry)
        if not accepted:
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
        """``act``, again and again until the store has taken it."""
        attempt = 0
        while True:
            try:
                return await act()
            except BrokerError as error:
                log.warning("%s", error)
                await asyncio.sleep(backoff(attempt))
                attempt += 1

    async def _send_marks(self, marks: list[tuple[Claimed, int]]) -> list[None]:
        # A body that is over already needs no mark: its end says all.
        still = [mark for mark in marks if mark[0].entry in self._running]
        if still:
            await self._store.start(self.id, still)
        return [None] * len(marks)

    async def _send_ends(self, ends: list[Finished]) -> list[bool]:
        accepted: list[bool] = await self._patiently(lambda: self._store.finish(ends))
        return accepted

    # -- leases --------------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Keep what is held; stop what another worker has taken over."""
        held = dict(self._held)
        kept = await self._store.renew(self._consumer, list(held.values()))
        for entry in held.keys() - kept:
            if task := self._attempts.get(entry):
                log.warning("job %r was taken over; stopping it", held[entry].spec.task_id)
                self._begun.discard(entry)
                task.cancel()
        await self._heartbeat()

    async def _heartbeat(self) -> None:
        await self._store.heartbeat(
            self.id,
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "slots": self._executor.slots,
                "running": len(self._held),
                "done": self._done,
                **self._says,
            },
            self._options.lease_ms,
        )

    async def _recover(self) -> None:
        """Take jobs from workers that have fallen silent."""
        for spec, entry, lease, holder in await self._store.overdue(self._options.lease_ms):
            now = self._store.clock.now_ms()
            reason = f"worker {holder.rpartition('~')[0]} fell silent"
            if await self._store.recover(spec, entry, lease, _lost(spec, now, reason)):
                log.warning("job %r of task %r: %s", spec.task_id, spec.fn_name, reason)


def _lost(spec: JobSpec, now: int, reason: str, start: int | None = None) -> Outcome:
    """How a job ends that has lost its worker too often."""
    message = (
        f"job {spec.task_id!r} of task {spec.fn_name!r} lost its worker {MAX_LOST_STARTS} times: "
        f"{reason}"
    )
    return Outcome(
        ending=Ending.CRASHED,
        tries=MAX_LOST_STARTS,
        start=now if start is None else start,
        finish=now,
        failure=Failure("WorkerCrashed", message, f"WorkerCrashed({message!r})"),
    )


def _retrieved(future: asyncio.Future[None]) -> None:
    """A lost start mark changes nothing but what is shown meanwhile."""
    if not future.cancelled():
        future.exception()
