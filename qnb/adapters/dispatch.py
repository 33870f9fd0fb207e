"""Futures of jobs, and the I/O thread's part of an executor: it sends, listens and hands over.

Results are unpickled and callbacks are called on one thread of the executor's own, so that neither
holds up what else this process has to do with its queues.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from qnb import bridge
from qnb.client import Client, Turn
from qnb.errors import QnbError
from qnb.job import Job
from qnb.link import LoopLink
from qnb.models import JobRecord, JobState
from qnb.reading import value_of
from qnb.storage.records import Call, Notice
from qnb.sweeps.reuse import serve

__all__ = ["Dispatch", "QueueFuture"]

R = TypeVar("R")


class QueueFuture(Future[R]):
    """The value of a job to come; :attr:`job` is the job, for its output, its id, its abort."""

    def __init__(self, job: Job[R], dropped: Callable[[QueueFuture[R]], None]) -> None:
        super().__init__()
        self.job = job
        self._dropped = dropped
        self._begun = False

    def cancel(self) -> bool:
        """Take the call back: true if it has not been seen to run; then its job is aborted."""
        if not super().cancel():
            return False
        self._dropped(self)
        return True

    def begin(self) -> bool:
        """On the I/O thread: it runs, or has ended; false if it had been cancelled before."""
        if not self._begun:  # those who wait may be told only once
            self._begun = True
            self.set_running_or_notify_cancel()
        return not self.cancelled()


class _Letter(NamedTuple):
    """A call on its way to the store. Who asks for its job waits until it is there: its turn."""

    call: Call
    future: QueueFuture[Any]
    turn: Turn


class Dispatch:
    """Sends calls and settles their futures.

    :meth:`put` and :meth:`drop` are of any thread, the rest of the I/O thread only.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.aborting: set[Future[None]] = set()  #: commands to abort that have no answer yet
        self._lock = threading.Lock()
        self._outbox: list[_Letter] = []
        self._is_sending = False
        self._delivery = ThreadPoolExecutor(1, "qnb-futures")
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, call: Call, future: QueueFuture[Any]) -> None:
        """Send ``call`` soon. A process that ends waits until it is sent."""
        with self._lock:
            self._outbox.append(_Letter(call, future, self._client.turn(call.spec.task_id)))
            if self._is_sending:
                return
            self._is_sending = True
        bridge.owe(bridge.spawn(self._send()))

    def drop(self, future: QueueFuture[Any]) -> None:
        """``future`` has been cancelled: tell those who wait, and abort its job."""
        bridge.loop().call_soon_threadsafe(future.begin)
        turn = self._client.turn(future.job.id)
        abort = bridge.spawn(self._abort(future.job.id, turn))
        self.aborting.add(abort)
        abort.add_done_callback(self.aborting.discard)
        bridge.owe(abort)

    async def _abort(self, job_id: str, turn: Turn) -> None:
        with contextlib.suppress(QnbError):  # it may run on; nobody waits for it
            await self._client.abort(job_id, turn)

    async def _send(self) -> None:
        while True:
            with self._lock:
                letters, self._outbox = self._outbox, []
                if not letters:
                    self._is_sending = False
                    return
            try:
                await self._send_all(letters)
            except Exception as error:  # noqa: BLE001 - raised where the futures are waited for
                for _, future, turn in letters:
                    self._end(future, error)
                    async with turn:
                        pass

    async def _send_all(self, letters: list[_Letter]) -> None:
        link = await self._client.link()
        await link.listen()
        calls = [letter.call for letter in letters]
        if any(call.spec.content for call in calls):
            calls = await serve(self._client, calls)  # the others have their result already
        new = {call.spec.task_id for call in calls}
        stored = []
        for letter in letters:
            stored.append(asyncio.get_running_loop().create_future())
            is_new = letter.call.spec.task_id in new
            carry = self._carry(link, letter, stored[-1], is_new=is_new)
            task = asyncio.create_task(carry, name="qnb-call")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.wait(stored)

    async def _carry(
        self, link: LoopLink, letter: _Letter, stored: asyncio.Future[None], *, is_new: bool
    ) -> None:
        """One call from here to its end."""
        call, future, turn = letter
        ended: JobRecord | Exception | None = None
        unwatch = link.watch(call.spec.task_id, functools.partial(_heard, future))
        try:
            try:
                async with turn:
                    if is_new and not future.cancelled():
                        await link.sends.put(call)
            finally:
                if not stored.done():
                    stored.set_result(None)
            if not future.cancelled():
                ended = await link.wait(call.spec.task_id)
        except Exception as error:  # noqa: BLE001 - raised where the future is waited for
            ended = error
        finally:
            unwatch()
        self._end(future, ended)

    def _end(self, future: QueueFuture[Any], ended: JobRecord | Exception | None) -> None:
        if future.begin():
            with contextlib.suppress(RuntimeError):  # the interpreter is going: nobody waits
                self._delivery.submit(_deliver, self._client, future, ended)


def _heard(future: QueueFuture[Any], notice: Notice) -> None:
    if notice.status is JobState.RUNNING:
        future.begin()


def _deliver(client: Client, future: QueueFuture[Any], ended: JobRecord | Exception | None) -> None:
    try:
        if isinstance(ended, Exception):
            raise ended
        value = value_of(client.codec, future.job.id, ended)
    except Exception as error:  # noqa: BLE001 - whatever the call has raised
        future.set_exception(error.with_traceback(None))
    else:
        future.set_result(value)
