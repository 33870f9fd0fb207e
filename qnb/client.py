"""The queue as a program sees it: enqueue, look, wait. Store and codec together.

One :class:`Client` serves every event loop of a process: connections belong to a loop, so each
has a :class:`LoopLink` of its own. All methods are coroutines and use the link of the running
loop; :mod:`qnb.bridge` makes blocking twins of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from qnb.content.code import Code
from qnb.errors import BrokerError, JobLost, UnknownTask
from qnb.link import LoopLink
from qnb.models import UNFINISHED, Ending, JobRecord, JobState, TaskContext, TaskInfo, TaskResult
from qnb.options import AppOptions
from qnb.reading import call_of, lost, result_of, value_of
from qnb.registry import Registry
from qnb.storage.connection import check_url
from qnb.storage.records import Call
from qnb.storage.studies import Studies
from qnb.wire.codec import Codec

__all__ = ["Client", "Turn", "me", "new_id", "server_url"]

#: seconds between two looks at the environments of workers, for one task
COMPARE = 30.0


def me() -> str:
    """Who gives a command, for those who look at the job later."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} (process {os.getpid()})"


def new_id() -> str:
    """A job id that nobody else makes."""
    return secrets.token_hex(16)


class _Recent(dict[str, int]):
    """Forgets the oldest entry beyond ``MOST``."""

    MOST = 10_000

    def __setitem__(self, key: str, value: int) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)
        if len(self) > self.MOST:
            del self[next(iter(self))]


def server_url(url: str | None) -> str:
    """``url``, else ``$QNB_REDIS_URL``, else the embedded server, started if need be."""
    if found := url or os.environ.get("QNB_REDIS_URL"):
        return found
    from qnb.storage import server

    return server.ensure()


class Turn:
    """A command's turn: it waits for the one before it, and lets the next go once it is sent."""

    def __init__(self, before: Future[None] | None, sent: Future[None]) -> None:
        self._before = before
        self._sent = sent

    async def __aenter__(self) -> None:
        if self._before is not None:
            await asyncio.wrap_future(self._before)

    async def __aexit__(self, *error: object) -> None:
        self._sent.set_result(None)


class Client:
    """A queue, for every event loop of this process.

    The server is looked for when a loop first needs it, so that nothing is started before.
    Sent to a worker, it becomes a client of the same queue there.
    """

    def __init__(
        self, url: str | None, options: AppOptions, registry: Registry | None = None
    ) -> None:
        if (given := url or os.environ.get("QNB_REDIS_URL")) is not None:
            check_url(given, insecure=options.insecure)
        self.options = options
        self.registry = registry or Registry()  #: the functions that are known here by name
        self._url = url
        self._codec: Codec | None = None
        self._name = secrets.token_hex(8)
        self._sending: dict[str, Future[None]] = {}  # commands on their way, by job
        #: sweeps whose jobs are being stored, by prefix: awaits that a job is there
        self.storing: dict[str, Callable[[str], Awaitable[None]]] = {}
        self._compared: set[tuple[str, str]] = set()  # functions and environments of workers
        self._compared_at: dict[str, float] = {}
        self._kept_codes: set[str] = set()
        self._runs: dict[str, int] = _Recent()  # jobs that run again, by their newest enqueue time
        self._closed: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self._links: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopLink] = WeakKeyDictionary()

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
            self._codec = self._codec_of(self.options)
        return self._codec

    def sparing_codec(self, most: int) -> Codec:
        """The same, but it reads no value of more than ``most`` bytes, wherever they are."""
        return self._codec_of(replace(self.options, max_payload=most))

    def _codec_of(self, options: AppOptions) -> Codec:
        return Codec.of(options, self._url or os.environ.get("QNB_REDIS_URL"))

    @property
    def channel(self) -> str:
        """Where this client hears of the jobs it enqueues."""
        return self._name

    async def link(self) -> LoopLink:
        """The running loop's link, opened; it is closed with the loop at the latest."""
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is None:
            if loop in self._closed:
                raise BrokerError(f"the app of queue {self.options.queue_name!r} has been closed")
            url = self._url or os.environ.get("QNB_REDIS_URL")
            if url is None:
                try:
                    url = await loop.run_in_executor(None, server_url, None)
                except RuntimeError:  # the process ends, and threads with it
                    url = server_url(None)
            link = self._links.get(loop)  # another task may have been quicker
            if link is None:
                link = self._links[loop] = LoopLink(url, self.options, self._name, self._runs)
                await link.bind(self)
        await link.store.open()
        return link

    @property
    def is_closed(self) -> bool:
        """Was it closed on the running loop?"""
        return asyncio.get_running_loop() in self._closed

    async def close(self) -> None:
        """Close the running loop's link, for good. Jobs go on."""
        self._closed.add(asyncio.get_running_loop())
        link = self._links.pop(asyncio.get_running_loop(), None)
        if link is not None:
            await link.end()

    # -- sending -------------------------------------------------------------------------------

    async def enqueue(self, calls: Sequence[Call]) -> None:
        """Store the calls, in order. A call whose id is waiting or running stores nothing new."""
        link = await self.link()
        await link.listen()
        for call in calls if self._sending else ():
            await self._sent(call.spec.task_id)
        if len(calls) > 1 or not link.busy:
            await link.send(calls)
        else:  # with those of other tasks of this loop
            await link.sends.put(calls[0])

    async def compare(self, fn_name: str, fn: Callable[..., Any], *, by_value: bool) -> list[str]:
        """What to tell, once, of workers whose Python or packages differ in what ``fn`` needs."""
        from qnb.wire import environment

        now = asyncio.get_running_loop().time()
        if now - self._compared_at.get(fn_name, -COMPARE) < COMPARE:
            return []
        self._compared_at[fn_name] = now
        store = (await self.link()).store
        told = []
        for says in (await store.workers()).values():
            known = (fn_name, str(says.get("env", "")))
            if known in self._compared or not known[1]:
                continue
            self._compared.add(known)
            packed = await store.environment(known[1])
            there = environment.unpack(packed) if packed else None
            if there is not None:
                found = environment.differences(
                    environment.describe(), there, environment.reached(fn), by_value=by_value
                )
                text = environment.report(fn_name, f"{says['host']}:{says['pid']}", found)
                told += [text] if text else []
        return told

    def shipped(self, fn: Callable[..., Any] | None) -> tuple[str, bytes | None]:
        """What the workers are told of a function: where to import it, or its digest and code."""
        if fn is None or self.options.codec == "msgpack":
            return "", None  # a worker that serves the app knows the name
        reference = self.codec.reference(fn)
        if reference is not None:
            return reference, None
        digest, code = self.codec.pack_function(fn)
        return digest.hex(), code

    def code(self, fn: Callable[..., Any] | None) -> Code | None:
        """What ``fn`` and all that it reaches is; None of what is known here by its name only."""
        if fn is None:
            return None
        from qnb.content.walk import code_of

        return code_of(fn)

    async def keep_code(self, code: Code | None) -> None:
        """Keep what a fingerprint was made of, so that what changes can be told."""
        if code is not None and code.comparable and code.digest not in self._kept_codes:
            studies = Studies((await self.link()).store)
            await studies.keep_code(code.digest, code.pack())
            self._kept_codes.add(code.digest)

    async def server_ms(self) -> int:
        """Now, by the server's clock."""
        store = (await self.link()).store
        await store.server.renew_clock()
        return store.clock.now_ms()

    # -- commands ------------------------------------------------------------------------------

    def turn(self, task_id: str) -> Turn:
        """The next turn among the commands to a job; what is asked of it later waits for that."""
        before = self._sending.get(task_id)
        sent: Future[None] = Future()
        self._sending[task_id] = sent
        sent.add_done_callback(
            lambda _: self._sending.get(task_id) is sent and self._sending.pop(task_id)
        )
        return Turn(before, sent)

    async def _sent(self, task_id: str) -> None:
        if self.storing and (there := self.storing.get(task_id.rpartition(".")[0])) is not None:
            await there(task_id)
        if (sent := self._sending.get(task_id)) is not None:
            await asyncio.wrap_future(sent)

    async def abort(self, task_id: str, turn: Turn) -> bool:
        """End a job; true once it is stopped, false if it had ended before or is unknown.

        A running job is waited for: its worker stops it, or, if that is gone, another one ends it
        when the lease is over.
        """
        async with turn:
            link = await self.link()
            [record] = await link.store.records([task_id])
            if record is None or record.status not in UNFINISHED:
                return False
            answer = await link.store.abort(record, me())
        if answer != 2:
            return answer == 1
        pause = 0.01
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * self.options.lease_ms / 1000 + 1):
                while True:
                    [now] = await link.store.records([task_id])
                    if now is None or now.enqueue_time != record.enqueue_time:
                        return True  # what was to be stopped is over, and a later run has begun
                    if now.outcome is not None:
                        return now.outcome.ending is Ending.ABORTED
                    await asyncio.sleep(pause)
                    pause = min(0.25, 1.5 * pause)
        return True  # it is written down; whoever holds the job ends it

    async def rerun(self, task_id: str, turn: Turn) -> bool:
        """Run a finished job again, as it was; false if it is unknown or has not ended."""
        async with turn:
            link = await self.link()
            await link.listen()
            [record] = await link.store.records([task_id], call=True)
            if record is None or record.spec is None or record.status in UNFINISHED:
                return False
            again = replace(record.spec, channel=self.channel, nonce=secrets.token_hex(8))
            call = self.codec.rebind_call(
                task_id, record.call, record.spec.binding(), again.binding()
            )
            enqueued = await link.store.rerun(again, call)
            if enqueued:
                self._runs[task_id] = enqueued
            return bool(enqueued)

    # -- looking -------------------------------------------------------------------------------

    async def record(self, task_id: str) -> JobRecord | None:
        """All that is known of a job, with its call and result."""
        await self._sent(task_id)
        link = await self.link()
        return await link.reads.put(task_id)

    async def glance(self, task_id: str) -> JobRecord | None:
        """What is known of a job, without its call and result."""
        await self._sent(task_id)
        [record] = await (await self.link()).store.records([task_id])
        return record

    async def status(self, task_id: str) -> JobState:
        record = await self.glance(task_id)
        return record.status if record else JobState.NOT_FOUND

    async def info(self, task_id: str) -> TaskInfo | None:
        record = await self.record(task_id)
        if record is None or record.status not in UNFINISHED:
            return None
        args, kwargs = call_of(self.codec, record)
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

    async def log(self, task_id: str, since: int) -> tuple[str, int, bool]:
        """A job's output from byte ``since`` on, where it ends now, and whether that is final."""
        await self._sent(task_id)
        store = (await self.link()).store
        [record] = await store.records([task_id])
        if record is None:
            raise lost(task_id)
        final = record.status not in UNFINISHED
        text, end = await store.log(record, since)
        return text, end, final

    async def function(
        self, task_id: str
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], TaskContext]:
        """The very function that a job runs, its arguments rebuilt here, and what it is told."""
        record = await self.record(task_id)
        if record is None:
            raise lost(task_id)
        args, kwargs = call_of(self.codec, record)
        context = TaskContext(task_id, record.fn_name, max(1, record.tries))
        return await self._function(record), args, kwargs, context

    async def _function(self, record: JobRecord) -> Callable[..., Any]:
        task_id = record.task_id
        function = record.spec.function if record.spec else ""
        if ":" in function:
            return self.codec.resolve(function)
        if not function:
            known = self.registry.get(record.fn_name)
            if known is None:
                raise UnknownTask(
                    f"job {task_id!r} names its task {record.fn_name!r} only, and brought no "
                    "function: reproduce it with the app that defines the task"
                )
            return known
        code = await (await self.link()).store.function(function)
        if code is None:
            raise JobLost(
                f"the function of job {task_id!r} is no longer stored (30 days after it was last "
                "submitted)"
            )
        digest = bytes.fromhex(function)
        return self.codec.unpack_function(digest, code, task=record.fn_name)

    async def queue_size(self) -> int:
        return await (await self.link()).store.queue_size()

    # -- waiting -------------------------------------------------------------------------------

    async def wait(self, task_id: str) -> JobRecord | None:
        """The job's record once it has ended; None if the store knows of no such job."""
        await self._sent(task_id)
        return await (await self.link()).wait(task_id)

    async def result(self, task_id: str, limit: float | None) -> TaskResult | None:
        """The outcome now, or None; with a limit (seconds), wait or raise ``TimeoutError``."""
        if limit is None:
            await self._sent(task_id)
            record = await (await self.link()).looks.put(task_id)
            if record is None or record.status in UNFINISHED:
                return None
            return result_of(self.codec, task_id, record)
        try:
            async with asyncio.timeout(limit):
                return result_of(self.codec, task_id, await self.wait(task_id))
        except TimeoutError:
            raise TimeoutError(
                f"job {task_id!r} has not ended within {limit:g} s; it goes on"
            ) from None

    async def value(self, task_id: str) -> Any:
        """Wait for a job; its value, or the exception it ended with."""
        return value_of(self.codec, task_id, await self.wait(task_id))
