"""One queue on one server, for one event loop: bytes and models in and out, values stay bytes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgpack

from qnb.clock import backoff
from qnb.errors import BrokerError
from qnb.models import JobRecord, JobSpec, Outcome
from qnb.options import AppOptions
from qnb.storage.connection import Connection
from qnb.storage.keys import GROUP, KeySpace, job_hex
from qnb.storage.records import (
    FIELDS,
    Claimed,
    Finished,
    Notice,
    pack,
    pack_end,
    pack_outcome,
    pack_spec,
    unpack_notices,
    unpack_record,
    unpack_spec,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

__all__ = ["Store"]

log = logging.getLogger("qnb.store")

#: most jobs, and bytes, of one script call
CHUNK_JOBS = 500
CHUNK_BYTES = 4 * 1024 * 1024

FUNCTION_TTL_MS = 30 * 24 * 3600 * 1000


def _chunks(jobs: Sequence[tuple[JobSpec, bytes]]) -> Iterable[Sequence[tuple[JobSpec, bytes]]]:
    """Consecutive parts of ``jobs``, bounded in number and bytes, none with the same id twice."""
    start, size, seen = 0, 0, set[str]()
    for at, (spec, call) in enumerate(jobs):
        full = at - start >= CHUNK_JOBS or size + len(call) > CHUNK_BYTES
        if at > start and (full or spec.task_id in seen):
            yield jobs[start:at]
            start, size, seen = at, 0, set()
        size += len(call)
        seen.add(spec.task_id)
    if start < len(jobs):
        yield jobs[start:]


class Store:
    """The queue ``options.queue_name`` on the server at ``url``."""

    def __init__(self, url: str, options: AppOptions) -> None:
        self.keys = KeySpace(options.queue_name)
        self._options = options
        self._lanes = [self.keys.lane(name) for name in reversed(options.priorities)]
        self._server = Connection(url, allow_volatile=options.allow_volatile)
        self._blocking: Redis | None = None
        self.clock = self._server.clock

    async def open(self) -> None:
        """Reach the server and make sure that it may hold a queue."""
        await self._server.open()

    async def close(self) -> None:
        await self.drop_claim()
        await self._server.close()

    # -- clients -------------------------------------------------------------------------------

    async def enqueue(self, jobs: Sequence[tuple[JobSpec, bytes]]) -> list[bool]:
        """Store ``jobs`` (spec and signed call); true for each that was not there already."""
        stored: list[bool] = []
        for chunk in _chunks(jobs):
            lanes = list(dict.fromkeys(spec.lane for spec, _ in chunk))
            number = {lane: at for at, lane in enumerate(lanes, 1)}
            names = [self.keys.lane(lane) for lane in lanes]
            hexes = [job_hex(spec.task_id) for spec, _ in chunk]
            keys = [self.keys.job_of(hex_) for hex_ in hexes]
            calls = [
                (number[spec.lane], hex_, pack_spec(spec), call)
                for hex_, (spec, call) in zip(hexes, chunk, strict=True)
            ]
            reply = await self._server.run(
                lambda names=names, keys=keys, calls=calls: self._server.scripts.enqueue(  # type: ignore[misc]
                    self.keys.jobs, names, keys, calls
                )
            )
            stored += [bool(new) for new in reply]
        return stored

    async def put_function(self, digest: str, blob: bytes) -> None:
        """Keep a signed function for the workers, for 30 days from now."""
        await self._server.call("SET", self.keys.function(digest), blob, "PX", FUNCTION_TTL_MS)

    async def records(
        self, task_ids: Sequence[str], *, call: bool = False, result: bool = False
    ) -> list[JobRecord | None]:
        """What is known of each job, None where nothing is; with call or result if asked."""
        return await self._records([self.keys.job(id_) for id_ in task_ids], call, result)

    async def _records(
        self, keys: Sequence[str], call: bool, result: bool
    ) -> list[JobRecord | None]:
        wanted = [*FIELDS, *(["p"] if call else []), *(["r"] if result else [])]
        records: list[JobRecord | None] = []
        for at in range(0, len(keys), CHUNK_JOBS):
            part = keys[at : at + CHUNK_JOBS]
            rows = await self._server.pipeline(("HMGET", key, *wanted) for key in part)
            for row in rows:
                fields = dict(zip(wanted, row, strict=True))
                records.append(unpack_record(fields) if fields["s"] else None)
        return records

    async def index(self) -> list[str]:
        """The keys of all jobs the queue knows, in order of enqueue time."""
        hexes = await self._server.call("ZRANGE", self.keys.jobs, 0, -1)
        return [self.keys.job_of(hex_.decode()) for hex_ in hexes]

    async def all_records(self, *, call: bool = False, result: bool = False) -> list[JobRecord]:
        """Every job whose record is still there, in order of enqueue time."""
        found = await self._records(await self.index(), call, result)
        return [record for record in found if record is not None]

    async def queue_size(self) -> int:
        """How many jobs wait: in the lanes and not yet claimed, or delayed."""
        return await self._server.run(
            lambda: self._server.scripts.size(self.keys.delayed, self._lanes)
        )

    async def notices(
        self, client: str, subscribed: Callable[[], None]
    ) -> AsyncIterator[list[Notice]]:
        """News of the jobs of ``client``, for ever; ``subscribed`` is told of each (re)connect."""
        from redis import exceptions as refused

        attempt = 0
        while True:
            link = self._server.client(timeout=30.0)
            pubsub: PubSub = link.pubsub(ignore_subscribe_messages=False)
            try:
                await pubsub.subscribe(self.keys.channel(client))
                while True:
                    message = await pubsub.get_message(timeout=10.0)
                    if message is None:
                        await pubsub.ping()
                    elif message["type"] == "subscribe":
                        attempt = 0
                        subscribed()
                    elif message["type"] == "message":
                        yield unpack_notices(message["data"])
            except (refused.ConnectionError, refused.TimeoutError, OSError):
                await asyncio.sleep(backoff(attempt))
                attempt += 1
            finally:
                with contextlib.suppress(Exception):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
                    await link.aclose()

    # -- workers -------------------------------------------------------------------------------

    async def join(self) -> None:
        """Make sure that the lanes can be read by workers."""
        for lane in self._lanes:
            try:
                await self._server.call("XGROUP", "CREATE", lane, GROUP, "0", "MKSTREAM")
            except BrokerError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def claim(self, consumer: str, count: int, block_ms: int) -> list[Claimed]:
        """Lease up to ``count`` waiting jobs, highest lane first; wait up to ``block_ms`` for one.

        Never repeated by itself: after an error, :meth:`unseen` tells what was delivered and lost.
        """
        if len(self._lanes) > 1 or not block_ms:
            found = await self._server.run(
                lambda: self._server.scripts.claim(self._lanes, consumer, count), 0
            )
            if found or not block_ms:
                return await self._claimed([(self._lanes[at - 1], part) for at, part in found])
        if self._blocking is None:
            self._blocking = self._server.client(timeout=block_ms / 1000 + 5)
        blocking = self._blocking
        try:
            read = await self._server.run(
                lambda: blocking.execute_command(  # type: ignore[no-untyped-call]
                    "XREADGROUP", "GROUP", GROUP, consumer, "COUNT", count, "BLOCK", block_ms,
                    "STREAMS", *self._lanes, *(">" for _ in self._lanes),
                ),
                0,
            )  # fmt: skip
        except BrokerError:
            await self.drop_claim()
            raise
        return await self._claimed([(lane.decode(), part) for lane, part in read or ()])

    async def drop_claim(self) -> None:
        """Close the connection of a claim that failed or was cancelled while it waited."""
        blocking, self._blocking = self._blocking, None
        if blocking is not None:
            with contextlib.suppress(Exception):
                await blocking.aclose()

    async def unseen(self, consumer: str, held: Iterable[str]) -> list[Claimed]:
        """Jobs leased to ``consumer`` whose delivery was lost with a connection.

        To be asked only while no claim of this consumer is under way.
        """
        known = {entry.encode() for entry in held}
        found = []
        for lane in self._lanes:
            read = await self._server.call(
                "XREADGROUP", "GROUP", GROUP, consumer, "COUNT", 1000, "STREAMS", lane, "0"
            )
            for _, part in read or ():
                found.append((lane, [entry for entry in part if entry[0] not in known]))
        return await self._claimed(found)

    async def _claimed(self, found: Sequence[tuple[str, Sequence[Any]]]) -> list[Claimed]:
        """Read lane entries; one that nobody could run is taken off its lane and reported."""
        rows: list[tuple[str, JobSpec, dict[bytes, bytes]]] = []
        for lane, entries in found:
            for entry, flat in entries:
                try:
                    row = dict(zip(flat[::2], flat[1::2], strict=True))
                    spec = unpack_spec(row[b"m"])
                    int(row[b"a"]), int(row[b"n"]), int(row[b"t"])
                except Exception:  # noqa: BLE001 - whatever a stranger wrote into the lane
                    log.error("entry %s of %s is not a job; it is removed", entry.decode(), lane)
                    await self._server.pipeline(
                        [("XACK", lane, GROUP, entry), ("XDEL", lane, entry)]
                    )
                else:
                    rows.append((entry.decode(), spec, row))
        large = [self.keys.job(spec.task_id) for _, spec, row in rows if b"p" not in row]
        calls = iter(await self._server.pipeline(("HGET", key, "p") for key in large))
        return [
            Claimed(
                spec, entry, int(row[b"a"]), int(row[b"n"]), int(row[b"t"]),
                row[b"p"] if b"p" in row else next(calls) or b"",
            )
            for entry, spec, row in rows
        ]  # fmt: skip

    async def start(self, worker: str, marks: Sequence[tuple[Claimed, int]]) -> None:
        """Mark held jobs as running since the given epoch milliseconds."""
        channels = _numbered(claimed.spec.channel for claimed, _ in marks)
        await self._server.run(
            lambda: self._server.scripts.start(
                [self.keys.job(claimed.spec.task_id) for claimed, _ in marks],
                worker,
                [self.keys.channel(client) for client in channels],
                [
                    (
                        claimed.attempt,
                        claimed.starts + 1,
                        start,
                        channels.get(claimed.spec.channel, 0),
                        pack([claimed.spec.task_id, "r"]),
                    )
                    for claimed, start in marks
                ],
            )
        )

    async def finish(self, ends: Sequence[Finished]) -> list[bool]:
        """Store outcomes, give up leases, tell the clients; false where the attempt was stale."""
        lanes = list(dict.fromkeys(end.claimed.spec.lane for end in ends))
        number = {lane: at for at, lane in enumerate(lanes, 1)}
        channels = _numbered(end.claimed.spec.channel for end in ends)
        rows = []
        for end in ends:
            claimed, outcome = end.claimed, pack_outcome(end.outcome)
            rows.append(
                (
                    number[claimed.spec.lane],
                    claimed.entry,
                    claimed.attempt,
                    claimed.starts + 1,
                    outcome,
                    end.outcome.result,
                    channels.get(claimed.spec.channel, 0),
                    pack_end(claimed, outcome, end.outcome.result),
                )
            )
        reply = await self._server.run(
            lambda: self._server.scripts.finish(
                [self.keys.lane(lane) for lane in lanes],
                [self.keys.job(end.claimed.spec.task_id) for end in ends],
                self._options.result_ttl_ms,
                [self.keys.channel(client) for client in channels],
                rows,
            )
        )
        return [bool(accepted) for accepted in reply]

    async def renew(self, consumer: str, held: Sequence[Claimed]) -> set[str]:
        """Renew the leases of ``held``; the entries that are still this consumer's."""
        by_lane: dict[str, list[str]] = {}
        for claimed in held:
            by_lane.setdefault(claimed.spec.lane, []).append(claimed.entry)
        replies = await self._server.pipeline(
            ("XCLAIM", self.keys.lane(lane), GROUP, consumer, 0, *entries, "JUSTID")
            for lane, entries in by_lane.items()
        )
        return {entry.decode() for reply in replies for entry in reply}

    async def give_back(self, claimed: Claimed, outcome: Outcome, *, begun: bool) -> bool:
        """Put a held job back into its lane; ``begun`` counts as a lost start.

        A job that has lost too many starts ends with ``outcome`` instead; then the answer is false.
        """
        return await self._recover(claimed.spec, claimed.entry, -1, outcome, begun=begun) != 2

    async def overdue(self, lease_ms: int) -> list[tuple[JobSpec, str, int, str]]:
        """Jobs whose lease has run out: spec, entry, the holder's lease and the holder."""
        found = []
        for lane in self._lanes:
            pending = await self._server.call("XPENDING", lane, GROUP, "IDLE", 100, "-", "+", 100)
            for entry, consumer, idle, _ in pending:
                holder = consumer.decode()
                lease = int(holder.rpartition("~")[2] or lease_ms)
                if idle < lease:
                    continue
                for _, flat in await self._server.call("XRANGE", lane, entry, entry):
                    row = dict(zip(flat[::2], flat[1::2], strict=True))
                    found.append((unpack_spec(row[b"m"]), entry.decode(), lease, holder))
        return found

    async def recover(self, spec: JobSpec, entry: str, lease_ms: int, outcome: Outcome) -> int:
        """Take a job from a holder silent for ``lease_ms``: 1 put back, 2 ended, 0 neither."""
        return await self._recover(spec, entry, lease_ms, outcome, begun=True)

    async def _recover(
        self, spec: JobSpec, entry: str, idle_ms: int, outcome: Outcome, *, begun: bool
    ) -> int:
        packed = pack_outcome(outcome)
        return await self._server.run(
            lambda: self._server.scripts.recover(
                self.keys.lane(spec.lane),
                self.keys.job(spec.task_id),
                entry,
                idle_ms=idle_ms,
                begun=begun,
                outcome=packed,
                ttl_ms=self._options.result_ttl_ms,
                channel=self.keys.channel(spec.channel) if spec.channel else "",
                notice=pack([spec.task_id, "c"]),
            )
        )

    async def function(self, digest: str) -> bytes | None:
        """A signed function that was shipped by value, None if it is gone."""
        code: bytes | None = await self._server.call("GET", self.keys.function(digest))
        return code

    async def heartbeat(self, worker: str, says: Mapping[str, Any], ttl_ms: int) -> None:
        """Say that ``worker`` lives and what it does."""
        now = self.clock.now_ms()
        await self._server.pipeline(
            [
                ("SET", self.keys.worker(worker), pack(dict(says)), "PX", ttl_ms),
                ("ZADD", self.keys.workers, now, worker),
                ("ZREMRANGEBYSCORE", self.keys.workers, "-inf", now - ttl_ms),
            ]
        )
        await self._server.sync_clock()

    async def leave(self, worker: str, consumer: str) -> None:
        """Take ``worker`` off the books; what it should still hold is recovered by others."""
        await self._server.run(lambda: self._server.scripts.leave(self._lanes, consumer))
        await self._server.pipeline(
            [("DEL", self.keys.worker(worker)), ("ZREM", self.keys.workers, worker)]
        )

    async def workers(self) -> dict[str, dict[str, Any]]:
        """What each living worker last said of itself."""
        ids = [id_.decode() for id_ in await self._server.call("ZRANGE", self.keys.workers, 0, -1)]
        says = await self._server.pipeline(("GET", self.keys.worker(id_)) for id_ in ids)
        return {id_: msgpack.unpackb(said) for id_, said in zip(ids, says, strict=True) if said}

    async def sweep_index(self) -> int:
        """Take expired jobs out of the index; how many."""
        hexes = await self._server.call("ZRANGE", self.keys.jobs, 0, 999)
        there = await self._server.pipeline(("EXISTS", self.keys.job_of(h.decode())) for h in hexes)
        gone = [h for h, here in zip(hexes, there, strict=True) if not here]
        if gone:
            await self._server.call("ZREM", self.keys.jobs, *gone)
        return len(gone)


def _numbered(channels: Iterable[str]) -> dict[str, int]:
    return {name: at for at, name in enumerate(dict.fromkeys(c for c in channels if c), 1)}
