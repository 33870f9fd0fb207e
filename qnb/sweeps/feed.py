"""What is known of a sweep's jobs, kept current by one feed of news: on the I/O thread.

News come on the sweep's own channel, wherever its jobs were sent from. They are only a hint: after
each (re)connect every open job is looked at, and some of them each second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import TypeVar

from qnb.client import Client
from qnb.clock import ServerClock, backoff, now_ms
from qnb.errors import BrokerError
from qnb.forecast.forecast import Estimate, Forecast
from qnb.link import LoopLink
from qnb.models import CELLS, UNFINISHED, Ending, Failure, JobRecord, JobState
from qnb.storage.records import Notice
from qnb.storage.studies import (
    ABORTED,
    DONE,
    FAILED,
    QUEUED,
    RUNNING,
    UNKNOWN,
    End,
    Studies,
    Study,
)
from qnb.sweeps.grouping import Errors
from qnb.sweeps.layout import Layout

__all__ = ["Feed"]

T = TypeVar("T")

log = logging.getLogger("qnb")

#: seconds for which a sweep waits for a server that does not answer
PATIENCE = 600.0

#: seconds between two looks at jobs whose notice may have been lost; how many that run are looked
#: at, and how many that wait
LOOK = 0.8
LOOK_JOBS = 1_000

#: seconds between two looks at the workers that serve the queue
WORKERS = 5.0

#: seconds between two forecasts
ESTIMATE = 1.0

#: failed jobs that are read at a time, for their errors
READ_ERRORS = 2000

#: jobs whose times are kept, for a forecast when there are other points
KEPT_TIMES = 1000

#: failed jobs, none of which has succeeded, after which a sweep is held back
SUSPECT = 10

_LOST = "JobLost: it was never stored, or its record has expired"


def cell_of(record: JobRecord) -> int:
    """Where a job is, as a cell."""
    if record.status is JobState.RUNNING:
        return RUNNING
    if record.outcome is None:
        return QUEUED
    if record.outcome.ending is Ending.ABORTED:
        return ABORTED
    return DONE if record.outcome.success else FAILED


class Feed:
    """Follows the jobs of ``study`` at the places that ``layout`` gives them."""

    def __init__(self, client: Client, study: Study, layout: Layout) -> None:
        self.client = client
        self.study = study
        self.layout = layout
        self.cells = bytearray(len(layout))
        self.left = len(layout)  #: jobs that have not ended
        self.order: list[int] = []  #: places in the order in which their jobs ended
        self.errors = Errors()
        self.away = False  #: does the server not answer?
        self.stored = False  #: are all points known, and their jobs stored?
        self.note = ""  #: what the reader should know beside the figures
        self.since = time.monotonic()
        self.until: float | None = None  #: when all had ended
        self.ended: Future[None] = Future()
        self.more: Future[None] = Future()  #: something has ended since this was made
        self.watchers: list[Callable[[], None]] = []
        self.suspect: Callable[[Failure], None] | None = None  #: told if the first ones all fail
        self.unknown = list[int]()  #: places whose jobs the store did not know when last looked at
        self.due = float("inf")  #: when to end what may have expired (monotonic)
        self.unserved = ""  #: that no worker serves it, and the remedy
        self.slots = 0  #: of the workers that serve the queue
        self.limit: int | None = None  #: how many of its jobs may run at once
        self.paused = study.held  #: why no job may start; "" if they may
        self.forecast = Forecast(len(layout), self._columns)
        self.estimated = Estimate()
        self._estimated_at = 0.0
        self._link: LoopLink | None = None
        self._clock: ServerClock | None = None
        self._created = study.created  # epoch ms; 0 if it was created here
        self._finish = 0  # epoch ms of the latest end
        self._first: Counter[tuple[str, str, int]] = Counter()  # what the first failures are
        self._news = asyncio.Event()
        self._looked_at_workers = 0.0
        self._next = 0.0  # when to look again
        self._at = 0
        self._who = f"{study.prefix} {secrets.token_hex(4)}"
        self._caught_up = asyncio.Event()
        self._behind = True
        # What was read of a job before it was run again says nothing of its run since.
        self._renewing: set[int] = set()  # places whose jobs are being run again
        self._renewed: dict[int, tuple[int, int]] = {}  # enqueue time, and the look after it
        self.reopened: list[int] = []  #: places in the order in which they were run again
        self._looks = 0
        self._unread: set[int] = set()  # places whose jobs have ended, it is not known how
        self._cached: set[int] = set()  # places whose results were used again
        self._ran: dict[int, tuple[float, float]] = {}  # when the bodies of some ran, by place

    @property
    def cached(self) -> int:
        """How many results were used again."""
        return len(self._cached)

    def _columns(self, start: int, stop: int) -> dict[str, list[object]]:
        return self.layout.design.columns(start, stop, absent=None)

    # -- following -----------------------------------------------------------------------------

    async def follow(self) -> None:
        """Keep all current until every job has ended and nothing more is to be stored."""
        self._link = link = await self.client.link()
        self._clock = link.store.clock
        unwatch = link.watch(self.study.prefix, self._heard)
        link.attend(self.study.prefix, self._who, self.look)
        try:
            with contextlib.suppress(TimeoutError):  # without news, looks will do
                async with asyncio.timeout(LOOK):
                    await self._news.wait()
            await self._look()
            await self._date()
            self._caught_up.set()
            while self.left or not self.stored or not self.ended.done():
                if not self.left and self.stored:
                    self.settle()
                    await self._note_end()  # meanwhile, jobs may have been run again
                    continue
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(self._next, self.due) - time.monotonic()):
                        await self._news.wait()
                await self._look()
                self.estimate()
                self.changed()
        finally:
            unwatch()
            link.leave(self._who)

    async def _date(self) -> None:
        """Learn when it was created from the store, as all others do."""
        if not self._created:
            name, store = self.study.name, (await self.client.link()).store
            found = await self.patiently(lambda: Studies(store).load(name))
            if found is not None and found.prefix == self.study.prefix:
                self._created = found.created

    async def caught_up(self) -> None:
        """Return when the state of every job has been read once."""
        await self._caught_up.wait()

    async def patiently(self, act: Callable[[], Awaitable[T]]) -> T:
        """``act``, and again while the server is away, for up to ``PATIENCE`` seconds."""
        deadline, attempt = time.monotonic() + PATIENCE, 0
        while True:
            try:
                done = await act()
            except BrokerError as error:
                closed = self._link is not None and self._link.closed
                if type(error) is not BrokerError or closed or time.monotonic() > deadline:
                    raise
                self.away = True
                self.changed()
                await asyncio.sleep(backoff(attempt))
                attempt += 1
            else:
                self.away = False
                return done

    async def _look(self) -> None:
        """Read the state of jobs whose end may have been missed."""
        now = time.monotonic()
        if now >= self.due:  # perhaps no worker is there to see to it
            self.due = now + LOOK
            with contextlib.suppress(BrokerError):
                store = (await self.client.link()).store
                self.due = now + await store.expire_due(self.study.lane, LOOK)
        if self._unread:
            unread, self._unread = sorted(self._unread), set()
            await self.read(unread)
        if self._behind:
            self._behind = False
            await self.read([p for p, cell in enumerate(self.cells) if cell <= RUNNING])
        elif now >= self._next:
            await self.read(self._suspects())
        else:
            return
        now = time.monotonic()
        self._next = now + LOOK
        if now - self._looked_at_workers >= (LOOK if self.unserved else WORKERS):
            self._looked_at_workers = now
            await self._look_at_workers()

    def _suspects(self) -> list[int]:
        """Jobs that run, whose end is the likeliest to be missed, and in turn those that wait."""
        running = islice(re.finditer(bytes([RUNNING]), self.cells), LOOK_JOBS)
        found = [match.start() for match in running]
        waiting = (p for p in range(self._at, len(self.cells)) if self.cells[p] < RUNNING)
        queued = list(islice(waiting, LOOK_JOBS))
        self._at = queued[-1] + 1 if len(queued) == LOOK_JOBS else 0
        return found + queued

    async def _look_at_workers(self) -> None:
        with contextlib.suppress(BrokerError):
            workers = await (await self.client.link()).store.workers()
            self.slots = sum(
                says["slots"]
                for says in workers.values()
                if self.study.lane in says.get("lanes", [self.study.lane])
                and not says.get("leaving")
            )
            self._tell_if_unserved()

    def _tell_if_unserved(self) -> None:
        if self.slots or not self.left or self.paused:
            self.unserved = ""
        elif not self.unserved:
            self.unserved = (
                f"no worker serves lane {self.study.lane!r}: app.start_workers() starts some"
            )
            if self.stored:
                log.warning("sweep %r waits: %s", self.study.name, self.unserved)

    @property
    def elapsed(self) -> float:
        """Seconds since it was started; of one that has ended what the store knows of it, so that
        it is the same for all who ask."""
        if self.until is None:
            return time.monotonic() - self.since
        if self._created and self._finish:
            return max(0, self._finish - self._created) / 1000
        return self.until - self.since

    def why(self) -> str:
        """What a wait that has taken too long is told."""
        return self.paused or self.unserved or "it goes on"

    async def read(self, places: Sequence[int]) -> None:
        """Look at the jobs at ``places`` now; those that are not known are :attr:`unknown`."""
        study, stored, look, layout = self.study, self.study.stored, self._looks, self.layout
        self._looks += 1
        ids = [study.id(layout.number(place)) for place in places]
        found = await self.patiently(lambda: self._tally(ids))
        if layout is not self.layout:  # these places are of other points by now
            self.look()
            return
        failed, self.unknown = [], []
        for place, (cell, start, finish) in zip(places, found, strict=True):
            if place in self._renewing or self._renewed.get(place, (0, 0))[1] > look:
                continue
            if cell == UNKNOWN:
                self.unknown.append(place)
                if self.stored and self.layout.number(place) < stored:
                    self.take(place, ABORTED, error=_LOST)
                    self._behind = True  # it may not be the only one
            elif cell == FAILED:
                failed.append(place)
            else:
                self.take(place, cell, start, finish, cached=cell == DONE and not start)
        for at in range(0, len(failed), READ_ERRORS):
            if layout is self.layout:
                await self._read_failed(failed[at : at + READ_ERRORS])

    async def _tally(self, ids: Sequence[str]) -> list[tuple[int, int, int]]:
        return await Studies((await self.client.link()).store).tally(ids)

    async def _read_failed(self, places: Sequence[int]) -> None:
        layout = self.layout
        ids = [self.study.id(layout.number(place)) for place in places]
        store = (await self.client.link()).store
        records = await self.patiently(lambda: store.records(ids))
        for place, record in zip(places, records, strict=True):
            if record is not None and layout is self.layout:
                self.take_record(place, record)

    def _heard(self, notice: Notice) -> None:
        number = notice.task_id.rpartition(".")[2]
        place = self.layout.place(int(number)) if number.isdecimal() and len(number) < 10 else -1
        if place < 0:
            return
        if notice.record is not None:
            self.take_record(place, notice.record)
        elif notice.status is JobState.RUNNING:
            if self.cells[place] > RUNNING:  # somebody has had it run again
                self.reopen([place])
            self.take(place, RUNNING)
        elif notice.status not in UNFINISHED:  # its outcome did not come along
            self._unread.add(place)
        self._news.set()

    # -- what is known -------------------------------------------------------------------------

    def take_record(self, place: int, record: JobRecord) -> None:
        """A job's newest state."""
        if place in self._renewing or record.enqueue_time < self._renewed.get(place, (0, 0))[0]:
            return
        outcome = record.outcome
        failure = outcome.failure if outcome else None
        start, finish = (outcome.start, outcome.finish) if outcome else (record.start or 0, 0)
        self.take(
            place, cell_of(record), start, finish, error=failure.text if failure else "",
            cached=record.cached,
        )  # fmt: skip
        if failure is not None and cell_of(record) == FAILED:
            self._doubt(failure)

    def take(  # noqa: PLR0913 - what is known of a job
        self, place: int, cell: int, start: int = 0, finish: int = 0, *, error: str = "",
        cached: bool = False,
    ) -> None:  # fmt: skip
        """A job's newest state; one that has ended stays so until :meth:`reopen`."""
        before = self.cells[place]
        if before > RUNNING or cell == before:
            return
        self.cells[place] = cell
        self.unserved = ""  # somebody does
        if cell == RUNNING:
            self.forecast.started(place, start / 1000 or self._now())
        elif cell > RUNNING:
            self.left -= 1
            self.order.append(place)
            if cached:
                self._cached.add(place)
            self._finish = max(self._finish, finish)
            self.forecast.ended(place, start / 1000, finish / 1000, cached=cached)
            if start and len(self._ran) < KEPT_TIMES:
                self._ran[place] = start / 1000, finish / 1000
            if error:
                self.errors.add(place, error)

    def _now(self) -> float:
        return (now_ms() if self._clock is None else self._clock.now_ms()) / 1000

    def estimate(self, *, fresh: bool = False) -> None:
        """Renew :attr:`estimated`, at most once a second unless ``fresh``."""
        now = time.monotonic()
        if fresh or now - self._estimated_at >= ESTIMATE:
            self._estimated_at = now
            try:
                slots = min(self.slots, self.limit or self.slots) if not self.paused else 0
                self.estimated = self.forecast.estimate(self._now(), slots)
            except Exception:  # a forecast that goes wrong must not end the sweep
                self.estimated = Estimate()
                log.exception("the end of sweep %r cannot be forecast", self.study.name)

    def _doubt(self, failure: Failure) -> None:
        """Tell if all that has ended so far has failed in the same place."""
        if self.suspect is None or DONE in self.cells:
            self.suspect = None
            return
        frame = failure.frames[-1] if failure.frames else None
        where = (failure.type, frame.file if frame else "", frame.line if frame else 0)
        self._first[where] += 1
        if len(self._first) > 1:
            self.suspect = None
        elif self._first[where] >= max(SUSPECT, 2 * self.slots) and self.left:
            suspect, self.suspect = self.suspect, None
            suspect(failure)

    def grow(self, layout: Layout) -> None:
        """There are other points now: those that stay keep what is known of them."""
        old, cells = self.layout, bytearray(len(layout))
        before: dict[int, int] = {}
        for place in range(len(layout)):
            was = old.place(layout.number(place))
            if was >= 0:
                before[was] = place
                if self.cells[was] > RUNNING:  # when one that runs has begun will be read anew
                    cells[place] = self.cells[was]
        self.order = [before[place] for place in self.order if place in before]
        self._renewed = {before[p]: said for p, said in self._renewed.items() if p in before}
        self._renewing = {before[place] for place in self._renewing if place in before}
        self._cached = {before[place] for place in self._cached if place in before}
        self.errors.move(before)
        self.layout, self.cells = layout, cells
        self.left = sum(cell <= RUNNING for cell in cells)
        self._ran = {before[place]: ran for place, ran in self._ran.items() if place in before}
        self.forecast = Forecast(len(layout), self._columns)
        for place in self.order:
            self.forecast.ended(place, *self._ran.get(place, (0, 0)))
        self._at, self._behind, self._unread = 0, True, set()
        if self.ended.done() and (self.left or not self.stored):
            self.ended, self.until = Future(), None
        self._news.set()

    def extend(self, count: int) -> None:
        """``count`` points have been added behind the others."""
        self.cells.extend(bytes(count))
        self.left += count
        self.forecast.grow(len(self.cells))

    def is_stored(self, number: int) -> bool:
        """Is the job of that number in the store, as far as is known here?"""
        place = self.layout.place(number)
        return number < self.study.stored or (place >= 0 and self.cells[place] != QUEUED)

    def leave_out(self, places: Sequence[int]) -> None:
        """Those jobs are not stored, and will not be."""
        for place in places:
            self.take(place, ABORTED)

    def wake(self) -> None:
        """What is known from elsewhere has changed."""
        self._news.set()

    def look(self) -> None:
        """Have every open job looked at soon."""
        self._behind = True
        self._news.set()

    def renew(self, places: Sequence[int]) -> None:
        """Those jobs will be run again from here; until :meth:`renewed`, all news are old."""
        self._renewing.update(places)
        self.reopen(places)

    def renewed(self, times: Mapping[int, int]) -> None:
        """They run again since those enqueue times (0: they do not)."""
        for place, enqueued in times.items():
            self._renewing.discard(place)
            if enqueued:
                self._renewed[place] = (enqueued, self._looks)
        self.look()

    def reopen(self, places: Sequence[int]) -> None:
        """Those jobs are running again."""
        for place in places:
            if self.cells[place] > RUNNING:
                self.cells[place] = QUEUED
                self.reopened.append(place)
                self.left += 1
                self.forecast.again(place)
                self._cached.discard(place)
        again = set(places)
        self.order = [place for place in self.order if place not in again]
        self.errors.drop(again)
        if places and self.ended.done():
            self.ended, self.until = Future(), None
        self.changed()

    def settle(self, error: BaseException | None = None) -> None:
        """All has ended, or cannot be followed any more."""
        self.until = time.monotonic()
        self._caught_up.set()
        if not self.ended.done():
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)
        self.changed()

    async def _note_end(self) -> None:
        """Tell those who only look at the list of sweeps."""
        counts = {word: self.cells.count(code) for code, word in enumerate(CELLS)}
        studies = Studies((await self.client.link()).store)
        with contextlib.suppress(BrokerError):
            await studies.ended(self.study, End(counts, self.cached, self._finish))

    def changed(self) -> None:
        """Tell all who watch."""
        more, self.more = self.more, Future()
        more.set_result(None)
        for changed in tuple(self.watchers):
            try:
                changed()
            except Exception:  # a watcher that goes wrong must not end the sweep
                log.exception("a watcher of sweep %r has failed", self.study.name)
