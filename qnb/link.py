"""What one event loop has of a queue: its store, the subscription to its news, and the waiters."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any
from weakref import finalize

from qnb.batching import Batcher
from qnb.errors import BrokerError
from qnb.models import UNFINISHED, JobRecord
from qnb.options import AppOptions
from qnb.storage.connection import masked
from qnb.storage.keys import job_hex
from qnb.storage.records import Call, Notice
from qnb.storage.store import Store, is_due

__all__ = ["LoopLink"]

log = logging.getLogger("qnb")

#: seconds between two looks at the state of jobs that are waited for, since a notice is only a
#: hint: what ends unheard, or is gone, is known within a second
LOOK = 0.8

#: seconds for which a server may be away before whoever waits for a job is told
PATIENCE = 600.0

#: seconds between two ticks while something is awaited, so that an interrupt gets through
TICK = 0.2

#: jobs that are remembered to have been sent, and not heard of
QUIET = 20_000

#: seconds within which a server that has just answered must accept a subscription
SUBSCRIBE = 10.0


class _Feed:
    """A channel of others, and who wants to be told that it is heard (anew)."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.wanted: dict[str, Callable[[], None]] = {}
        self.is_heard = False

    def subscribed(self) -> None:
        self.is_heard = True
        for tell in tuple(self.wanted.values()):
            tell()


class LoopLink:
    """What one event loop has: a store, the subscription to this client's notices, the waiters."""

    def __init__(self, url: str, options: AppOptions, name: str, runs: dict[str, int]) -> None:
        self.store = Store(url, options)
        self.sends: Batcher[Call, int] = Batcher(self._send, most=500)
        self.reads: Batcher[str, JobRecord | None] = Batcher(self._read, most=500)
        #: as ``reads``, for those who wait: no call, and a result only of what has ended
        self.looks: Batcher[str, JobRecord | None] = Batcher(self.store.ended, most=500)
        self.closed = False  #: will it never be used again?
        self._name = name
        self._runs = runs
        self._sending = 0
        #: jobs that were sent from here and of which nothing has been heard: no need to look
        self._quiet: dict[str, None] = {}
        self._stored: set[str] = set()  # digests of functions that the store has, or has had
        self._waiting: dict[str, list[asyncio.Future[JobRecord | None]]] = {}
        self._listeners: dict[str, list[Callable[[Notice], None]]] = {}
        self._feeds: dict[str, _Feed] = {}  # channels of others that somebody here listens to
        self._attending: dict[str, str] = {}  # the channel of each who does
        self._away_since: float | None = None  # loop time of the first look that found no server
        self._looking: set[str] = set()  # jobs whose state is being read
        self._listener: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()
        self._subscribed: asyncio.Future[None]  # set with the listener
        self._keeper: AsyncGenerator[None, None]  # closes this link at the loop's end
        self._abandoned: finalize[Any, Any]

    async def bind(self, owner: object) -> None:
        """Be closed with the loop that runs, or when nobody holds ``owner`` any more."""
        loop = asyncio.get_running_loop()
        self._abandoned = finalize(owner, _abandon, self, loop)
        self._abandoned.atexit = False  # the end of the process has its own order (bridge)
        self._keeper = _closed_with_loop(self)
        await anext(self._keeper)

    async def end(self) -> None:
        """Close the link now."""
        await self._keeper.aclose()

    async def _send(self, calls: list[Call]) -> list[int]:
        return await self.send(calls)

    async def send(self, calls: Sequence[Call], *, fresh: bool = True) -> list[int]:
        """Store ``calls`` and the functions they bring; the enqueue time of each, 0: it was there.

        Unless ``fresh``, what is complete is left alone and not run afresh.
        """
        codes = {call.spec.function: call for call in calls if call.code is not None}

        async def put(digest: str) -> None:
            call = codes[digest]
            lives = max(self.store.function_ttl_ms(c) for c in calls if c.spec.function == digest)
            await self.store.put_function(digest, call.code or b"", lives)
            self._stored.add(digest)

        for digest in codes:
            if digest not in self._stored:  # before the jobs: a worker may take one at once
                await put(digest)
        self._sending += 1
        quiet = self._quiet if fresh else {}
        for call in calls:  # before they are there: what is said of them from now on is heard
            quiet[call.spec.task_id] = None
        try:
            stored = await self.store.enqueue(calls, put, fresh=fresh)
        except BaseException:
            quiet.clear()
            raise
        finally:
            self._sending -= 1
        for call, enqueued in zip(calls, stored, strict=True):
            if not enqueued:
                quiet.pop(call.spec.task_id, None)
            elif call.spec.nonce:
                self._runs[call.spec.task_id] = enqueued
        while len(quiet) > QUIET:
            del quiet[next(iter(quiet))]
        return stored

    @property
    def busy(self) -> bool:
        """Are calls on their way to the store?"""
        return self._sending > 0

    async def _read(self, task_ids: list[str]) -> list[JobRecord | None]:
        return await self.store.records(task_ids, call=True, result=True)

    async def listen(self) -> None:
        """Make sure that notices arrive from now on; an error if this user may not hear them."""
        self._start_listening()
        if not self._subscribed.done():
            await asyncio.wait({self._subscribed}, timeout=SUBSCRIBE)
        if not self._subscribed.done():
            raise BrokerError(
                f"the server at {masked(self.store.server.url)} does not answer a subscription "
                f"within {SUBSCRIBE:g} s; try again"
            )
        self._subscribed.result()

    def _start_listening(self) -> None:
        if self._listener is None or self._listener.done():
            self._subscribed = asyncio.get_running_loop().create_future()
            self._listener = asyncio.create_task(self._hear(), name="qnb-notices")
            self._listener.add_done_callback(self._deaf)

    def _deaf(self, listener: asyncio.Task[None]) -> None:
        """Notices are heard no more: tell those who wait for the subscription, or for a job."""
        error: BaseException | None = None
        if listener.cancelled():
            error = BrokerError("the app was closed while this was awaited")
        elif (error := listener.exception()) and not isinstance(error, BrokerError):
            log.error("the subscription to notices has failed", exc_info=error)
        if not self._subscribed.done():
            self._subscribed.set_exception(error or BrokerError("the subscription has ended"))
            self._subscribed.exception()  # there may be nobody who asks
        if isinstance(error, BrokerError):
            for task_id in list(self._waiting):
                self._fail(task_id, error)

    async def _hear(self) -> None:
        async for notices in self.store.notices(self._name, self._resubscribed, self._is_wanted):
            self._heard(notices)

    def _is_wanted(self, task_id: str) -> bool:
        """Does anybody here want to know of this job?"""
        if task_id in self._waiting:
            return True
        self._quiet.pop(task_id, None)  # it may have ended: who waits for it must look
        listeners = self._listeners
        return bool(listeners) and (task_id in listeners or task_id.rpartition(".")[0] in listeners)

    def _heard(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            if self._is_late(notice.record):
                continue
            self._tell(notice)
            if notice.record is not None:
                self._settle(notice.task_id, notice.record)
            elif notice.status not in UNFINISHED:
                self._look([notice.task_id])

    def attend(self, channel: str, who: str, subscribed: Callable[[], None] | None = None) -> None:
        """Hear what is said on the ``channel`` of another client, or of a sweep, for ``who``.

        ``subscribed`` is told of each (re)connect: what was said before may have been missed.
        """
        if channel in ("", self._name) or who in self._attending:
            return
        feed = self._feeds.get(channel)
        if feed is None:
            feed = self._feeds[channel] = _Feed()
            feed.task = asyncio.create_task(self._follow(channel, feed), name="qnb-feed")
        elif feed.is_heard and subscribed is not None:
            subscribed()
        self._attending[who] = channel
        feed.wanted[who] = subscribed or (lambda: self._look([who]))

    def leave(self, who: str) -> None:
        """``who`` needs no channel of others any more."""
        channel = self._attending.pop(who, None)
        if channel is not None and (feed := self._feeds.get(channel)) is not None:
            feed.wanted.pop(who, None)
            if not feed.wanted:
                del self._feeds[channel]
                if feed.task is not None:  # kept until it has closed its connection
                    self._chores.add(feed.task)
                    feed.task.add_done_callback(self._chores.discard)
                    feed.task.cancel()

    async def _follow(self, channel: str, feed: _Feed) -> None:
        try:
            async for notices in self.store.notices(channel, feed.subscribed, self._is_wanted):
                self._heard(notices)
        except BrokerError as error:  # their state is read once a second all the same
            log.warning("the news on channel %r are not heard: %s", channel, error)

    def _tell(self, notice: Notice) -> None:
        family = notice.task_id.rpartition(".")[0]
        for tell in (
            *self._listeners.get(notice.task_id, ()),
            *self._listeners.get(family, ()),
        ):
            try:
                tell(notice)
            except Exception:  # a notice is not signed: it may speak of what there is not
                log.exception("a notice of job %r is not understood", notice.task_id)

    def _resubscribed(self) -> None:
        self._quiet.clear()
        self._stored.clear()  # it may be another server, or one that has lost what it knew
        if not self._subscribed.done():
            self._subscribed.set_result(None)
        self._look(list(self._waiting))

    def _look(self, task_ids: Sequence[str]) -> None:
        """Read the state of jobs that are waited for; settle what has ended."""
        for task_id in task_ids:
            if task_id in self._waiting:
                self._looking.add(task_id)
                self.looks.put(task_id).add_done_callback(
                    lambda read, id_=task_id: self._looked(id_, read)  # type: ignore[misc]
                )

    def _looked(self, task_id: str, read: asyncio.Future[JobRecord | None]) -> None:
        self._looking.discard(task_id)
        if read.cancelled():
            return
        if (error := read.exception()) is not None:
            if type(error) is not BrokerError or self._is_gone(error):
                self._fail(task_id, error)
            return
        self._away_since = None
        record = read.result()
        if self._is_late(record):
            self._look([task_id])
        elif record is None or record.status not in UNFINISHED:
            self._settle(task_id, record)
        else:
            if record.spec is not None:
                self.attend(record.spec.channel, task_id)
            self._see_to_expiry(record)

    def _is_gone(self, error: BrokerError) -> bool:
        """Is the server away for good? One that is only away is waited for."""
        now = asyncio.get_running_loop().time()
        if self._away_since is None:
            self._away_since = now
            log.warning("%s. What is waited for here, still is", error)
        return now - self._away_since >= PATIENCE

    def _see_to_expiry(self, record: JobRecord) -> None:
        """End a job that has expired, as perhaps no worker is there to do so; or look in time."""
        now = self.store.clock.now_ms()
        if not is_due(record, now):
            if record.expires_at is not None and 0 < record.expires_at - now < 1000 * LOOK:
                left = (record.expires_at - now) / 1000
                asyncio.get_running_loop().call_later(left, self._look, [record.task_id])
            return

        async def expire() -> None:
            with contextlib.suppress(BrokerError):
                if await self.store.expire(record.priority, [job_hex(record.task_id)]):
                    self._look([record.task_id])

        task = asyncio.create_task(expire(), name="qnb-expire")
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    def _is_late(self, record: JobRecord | None) -> bool:
        """Is this the outcome of the run before the one that was asked for last?"""
        return (
            record is not None
            and record.spec is not None  # else nothing is known of it
            and record.enqueue_time < self._runs.get(record.task_id, 0)
        )

    def _fail(self, task_id: str, error: BaseException) -> None:
        self._quiet.pop(task_id, None)
        for waiter in self._waiting.pop(task_id, ()):
            if not waiter.done():
                waiter.set_exception(error)

    def _settle(self, task_id: str, record: JobRecord | None) -> None:
        self._quiet.pop(task_id, None)  # who waits for it again must look
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
            self._start_listening()
            if task_id not in self._quiet:
                self._look([task_id])
            return await waiter
        finally:
            waiters = self._waiting.get(task_id, [])
            if waiter in waiters:
                waiters.remove(waiter)
                if not waiters:
                    del self._waiting[task_id]
            if task_id not in self._waiting:
                self.leave(task_id)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while self._waiting:
            await asyncio.sleep(TICK)
            if loop.time() - looked >= LOOK:
                looked = loop.time()
                self._look([id_ for id_ in self._waiting if id_ not in self._looking])
                with contextlib.suppress(BrokerError):
                    await self.store.server.renew_clock()
        self._ticker = None

    async def close(self) -> None:
        self.closed = True
        feeds = [feed.task for feed in self._feeds.values()]
        self._feeds.clear()
        self._attending.clear()
        for task in (self._listener, self._ticker, *feeds, *self._chores):
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
