"""What one event loop has of a queue: its store, the subscription to its news, and the waiters."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any
from weakref import finalize

from qnb.batching import Batcher
from qnb.errors import BrokerError
from qnb.models import UNFINISHED, JobRecord
from qnb.options import AppOptions
from qnb.storage.keys import job_hex
from qnb.storage.records import Call, Notice
from qnb.storage.store import Store, is_due

__all__ = ["LoopLink"]

#: seconds between two looks at the state of jobs that are waited for: a notice is only a hint
LOOK = 1.0

#: seconds between two ticks while something is awaited, so that an interrupt gets through
TICK = 0.2

#: seconds after which a function is stored again
DAY = 24 * 3600.0


class LoopLink:
    """What one event loop has: a store, the subscription to this client's notices, the waiters."""

    def __init__(self, url: str, options: AppOptions, name: str, runs: dict[str, int]) -> None:
        self.store = Store(url, options)
        self.sends: Batcher[Call, int] = Batcher(self._send, most=500)
        self.reads: Batcher[str, JobRecord | None] = Batcher(self._read, most=500)
        self._name = name
        self._runs = runs
        self._stored: dict[str, float] = {}  # function digest → when it was last stored
        self._waiting: dict[str, list[asyncio.Future[JobRecord | None]]] = {}
        self._listeners: dict[str, list[Callable[[Notice], None]]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()
        self._subscribed = asyncio.Event()
        self._keeper: AsyncGenerator[None, None]  # closes this link at the loop's end
        self._abandoned: finalize[Any, Any]

    async def bind(self, owner: object) -> None:
        """Be closed with the loop that runs, or when nobody holds ``owner`` any more."""
        loop = asyncio.get_running_loop()
        self._abandoned = finalize(owner, _abandon, self, loop)
        self._keeper = _closed_with_loop(self)
        await anext(self._keeper)

    async def end(self) -> None:
        """Close the link now."""
        await self._keeper.aclose()

    async def _send(self, calls: list[Call]) -> list[int]:
        now = asyncio.get_running_loop().time()
        for call in calls:
            digest = call.spec.function
            if call.code is not None and now - self._stored.get(digest, -DAY) >= DAY:
                await self.store.put_function(digest, call.code)
                self._stored[digest] = now
        stored = await self.store.enqueue(calls)
        for call, enqueued in zip(calls, stored, strict=True):
            if enqueued and call.spec.nonce:
                self._runs[call.spec.task_id] = enqueued
        return stored

    async def _read(self, task_ids: list[str]) -> list[JobRecord | None]:
        return await self.store.records(task_ids, call=True, result=True)

    async def listen(self) -> None:
        """Make sure that notices arrive from now on."""
        if self._listener is None:
            self._listener = asyncio.create_task(self._hear(), name="qnb-notices")
        await self._subscribed.wait()

    async def _hear(self) -> None:
        async for notices in self.store.notices(self._name, self._resubscribed):
            for notice in notices:
                if notice.record and notice.record.enqueue_time < self._runs.get(notice.task_id, 0):
                    continue  # late news of the run before this one
                family = notice.task_id.rpartition(".")[0]
                for tell in (
                    *self._listeners.get(notice.task_id, ()),
                    *self._listeners.get(family, ()),
                ):
                    tell(notice)
                if notice.record is not None:
                    self._settle(notice.task_id, notice.record)
                elif notice.status not in UNFINISHED:
                    self._look([notice.task_id])

    def _resubscribed(self) -> None:
        self._subscribed.set()
        self._look(list(self._waiting))

    def _look(self, task_ids: Sequence[str]) -> None:
        """Read the state of jobs that are waited for; settle what has ended."""
        for task_id in task_ids:
            if task_id in self._waiting:
                self.reads.put(task_id).add_done_callback(
                    lambda read, id_=task_id: self._looked(id_, read)  # type: ignore[misc]
                )

    def _looked(self, task_id: str, read: asyncio.Future[JobRecord | None]) -> None:
        if read.cancelled():
            return
        if (error := read.exception()) is not None:
            for waiter in self._waiting.pop(task_id, ()):
                if not waiter.done():
                    waiter.set_exception(error)
            return
        record = read.result()
        if record is None or record.status not in UNFINISHED:
            self._settle(task_id, record)
        elif is_due(record, self.store.clock.now_ms()):  # perhaps there is no worker to see to it
            self._expire(record)

    def _expire(self, record: JobRecord) -> None:
        async def expire() -> None:
            with contextlib.suppress(BrokerError):
                await self.store.expire(record.priority, [job_hex(record.task_id)])

        task = asyncio.create_task(expire(), name="qnb-expire")
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    def _settle(self, task_id: str, record: JobRecord | None) -> None:
        for waiter in self._waiting.pop(task_id, ()):
            if not waiter.done():
                waiter.set_result(record)

    def watch(self, name: str, tell: Callable[[Notice], None]) -> Callable[[], None]:
        """Have ``tell`` called with each notice of the job ``name``, or of all jobs ``name.*``.

        Call the answer to end that.
        """
        self._listeners.setdefault(name, []).append(tell)

        def end() -> None:
            tells = self._listeners.get(name, [])
            if tell in tells:
                tells.remove(tell)
            if not tells:
                self._listeners.pop(name, None)

        return end

    async def wait(self, task_id: str) -> JobRecord | None:
        """The record of a job once it has ended, with its result; None if there is no such job."""
        waiter: asyncio.Future[JobRecord | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(task_id, []).append(waiter)
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._tick(), name="qnb-tick")
        try:
            await self.listen()
            self._look([task_id])
            return await waiter
        finally:
            waiters = self._waiting.get(task_id, [])
            if waiter in waiters:
                waiters.remove(waiter)
                if not waiters:
                    del self._waiting[task_id]

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while self._waiting:
            await asyncio.sleep(TICK)
            if loop.time() - looked >= LOOK:
                looked = loop.time()
                self._look(list(self._waiting))
        self._ticker = None

    async def close(self) -> None:
        for task in (self._listener, self._ticker, *self._chores):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        self._listener = self._ticker = None
        for waiters in self._waiting.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(BrokerError("the app was closed while this was awaited"))
        await self.store.close()


async def _closed_with_loop(link: LoopLink) -> AsyncGenerator[None, None]:
    """Suspended until its loop shuts its generators down, as ``asyncio.run`` does at its end."""
    try:
        yield
    finally:
        link._abandoned.detach()
        await link.close()


def _abandon(link: LoopLink, loop: asyncio.AbstractEventLoop) -> None:
    """Close the link of a client that nobody holds any more, on its own loop."""
    if loop.is_running():
        loop.call_soon_threadsafe(lambda: loop.create_task(link.end()))
