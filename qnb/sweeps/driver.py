"""What keeps a sweep going: stores its jobs, follows them, obeys commands. On the I/O thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

from qnb import bridge
from qnb.client import Client
from qnb.errors import BrokerError, QnbError
from qnb.models import Failure
from qnb.storage.gates import Gates, State
from qnb.storage.studies import ABORTED, FAILED, QUEUED, RUNNING, Studies, Study
from qnb.sweeps.comparing import codes_of
from qnb.sweeps.designs import Design
from qnb.sweeps.feed import Feed
from qnb.sweeps.layout import Layout, digest_of
from qnb.sweeps.manifest import Manifest
from qnb.sweeps.numbering import relaid
from qnb.sweeps.opening import Opened, read_layout
from qnb.sweeps.submit import Cancelled, Submission

__all__ = ["Driver"]

log = logging.getLogger("qnb")

#: seconds of silence after which another kernel is believed to have given up storing a sweep
SILENT = 3.0

#: seconds between two looks at a sweep that another kernel is storing
LOOK = 0.5

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
        if opened.manifest.expire_ms:
            self.feed.due = 0.0
        self.is_plan = bool(opened.note)  #: nothing of it is stored
        self._opened = opened
        self._shuffle = shuffle
        self._rerun = rerun
        self._following: asyncio.Task[None] | None = None
        self._filling: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  #: of what gives jobs or takes them away, as it was asked for
        self._gating = asyncio.Lock()  #: of what holds jobs back or lets them go
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_held = True  #: does anybody have a handle of it?
        self._cancels = 0  #: cancels that have been asked for and are not done
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
        self._owe()
        bridge.spawn(self._live())

    def let_go(self) -> None:
        """Nobody holds it any more, from any thread: what was only looked at is not followed."""

        self._is_held = False  # first: it may not have begun to live

        def leave() -> None:
            if self._filling is not None and self._filling.done():
                self._unfollow()

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(leave)

    def _unfollow(self) -> None:
        if self._following is not None and not self.feed.watchers:
            self._following.cancel()

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        filling: asyncio.Task[None] | None = None
        try:
            async with self._turn:
                await self._prepare(self._opened)
                filling = asyncio.create_task(self._fill(self._opened), name="qnb-submit")
                self._filling = filling
            self.feed.suspect = self.doubt if self._opened.fresh else None
            self._follow()
            await filling
        except asyncio.CancelledError:
            if filling is None or not filling.cancelled():
                raise
        except Cancelled:
            await self.cancel()
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            self._fail(error)
        finally:
            self._ready()
            self._let_leave()
            if not self._is_held:
                self._unfollow()

    async def _prepare(self, opened: Opened) -> None:
        """What comes before the first job, and before all that is asked of the sweep."""
        feed, manifest = self.feed, self.manifest
        async with self._gating:
            if opened.fresh and manifest.spec.policy.gated:
                await self._gate("open")
            elif not opened.by_name and feed.study.held.startswith("cancelled"):
                await self._held("")  # its cell was run again
        if opened.design is not None:
            design, before = opened.design, opened.before
            if before is not None and before.design == manifest.design != "":
                layout = await feed.patiently(lambda: read_layout(self.client, feed.study))
                if len(layout) == len(design):  # the very same points
                    feed.grow(layout)
                    self._ready()
                    return
            await self._lay_out(lambda: design)
        self._ready()

    def _ready(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def _owe(self) -> None:
        """Let the end of the process, and who asks for a job, wait until all is stored."""
        if self.submitted.done():
            self.submitted = Future()
        bridge.owe(self.submitted)
        self.client.storing[self.feed.study.prefix] = self._until_stored

    def _let_leave(self) -> None:
        """They need not wait for this sweep any more."""
        storing, prefix = self.client.storing, self.feed.study.prefix
        if storing.get(prefix) == self._until_stored:
            del storing[prefix]
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
        said = str(error) if isinstance(error, QnbError) else f"{type(error).__name__}: {error}"
        told = QnbError(
            f"sweep {feed.study.name!r}: {feed.study.stored:,} of {feed.study.jobs:,} jobs were "
            f"stored, then: {said}"
        )
        told.__cause__ = error
        if self._following is not None:
            self._following.cancel()
        if not self.ready.done():  # it is not known which job is where
            self.ready.set_exception(told)
        feed.settle(told)

    def _follow(self) -> None:
        """Have the jobs followed, if that has ended."""
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(
                self._follow_on(), name=f"qnb-follow {self.feed.study.prefix}"
            )

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

    async def _lay_out(self, points: Callable[[], Design]) -> None:
        """Give the sweep these points; jobs that compute one of them stay."""
        feed = self.feed
        for _ in range(TRIES):
            design = points()
            made = await feed.patiently(
                lambda design=design: relaid(  # type: ignore[misc]
                    self.client, feed.study, self.manifest, design, shuffle=self._shuffle
                )
            )
            if made is not None:
                feed.study, layout = made
                feed.grow(layout)
                return
            await self._reload()
        raise QnbError(f"sweep {feed.study.name!r} is given other points elsewhere; try again")

    def _is_given_up(self) -> bool:
        return not self.feed.stored and (self._filling is None or self._filling.done())

    async def _take_up(self) -> None:
        """After its storing has failed here: what others have made of it is completed."""
        study, now = await self._reload(), self.manifest
        self._opened = Opened(study, now, self.feed.layout, before=now)
        self._living = asyncio.create_task(self._live(), name="qnb-sweep")

    async def _reload(self) -> Study:
        """What the store knows of it now, also points that it was given elsewhere."""
        feed, studies = self.feed, await self._studies()
        study = await feed.patiently(lambda: studies.load(feed.study.name))
        if study is None or study.prefix != feed.study.prefix:
            raise QnbError(f"sweep {feed.study.name!r} has been forgotten: run its cell again")
        grown = study.version != feed.study.version or study.total != feed.study.total
        layout = await feed.patiently(lambda: read_layout(self.client, study)) if grown else None
        feed.study = study
        if layout is not None:
            feed.grow(layout)
        return study

    async def _fill(self, opened: Opened) -> None:
        feed, manifest = self.feed, self.manifest
        submission = self.submission
        await feed.patiently(lambda: self.client.keep_code(manifest.parts))
        if not opened.by_name:
            before = opened.before
            if before is not None and before.max_running != manifest.max_running:
                await self._gate("paused" if feed.paused.startswith("paused") else "open")
            if opened.stream is not None:
                await submission.stream(opened.stream, anew=not opened.fresh)
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
            await self.submission.end(waiting)
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

    async def _resume(self, submission: Submission) -> None:
        """Go on where another kernel has stopped storing; until then, watch how far it is."""
        feed = self.feed
        while True:
            study = await self._reload()
            if study.whole and study.stored >= study.jobs:
                return
            if study.held.startswith("cancelled"):
                await feed.caught_up()
                feed.leave_out(feed.unknown)
                return
            silent = await self.client.server_ms() - study.heard
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
        async with self._gating:
            if self.feed.stored and not self.feed.left:
                return False
            await self._gate("paused")
            await self._held(why)
        return bool(self.feed.left)

    async def resume(self) -> bool:
        """Let jobs start again; false if none is left."""
        async with self._gating:
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
        feed = self.feed
        self._cancels += 1
        try:
            await self._stop_filling()
            async with self._turn:
                await self._stop_filling()
                async with self._gating:
                    await self._held("cancelled")
                open_ = [place for place, cell in enumerate(feed.cells) if cell <= RUNNING]
                unknown = await self.submission.end(open_)
                feed.leave_out(unknown)
                await self.submission.leave()
                feed.stored = True
                feed.wake()
                self._let_leave()
                return sum(feed.cells[place] == ABORTED for place in open_)
        finally:
            self._cancels -= 1

    async def _stop_filling(self) -> None:
        if self._filling is not None and not self._filling.done():
            self._filling.cancel()
            await asyncio.wait({self._filling})

    async def again(
        self, numbers: Sequence[int], manifest: Manifest, *, waiting: bool = False
    ) -> int:
        """Run the finished jobs of those ``numbers`` again, as ``manifest`` says; how many.

        With ``waiting``, those that wait are made anew with it, too.
        """
        try:
            async with self._turn:
                return await self._run_again(numbers, manifest, waiting=waiting)
        finally:  # after an error they are as they were
            self.feed.renewed(dict.fromkeys(self.feed.layout.places(numbers), 0))

    async def _run_again(self, numbers: Sequence[int], manifest: Manifest, *, waiting: bool) -> int:
        feed, studies = self.feed, await self._studies()
        if self._is_given_up():
            await self._take_up()
        places: Sequence[int] = feed.layout.places(numbers)
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
        await feed.patiently(lambda: self.client.keep_code(manifest.parts))
        if old:
            old = [place for place in old if place not in set(places)]
            await self.submission.end(old)
            ended = [place for place in old if feed.cells[place] > RUNNING]
            feed.renew(ended)
            places = [*places, *ended]
        async with self._gating:
            if feed.paused or self.manifest.spec.policy.gated:
                await self._gate("open")
                await self._held("")
        self._follow()
        count = await self._again(places)
        if self._is_given_up():
            await self._take_up()
        return count

    async def _again(self, places: Sequence[int]) -> int:
        try:
            return await self.submission.again(places)
        finally:  # after an error they are as they were
            self.feed.renewed(dict.fromkeys(places, 0))

    async def extend(self, more: Callable[[Layout], Design], manifest: Manifest) -> int:
        """Add points to those that it has, and run the new ones by ``manifest``; how many."""
        feed = self.feed

        def points() -> Design:
            design = more(feed.layout)
            newest = manifest.newest(self.manifest)
            self.submission.manifest = replace(newest, design=digest_of(design).hex())
            return design

        async with self._turn:
            if self._filling is not None:
                await asyncio.wait({self._filling})
            await self._reload()
            before, stored, filling = feed.study.jobs, feed.stored, None
            feed.stored = False
            try:
                async with self._gating:
                    if feed.study.held.startswith("cancelled"):
                        await self._held("")
                await self._lay_out(points)
                added = feed.study.jobs - before
                self._follow()
                if not self._cancels:
                    self._owe()
                    filling = asyncio.create_task(self.submission.rest(lost=False))
                    self._filling, stored = filling, False
                    await filling
                stored = True
            except asyncio.CancelledError:  # by a cancel that waits for its turn
                if filling is None or not filling.cancelled():
                    raise
            except Cancelled:  # elsewhere
                self._cancelling = asyncio.create_task(self.cancel())
            except Exception as error:
                if filling is not None:
                    self._fail(error)
                raise
            finally:
                feed.stored = stored
                feed.wake()
                self._let_leave()
        return added
