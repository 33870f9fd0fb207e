"""What a worker asks of the store: leases on jobs, and everything that is said of a held one."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qnb.errors import BrokerError, StoreFull
from qnb.models import Ending, JobSpec, Outcome, Report
from qnb.registry import Cron
from qnb.storage import links
from qnb.storage.keys import GROUP, is_hex
from qnb.storage.records import (
    Claimed,
    Finished,
    Unreadable,
    pack,
    pack_end,
    pack_failure,
    pack_outcome,
    pack_report,
    pack_spec,
    unpack_entry,
)
from qnb.storage.store import DUE, Store, aborted, skipped

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["Leases", "Overdue"]

log = logging.getLogger("qnb.store")

#: leases that are looked at in one go
PAGE = 100

#: jobs of the index that are looked at in one go, and how often at a time
INDEX_PAGE = 1000
INDEX_PAGES = 50

ENVIRONMENT_TTL_MS = 24 * 3600 * 1000

_Place = tuple[JobSpec, str, bool, Outcome]  # spec, entry, handed back?, how it ends if it does

Overdue = tuple[JobSpec, str, bool, int, str]  #: spec, entry, handed back?, lease (ms), holder


class Leases:
    """A worker's side of ``store``: ``consumer`` is its name among the holders of leases."""

    def __init__(self, store: Store, consumer: str) -> None:
        self.store = store
        self._keys = store.keys
        self._server = store.server
        self._consumer = consumer
        self._lanes = list(reversed(store.options.priorities))
        self._places = {
            key(lane): (lane, key == self._keys.back)
            for lane in self._lanes
            for key in (self._keys.back, self._keys.lane)
        }
        self._streams = list(self._places)
        self._stream_of = {place: stream for stream, place in self._places.items()}
        self._blocking: Redis | None = None
        self.dry = False  #: did the last claim get less than it asked for?
        self._swept = 0  #: rank in the index from which to look on

    async def join(self) -> None:
        """Make sure that the lanes can be read by workers."""
        for stream in self._streams:
            try:
                await self._server.call("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")
            except StoreFull:  # it says so too where the group is there already; a claim will tell
                continue
            except BrokerError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    # -- claiming ------------------------------------------------------------------------------

    async def claim(self, count: int, block_ms: int = 0) -> list[Claimed]:
        """Lease up to ``count`` waiting jobs, highest lane first; wait up to ``block_ms`` for one.

        After a wait it may be a few more, one a stream. Never repeated by itself: after an error,
        :meth:`unseen` tells what was delivered and lost.
        """
        if not (self.dry and block_ms):
            found = await self._server.run(
                lambda: self._server.scripts.claim(self._streams, self._consumer, count), 0
            )
            self.dry = sum(len(part) for _, part in found) < count
            if found or not block_ms:
                return await self._claimed([(self._streams[at - 1], part) for at, part in found])
        if self._blocking is None:
            self._blocking = self._server.client(timeout=block_ms / 1000 + links.SILENCE)
        blocking, each = self._blocking, max(1, count // len(self._streams))
        try:
            read = await self._server.run(
                lambda: blocking.execute_command(  # type: ignore[no-untyped-call]
                    "XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", each, "BLOCK", block_ms,
                    "STREAMS", *self._streams, *(">" for _ in self._streams),
                ),
                0,
            )  # fmt: skip
        except BrokerError:
            await self.drop_claim()
            raise
        self.dry = all(len(part) < each for _, part in read or ())
        return await self._claimed([(stream.decode(), part) for stream, part in read or ()])

    async def drop_claim(self) -> None:
        """Close the connection of a claim that failed or was cancelled while it waited."""
        self.dry = False
        blocking, self._blocking = self._blocking, None
        if blocking is not None:
            with contextlib.suppress(Exception):
                await blocking.aclose()

    async def unseen(self, held: Iterable[Claimed]) -> list[Claimed]:
        """Jobs leased to this worker whose delivery was lost with a connection.

        To be asked only while no claim is under way.
        """
        known = {(self._stream(claimed), claimed.entry.encode()) for claimed in held}
        found = []
        for stream in self._streams:
            read = await self._server.call(
                "XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", 1000, "STREAMS", stream, "0"
            )
            for _, part in read or ():
                found.append((stream, [one for one in part if (stream, one[0]) not in known]))
        return await self._claimed(found)

    async def _claimed(self, found: Sequence[tuple[str, Sequence[Any]]]) -> list[Claimed]:
        """Read entries; one that nobody could run is taken off its stream and reported."""
        jobs: list[Claimed] = []
        for stream, entries in found:
            for entry, flat in entries:
                try:
                    jobs.append(self._read(stream, entry, flat))
                except Unreadable as error:
                    await self._remove(stream, entry, error)
        large = [at for at, job in enumerate(jobs) if not job.call]
        if large:
            keys = [self._keys.job(jobs[at].spec.task_id) for at in large]
            calls = await self._server.read(("HGET", key, "p") for key in keys)
            for at, call in zip(large, calls, strict=True):
                jobs[at] = replace(jobs[at], call=call or b"")
        return jobs

    def _read(self, stream: str, entry: bytes, flat: Sequence[bytes]) -> Claimed:
        lane, back = self._places[stream]
        return unpack_entry(entry, flat, lane, back=back)

    async def _remove(self, stream: str, entry: bytes, why: Exception) -> None:
        log.error(
            "entry %s of %s is not a job (%s: %s); it is removed",
            entry.decode(), stream, type(why).__name__, why,
        )  # fmt: skip
        await self._server.pipeline([("XACK", stream, GROUP, entry), ("XDEL", stream, entry)])

    def _stream(self, claimed: Claimed) -> str:
        return self._stream_of[claimed.spec.lane, claimed.back]

    # -- holding -------------------------------------------------------------------------------

    async def start(self, worker: str, marks: Sequence[tuple[Claimed, int]]) -> None:
        """Mark held jobs as running since the given epoch milliseconds."""
        channels = _numbered(claimed.spec.channel for claimed, _ in marks)
        rows = [
            (
                claimed.attempt, claimed.starts + 1, start,
                channels.get(claimed.spec.channel, 0), pack([claimed.spec.task_id, "r"]),
            )
            for claimed, start in marks
        ]  # fmt: skip
        await self._server.run(
            lambda: self._server.scripts.start(
                [self._keys.job(claimed.spec.task_id) for claimed, _ in marks],
                worker,
                [self._keys.channel(client) for client in channels],
                rows,
            )
        )

    async def report(self, news: Sequence[tuple[Claimed, Report | None, str]]) -> None:
        """Note what bodies said: progress and output of each."""
        channels = _numbered(claimed.spec.channel for claimed, report, _ in news if report)
        places, rows = [], []
        for claimed, report, output in news:
            task_id = claimed.spec.task_id
            packed = pack_report(report) if report else b""
            channel = channels.get(claimed.spec.channel, 0) if report else 0
            places += [self._keys.job(task_id), self._keys.log(task_id, claimed.enqueue_time)]
            text = output.encode("utf-8", "backslashreplace")
            notice = pack([task_id, "g", packed]) if report else b""
            rows.append((claimed.attempt, packed, text, channel, notice))
        await self._server.run(
            lambda: self._server.scripts.report(
                places, [self._keys.channel(client) for client in channels], rows
            )
        )

    async def renew(self, held: Sequence[Claimed]) -> tuple[set[str], dict[str, str]]:
        """Renew leases: the refs of those still held, and of those to be aborted, by whom."""
        by_stream: dict[str, list[Claimed]] = {}
        for claimed in held:
            by_stream.setdefault(self._stream(claimed), []).append(claimed)
        replies = await self._server.pipeline(
            [
                ("XCLAIM", stream, GROUP, self._consumer, 0, *(c.entry for c in part), "JUSTID")
                for stream, part in by_stream.items()
            ]
        )
        ours = set()
        for part, reply in zip(by_stream.values(), replies, strict=True):
            kept = {entry.decode() for entry in reply}
            ours |= {claimed.ref for claimed in part if claimed.entry in kept}
        return ours, await self.asked(held)

    async def asked(self, held: Sequence[Claimed]) -> dict[str, str]:
        """Which of ``held`` are to be aborted, by ref, and by whom."""
        rows = await self._server.read(
            ("HMGET", self._keys.job(claimed.spec.task_id), "k", "s") for claimed in held
        )
        asked = {}
        for claimed, row in zip(held, rows, strict=True):
            by, state = row or (None, None)
            if by or not state:  # its record is gone: somebody has forgotten it
                asked[claimed.ref] = by.decode("utf-8", "replace") if by else "who forgot it"
        return asked

    # -- giving up -----------------------------------------------------------------------------

    async def finish(self, ends: Sequence[Finished]) -> list[bool]:
        """Store outcomes, give up leases, tell the clients; false where the attempt was stale."""
        streams = list(dict.fromkeys(self._stream(end.claimed) for end in ends))
        number = {stream: at for at, stream in enumerate(streams, 1)}
        channels = _numbered(end.claimed.spec.channel for end in ends)
        rows = []
        for end in ends:
            claimed, outcome = end.claimed, pack_outcome(end.outcome)
            rows.append(
                (
                    number[self._stream(claimed)], claimed.entry, claimed.attempt,
                    claimed.starts + 1, outcome, end.outcome.result,
                    channels.get(claimed.spec.channel, 0),
                    pack_end(claimed, outcome, end.outcome.result),
                )
            )  # fmt: skip
        logs = [
            self._keys.log(end.claimed.spec.task_id, end.claimed.enqueue_time)
            for end in ends
            if end.has_log
        ]
        reply = await self._server.run(
            lambda: self._server.scripts.finish(
                streams,
                [self._keys.job(end.claimed.spec.task_id) for end in ends],
                logs,
                self.store.options.result_ttl_ms,
                [self._keys.channel(client) for client in channels],
                rows,
            )
        )
        return [bool(accepted) for accepted in reply]

    async def retry(self, claimed: Claimed, outcome: Outcome) -> int:
        """Have another attempt follow: 1 done, 0 stale, 2 an abort was asked for."""
        failure, spec = outcome.failure, claimed.spec
        delay = outcome.retry_in_ms or 0
        return await self._server.run(
            lambda: self._server.scripts.retry(
                self._stream(claimed), spec.task_id, spec.lane, claimed.entry, claimed.attempt,
                claimed.starts + 1, delay, pack_failure(failure) if failure else b"",
                self._keys.channel(spec.channel) if spec.channel else "",
                pack([spec.task_id, "d" if delay else "q"]),
            )
        )  # fmt: skip

    async def give_back(self, claimed: Claimed, outcome: Outcome, *, begun: int) -> bool:
        """Put a held job back to the front of its lane; ``begun`` is how many lost starts that is.

        A job that has lost too many starts ends with ``outcome`` instead; then the answer is false.
        """
        place = (claimed.spec, claimed.entry, claimed.back, outcome)
        [answer] = await self._recover([place], -1, begun=begun)
        return answer != 2

    async def hand_back(self, jobs: Sequence[Claimed]) -> None:
        """Put held jobs of which nothing has begun back to the front of their lanes, in order."""
        if jobs:
            places = [  # nothing is lost, so none ends as crashed by it
                (job.spec, job.entry, job.back, Outcome(Ending.CRASHED, job.starts, 0, 0))
                for job in jobs
            ]
            await self._recover(places, -1, begun=0)

    async def overdue(self) -> list[Overdue]:
        """Jobs whose lease has run out; the server's clock is read along."""
        lease_ms = self.store.options.lease_ms
        found = []
        for stream in self._streams:
            async for entry, consumer, idle in self._silent(stream, min(100, lease_ms)):
                holder = consumer.decode("utf-8", "replace")
                said = holder.rpartition("~")[2]
                lease = int(said) if re.fullmatch(r"[0-9]{1,15}", said) else lease_ms
                if idle < lease:
                    continue
                read = await self._server.call("XRANGE", stream, entry, entry)
                try:
                    job = self._read(stream, *read[0])
                except (Unreadable, LookupError) as error:
                    await self._remove(stream, entry, error)
                else:
                    found.append((job.spec, job.entry, job.back, lease, holder))
        return found

    async def _silent(self, stream: str, idle_ms: int) -> AsyncIterator[tuple[bytes, bytes, int]]:
        """Entry, holder and idle time of each lease of ``stream`` not renewed for ``idle_ms``."""
        start = b"-"
        while True:
            part, time = await self._server.pipeline(
                [("XPENDING", stream, GROUP, "IDLE", idle_ms, start, "+", PAGE), ("TIME",)]
            )
            self.store.clock.told(time)
            for entry, consumer, idle, _ in part:
                yield entry, consumer, idle
            if len(part) < PAGE:
                return
            start = b"(" + part[-1][0]

    async def recover(self, overdue: Overdue, outcome: Outcome) -> int:
        """Take a job from a holder that fell silent: 1 put back, 2 ended, 0 neither."""
        spec, entry, back, lease_ms, _ = overdue
        [answer] = await self._recover([(spec, entry, back, outcome)], lease_ms, begun=1)
        return answer

    async def _recover(self, jobs: Sequence[_Place], idle_ms: int, *, begun: int) -> list[int]:
        now, rows = self.store.clock.now_ms(), []
        how = "aborted; its worker was lost before it could be stopped"
        if not begun:
            how = "aborted before it was started"
        for spec, entry, back, outcome in jobs:
            lanes = self._keys.lane(spec.lane), self._keys.back(spec.lane)
            rows.append(
                (
                    lanes[back], lanes[True], self._keys.job(spec.task_id), entry,
                    idle_ms, int(begun),
                    pack_outcome(outcome),
                    pack_outcome(aborted(spec.task_id, outcome.tries, now, how)),
                    self._keys.channel(spec.channel) if spec.channel else "",
                    pack([spec.task_id, "c"]),
                )
            )  # fmt: skip
        ttl_ms = self.store.options.result_ttl_ms
        return await self._server.run(lambda: self._server.scripts.recover(ttl_ms, rows))

    # -- time ----------------------------------------------------------------------------------

    async def tick(self) -> float | None:
        """Move what is due, end what has expired; seconds until the next one, if there is one."""
        until, found = await self._server.run(lambda: self._server.scripts.due(self._lanes, DUE))
        for lane, (due, over) in zip(self._lanes, found, strict=True):
            if hexes := await self._hexes(self._keys.delayed(lane), due):
                await self._server.run(
                    lambda lane=lane, hexes=hexes: self._server.scripts.promote(lane, hexes)  # type: ignore[misc]
                )
            if hexes := await self._hexes(self._keys.expiring(lane), over):
                await self.store.expire(lane, hexes)
            if len(due) == DUE or len(over) == DUE:
                until = 0
        return None if until < 0 else until / 1000

    async def _hexes(self, index: str, members: Sequence[bytes]) -> list[str]:
        """The jobs among the members of an index; anything else is taken off it."""
        strange = [member for member in members if not is_hex(member)]
        if strange:
            skipped(f"{index}: members that are no jobs, such as {strange[0]!r}, are removed")
            await self._server.call("ZREM", index, *strange)
        return [member.decode() for member in members if is_hex(member)]

    async def run_cron(
        self, cron: Cron, occurrence: int, marker_ttl_ms: int, spec: JobSpec, call: bytes
    ) -> int:
        """Enqueue an occurrence: 0 done, -1 taken before, else milliseconds until it is due."""
        packed = pack_spec(spec)
        return await self._server.run(
            lambda: self._server.scripts.cron(
                cron.name, occurrence, marker_ttl_ms, spec.task_id, spec.lane, packed, call
            )
        )

    # -- being there ---------------------------------------------------------------------------

    async def heartbeat(self, worker: str, says: Mapping[str, Any], ttl_ms: int) -> None:
        """Say that ``worker`` lives and what it does, if there is room for it."""
        now = self.store.clock.now_ms()
        try:
            *_, time = await self._server.pipeline(
                [
                    ("SET", self._keys.worker(worker), pack({**says, "at": now}), "PX", ttl_ms),
                    ("ZADD", self._keys.workers, now, worker),
                    ("ZREMRANGEBYSCORE", self._keys.workers, "-inf", now - ttl_ms),
                    ("TIME",),
                ]
            )
        except StoreFull as error:  # it serves all the same: what ends makes room
            log.warning("%s", error)
            return
        self.store.clock.told(time)

    async def put_environment(self, digest: str, packed: bytes) -> None:
        """Keep a description of this worker's Python and packages, for a day from now."""
        with contextlib.suppress(StoreFull):
            await self._server.call(
                "SET", self._keys.environment(digest), packed, "PX", ENVIRONMENT_TTL_MS
            )

    async def leave(self, worker: str) -> None:
        """Take ``worker`` off the books; what it should still hold is recovered by others."""
        await self._server.run(lambda: self._server.scripts.leave(self._streams, self._consumer))
        await self._server.pipeline(
            [("DEL", self._keys.worker(worker)), ("ZREM", self._keys.workers, worker)]
        )

    async def sweep_index(self) -> int:
        """Take expired jobs out of the index: how many. To be asked once a minute.

        The oldest are looked at each time. Those behind them that live longer would hide others, so
        all are gone through within an hour, going on where this ended last time.
        """
        pages = await self._server.call("ZCARD", self._keys.jobs) // (60 * INDEX_PAGE) + 1
        total, at = await self._sweep_from(0, 1)
        if at:
            more, at = await self._sweep_from(max(at, self._swept - total), pages)
            total += more
        self._swept = at
        return total

    async def _sweep_from(self, start: int, pages: int) -> tuple[int, int]:
        """Look at so many pages, and on while jobs are gone: how many, and where to go on."""
        total = 0
        for page in range(1, INDEX_PAGES + 1):
            found = await self._server.call(
                "ZRANGE", self._keys.jobs, start, start + INDEX_PAGE - 1
            )
            hexes = await self._hexes(self._keys.jobs, found)
            there = await self._server.pipeline(
                ("EXISTS", self._keys.job_of(hex_)) for hex_ in hexes
            )
            gone = [hex_ for hex_, here in zip(hexes, there, strict=True) if not here]
            if gone:
                await self._server.call("ZREM", self._keys.jobs, *gone)
            total += len(gone)
            if len(found) < INDEX_PAGE:
                return total, 0
            start += len(hexes) - len(gone)
            if page >= pages and not gone:
                break
        return total, start


def _numbered(channels: Iterable[str]) -> dict[str, int]:
    return {name: at for at, name in enumerate(dict.fromkeys(c for c in channels if c), 1)}
