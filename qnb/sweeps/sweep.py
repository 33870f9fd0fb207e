"""A fan-out as one thing: a sequence of jobs that is stored, watched, awaited and tabulated."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

from qnb import bridge
from qnb.client import Client
from qnb.clock import backoff, seconds
from qnb.display import Displayed
from qnb.errors import BrokerError, QnbError
from qnb.job import Job
from qnb.models import UNFINISHED, Ending, JobRecord, JobState, SweepSnapshot
from qnb.reading import value_of
from qnb.storage.records import Call, Notice
from qnb.sweeps.designs import Design

if TYPE_CHECKING:
    from qnb.analysis.frames import DataFrame

__all__ = ["Sweep"]

R = TypeVar("R")
T = TypeVar("T")

#: seconds for which a sweep waits for a server that does not answer
PATIENCE = 600.0

#: jobs that are encoded and stored at a time
CHUNK = 500
SLICE = 50

#: seconds between two looks at jobs whose notice may have been lost, and how many are looked at
LOOK = 1.0
LOOK_JOBS = 2000

#: distinct errors that a snapshot counts
KEPT_ERRORS = 50

_QUEUED, _RUNNING, _DONE, _FAILED, _ABORTED = range(5)


def _cell(record: JobRecord) -> int:
    if record.status is JobState.RUNNING:
        return _RUNNING
    if record.outcome is None:
        return _QUEUED
    if record.outcome.ending is Ending.ABORTED:
        return _ABORTED
    return _DONE if record.outcome.success else _FAILED


class Sweep(Displayed, Sequence[Job[R]]):
    """One job per point of a design, in the design's order.

    Made by :meth:`Task.grid <qnb.Task.grid>` and its siblings, which return at once: the jobs are
    stored in the background. ``sweep[i]`` is a job, ``await sweep`` gives all values,
    :meth:`wait` blocks until all have ended, :meth:`frame` tabulates. As the last expression of a
    notebook cell it is shown live.

    All its state is owned by qnb's I/O thread; other threads read it.
    """

    def __init__(  # noqa: PLR0913 - made in one place, by Task
        self,
        client: Client,
        name: str,
        prefix: str,
        fn_name: str,
        design: Design,
        calls: Callable[[int, int], list[Call]],
    ) -> None:
        self.name = name
        self.fn_name = fn_name
        self.design = design
        self._client = client
        self._prefix = prefix  # of its jobs' ids
        self._calls = calls
        self._cells = bytearray(len(design))
        self._left = len(design)
        self._stored = 0
        self._submitted: Future[None] = Future()  # all is stored, or cannot be
        self._away = False  # does the server not answer?
        self._errors: Counter[str] = Counter()
        self._started = time.monotonic()
        self._ended_at: float | None = None
        self._ended: Future[None] = Future()
        self._watchers: list[Callable[[], None]] = []
        self._news: asyncio.Event | None = None
        if self._left:
            calls(0, 1)  # an argument that cannot be sent is refused here, not later
            bridge.run(client.link())  # and so is a store that cannot be used
            bridge.owe(self._submitted)
            bridge.spawn(self._live())
        else:
            self._settle()

    # -- a sequence of jobs --------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.design)

    @overload
    def __getitem__(self, at: int) -> Job[R]: ...
    @overload
    def __getitem__(self, at: slice) -> list[Job[R]]: ...
    def __getitem__(self, at: int | slice) -> Job[R] | list[Job[R]]:
        if isinstance(at, slice):
            return [self._job(i) for i in range(len(self))[at]]
        return self._job(range(len(self))[at])

    def __iter__(self) -> Iterator[Job[R]]:
        return map(self._job, range(len(self)))

    def _id(self, index: int) -> str:
        return f"{self._prefix}.{index}"

    def _job(self, index: int) -> Job[R]:
        return Job(self._client, self._id(index))

    # -- living: on the I/O thread -------------------------------------------------------------

    async def _live(self) -> None:
        """Store the jobs, then follow them until all have ended."""
        try:
            link = await self._client.link()
            self._news = asyncio.Event()
            unwatch = link.watch(self._prefix, self._heard)
            try:
                await link.listen()
                submitting = asyncio.create_task(self._submit(), name="qnb-submit")
                try:
                    await self._follow(submitting)
                finally:
                    submitting.cancel()
            finally:
                unwatch()
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            self._settle(error)
        finally:
            self._let_leave()

    def _let_leave(self) -> None:
        """The end of the process need not wait for this sweep any more."""
        if not self._submitted.done():
            self._submitted.set_result(None)

    async def _submit(self) -> None:
        total = len(self)
        for start in range(0, total, CHUNK):
            stop = min(start + CHUNK, total)
            calls: list[Call] = []
            for at in range(start, stop, SLICE):
                calls += self._calls(at, min(at + SLICE, stop))
                await asyncio.sleep(0)  # let notices in
            await self._patiently(lambda calls=calls: self._client.enqueue(calls))  # type: ignore[misc]
            self._stored = stop
            self._changed()
        self._let_leave()

    async def _follow(self, submitting: asyncio.Task[None]) -> None:
        news = self._news
        assert news is not None
        looked, at = time.monotonic(), 0
        while self._left:
            if submitting.done() and (error := submitting.exception()):
                raise QnbError(
                    f"sweep {self.name!r}: {self._stored} of {len(self)} jobs were stored, then: "
                    f"{error}"
                ) from error
            news.clear()
            waiting = asyncio.ensure_future(news.wait())
            pending = {waiting} if submitting.done() else {waiting, submitting}
            await asyncio.wait(pending, timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if time.monotonic() - looked >= LOOK:
                at = await self._patiently(lambda at=at: self._look(at))  # type: ignore[misc]
                looked = time.monotonic()
            self._changed()
        self._settle()

    async def _patiently(self, act: Callable[[], Awaitable[T]]) -> T:
        """``act``, and again while the server is away, for up to ``PATIENCE`` seconds."""
        deadline, attempt = time.monotonic() + PATIENCE, 0
        while True:
            try:
                done = await act()
            except BrokerError as error:
                if type(error) is not BrokerError or time.monotonic() > deadline:
                    raise
                self._away = True
                self._changed()
                await asyncio.sleep(backoff(attempt))
                attempt += 1
            else:
                self._away = False
                return done

    async def _look(self, at: int) -> int:
        """Read the state of some jobs whose end may have been missed; where to go on next time."""
        open_ = [i for i in range(at, self._stored) if self._cells[i] <= _RUNNING][:LOOK_JOBS]
        if not open_:
            return 0
        store = (await self._client.link()).store
        records = await store.records([self._id(index) for index in open_])
        for index, record in zip(open_, records, strict=True):
            if record is None:
                self._set(index, _ABORTED, "JobLost: its record has expired")
            else:
                self._take(index, record)
        return open_[-1] + 1

    def _heard(self, notice: Notice) -> None:
        index = int(notice.task_id.rpartition(".")[2])
        if notice.record is not None:
            self._take(index, notice.record)
        elif notice.status is JobState.RUNNING and self._cells[index] == _QUEUED:
            self._cells[index] = _RUNNING
        elif notice.status not in UNFINISHED:  # too large for a notice
            link = asyncio.ensure_future(self._client.record(notice.task_id))
            link.add_done_callback(lambda read: self._fetched(index, read))
        if self._news is not None:
            self._news.set()

    def _fetched(self, index: int, read: asyncio.Future[JobRecord | None]) -> None:
        if not read.cancelled() and read.exception() is None and (record := read.result()):
            self._take(index, record)
            if self._news is not None:
                self._news.set()

    def _take(self, index: int, record: JobRecord) -> None:
        failure = record.outcome.failure if record.outcome else None
        self._set(index, _cell(record), failure.text if failure else "")

    def _set(self, index: int, cell: int, error: str = "") -> None:
        before = self._cells[index]
        if before > _RUNNING or cell == before:
            return
        self._cells[index] = cell
        if cell > _RUNNING:
            self._left -= 1
            if error and (error in self._errors or len(self._errors) < KEPT_ERRORS):
                self._errors[error] += 1

    def _settle(self, error: BaseException | None = None) -> None:
        self._ended_at = time.monotonic()
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)
        self._changed()

    def _changed(self) -> None:
        for changed in tuple(self._watchers):
            changed()

    # -- waiting -------------------------------------------------------------------------------

    def wait(self, timeout: float | timedelta | None = None) -> Sweep[R]:
        """Block until every job has ended, well or badly; the sweep itself.

        ``TimeoutError`` after ``timeout`` seconds. An interrupt ends the wait; the work goes on.
        """
        limit = seconds(timeout)
        try:
            self._ended.result(limit)
        except FutureTimeout:
            raise TimeoutError(f"{self!r} has not ended within {limit:g} s; it goes on") from None
        return self

    def __await__(self) -> Generator[Any, None, list[R]]:
        return self._values().__await__()

    async def _values(self) -> list[R]:
        await bridge.arrived(self._ended)
        records = await asyncio.wrap_future(bridge.spawn(self._records()))
        values: list[R] = []
        errors: list[Exception] = []
        for index, record in enumerate(records):
            if record is not None and record.outcome is not None and record.outcome.success:
                values.append(value_of(self._client.codec, self._id(index), record))
                continue
            try:
                value_of(self._client.codec, self._id(index), record)
            except Exception as error:  # noqa: BLE001 - collected, and raised together below
                error.add_note(f"job {self._id(index)!r}, point {dict(self.design[index])!r}")
                errors.append(error)
        if errors:
            raise ExceptionGroup(
                f"{len(errors)} of {len(self)} jobs of sweep {self.name!r} failed", errors
            )
        return values

    async def _records(self) -> list[JobRecord | None]:
        store = (await self._client.link()).store
        return await store.records([self._id(i) for i in range(len(self))], result=True)

    # -- looking -------------------------------------------------------------------------------

    def frame(self) -> DataFrame:
        """All points as a tidy DataFrame, also while they run.

        Parameters first under their own names, then the result (the fields of a dict, NamedTuple
        or dataclass become columns), then how each job went. Index: ``task_id``.
        """
        from qnb.analysis import frames

        records = bridge.run(self._records()) if len(self) else []
        values = [
            value_of(self._client.codec, self._id(index), record)
            if record is not None and record.outcome is not None and record.outcome.success
            else frames.MISSING
            for index, record in enumerate(records)
        ]
        return frames.sweep_frame(
            self.name,
            self.design.columns(absent=frames.MISSING),
            records,
            values,
            task_ids=[self._id(index) for index in range(len(self))],
        )

    def snapshot(self) -> SweepSnapshot:
        """The last known state; no I/O."""
        now = self._ended_at or time.monotonic()
        elapsed = now - self._started
        total = len(self)
        finished = total - self._left
        eta = elapsed / finished * self._left if finished and self._left else None
        note = ""
        if self._away and self._ended_at is None:
            note = "reconnecting"
        elif self._stored < total and self._ended_at is None:
            note = f"stored {self._stored:,} of {total:,}"
        elif self._ended.done() and (error := self._ended.exception()):
            note = str(error)
        return SweepSnapshot(
            name=self.name,
            fn_name=self.fn_name,
            total=total,
            cells=bytes(self._cells),
            elapsed=elapsed,
            eta=eta,
            errors=dict(self._errors.most_common()),
            note=note,
        )

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have ``changed`` called on qnb's I/O thread whenever :meth:`snapshot` may have changed.

        Until all has ended; call the answer to stop before.
        """
        self._watchers.append(changed)

        def end() -> None:
            if changed in self._watchers:
                self._watchers.remove(changed)

        return end

    def __repr__(self) -> str:
        failed = self._cells.count(_FAILED) + self._cells.count(_ABORTED)
        return (
            f"<Sweep {self.name!r} of {self.fn_name!r}: {len(self) - self._left}/{len(self)} "
            f"finished, {failed} failed>"
        )

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other
