"""The queue as a program sees it: enqueue, look, wait. Store and codec together.

One :class:`Client` serves every event loop of a process: connections belong to a loop, so each
has a :class:`_LoopLink` of its own. All methods are coroutines and use the link of the running
loop; :mod:`qnb.bridge` makes blocking twins of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, finalize

from qnb.batching import Batcher
from qnb.errors import (
    BrokerError,
    JobAborted,
    JobExpired,
    JobLost,
    QnbError,
    RemoteError,
    SignatureError,
    WorkerCrashed,
)
from qnb.models import UNFINISHED, Ending, JobRecord, JobSpec, JobState, TaskInfo, TaskResult
from qnb.options import AppOptions
from qnb.storage.connection import check_url
from qnb.storage.records import Notice
from qnb.storage.store import Store
from qnb.wire.codec import Codec

__all__ = ["Call", "Client", "RemoteTraceback", "new_id", "server_url"]

#: seconds between two looks at the state of jobs that are waited for: a notice is only a hint
LOOK = 1.0

#: seconds between two ticks while something is awaited, so that an interrupt gets through
TICK = 0.2

#: functions that a link remembers to have stored
DAY = 24 * 3600.0

_ENDED_AS: dict[Ending, type[QnbError]] = {
    Ending.ABORTED: JobAborted,
    Ending.EXPIRED: JobExpired,
    Ending.CRASHED: WorkerCrashed,
    Ending.REFUSED: SignatureError,
}


def new_id() -> str:
    """A job id that nobody else makes."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Call:
    """A job that is ready to be sent; ``code`` is its function, if that is shipped by value."""

    spec: JobSpec
    payload: bytes
    code: bytes | None = None


class RemoteTraceback(Exception):
    """The traceback of an exception as its worker saw it: the cause of what is raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text}"


class _LoopLink:
    """What one event loop has: a store, the subscription to this client's notices, the waiters."""

    def __init__(self, url: str, options: AppOptions, name: str) -> None:
        self.store = Store(url, options)
        self.sends: Batcher[Call, bool] = Batcher(self._send, most=500)
        self.reads: Batcher[str, JobRecord | None] = Batcher(self._read, most=500)
        self._name = name
        self._stored: dict[str, float] = {}  # function digest → when it was last stored
        self._waiting: dict[str, list[asyncio.Future[JobRecord | None]]] = {}
        self._listeners: dict[str, list[Callable[[Notice], None]]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._subscribed = asyncio.Event()
        self.keeper: AsyncGenerator[None, None]  # closes this link, at the loop's end at the latest
        self.abandoned: finalize[Any, Any]

    async def _send(self, calls: list[Call]) -> list[bool]:
        now = asyncio.get_running_loop().time()
        for call in calls:
            digest = call.spec.function
            if call.code is not None and now - self._stored.get(digest, -DAY) >= DAY:
                await self.store.put_function(digest, call.code)
                self._stored[digest] = now
        return await self.store.enqueue([(call.spec, call.payload) for call in calls])

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
        for task in (self._listener, self._ticker):
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


async def _closed_with_loop(link: _LoopLink) -> AsyncGenerator[None, None]:
    """Suspended until its loop shuts its generators down, as ``asyncio.run`` does at its end."""
    try:
        yield
    finally:
        link.abandoned.detach()
        await link.close()


def _abandon(link: _LoopLink, loop: asyncio.AbstractEventLoop) -> None:
    """Close the link of a client that nobody holds any more, on its own loop."""
    if loop.is_running():
        loop.call_soon_threadsafe(lambda: loop.create_task(link.keeper.aclose()))


def server_url(url: str | None) -> str:
    """``url``, else ``$QNB_REDIS_URL``, else the embedded server, started if need be."""
    if found := url or os.environ.get("QNB_REDIS_URL"):
        return found
    from qnb.storage import server

    return server.ensure()


class Client:
    """A queue, for every event loop of this process.

    The server is looked for when a loop first needs it, so that nothing is started before.
    Sent to a worker, it becomes a client of the same queue there.
    """

    def __init__(self, url: str | None, options: AppOptions) -> None:
        if (given := url or os.environ.get("QNB_REDIS_URL")) is not None:
            check_url(given, insecure=options.insecure)
        self.options = options
        self._url = url
        self._codec: Codec | None = None
        self._name = secrets.token_hex(8)
        self._closed: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self._links: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopLink] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return Client, (None, self.options)  # a worker's environment names its server

    @property
    def url(self) -> str:
        """Where the store is; starts the embedded server if that is what it is."""
        return server_url(self._url)

    @property
    def codec(self) -> Codec:
        """The codec of this queue; its key is read when first needed."""
        if self._codec is None:
            from qnb.wire.envelope import Keys

            queue = self.options.queue_name
            keys = Keys.load(queue, self.options.key_file)
            self._codec = Codec(keys, queue, max_payload=self.options.max_payload)
        return self._codec

    @property
    def channel(self) -> str:
        """Where this client hears of the jobs it enqueues."""
        return self._name

    async def link(self) -> _LoopLink:
        """The running loop's link, opened; it is closed with the loop at the latest."""
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is None:
            if loop in self._closed:
                raise BrokerError(f"the app of queue {self.options.queue_name!r} has been closed")
            url = await loop.run_in_executor(None, server_url, self._url)
            link = self._links.get(loop)  # another task may have been quicker
            if link is None:
                link = self._links[loop] = _LoopLink(url, self.options, self._name)
                link.abandoned = finalize(self, _abandon, link, loop)
                link.keeper = _closed_with_loop(link)
                await anext(link.keeper)
        await link.store.open()
        return link

    async def close(self) -> None:
        """Close the running loop's link, for good. Jobs go on."""
        self._closed.add(asyncio.get_running_loop())
        link = self._links.pop(asyncio.get_running_loop(), None)
        if link is not None:
            await link.keeper.aclose()

    # -- sending -------------------------------------------------------------------------------

    async def enqueue(self, calls: Sequence[Call]) -> None:
        """Store the calls, in order. A call whose id is waiting or running stores nothing new."""
        link = await self.link()
        await link.listen()
        await asyncio.gather(*(link.sends.put(call) for call in calls))

    # -- looking -------------------------------------------------------------------------------

    async def record(self, task_id: str) -> JobRecord | None:
        """All that is known of a job, with its call and result."""
        link = await self.link()
        return await link.reads.put(task_id)

    async def status(self, task_id: str) -> JobState:
        record = await self.record(task_id)
        return record.status if record else JobState.NOT_FOUND

    async def info(self, task_id: str) -> TaskInfo | None:
        record = await self.record(task_id)
        if record is None or record.status not in UNFINISHED:
            return None
        args, kwargs = self.call_of(record)
        return TaskInfo(
            task_id=record.task_id,
            fn_name=record.fn_name,
            args=args,
            kwargs=kwargs,
            enqueue_time=record.enqueue_time,
            tries=record.tries,
            status=record.status,
            scheduled_at=record.scheduled_at,
        )

    async def queue_size(self) -> int:
        return await (await self.link()).store.queue_size()

    # -- waiting -------------------------------------------------------------------------------

    async def wait(self, task_id: str) -> JobRecord | None:
        """The job's record once it has ended; None if the store knows of no such job."""
        return await (await self.link()).wait(task_id)

    async def result(self, task_id: str, limit: float | None) -> TaskResult | None:
        """The outcome now, or None; with a limit (seconds), wait or raise ``TimeoutError``."""
        if limit is None:
            record = await self.record(task_id)
            if record is None or record.status in UNFINISHED:
                return None
            return self.result_of(task_id, record)
        try:
            async with asyncio.timeout(limit):
                return self.result_of(task_id, await self.wait(task_id))
        except TimeoutError:
            raise TimeoutError(
                f"job {task_id!r} has not ended within {limit:g} s; it goes on"
            ) from None

    async def value(self, task_id: str) -> Any:
        """Wait for a job; its value, or the exception it ended with."""
        return self.value_of(task_id, await self.wait(task_id))

    # -- reading records -----------------------------------------------------------------------

    def call_of(self, record: JobRecord) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments a job was given."""
        spec = JobSpec(record.task_id, record.fn_name, record.priority, function=record.function,
                       is_async=record.is_async)  # fmt: skip
        return self.codec.unpack_call(record.task_id, record.call, binding=spec.binding())

    def result_of(self, task_id: str, record: JobRecord | None) -> TaskResult:
        """A finished job's outcome; of an unknown one, a failure that says so."""
        if record is None or record.outcome is None:
            return TaskResult(False, repr(_lost(task_id)), 0, 0, 0, 0)
        outcome = record.outcome
        value: Any = outcome.failure.text if outcome.failure else None
        if outcome.success:
            value = self.codec.unpack_result(task_id, outcome.result)
        return TaskResult(
            success=outcome.success,
            value=value,
            tries=outcome.tries,
            enqueue_time=record.enqueue_time,
            start=outcome.start,
            finish=outcome.finish,
            aborted=outcome.ending is Ending.ABORTED,
        )

    def value_of(self, task_id: str, record: JobRecord | None) -> Any:
        """A finished job's value, or raise what it raised, its remote traceback chained."""
        if record is None or record.outcome is None:
            raise _lost(task_id)
        outcome = record.outcome
        if outcome.success:
            return self.codec.unpack_result(task_id, outcome.result)
        raise self.error_of(task_id, record) from (
            RemoteTraceback(outcome.failure.traceback)
            if outcome.failure and outcome.failure.traceback
            else None
        )

    def error_of(self, task_id: str, record: JobRecord) -> Exception:
        """What a failed job raised, rebuilt; :class:`RemoteError` where that cannot be."""
        outcome = record.outcome
        if outcome is None or outcome.failure is None:
            return _lost(task_id)
        ended_as = _ENDED_AS.get(outcome.ending)
        if ended_as is not None:
            return ended_as(outcome.failure.message)
        error = self.codec.unpack_error(task_id, outcome.result) if outcome.result else None
        if isinstance(error, Exception):  # a SystemExit would end the loop it is raised on
            return error
        return RemoteError(
            f"job {task_id!r} of task {record.fn_name!r} raised {outcome.failure.text}, an "
            "exception that cannot be rebuilt here"
        )


def _lost(task_id: str) -> JobLost:
    return JobLost(
        f"job {task_id!r} is not known: it was never enqueued, or its record has expired "
        "(App(result_ttl_ms=...))"
    )
