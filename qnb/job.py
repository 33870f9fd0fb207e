"""The handle of one job: a client and an id, nothing else that matters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from typing import Any, Generic, TypeVar

from qnb import bridge
from qnb.client import Client
from qnb.clock import seconds
from qnb.display import Displayed
from qnb.models import UNFINISHED, JobRecord, JobState, TaskInfo, TaskResult
from qnb.storage.records import Notice

__all__ = ["Job"]

R = TypeVar("R")

#: seconds between two looks at a job that is shown live
LOOK = 1.0


class Job(Displayed, Generic[R]):
    """A job that has been enqueued, here or elsewhere.

    ``await job`` and :meth:`get` give its value or raise what it raised; :meth:`result` gives a
    :class:`~qnb.TaskResult` and does not raise for a failed task. As the last expression of a
    notebook cell it is shown live.
    """

    __slots__ = ("__weakref__", "_client", "_seen", "_watchers", "id")

    def __init__(self, client: Client, task_id: str, seen: JobRecord | None = None) -> None:
        self.id = task_id
        self._client = client
        self._seen = seen or JobRecord(task_id, "", "", JobState.NOT_FOUND, 0)
        self._watchers: list[Callable[[], None]] = []

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
        return await self._client.status(self.id)

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
        limit = seconds(timeout)

        async def wait() -> R:
            try:
                async with asyncio.timeout(limit):
                    record = await self._client.wait(self.id)
            except TimeoutError:
                raise TimeoutError(
                    f"job {self.id!r} has not ended within {limit:g} s; it goes on"
                ) from None
            value: R = self._client.value_of(self.id, record)
            return value

        return bridge.run(wait())

    def wait(self, timeout: float | timedelta | None = None) -> Job[R]:
        """Wait until the job has ended, well or badly; the job itself."""
        limit = seconds(timeout)
        bridge.run(self._client.result(self.id, 1e9 if limit is None else limit))
        return self

    # -- showing -------------------------------------------------------------------------------

    def snapshot(self) -> JobRecord:
        """The last that was heard of the job; no I/O."""
        return self._seen

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have ``changed`` called on qnb's I/O thread whenever :meth:`snapshot` may have changed.

        Until the job has ended; call the answer to stop before.
        """
        self._watchers.append(changed)
        feed: Future[None] | None = None
        if len(self._watchers) == 1:
            feed = bridge.spawn(self._follow())

        def end() -> None:
            if changed in self._watchers:
                self._watchers.remove(changed)
            if feed is not None and not self._watchers:
                feed.cancel()

        return end

    async def _follow(self) -> None:
        link = await self._client.link()
        news = asyncio.Event()

        def heard(notice: Notice) -> None:
            self._seen = notice.record or replace(self._seen, status=notice.status)
            news.set()

        end = link.watch(self.id, heard)
        try:
            await link.listen()
            while True:
                record = await self._client.record(self.id)
                self._seen = record or replace(self._seen, status=JobState.NOT_FOUND)
                for changed in tuple(self._watchers):
                    changed()
                if self._seen.status not in UNFINISHED:
                    return
                news.clear()
                try:
                    async with asyncio.timeout(LOOK):
                        await news.wait()
                except TimeoutError:
                    pass
        finally:
            end()

    def __repr__(self) -> str:
        name = f" of {self._seen.fn_name!r}" if self._seen.fn_name else ""
        return f"<Job {self.id!r}{name}: {self._seen.status}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Job):
            return NotImplemented
        return self.id == other.id and self._client is other._client

    def __hash__(self) -> int:
        return hash(self.id)
