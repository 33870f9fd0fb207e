"""Sweeps as the store keeps them: what one is, its points, how far it has come.

Bytes and numbers in and out; what is signed stays signed.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgpack

from qnb.errors import QnbError
from qnb.models import CELLS, JobSpec, Outcome
from qnb.storage.keys import UNFINISHED_TTL_MS, is_hex, job_hex
from qnb.storage.records import (
    Unreadable,
    pack,
    pack_outcome,
    pack_spec,
    read_int,
    read_time,
    unpack_spec,
)
from qnb.storage.store import CHUNK_BYTES, CHUNK_JOBS, Store, skipped

__all__ = ["ABORTED", "DONE", "FAILED", "QUEUED", "RUNNING", "UNKNOWN", "End", "Studies", "Study"]

#: where a job of a sweep is: an index into ``models.CELLS``, or unknown to the store
QUEUED, RUNNING, DONE, FAILED, ABORTED, UNKNOWN = range(6)

_STATES = {b"": UNKNOWN, b"q": QUEUED, b"d": QUEUED, b"r": RUNNING, b"cdone": DONE,
           b"caborted": ABORTED}  # fmt: skip

_FIELDS = ("n", "p", "c", "f", "l", "v", "t", "j", "s", "k", "b", "m", "z", "h")

#: most jobs of a sweep: the digests of more do not fit into one value of the store
MOST_JOBS = 2**25

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class End:
    """How a sweep ended: jobs by the words of ``CELLS``, and when the last one did (epoch ms)."""

    counts: Mapping[str, int]
    cached: int
    finish: int


@dataclass(frozen=True, slots=True)
class Study:
    """A sweep as the store knows it."""

    name: str
    prefix: str  #: of its jobs' ids, before their numbers
    fn_name: str
    lane: str
    manifest: bytes  #: signed: how its jobs are made
    total: int = 0  #: points
    jobs: int = 0  #: numbers that have been given to jobs
    stored: int = 0  #: of them, from the first, those that were enqueued
    whole: bool = False  #: are all points known?
    version: int = 0  #: of its points
    created: int = 0  #: epoch ms
    heard: int = 0  #: when something was last stored of it (epoch ms)
    end: End | None = None
    held: str = ""  #: why it does not go on: "paused", "stopped", with a reason after ": "

    def id(self, number: int) -> str:
        """The id of a job of it."""
        return f"{self.prefix}.{number}"


def _end(data: bytes) -> End:
    counts, cached, finish = msgpack.unpackb(data)
    if not set(counts) <= set(CELLS):
        raise Unreadable(f"it ended with jobs that are {', '.join(map(repr, counts))}")
    return End(
        {word: read_int(str(count).encode(), MOST_JOBS) for word, count in counts.items()},
        read_int(str(cached).encode(), MOST_JOBS),
        read_time(str(finish).encode()) or 0,
    )


def _study(row: Sequence[bytes | None]) -> Study:
    name, prefix, created, fn_name, lane, version, total, jobs, stored, whole, heard, m, z, h = row
    return Study(
        name=(name or b"").decode(),
        prefix=(prefix or b"").decode(),
        fn_name=(fn_name or b"").decode(),
        lane=(lane or b"").decode(),
        manifest=m or b"",
        total=read_int(total, MOST_JOBS),
        jobs=read_int(jobs, MOST_JOBS),
        stored=read_int(stored, MOST_JOBS),
        whole=whole == b"1",
        version=read_int(version),
        created=read_time(created) or 0,
        heard=read_time(heard) or 0,
        end=_end(z) if z else None,
        held=(h or b"").decode("utf-8", "replace"),
    )


def _chunks(rows: Sequence[T], nbytes: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Consecutive parts of ``rows``, bounded in number and bytes."""
    start, size = 0, 0
    for at, row in enumerate(rows):
        more = nbytes(row)
        if at > start and (at - start >= CHUNK_JOBS or size + more > CHUNK_BYTES):
            yield rows[start:at]
            start, size = at, 0
        size += more
    if start < len(rows):
        yield rows[start:]


class Studies:
    """The sweeps of a queue, for one event loop."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._keys = store.keys
        self._server = store.server

    @property
    def ttl_ms(self) -> int:
        """How long a sweep is kept after the last news of it."""
        return UNFINISHED_TTL_MS + self.store.options.result_ttl_ms

    # -- what a sweep is -----------------------------------------------------------------------

    async def load(self, name: str) -> Study | None:
        """The sweep of that name."""
        row = await self._server.call("HMGET", self._keys.sweep(name), *_FIELDS)
        try:
            return self._read(self._keys.sweep(name), row)
        except Unreadable as error:  # not None: its name is taken
            raise QnbError(
                f"sweep {name!r} is stored, but cannot be read: {error}. Choose another name"
            ) from None

    def _read(self, key: str, row: Sequence[bytes | None]) -> Study | None:
        """The sweep at ``key``, None if there is none."""
        if row[1] is None:
            return None
        try:
            study = _study(row)
        except Unreadable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a stranger wrote there
            raise Unreadable(f"{type(error).__name__}: {error}") from None
        if not study.prefix or self._keys.sweep(study.name) != key:
            raise Unreadable(f"it says that it is sweep {study.name!r}, prefix {study.prefix!r}")
        return study

    async def count(self) -> int:
        """How many sweeps are on the list of all."""
        found: int = await self._server.call("ZCARD", self._keys.sweeps)
        return found

    async def all(self, most: int = 0) -> list[Study]:
        """Every sweep that can be read, the newest first; or the ``most`` newest of them. Nothing
        is written."""
        listed = await self._server.call("ZREVRANGE", self._keys.sweeps, 0, most - 1)
        hexes = [hex_ for hex_ in listed if is_hex(hex_)]
        keys = [f"{self._keys.prefix}sweep:{hex_.decode()}" for hex_ in hexes]
        rows = await self._server.read(("HMGET", key, *_FIELDS) for key in keys)
        found: list[Study] = []
        for key, row in zip(keys, rows, strict=True):
            try:
                found += [study] if row and (study := self._read(key, row)) else []
            except Unreadable as error:
                skipped(f"{key} is unreadable ({error}); it is left out")
        return found

    async def tidy(self) -> None:
        """Take sweeps that have expired off the list of all."""
        hexes = await self._server.call("ZRANGE", self._keys.sweeps, 0, -1)
        there = await self._server.pipeline(
            ("EXISTS", f"{self._keys.prefix}sweep:{hex_.decode('utf-8', 'replace')}")
            for hex_ in hexes
        )
        if gone := [hex_ for hex_, here in zip(hexes, there, strict=True) if not here]:
            await self._server.call("ZREM", self._keys.sweeps, *gone)

    async def create(self, study: Study, points: Sequence[bytes]) -> Study | None:
        """Store a new sweep; None if there is one of that name."""
        return await self._put(study, None, points)

    async def replace(self, study: Study, points: Sequence[bytes]) -> Study | None:
        """Give a sweep other points; None if it is another sweep, or was changed, meanwhile."""
        return await self._put(study, study.version, points)

    async def _put(
        self, study: Study, version: int | None, points: Sequence[bytes]
    ) -> Study | None:
        fields = {
            "n": study.name, "f": study.fn_name, "l": study.lane, "m": study.manifest,
            "t": study.total, "j": study.jobs, "k": int(study.whole), "z": b"",
        }  # fmt: skip
        nonce = secrets.token_hex(8)
        now = await self._server.run(
            lambda: self._server.scripts.study(
                study.name, study.prefix, version, self.ttl_ms, nonce, fields, points
            )
        )
        return replace(study, version=now, end=None) if now else None

    async def mark(  # noqa: PLR0913 - what there is to note
        self,
        study: Study,
        *,
        stored: int | None = None,
        digests: tuple[int, bytes] = (0, b""),
        fields: Mapping[str, Any] | None = None,
        points: Sequence[bytes] = (),
        any_version: bool = False,
    ) -> int:
        """Note how far it has come: 1; 0 if it has been forgotten or given other points, and 2 if
        it has been cancelled.
        """
        done = await self._server.run(
            lambda: self._server.scripts.mark(
                study.name, study.prefix, None if any_version else study.version, self.ttl_ms,
                stored, digests, fields or {}, points,
            )
        )  # fmt: skip
        return int(done)

    async def ended(self, study: Study, end: End | None) -> bool:
        """Note how it ended, or that it goes on."""
        packed = pack([dict(end.counts), end.cached, end.finish]) if end else b""
        return bool(await self.mark(study, fields={"z": packed}, any_version=True))

    async def held(self, study: Study, why: str) -> bool:
        """Note why it does not go on; nothing if it does."""
        return bool(await self.mark(study, fields={"h": why}, any_version=True))

    async def points(self, name: str) -> list[bytes]:
        """The signed parts of its points, in order."""
        _, points, _ = self._keys.study(name)
        found: list[bytes] = await self._server.call("LRANGE", points, 0, -1)
        return found

    async def digests(self, name: str) -> bytes:
        """What the arguments of its jobs are: 16 bytes each, by number."""
        *_, digests = self._keys.study(name)
        found: bytes = await self._server.call("GETRANGE", digests, 0, -1)
        return found

    # -- its jobs ------------------------------------------------------------------------------

    async def tally(self, task_ids: Sequence[str]) -> list[tuple[int, int, int]]:
        """Where each job is, and when its body started and ended (epoch ms, 0: it has not).

        The body of one whose result was used again has not started.
        """
        found: list[tuple[int, int, int]] = []
        for at in range(0, len(task_ids), CHUNK_JOBS):
            keys = [self._keys.job(id_) for id_ in task_ids[at : at + CHUNK_JOBS]]
            part = await self._server.run(lambda keys=keys: self._server.scripts.tally(keys))  # type: ignore[misc]
            found += [
                (_STATES.get(state, FAILED if state[:1] == b"c" else UNKNOWN), start, finish)
                for state, start, finish in part
            ]
        return found

    async def specs(self, task_ids: Sequence[str]) -> list[JobSpec | None]:
        """What each job is; None where it is unknown or unreadable."""
        found: list[JobSpec | None] = []
        for at in range(0, len(task_ids), CHUNK_JOBS):
            keys = [self._keys.job(id_) for id_ in task_ids[at : at + CHUNK_JOBS]]
            for packed in await self._server.read(("HGET", key, "m") for key in keys):
                found.append(None)
                with contextlib.suppress(Unreadable):
                    found[-1] = unpack_spec(packed) if packed else None
        return found

    async def rerun(self, lane: str, calls: Sequence[tuple[JobSpec, bytes]]) -> list[int]:
        """Run finished jobs of ``lane`` again; the enqueue time of each, 0 where that cannot be."""
        functions = {spec.function for spec, _ in calls if spec.function}
        lives = {f: UNFINISHED_TTL_MS for f in functions if ":" not in f}
        if lives:
            await self.store.keep_functions(lives)
        done: list[int] = []
        for part in _chunks(calls, lambda row: len(row[1])):
            jobs = [self._keys.job(spec.task_id) for spec, _ in part]
            rows = [(pack_spec(spec), call) for spec, call in part]
            done += await self._server.run(
                lambda jobs=jobs, rows=rows: self._server.scripts.rerun(lane, jobs, rows)  # type: ignore[misc]
            )
        return done

    async def adopt(
        self, channel: str, rows: Sequence[tuple[JobSpec, bytes, Outcome]]
    ) -> list[int]:
        """Store jobs that are complete: spec, call and outcome of each; their enqueue times."""
        done: list[int] = []
        for part in _chunks(rows, lambda row: len(row[1]) + len(row[2].result)):
            hexes = [job_hex(spec.task_id) for spec, *_ in part]
            packed = [
                (
                    hex_, pack_spec(spec), call, pack_outcome(outcome), outcome.result,
                    pack([spec.task_id, "c"]),
                )
                for hex_, (spec, call, outcome) in zip(hexes, part, strict=True)
            ]  # fmt: skip
            jobs = [self._keys.job_of(hex_) for hex_ in hexes]
            done += await self._server.run(
                lambda jobs=jobs, packed=packed: self._server.scripts.adopt(  # type: ignore[misc]
                    jobs, self.store.options.result_ttl_ms, self._keys.channel(channel), packed
                )
            )
        return done

    async def forget(self, study: Study) -> int:
        """Remove all jobs of the sweep, and itself; how many jobs there were."""
        count = 0
        for at in range(0, study.jobs, CHUNK_JOBS):
            ids = [study.id(number) for number in range(at, min(at + CHUNK_JOBS, study.jobs))]
            times = await self._server.read(("HGET", self._keys.job(id_), "t") for id_ in ids)
            keys = [self._keys.job(id_) for id_ in ids]
            for id_, time in zip(ids, times, strict=True):
                with contextlib.suppress(Unreadable):
                    keys.append(self._keys.log(id_, read_int(time)))
            jobs, count = [job_hex(id_) for id_ in ids], count + len(ids) - times.count(None)
            await self._server.run(
                lambda keys=keys, jobs=jobs: self._server.scripts.forget(keys, jobs=jobs)  # type: ignore[misc]
            )
        await self._server.run(
            lambda: self._server.scripts.forget(
                self._keys.study(study.name), sweep=job_hex(study.name), prefix=study.prefix
            )
        )
        return count

    # -- what can be used again ----------------------------------------------------------------

    async def computing(self, contents: Sequence[str]) -> list[str]:
        """The job that computes each content, empty where none is known."""
        found = await self._server.read(("GET", self._keys.cache(digest)) for digest in contents)
        return [id_.decode("utf-8", "replace") if id_ else "" for id_ in found]

    async def computes(self, jobs: Mapping[str, str]) -> None:
        """Note which job computes what, by content."""
        await self._server.pipeline(
            ("SET", self._keys.cache(digest), id_, "PX", self.ttl_ms)
            for digest, id_ in jobs.items()
        )

    async def keep_code(self, digest: str, packed: bytes) -> None:
        """Keep what a fingerprint was made of."""
        await self._server.call("SET", self._keys.code(digest), packed, "PX", self.ttl_ms)

    async def code(self, digest: str) -> bytes | None:
        """What the fingerprint ``digest`` was made of, if that is still known."""
        found: bytes | None = await self._server.call("GET", self._keys.code(digest))
        return found
