"""The handle of one job: a client and an id, nothing else that matters."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from typing import Any, Generic, Literal, TypeVar, overload

from qnb import bridge
from qnb.client import Client
from qnb.clock import seconds
from qnb.closeup import Closeup
from qnb.display import Displayed
from qnb.errors import BrokerError, QnbError
from qnb.models import UNFINISHED, JobRecord, JobState, TaskInfo, TaskResult
from qnb.reading import value_of
from qnb.running.context import Reporter, Running, running_as
from qnb.storage.records import Notice
from qnb.why import Explanation, why

__all__ = ["Job"]

R = TypeVar("R")

#: seconds between two looks at a job that is shown live, at least
REST = 0.2
#: the same, at most: of one that runs, as nothing else tells of its output, and of one that waits
LOOK = 1.0
WAIT = 10.0

#: seconds between two looks at a log that is followed
FOLLOW = 0.25

_watching = threading.Lock()  # one for all: it is held for a moment only


class Job(Displayed, Generic[R]):
    """A job that has been enqueued, here or elsewhere.

    ``await job`` and :meth:`get` give its value or raise what it raised; :meth:`result` gives a
    :class:`~qnb.TaskResult` and does not raise for a failed task. As the last expression of a
    notebook cell it is shown live.
    """

    __slots__ = ("__weakref__", "_client", "_feed", "_seen", "_watchers", "id")

    def __init__(self, client: Client, task_id: str, seen: JobRecord | None = None) -> None:
        self.id = task_id
        self._client = client
        self._seen = seen or JobRecord(task_id, "", "", JobState.QUEUED, 0)  # not looked at yet
        self._watchers: list[Callable[[], None]] = []
        self._feed: Future[None] | None = None  # what tells the watchers

    # -- asking (coroutines) -------------------------------------------------------------------

    async def result(
        self,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109 - the seed's own signature
    ) -> TaskResult | None:
        """The outcome now, or None while there is none; with a timeout (seconds), wait for it.

        Never raises for a failed task; ``TimeoutError`` if it has not ended in time.
        """
        return await self._client.result(self.id, seconds(timeout))

    async def status(self) -> JobState:
        """Where the job is: queued, scheduled, running, complete or not_found."""
        status = await self._client.status(self.id)
        self._seen = replace(self._seen, status=status)
        return status

    async def info(self) -> TaskInfo | None:
        """What an unfinished job is; None when it has ended or is unknown."""
        return await self._client.info(self.id)

    def __await__(self) -> Generator[Any, None, R]:
        return self._client.value(self.id).__await__()

    # -- asking (blocking) ---------------------------------------------------------------------

    def get(self, timeout: float | timedelta | None = None) -> R:
        """Wait for the value; raises the task's own exception, its remote traceback chained.

        ``TimeoutError`` after ``timeout`` seconds. An interrupt ends the wait; the job goes on.
        """
        record = bridge.run(self._ended(seconds(timeout)))
        # Raised in this thread: a future's own thread would make another TimeoutError of one.
        value: R = value_of(self._client.codec, self.id, record)
        return value

    def wait(self, timeout: float | timedelta | None = None) -> Job[R]:
        """Wait until the job has ended, well or badly; the job itself.

        ``TimeoutError`` after ``timeout`` seconds. An interrupt ends the wait; the job goes on.
        """
        bridge.run(self._ended(seconds(timeout)))
        return self

    async def _ended(self, limit: float | None) -> JobRecord | None:
        try:
            async with asyncio.timeout(limit):
                record = await self._client.wait(self.id)
        except TimeoutError:
            raise TimeoutError(
                f"job {self.id!r} has not ended within {limit:g} s; it goes on"
            ) from None
        self._see(record)
        return record

    def _see(self, record: JobRecord | None) -> None:
        """Know what was read of it, and keep what is known beside that."""
        seen = self._seen
        self._seen = (
            replace(record, arguments=seen.arguments, log=seen.log)
            if record
            else replace(seen, status=JobState.NOT_FOUND)
        )

    # -- commands ------------------------------------------------------------------------------

    def abort(self) -> bridge.Command[bool]:
        """Stop the job, delayed, queued or running: sent at once, in any cell, awaited or not.

        The answer is true once it is stopped, false if it had ended before or is unknown. A plain
        function that runs in an in-process worker (``app.run()``) cannot be stopped: the job ends,
        its thread runs on, and the outcome says so.
        """
        turn = self._client.turn(self.id)
        return bridge.Command(self._client.abort(self.id, turn), f"abort of job {self.id!r}")

    def retry(self) -> bridge.Command[bool]:
        """Run a finished job again: the same call, function and id; its old outcome is gone.

        The answer is false if it is unknown or has not ended.
        """
        turn = self._client.turn(self.id)

        async def again() -> bool:
            runs = await self._client.rerun(self.id, turn)
            if runs:  # what still tells of the run before may be about to end
                self._tell_watchers(anew=True)
            return runs

        return bridge.Command(again(), f"retry of job {self.id!r}")

    # -- what it printed, what it did ----------------------------------------------------------

    @overload
    def logs(self, *, follow: Literal[False] = False) -> str: ...
    @overload
    def logs(self, *, follow: Literal[True]) -> Iterator[str]: ...
    def logs(self, *, follow: bool = False) -> str | Iterator[str]:
        """What the job's body has printed and logged so far, the newest 1 MB of it.

        With ``follow``, an iterator of pieces that ends with the job. :class:`~qnb.JobLost` for a
        job that is not known.
        """
        if follow:
            return self._follow_log()
        text, *_ = bridge.run(self._client.log(self.id, 0))
        return text

    def _follow_log(self) -> Iterator[str]:
        async def more(since: int, pause: float) -> tuple[str, int, bool]:
            await asyncio.sleep(pause)
            return await self._client.log(self.id, since)

        at, final, pause = 0, False, 0.0
        while not final:
            text, at, final = bridge.run(more(at, pause))
            if text:
                yield text
            pause = FOLLOW

    def reproduce(self) -> R:
        """Run the job's very call here: the same function version, the same arguments.

        Returns its value or raises its error, in the reach of a debugger (``%debug``).
        """
        fn, args, kwargs, context = bridge.run(self._client.function(self.id))
        with running_as(Running(context, Reporter(lambda _: None))):
            value = fn(*args, **kwargs)
            if inspect.iscoroutine(value):
                value = bridge.apart(value)
            return value  # type: ignore[no-any-return]

    def why(self) -> Explanation:
        """Where its result comes from: computed, or used again and of which job.

        And how the function it was submitted with differs from the one its task has here now, with
        the changed lines.
        """
        return bridge.run(why(self._client, self.id))

    # -- showing -------------------------------------------------------------------------------

    def snapshot(self) -> JobRecord:
        """The last that was heard of the job; no I/O."""
        return self._seen

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have ``changed`` called on qnb's I/O thread whenever :meth:`snapshot` may have changed.

        Until the job has ended, and again when it is retried here. Call the answer to stop; both
        from any thread.
        """
        with _watching:
            self._watchers.append(changed)
        self._tell_watchers()
        return lambda: self._unwatch(changed)

    def _unwatch(self, changed: Callable[[], None]) -> None:
        with _watching:
            if changed in self._watchers:
                self._watchers.remove(changed)
            if self._feed is not None and not self._watchers:
                self._feed.cancel()

    def look(self, timeout: float = LOOK) -> None:
        """Read what :meth:`snapshot` shows beside the state: arguments, the end of the output.

        Without an answer within ``timeout`` seconds it stays as it was.
        """

        async def look() -> None:
            async with asyncio.timeout(timeout):
                self._seen = await Closeup(self._client, self.id).look() or self._seen

        with contextlib.suppress(TimeoutError, QnbError):
            bridge.run(look())

    def _tell_watchers(self, *, anew: bool = False) -> None:
        with _watching:
            if anew and self._feed is not None:
                self._feed.cancel()
            if self._watchers and (self._feed is None or self._feed.done()):
                self._feed = bridge.spawn(self._follow())

    async def _follow(self) -> None:
        while self._watchers:
            try:
                return await self._hear_of_it()
            except BrokerError as error:
                if type(error) is not BrokerError or self._client.is_closed:
                    raise
            self._seen = replace(self._seen, note="reconnecting")
            self._tell()
            await asyncio.sleep(LOOK)

    def _tell(self) -> None:
        for changed in tuple(self._watchers):
            changed()

    async def _hear_of_it(self) -> None:
        link = await self._client.link()
        closeup, news = Closeup(self._client, self.id), asyncio.Event()

        def heard(notice: Notice) -> None:
            seen = notice.record or replace(
                self._seen, status=notice.status, report=notice.report or self._seen.report
            )
            self._seen = closeup.dressed(seen)
            news.set()

        end = link.watch(self.id, heard)
        try:
            await link.listen()
            while self._watchers:
                record = await closeup.look()
                self._seen = record or replace(self._seen, status=JobState.NOT_FOUND)
                self._tell()
                if self._seen.status not in UNFINISHED:
                    return
                most = LOOK if self._seen.status is JobState.RUNNING else WAIT
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(most):
                        await asyncio.sleep(REST)
                        await news.wait()
                news.clear()
        finally:
            end()

    def __repr__(self) -> str:
        if not self._seen.fn_name and self._seen.status is JobState.QUEUED:
            return f"<Job {self.id!r}>"
        name = f" of {self._seen.fn_name!r}" if self._seen.fn_name else ""
        return f"<Job {self.id!r}{name}: {self._seen.status}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Job):
            return NotImplemented
        return self.id == other.id and self._client is other._client

    def __hash__(self) -> int:
        return hash(self.id)
