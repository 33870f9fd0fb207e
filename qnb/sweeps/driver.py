"""What keeps a sweep going: stores its jobs, follows them, obeys commands. On the I/O thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from qnb import bridge
from qnb.client import Client, me
from qnb.errors import BrokerError, QnbError
from qnb.models import Failure
from qnb.storage.gates import Gates, State
from qnb.storage.studies import ABORTED, FAILED, QUEUED, RUNNING, Studies
from qnb.sweeps.comparing import codes_of
from qnb.sweeps.designs import Design
from qnb.sweeps.feed import Feed
from qnb.sweeps.layout import Layout, digest_of
from qnb.sweeps.manifest import Manifest
from qnb.sweeps.opening import Opened, read_layout
from qnb.sweeps.submit import Cancelled, Submission, relaid

__all__ = ["Driver"]

log = logging.getLogger("qnb")

#: seconds of silence after which another kernel is believed to have given up storing a sweep
SILENT = 3.0

#: seconds between two looks at a sweep that another kernel is storing
LOOK = 0.5

#: seconds between two looks at jobs that are being stopped
STOPPING = 0.05

#: how often points are laid out anew that somebody else has changed meanwhile
TRIES = 5


class Driver:
    """Drives the sweep that was ``opened``; everything runs on the I/O thread."""

    def __init__(
        self, client: Client, opened: Opened, *, shuffle: bool = False, rerun: bool = False
    ) -> None:
        self.client = client
        self.feed = Feed(client, opened.study, opened.layout or Layout())
        self.submission = Submission(client, self.feed, opened.manifest)
        self.ready: Future[None] = Future()  #: it is known which job is where
        self.submitted: Future[None] = Future()  #: all is stored, or cannot be
        self.feed.limit = opened.manifest.max_running
        self.is_plan = bool(opened.note)  #: nothing of it is stored
        self._opened = opened
        self._shuffle = shuffle
        self._rerun = rerun
        self._following: asyncio.Task[None] | None = None
        self._filling: asyncio.Task[None] | None = None
        if opened.layout is not None:
            self.ready.set_result(None)

    @property
    def manifest(self) -> Manifest:
        """How its jobs are made from now on."""
        return self.submission.manifest

    def start(self) -> None:
        """Begin, in the background; what is only planned has ended."""
        if self.is_plan:
            self.feed.note = self._opened.note
            self.submitted.set_result(None)
            self.feed.settle()
            return
        bridge.owe(self.submitted)
        self.client.storing[self.feed.study.prefix] = self._until_stored
        bridge.spawn(self._live())

    async def _live(self) -> None:
        try:
            if self._opened.design is not None:
                await self._lay_out(self._opened.design)
            self._ready()
            self._filling = asyncio.create_task(self._fill(self._opened), name="qnb-submit")
            self.feed.suspect = self.doubt if self._opened.fresh else None
            self._follow()
            await self._filling
        except asyncio.CancelledError:
            if self._filling is None or not self._filling.cancelled():
                raise
        except Cancelled:
            await self.cancel()
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            self._fail(error)
        finally:
            self._ready()
            self._let_leave()

    def _ready(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def _let_leave(self) -> None:
        """The end of the process need not wait for this sweep any more."""
        self.client.storing.pop(self.feed.study.prefix, None)
        if not self.submitted.done():
            self.submitted.set_result(None)

    async def known(self, limit: float) -> None:
        """Return when the state of all jobs has been read, or after ``limit`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self.feed.caught_up()

    async def _until_stored(self, task_id: str) -> None:
        """Return when that job is stored, or when it will not be; on any loop."""
        number = int(task_id.rpartition(".")[2])
        await bridge.arrived(self.ready)
        while not self.submitted.done() and not self.feed.is_stored(number):
            more = self.feed.more
            if not self.submitted.done() and not self.feed.is_stored(number):
                await bridge.arrived(more)

    def _fail(self, error: Exception) -> None:
        feed = self.feed
        told = QnbError(
            f"sweep {feed.study.name!r}: {feed.study.stored:,} of {feed.study.jobs:,} jobs were "
            f"stored, then: {error}"
        )
        told.__cause__ = error
        if self._following is not None:
            self._following.cancel()
        feed.settle(told)

    def _follow(self) -> None:
        """Have the jobs followed, if that has ended."""
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow_on(), name="qnb-follow")

    async def _follow_on(self) -> None:
        try:
            await self.feed.follow()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            self.feed.settle(error)

    async def _studies(self) -> Studies:
        return Studies((await self.client.link()).store)

    # -- storing -------------------------------------------------------------------------------

    async def _lay_out(self, design: Design) -> None:
        """Give the sweep these points; jobs that compute one of them stay."""
        feed, before = self.feed, self._opened.before
        if before is not None and before.design == self.manifest.design != "":
            layout = await read_layout(self.client, feed.study)
            if len(layout) == len(design):  # the very same points
                feed.grow(layout)
                return
        for _ in range(TRIES):
            made = await relaid(
                self.client, feed.study, self.manifest, design, shuffle=self._shuffle
            )
            if made is not None:
                feed.study, layout = made
                feed.grow(layout)
                return
            study = await (await self._studies()).load(feed.study.name)
            if study is None or study.prefix != feed.study.prefix:
                raise QnbError(f"sweep {feed.study.name!r} was forgotten meanwhile; run this again")
            feed.study = study
        raise QnbError(f"sweep {feed.study.name!r} is given other points elsewhere; try again")

    async def _fill(self, opened: Opened) -> None:
        feed, manifest = self.feed, self.manifest
        submission = self.submission
        await self.client.keep_code(manifest.parts)
        if opened.fresh and manifest.spec.policy.gated:
            await self._gate("open")
        if opened.fresh or opened.before is not manifest:  # by its cell
            if feed.study.held.startswith("cancelled"):
                await self._held("")
            if opened.stream is not None:
                await self._restart_stream(opened)
                await submission.stream(opened.stream)
            else:
                await submission.rest(lost=not opened.fresh)
            if self._rerun and opened.before is not None:
                await self._run_stale()
        else:
            await self._resume(submission)
        feed.stored = True
        feed.wake()

    async def _run_stale(self) -> None:
        """Run again what is of other code than the function's of now."""
        feed, now = self.feed, self.manifest.spec.code
        await feed.caught_up()
        ids = [feed.study.id(feed.layout.number(place)) for place in range(len(feed.layout))]
        codes = await feed.patiently(lambda: codes_of(self.client, ids))
        stale = [place for place, code in enumerate(codes) if code not in (now, None)]
        waiting = [place for place in stale if feed.cells[place] <= RUNNING]
        if waiting:  # what it would still compute is of no use
            await self._end(waiting)
        feed.renew(stale)
        await self._again(stale)
        others = sorted({code for code in await self._codes() if code and code != now})
        known = (*others, now) if now else tuple(others)
        self.submission.manifest = replace(self.manifest, codes=known)
        packed, studies = (
            self.manifest.packed(self.client.codec, feed.study.prefix),
            await self._studies(),
        )
        await feed.patiently(lambda: studies.mark(feed.study, fields={"m": packed, "z": b""}))

    async def _codes(self) -> list[str | None]:
        """The fingerprints of the functions of all jobs, also of those of no point any more."""
        study = self.feed.study
        ids = [study.id(number) for number in range(study.jobs)]
        return await self.feed.patiently(lambda: codes_of(self.client, ids))

    async def _restart_stream(self, opened: Opened) -> None:
        """The points of a stream come anew."""
        if opened.fresh:
            return
        feed, studies = self.feed, await self._studies()
        packed = self.manifest.packed(self.client.codec, feed.study.prefix)
        study = replace(feed.study, total=0, whole=False, manifest=packed)
        made = await studies.replace(study, [])
        if made is None:
            raise QnbError(f"sweep {study.name!r} was changed elsewhere meanwhile; run this again")
        feed.study = made

    async def _resume(self, submission: Submission) -> None:
        """Go on where another kernel has stopped storing; until then, watch how far it is."""
        feed, studies = self.feed, await self._studies()
        while True:
            study = await feed.patiently(lambda: studies.load(feed.study.name))
            if study is None or study.prefix != feed.study.prefix:
                raise QnbError(f"sweep {feed.study.name!r} has been forgotten")
            grown = study.version != feed.study.version or study.total != feed.study.total
            feed.study = study
            if grown:
                feed.grow(await read_layout(self.client, study))
            if study.whole and study.stored >= study.jobs:
                return
            if study.held.startswith("cancelled"):
                await feed.caught_up()
                feed.leave_out(feed.unknown)
                return
            silent = studies.store.clock.now_ms() - study.heard
            if silent > SILENT * 1000:
                break
            feed.changed()
            await asyncio.sleep(LOOK)
        if feed.study.whole:
            await submission.rest(lost=False)
        else:
            feed.note = (
                f"{feed.study.total:,} points were stored before the generator that gave them "
                "ended with its kernel: run its cell again for the rest"
            )

    # -- commands ------------------------------------------------------------------------------

    async def _gate(self, state: State) -> None:
        gates = Gates((await self.client.link()).store)
        await self.feed.patiently(
            lambda: gates.set(self.feed.study.prefix, limit=self.manifest.max_running, state=state)
        )

    async def _held(self, why: str) -> None:
        studies = await self._studies()
        self.feed.paused = why
        self.feed.study = replace(self.feed.study, held=why)
        await self.feed.patiently(lambda: studies.held(self.feed.study, why))
        self.feed.changed()

    async def pause(self, why: str = "paused") -> bool:
        """Let no further job start; false if none is left."""
        await self._gate("paused")
        await self._held(why)
        return bool(self.feed.left)

    async def resume(self) -> bool:
        """Let jobs start again; false if none is left."""
        await self._gate("open")
        await self._held("")
        return bool(self.feed.left)

    def doubt(self, failure: Failure) -> None:
        """The first jobs have all failed in the same place: hold the others back."""
        frame = failure.frames[-1] if failure.frames else None
        where = f" at {frame.file}, line {frame.line}" if frame else ""
        count = self.feed.cells.count(FAILED)
        why = f"paused: the first {count} jobs all failed{where}: {failure.text}"
        log.warning(
            "sweep %r is %s. Mend the cell and call retry(), or resume()", self.feed.study.name, why
        )

        async def hold() -> None:
            with contextlib.suppress(BrokerError):
                await self.pause(why)

        self._holding = asyncio.ensure_future(hold())

    async def cancel(self) -> int:
        """End what has not ended, and wait until it has: how many jobs."""
        if self._filling is not None and self._filling is not asyncio.current_task():
            self._filling.cancel()
            await asyncio.wait({self._filling})
        feed = self.feed
        await self._held("cancelled")
        open_ = [place for place, cell in enumerate(feed.cells) if cell <= RUNNING]
        unknown = await self._end(open_)
        feed.leave_out(unknown)
        feed.stored = True
        feed.wake()
        self._let_leave()
        return sum(feed.cells[place] == ABORTED for place in open_)

    async def _end(self, places: Sequence[int]) -> list[int]:
        """Abort the jobs at ``places`` and wait until they have ended; those that are unknown."""
        feed, studies = self.feed, await self._studies()
        ids = [feed.study.id(feed.layout.number(place)) for place in places]
        gates = Gates(studies.store)
        await feed.patiently(lambda: gates.cancel(ids, me()))
        deadline = time.monotonic() + 2 * studies.store.options.lease_ms / 1000 + 1
        while True:  # those that run are stopped by their workers
            await feed.read(places)
            open_ = {place for place in places if feed.cells[place] <= RUNNING}
            unknown = open_.intersection(feed.unknown)
            if open_ == unknown or time.monotonic() > deadline:
                return sorted(unknown)
            await asyncio.sleep(STOPPING)

    async def again(
        self, places: Sequence[int], manifest: Manifest, *, waiting: bool = False
    ) -> int:
        """Run the finished jobs at ``places`` again, as ``manifest`` says; how many.

        With ``waiting``, those that wait are made anew with it, too.
        """
        feed, studies = self.feed, await self._studies()
        async with self.submission.between_chunks:
            self.submission.manifest = manifest.newest(self.manifest)
            stored = feed.study.stored
            old = [p for p, cell in enumerate(feed.cells) if waiting and cell == QUEUED]
            old = [place for place in old if feed.layout.number(place) < stored]
        packed = self.manifest.packed(self.client.codec, feed.study.prefix)
        await feed.patiently(
            lambda: studies.mark(
                feed.study, fields={"m": packed, "z": b"", "h": b""}, any_version=True
            )
        )
        await self.client.keep_code(manifest.parts)
        if old:
            old = [place for place in old if place not in set(places)]
            await self._end(old)
            ended = [place for place in old if feed.cells[place] > RUNNING]
            feed.renew(ended)
            places = [*places, *ended]
        if feed.paused or self.manifest.spec.policy.gated:
            await self._gate("open")
            await self._held("")
        self._follow()
        return await self._again(places)

    async def _again(self, places: Sequence[int]) -> int:
        try:
            return await self.submission.again(places)
        finally:  # after an error they are as they were
            self.feed.renewed(dict.fromkeys(places, 0))

    async def extend(self, design: Design, manifest: Manifest) -> int:
        """Give the sweep these points and run those that are new, by ``manifest``; how many."""
        feed = self.feed
        newest = manifest.newest(self.manifest)
        self.submission.manifest = replace(newest, design=digest_of(design).hex())
        if self._filling is not None and not self._filling.done():
            await asyncio.wait({self._filling})
        before = feed.study.jobs
        feed.stored = False
        await self._lay_out(design)
        self._follow()
        try:
            await self.submission.rest(lost=True)
        finally:
            feed.stored = True
            feed.wake()
        return feed.study.jobs - before
