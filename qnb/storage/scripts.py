"""The Lua scripts, one typed method each: callers never count KEYS and ARGV.

A script is sent by its digest and, where the server does not know it (yet, or after
``SCRIPT FLUSH``), by its text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from itertools import chain
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from qnb.storage.keys import DAY_MS, GROUP, UNFINISHED_TTL_MS, KeySpace, job_hex
from qnb.storage.records import FRONT, MAX_LOST_STARTS

__all__ = ["INLINE", "Scripts"]

#: most bytes of a call that ride in the lane's entry; a larger one is fetched from the record
INLINE = 16 * 1024

#: most bytes of a job's log
LOG_BYTES = 1_000_000

Bytes = bytes | bytearray | memoryview


@cache
def _source(name: str) -> tuple[str, str]:
    text = files("qnb.storage").joinpath("lua", f"{name}.lua").read_bytes()
    return text.decode(), sha1(text, usedforsecurity=False).hexdigest()


class Scripts:
    """Runs the scripts of one queue on one connection."""

    __slots__ = ("_keys", "_redis")

    def __init__(self, redis: Redis, keys: KeySpace) -> None:
        self._redis = redis
        self._keys = keys

    async def _run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        text, digest = _source(name)
        try:
            return await self._redis.evalsha(digest, len(keys), *keys, *args)
        except NoScriptError:
            return await self._redis.eval(text, len(keys), *keys, *args)

    async def _run_each(
        self, name: str, runs: Sequence[tuple[Sequence[str], Sequence[Any]]]
    ) -> list[Any]:
        """What a script returns for each of ``runs`` (keys, arguments), in one round trip."""
        if len(runs) == 1:
            return [await self._run(name, *runs[0])]
        pipe = self._redis.pipeline(transaction=False)
        for keys, args in runs:
            pipe.execute_command("EVALSHA", _source(name)[1], len(keys), *keys, *args)
        replies = await pipe.execute(raise_on_error=False)
        for at, reply in enumerate(replies):
            if isinstance(reply, NoScriptError):
                replies[at] = await self._run(name, *runs[at])
            elif isinstance(reply, Exception):
                raise reply
        return replies

    # -- clients -------------------------------------------------------------------------------

    async def enqueue(
        self,
        lanes: Sequence[str],
        jobs: Sequence[str],
        calls: Sequence[tuple[int, str, Bytes, Bytes, str, int | str]],
        lives: Mapping[str, int] | None = None,
        *,
        fresh: bool = True,
    ) -> tuple[list[int], list[int]]:
        """Store ``calls`` of (lane from 1, job hex, spec, call, due, expiry) under ``jobs``.

        Their times, and what :meth:`keep` says of ``lives``: functions (keys), milliseconds each.
        Unless ``fresh``, what is complete is left alone and not run afresh.
        """
        keys, lives = self._keys, lives or {}
        args: list[Any] = [len(lanes), UNFINISHED_TTL_MS, INLINE, keys.control, int(not fresh)]
        args += [len(lives), *lives.values()]
        for call in calls:
            args += call
        places = [key(lane) for lane in lanes for key in (keys.lane, keys.delayed, keys.expiring)]
        reply = await self._run("enqueue", [keys.jobs, *places, *jobs, *lives], args)
        return reply[: len(jobs)], reply[len(jobs) :]

    async def abort(
        self, lane: str, ttl_ms: int, who: str, ends: Sequence[tuple[str, bytes, str, bytes]]
    ) -> list[int]:
        """End waiting jobs of ``lane`` (1) or ask their workers to stop them (2); 0 if unknown or
        finished: (task id, outcome, channel, notice) of each.
        """
        keys = self._keys
        args: list[Any] = [GROUP, ttl_ms, keys.control, who, keys.channel("")]
        for end in ends:
            args += end
        places = [keys.lane(lane), keys.back(lane), keys.delayed(lane), keys.expiring(lane)]
        jobs = [keys.job(task_id) for task_id, *_ in ends]
        reply: list[int] = await self._run("abort", [*places, keys.parked(lane), *jobs], args)
        return reply

    async def rerun(
        self, lane: str, jobs: Sequence[str], calls: Sequence[tuple[bytes, Bytes]]
    ) -> list[int]:
        """Run finished ``jobs`` of ``lane`` again by (spec, call) of each; their enqueue times."""
        args: list[Any] = [UNFINISHED_TTL_MS, INLINE]
        for call in calls:
            args += call
        places = [self._keys.jobs, self._keys.lane(lane), *jobs]
        reply: list[int] = await self._run("rerun", places, args)
        return reply

    async def expire(
        self, lane: str, ttl_ms: int, ends: Sequence[tuple[str, bytes, str, bytes]]
    ) -> list[int]:
        """End jobs of ``lane`` that have expired: (job hex, outcome, channel, notice) of each."""
        keys = self._keys
        args: list[Any] = [GROUP, ttl_ms, keys.channel("")]
        for end in ends:
            args += end
        places = [keys.expiring(lane), keys.delayed(lane), keys.lane(lane), keys.back(lane)]
        jobs = [keys.job_of(hex_) for hex_, *_ in ends]
        reply: list[int] = await self._run("expire", [*places, keys.parked(lane), *jobs], args)
        return reply

    async def keep(self, functions: Sequence[str], ttls_ms: Sequence[int]) -> list[int]:
        """Have ``functions`` (keys) live so long at least; 1 each, 0 where it is not stored."""
        reply: list[int] = await self._run("keep", functions, ttls_ms)
        return reply

    async def log(self, task_id: str, enqueue_time: int, since: int) -> tuple[int, bytes]:
        """Where the kept output of that run begins, and what there is of it from ``since`` on."""
        keys = [self._keys.job(task_id), self._keys.log(task_id, enqueue_time)]
        start, text = await self._run("log", keys, [enqueue_time, since])
        return start, text

    async def size(self, lanes: Sequence[str]) -> list[tuple[int, int]]:
        """Of each lane: how many jobs wait in it, and how many are delayed."""
        keys = self._keys
        kinds = (keys.lane, keys.back, keys.delayed, keys.parked)
        reply = await self._run("size", [key(lane) for lane in lanes for key in kinds], [])
        return list(zip(reply[::2], reply[1::2], strict=True))

    async def pick(  # noqa: PLR0913 - the script's own arguments
        self, jobs: Sequence[str], task: str, sweep: str, state: str, fields: Sequence[str],
        bulky: Sequence[str], most: int,
    ) -> list[list[bytes | None] | None]:  # fmt: skip
        """Spec, state, ``fields`` and ``bulky`` ones up to ``most`` bytes of jobs that fit."""
        args = [task, sweep, state, most, len(bulky), *bulky, *fields]
        reply: list[list[bytes | None] | None] = await self._run("pick", jobs, args)
        return reply

    # -- sweeps --------------------------------------------------------------------------------

    async def study(  # noqa: PLR0913 - the script's own arguments
        self, name: str, prefix: str, version: int | None, ttl_ms: int, nonce: str,
        fields: Mapping[str, Any], points: Sequence[Bytes],
    ) -> int:  # fmt: skip
        """Create a sweep, or replace ``version`` of its points; its version, 0 if it cannot."""
        args: list[Any] = [prefix, "" if version is None else version, ttl_ms, job_hex(name)]
        args += [nonce, len(fields), *chain.from_iterable(fields.items()), *points]
        reply: int = await self._run("study", [self._keys.sweeps, *self._keys.study(name)], args)
        return reply

    async def mark(  # noqa: PLR0913 - the script's own arguments
        self, name: str, prefix: str, version: int | None, ttl_ms: int, stored: int | None,
        digests: tuple[int, bytes], fields: Mapping[str, Any], points: Sequence[Bytes],
    ) -> int:  # fmt: skip
        """Note how far a sweep has come; 0 if it is another one by now."""
        args: list[Any] = [prefix, "" if version is None else version, ttl_ms]
        args += ["" if stored is None else stored, *digests]
        args += [len(fields), *chain.from_iterable(fields.items()), *points]
        reply: int = await self._run("mark", self._keys.study(name), args)
        return reply

    async def tally(self, jobs: Sequence[str]) -> list[tuple[bytes, int, int]]:
        """Of each job: its state ('' unknown, 'cdone' complete), start and end of its body."""
        reply = await self._run("tally", jobs, [])
        return list(zip(reply[::3], reply[1::3], reply[2::3], strict=True))

    async def adopt(
        self,
        jobs: Sequence[str],
        ttl_ms: int,
        channel: str,
        rows: Sequence[tuple[str, bytes, Bytes, bytes, Bytes, bytes]],
    ) -> list[int]:
        """Store complete jobs: (hex, spec, call, outcome, result, notice); their enqueue times."""
        args: list[Any] = [ttl_ms, channel]
        for row in rows:
            args += row
        reply: list[int] = await self._run("adopt", [self._keys.jobs, *jobs], args)
        return reply

    async def forget(
        self, keys: Sequence[str], *, jobs: Sequence[str] = (), sweep: str = "", prefix: str = ""
    ) -> int:
        """Remove ``keys``: of ``jobs`` (hexes), or of ``sweep`` (hex) while it has ``prefix``."""
        places = [self._keys.jobs, self._keys.sweeps, *keys]
        reply: int = await self._run("forget", places, [sweep, prefix, *jobs])
        return reply

    # -- gates ---------------------------------------------------------------------------------

    async def gate(
        self, sweep: str, state: str, limit: int | str, why: str, was: bytes = b""
    ) -> int:
        """Set the gate of a sweep; ``limit`` "" for none, "=" as it is. 0 if it is not ``was``."""
        keys, args = self._keys, [sweep, state, limit, why, self._keys.control, was]
        reply: int = await self._run("gate", [keys.gates, keys.holders(sweep)], args)
        return reply

    async def pass_(
        self, sweep: str, lane: str, jobs: Sequence[str], entries: Sequence[str]
    ) -> list[int]:
        """Which claimed ``jobs`` may go on (1); last, whether :meth:`release` finds others."""
        keys = self._keys
        places = [keys.gates, keys.holders(sweep), keys.parked(lane), keys.lane(lane)]
        args = [GROUP, sweep, DAY_MS, *entries]
        reply: list[int] = await self._run("pass", [*places, keys.back(lane), *jobs], args)
        return reply

    async def release(
        self, sweep: str, lane: str, holders: Sequence[str], members: Sequence[tuple[str, str]]
    ) -> int:
        """Let parked jobs go on, of (member, job hex), as ``holders`` (hexes) leave room."""
        keys = self._keys
        places = [keys.gates, keys.holders(sweep), keys.parked(lane), keys.back(lane)]
        jobs = [keys.job_of(hex_) for hex_ in (*holders, *(hex_ for _, hex_ in members))]
        args = [sweep, INLINE, GROUP, FRONT, len(holders), *(member for member, _ in members)]
        reply: int = await self._run("release", [*places, *jobs], args)
        return reply

    # -- workers -------------------------------------------------------------------------------

    async def claim(self, streams: Sequence[str], consumer: str, count: int) -> list[Any]:
        """Lease up to ``count`` waiting jobs of ``streams`` (the first first) to ``consumer``."""
        reply: list[Any] = await self._run("claim", streams, [GROUP, consumer, count])
        return reply

    async def start(
        self,
        jobs: Sequence[str],
        worker: str,
        channels: Sequence[str],
        marks: Sequence[tuple[int, int, int, int, bytes]],
    ) -> int:
        """Mark ``jobs`` as running: (attempt, starts, start, channel from 1, notice) of each."""
        args: list[Any] = [worker, UNFINISHED_TTL_MS, len(channels), *channels]
        for mark in marks:
            args += mark
        reply: int = await self._run("start", jobs, args)
        return reply

    async def report(
        self,
        places: Iterable[str],
        channels: Sequence[str],
        news: Sequence[tuple[int, bytes, bytes, int, bytes]],
    ) -> int:
        """Note progress and output: (attempt, report, output, channel from 1, notice) of each."""
        args: list[Any] = [LOG_BYTES, UNFINISHED_TTL_MS, len(channels), *channels]
        for row in news:
            args += row
        reply: int = await self._run("report", list(places), args)
        return reply

    async def finish(  # noqa: PLR0913 - the script's own arguments
        self,
        streams: Sequence[str],
        jobs: Sequence[str],
        logs: Sequence[str],
        ttl_ms: int,
        channels: Sequence[str],
        ends: Sequence[tuple[int, str, int, int, bytes, Bytes, int, bytes]],
    ) -> list[int]:
        """End attempts: (stream, entry, attempt, starts, outcome, result, channel, notice)."""
        args: list[Any] = [len(streams), len(jobs), GROUP, ttl_ms, len(channels), *channels]
        for end in ends:
            args += end
        reply: list[int] = await self._run("finish", [*streams, *jobs, *logs], args)
        return reply

    async def retry(  # noqa: PLR0913 - the script's own arguments
        self, stream: str, task_id: str, lane: str, entry: str, attempt: int, starts: int,
        delay_ms: int, failure: bytes, channel: str, notice: bytes,
    ) -> int:  # fmt: skip
        """Have another attempt follow (1); 0 if this one was stale, 2 if an abort was asked for."""
        keys = self._keys
        args = [GROUP, entry, attempt, starts, delay_ms, failure, UNFINISHED_TTL_MS, INLINE]
        args += [keys.control, channel, notice]
        places = [stream, keys.job(task_id), keys.lane(lane), keys.delayed(lane)]
        reply: int = await self._run("retry", places, args)
        return reply

    async def recover(
        self,
        ttl_ms: int,
        jobs: Sequence[tuple[str, str, str, str, int, int, bytes, bytes, str, bytes]],
    ) -> list[int]:
        """Put held jobs back (1) or end them with their outcome (2); 0 if there is nothing to do:
        (stream, back, job, entry, idle ms, lost starts, outcome, aborted, channel, notice) of each.
        """
        return await self._run_each(
            "recover",
            [
                (
                    keys,
                    [GROUP, entry, idle, starts, MAX_LOST_STARTS, *ends, ttl_ms, INLINE, *news],
                )
                for *keys, entry, idle, starts, ends, news in (
                    (*job[:6], job[6:8], job[8:]) for job in jobs
                )
            ],
        )

    async def due(self, lanes: Sequence[str], most: int) -> tuple[int, list[list[list[bytes]]]]:
        """Milliseconds until something is due (-1: nothing); of each lane: due, expired hexes."""
        keys = self._keys
        places = [key(lane) for lane in lanes for key in (keys.delayed, keys.expiring)]
        until, *found = await self._run("due", places, [most])
        return until, found

    async def promote(self, lane: str, hexes: Sequence[str]) -> int:
        """Put delayed jobs of ``lane`` whose time has come into it; how many."""
        keys = self._keys
        places = [keys.delayed(lane), keys.lane(lane), *map(keys.job_of, hexes)]
        reply: int = await self._run("promote", places, [INLINE, *hexes])
        return reply

    async def cron(  # noqa: PLR0913 - the script's own arguments
        self, name: str, occurrence: int, marker_ttl_ms: int, task_id: str, lane: str,
        spec: bytes, call: bytes,
    ) -> int:  # fmt: skip
        """Enqueue an occurrence: 0 done, -1 taken before, else milliseconds until it is due."""
        keys = self._keys
        places = [keys.cron(name, occurrence), keys.jobs, keys.job(task_id), keys.lane(lane)]
        args = [occurrence, marker_ttl_ms, UNFINISHED_TTL_MS, spec, call]
        reply: int = await self._run("cron", places, args)
        return reply

    async def leave(self, streams: Sequence[str], consumer: str) -> int:
        """Forget ``consumer``, except on streams where it still holds jobs; how many those are."""
        reply: int = await self._run("leave", streams, [GROUP, consumer])
        return reply
