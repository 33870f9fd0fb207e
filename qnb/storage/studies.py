"""Sweeps as the store keeps them: what one is, its points, how far it has come.

Bytes and numbers in and out; what is signed stays signed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from qnb.models import JobSpec, Outcome
from qnb.storage.keys import UNFINISHED_TTL_MS, is_hex, job_hex
from qnb.storage.records import Unreadable, pack, pack_outcome, pack_spec, read_int
from qnb.storage.store import CHUNK_JOBS, Store, skipped

__all__ = ["ABORTED", "DONE", "FAILED", "QUEUED", "RUNNING", "UNKNOWN", "End", "Studies", "Study"]

#: where a job of a sweep is: an index into ``models.CELLS``, or unknown to the store
QUEUED, RUNNING, DONE, FAILED, ABORTED, UNKNOWN = range(6)

_STATES = {b"": UNKNOWN, b"q": QUEUED, b"d": QUEUED, b"r": RUNNING, b"cdone": DONE,
           b"caborted": ABORTED}  # fmt: skip

_FIELDS = ("n", "p", "c", "f", "l", "v", "t", "j", "s", "k", "b", "m", "z", "h")

#: most bytes of the manifest and of the points that one call of a script carries
PART_BYTES = 32 * 1024 * 1024


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


def _study(row: Sequence[bytes | None]) -> Study:
    name, prefix, created, fn_name, lane, version, total, jobs, stored, whole, heard, m, z, h = row
    end = None
    if z:
        counts, cached, finish = msgpack.unpackb(z)
        end = End({str(word): int(count) for word, count in counts.items()}, int(cached), finish)
    return Study(
        name=(name or b"").decode(),
        prefix=(prefix or b"").decode(),
        fn_name=(fn_name or b"").decode(),
        lane=(lane or b"").decode(),
        manifest=m or b"",
        total=read_int(total),
        jobs=read_int(jobs),
        stored=read_int(stored),
        whole=whole == b"1",
        version=read_int(version),
        created=read_int(created),
        heard=read_int(heard),
        end=end,
        held=(h or b"").decode("utf-8", "replace"),
    )


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
        return self._read(name, row) if row[1] else None

    def _read(self, where: str, row: Sequence[bytes | None]) -> Study | None:
        try:
            return _study(row)
        except Exception as error:  # noqa: BLE001 - whatever a stranger wrote there
            skipped(f"sweep {where!r} is unreadable ({type(error).__name__}: {error})")
            return None

    async def all(self) -> list[Study]:
        """Every sweep that can be read, the newest first."""
        hexes = [
            hex_ for hex_ in await self._server.call("ZREVRANGE", self._keys.sweeps, 0, -1)
            if is_hex(hex_)
        ]  # fmt: skip
        keys = [f"{self._keys.prefix}sweep:{hex_.decode()}" for hex_ in hexes]
        rows = await self._server.read(("HMGET", key, *_FIELDS) for key in keys)
        gone = [hex_ for hex_, row in zip(hexes, rows, strict=True) if not (row and row[1])]
        if gone:  # expired: they leave the index
            await self._server.call("ZREM", self._keys.sweeps, *gone)
        found = [
            self._read(key, row) for key, row in zip(keys, rows, strict=True) if row and row[1]
        ]
        return [study for study in found if study is not None]

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
        now = await self._server.run(
            lambda: self._server.scripts.study(
                study.name, study.prefix, version, self.ttl_ms, fields, points
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
    ) -> bool:
        """Note how far it has come; false if it has been forgotten or given other points."""
        done = await self._server.run(
            lambda: self._server.scripts.mark(
                study.name, study.prefix, None if any_version else study.version, self.ttl_ms,
                stored, digests, fields or {}, points,
            )
        )  # fmt: skip
        return bool(done)

    async def ended(self, study: Study, end: End | None) -> bool:
        """Note how it ended, or that it goes on."""
        packed = pack([dict(end.counts), end.cached, end.finish]) if end else b""
        return await self.mark(study, fields={"z": packed}, any_version=True)

    async def held(self, study: Study, why: str) -> bool:
        """Note why it does not go on; nothing if it does."""
        return await self.mark(study, fields={"h": why}, any_version=True)

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

    async def rerun(self, lane: str, calls: Sequence[tuple[JobSpec, bytes]]) -> list[int]:
        """Run finished jobs of ``lane`` again; the enqueue time of each, 0 where that cannot be."""
        functions = {spec.function for spec, _ in calls if spec.function}
        lives = {f: UNFINISHED_TTL_MS for f in functions if ":" not in f}
        if lives:
            await self.store.keep_functions(lives)
        done: list[int] = []
        for at in range(0, len(calls), CHUNK_JOBS):
            part = calls[at : at + CHUNK_JOBS]
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
        hexes = [job_hex(spec.task_id) for spec, *_ in rows]
        packed = [
            (
                hex_, pack_spec(spec), call, pack_outcome(outcome), outcome.result,
                pack([spec.task_id, "c"]),
            )
            for hex_, (spec, call, outcome) in zip(hexes, rows, strict=True)
        ]  # fmt: skip
        return await self._server.run(
            lambda: self._server.scripts.adopt(
                [self._keys.job_of(hex_) for hex_ in hexes], self.store.options.result_ttl_ms,
                self._keys.channel(channel), packed,
            )
        )  # fmt: skip

    async def forget(self, study: Study) -> int:
        """Remove the sweep and all its jobs; how many jobs there were."""
        for at in range(0, study.jobs, CHUNK_JOBS):
            ids = [study.id(number) for number in range(at, min(at + CHUNK_JOBS, study.jobs))]
            times = await self._server.read(("HGET", self._keys.job(id_), "t") for id_ in ids)
            hexes, keys = [], []
            for id_, time in zip(ids, times, strict=True):
                with contextlib.suppress(Unreadable):
                    keys.append(self._keys.log(id_, read_int(time)))
                keys.append(self._keys.job(id_))
                hexes.append(job_hex(id_))
            await self._forget("", hexes, keys)
        return await self._forget(job_hex(study.name), [], self._keys.study(study.name))

    async def _forget(self, sweep: str, hexes: Sequence[str], keys: Iterable[str]) -> int:
        listed = list(keys)
        return await self._server.run(lambda: self._server.scripts.forget(sweep, hexes, listed))

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
