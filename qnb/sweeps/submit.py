"""How the jobs of a sweep come into the store: a chunk at a time, so that it can be gone on with.

What a chunk computes is noted before its jobs are stored, that they are stored after: whoever goes
on sends a chunk again, and jobs that are there already are left alone.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple

from qnb.client import Client, me
from qnb.errors import EncodingError, JobLost, QnbError
from qnb.models import JobRecord, JobSpec
from qnb.storage.gates import Gates
from qnb.storage.keys import UNFINISHED_TTL_MS
from qnb.storage.records import Call
from qnb.storage.studies import RUNNING, UNKNOWN, Studies
from qnb.sweeps.designs import Design
from qnb.sweeps.feed import Feed
from qnb.sweeps.layout import Numbers, frozen
from qnb.sweeps.manifest import Manifest
from qnb.sweeps.numbering import NONE, Known, digests_of, pack_parts
from qnb.sweeps.reuse import serve
from qnb.sweeps.spaces import Stream

__all__ = ["CHUNK", "Cancelled", "Submission"]

#: jobs that are encoded and stored at a time, and encoded before others get their turn
CHUNK = 500
SLICE = 50

#: seconds after which it is said anew that points are waited for
HEARD = 1.0

#: seconds between two looks at jobs that are being stopped
STOPPING = 0.05


class _Puller:
    """Takes the next of ``chunks`` in a thread, None after the last.

    It is one that the end of the process does not wait for, nor needs to be started then.
    """

    def __init__(self, chunks: Iterator[Design]) -> None:
        self._chunks = chunks
        self._asked: SimpleQueue[Future[Design | None] | None] = SimpleQueue()
        Thread(target=self._work, name="qnb-points", daemon=True).start()

    def _work(self) -> None:
        while (coming := self._asked.get()) is not None:
            if not coming.set_running_or_notify_cancel():
                continue
            try:
                coming.set_result(next(self._chunks, None))
            except BaseException as error:  # noqa: BLE001 - told to whoever waits
                coming.set_exception(error)

    def next(self) -> Future[Design | None]:
        coming: Future[Design | None] = Future()
        self._asked.put(coming)
        return coming

    def end(self) -> None:
        self._asked.put(None)


class Cancelled(Exception):
    """The sweep has been cancelled elsewhere while its jobs were being stored."""


class _Made(NamedTuple):
    """Jobs that are ready to be stored, and what they were made by."""

    manifest: Manifest
    places: Sequence[int]
    digests: Sequence[bytes]
    calls: Sequence[Call]


class Submission:
    """Stores what a sweep lacks, and runs again what is to be run again."""

    def __init__(self, client: Client, feed: Feed, manifest: Manifest) -> None:
        self.manifest = manifest
        self.between_chunks = asyncio.Lock()  #: held while one is made and sent
        self._client = client
        self._feed = feed

    async def rest(self, *, lost: bool) -> None:
        """Store every job that has not been stored; with ``lost``, also those that have expired."""
        feed = self._feed
        layout, stored, behind = feed.layout, feed.study.stored, self._behind()
        numbers = [layout.number(place) for place in range(len(layout))]
        if lost and stored:
            early = [place for place, number in enumerate(numbers) if number < stored]
            unknown = await self._lost([numbers[place] for place in early])
            gone = [place for place in early if numbers[place] in unknown]
            for at in range(0, len(gone), CHUNK):
                part = gone[at : at + CHUNK]
                await self._send(part, self._digests(part))
        await self._store_all(behind)
        await self._mark(max(feed.study.jobs, stored))

    async def _store_all(self, places: Sequence[int]) -> None:
        """Store jobs by their numbers: a chunk is made while the one before is sent."""
        sending: asyncio.Task[None] | None = None
        try:
            for at in range(0, len(places), CHUNK):
                made = await self._made(places[at : at + CHUNK])
                if sending is not None:
                    await sending
                sending = asyncio.create_task(self._store(made), name="qnb-chunk")
            if sending is not None:
                await sending
        finally:
            if sending is not None and not sending.done():
                sending.cancel()
                await asyncio.wait({sending})

    def _behind(self) -> list[int]:
        """The places whose jobs have not been stored, by the numbers of these."""
        layout, stored = self._feed.layout, self._feed.study.stored
        found = [place for place in range(len(layout)) if layout.number(place) >= stored]
        return sorted(found, key=layout.number)

    async def leave(self) -> None:
        """Note that the rest is not to be stored, and what it would have computed: nobody stores
        it before the cell is run again.
        """
        feed, studies, behind = self._feed, await self._studies(), self._behind()
        for at in range(0, len(behind), CHUNK):
            places = behind[at : at + CHUNK]
            digests = self._said(places, self._digests(places))
            await feed.patiently(
                lambda digests=digests: studies.mark(feed.study, digests=digests)  # type: ignore[misc]
            )
        study = replace(feed.study, stored=feed.study.jobs)
        await feed.patiently(lambda: studies.mark(study, stored=study.jobs))
        feed.study = study

    async def _lost(self, numbers: Sequence[int]) -> set[int]:
        """Those of these numbers whose jobs the store does not know."""
        ids = [self._feed.study.id(number) for number in numbers]
        studies = await self._studies()
        found = await self._feed.patiently(lambda: studies.tally(ids))
        return {number for number, (cell, *_) in zip(numbers, found, strict=True)
                if cell == UNKNOWN}  # fmt: skip

    async def stream(self, stream: Stream, *, anew: bool) -> None:
        """Store the points of ``stream`` as they come; those that are known keep their jobs.

        With ``anew``, they are all its points.
        """
        client, feed = self._client, self._feed
        studies = await self._studies()
        if anew:
            packed = self.manifest.packed(client.codec, feed.study.prefix)
            study = replace(feed.study, total=0, whole=False, manifest=packed)
            made = await studies.replace(study, [])
            if made is None:
                raise QnbError(
                    f"sweep {study.name!r} was changed elsewhere meanwhile; run this again"
                )
            feed.study = made
        known = Known(await studies.digests(feed.study.name) if feed.study.jobs else b"")
        puller = _Puller(stream.chunks(CHUNK))
        try:
            while (design := await self._next(puller)) is not None:
                await self._add(frozen(design), known)
        finally:
            puller.end()
        await self._mark(feed.study.jobs, fields={"k": 1})
        feed.study = replace(feed.study, whole=True)

    async def _add(self, design: Design, known: Known) -> None:
        """Store points behind the others."""
        feed = self._feed
        study, first = feed.study, len(feed.layout)
        digests = digests_of(design)
        taken = [known.take(digest) for digest in digests]
        had = [number for number in taken if number is not None]
        lost = await self._lost(had) if had else set()
        after = study.jobs
        numbers = array("I")
        for number in taken:
            numbers.append(after if number is None else number)
            after += number is None
        plain: Numbers = numbers
        if numbers == array("I", range(first, first + len(numbers))):
            plain = range(first, first + len(numbers))
        feed.study = replace(study, jobs=after, total=first + len(design))
        points = pack_parts(self._client, study, design, plain)
        await self._mark(
            None, (study.jobs, b"".join(d for d, n in zip(digests, taken, strict=True)
                                        if n is None)), points,
        )  # fmt: skip
        feed.layout.append(design, plain)
        feed.extend(len(design))
        new = [at for at, n in enumerate(taken) if n is None or n in lost]
        await self._send([first + at for at in new], [digests[at] for at in new])
        await self._mark(after)
        feed.changed()

    async def _next(self, puller: _Puller) -> Design | None:
        """The next points; until they are there, others are told that this goes on."""
        coming = asyncio.wrap_future(puller.next())
        while not coming.done():
            await asyncio.wait({coming}, timeout=HEARD)
            if not coming.done():
                await self._mark(None)
        return coming.result()

    async def _studies(self) -> Studies:
        return Studies((await self._client.link()).store)

    def _digests(self, places: Sequence[int]) -> list[bytes]:
        try:
            return self._feed.layout.digests(places)
        except EncodingError:
            return [NONE] * len(places)

    async def _store(self, made: _Made) -> None:
        """Store jobs that are not stored yet."""
        feed = self._feed
        await self._mark(None, self._said(made.places, made.digests))
        async with self.between_chunks:
            if made.manifest is not self.manifest:  # it is another one since
                made = await self._made(made.places)
            await self._put(made.calls)
        # That they are stored goes with the next chunk: one trip for both.
        feed.study = replace(feed.study, stored=feed.layout.number(made.places[-1]) + 1)
        feed.changed()

    def _said(self, places: Sequence[int], digests: Sequence[bytes]) -> tuple[int, bytes]:
        """The digests of jobs by number, from the first of these on."""
        layout = self._feed.layout
        first, last = layout.number(places[0]), layout.number(places[-1])
        said = bytearray(16 * (last + 1 - first))  # a number between may be of no point any more
        for place, digest in zip(places, digests, strict=True):
            at = 16 * (layout.number(place) - first)
            said[at : at + 16] = digest
        return first, bytes(said)

    async def _send(self, places: Sequence[int], digests: Sequence[bytes] | None = None) -> None:
        async with self.between_chunks:
            await self._put((await self._made(places, digests)).calls)

    async def _made(self, places: Sequence[int], digests: Sequence[bytes] | None = None) -> _Made:
        """The calls of the jobs at ``places``."""
        manifest, calls = self.manifest, list[Call]()
        known = self._digests(places) if digests is None else digests
        for at in range(0, len(places), SLICE):
            part, contents = places[at : at + SLICE], known[at : at + SLICE]
            calls += manifest.calls(
                self._client.codec, self._feed.layout, part,
                [b"" if content == NONE else content for content in contents],
            )  # fmt: skip
            await asyncio.sleep(0)  # let notices in
        return _Made(manifest, places, known, calls)

    async def _put(self, calls: Sequence[Call]) -> None:
        link = await self._client.link()

        async def send() -> None:
            rest = await serve(self._client, calls) if self.manifest.cache else calls
            await link.send(rest, fresh=False)

        if calls:
            await self._feed.patiently(send)

    async def _mark(
        self,
        stored: int | None,
        digests: tuple[int, bytes] = (0, b""),
        points: Sequence[bytes] = (),
        *,
        fields: dict[str, object] | None = None,
    ) -> None:
        """Note how far this has come; QnbError if the sweep is not there any more."""
        feed = self._feed
        studies, study = await self._studies(), feed.study
        if points:
            fields = {"j": study.jobs, "t": study.total, **(fields or {})}
        if stored is None:
            stored = study.stored
        noted = await feed.patiently(
            lambda: studies.mark(
                study, stored=stored, digests=digests, points=points, fields=fields
            )
        )
        if noted == 2:
            raise Cancelled
        if not noted:
            raise QnbError(
                f"sweep {study.name!r} was forgotten or given other points elsewhere while its "
                f"jobs were being stored; {study.stored:,} of {study.jobs:,} are. Run the cell "
                f"again, or look at it with app.sweep({study.name!r})"
            )
        feed.study = replace(feed.study, stored=max(study.stored, stored))

    # -- no more -------------------------------------------------------------------------------

    async def end(self, places: Sequence[int]) -> list[int]:
        """Abort the jobs at ``places`` and wait until they have ended; those that are unknown."""
        feed, studies = self._feed, await self._studies()
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

    # -- once more -----------------------------------------------------------------------------

    async def again(self, places: Sequence[int]) -> int:
        """Run the finished jobs at ``places`` again, by the manifest; how many."""
        await self._bring_function()
        count = 0
        for at in range(0, len(places), CHUNK):
            part = places[at : at + CHUNK]
            count += await self._feed.patiently(lambda part=part: self._rerun(part))  # type: ignore[misc]
        return count

    async def _bring_function(self) -> None:
        """Make sure that the function by value is stored."""
        link, spec = await self._client.link(), self.manifest.spec
        if not spec.function or ":" in spec.function:
            return
        if self.manifest.blob is not None:
            await link.store.put_function(spec.function, self.manifest.blob)
        elif await link.store.keep_functions({spec.function: UNFINISHED_TTL_MS}):
            raise JobLost(
                f"the function of sweep {self._feed.study.name!r} is no longer stored (30 days "
                "after it was last submitted): run the cell that defines it, then retry"
            )

    async def _rerun(self, places: Sequence[int]) -> int:
        study, layout = self._feed.study, self._feed.layout
        studies = await self._studies()
        ids = [study.id(layout.number(place)) for place in places]
        records = await studies.store.records(ids, call=True)
        times = dict.fromkeys(places, 0)
        if gone := [p for p, record in zip(places, records, strict=True) if record is None]:
            await self._send(gone, self._digests(gone))
            times |= dict.fromkeys(gone, 1)
        found = {
            place: row
            for place, record in zip(places, records, strict=True)
            if record and (row := self._resigned(record))
        }
        done = await studies.rerun(self.manifest.spec.lane, list(found.values()))
        times |= zip(found, done, strict=True)
        self._feed.renewed(times)
        return sum(map(bool, times.values()))

    def _resigned(self, record: JobRecord) -> tuple[JobSpec, bytes] | None:
        """The job with the manifest's function and treatment, its arguments signed anew."""
        old = record.spec
        if old is None or record.outcome is None:
            return None
        new = replace(
            self.manifest.spec, task_id=old.task_id, index=old.index, content=old.content,
            nonce=_nonce(record),
        )  # fmt: skip
        codec = self._client.codec
        return new, codec.rebind_call(old.task_id, record.call, old.binding(), new.binding())


def _nonce(record: JobRecord) -> str:
    """Names the run after the one of ``record``: the same, however often it is asked for."""
    return f"{record.enqueue_time:x}"
