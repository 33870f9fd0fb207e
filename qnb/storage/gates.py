"""The gates of sweeps: which of their jobs may start, said in the store so that it holds for ever.

A gate belongs to a sweep's ``prefix``, which is the channel of its jobs. What it holds back is
parked: a worker that has claimed such a job gives up its lease, and the job waits aside, in order,
in nobody's way. With a limit, each job that a worker holds takes a place; the place is its entry in
the store, so that it is free as soon as the job has any other fate, whoever saw to that.

Whoever sets a gate needs no worker, and is not needed afterwards: workers do the rest, and any of
them what another one has left undone.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from qnb.errors import InvalidOption
from qnb.models import Ending, JobSpec, Outcome
from qnb.storage.keys import DAY_MS, UNFINISHED_TTL_MS, is_hex, job_hex
from qnb.storage.records import (
    FRONT,
    Claimed,
    Unreadable,
    pack,
    pack_outcome,
    read_int,
    unpack_spec,
)
from qnb.storage.store import Store, aborted, skipped

__all__ = ["Gate", "Gates"]

State = Literal["open", "paused", "stopped"]

#: most jobs of one script call
CHUNK = 500

#: how a job fails by itself; one that was aborted or has expired has not
FAILURES = (Ending.FAILED, Ending.CRASHED, Ending.REFUSED)

#: most characters of a failure that every job tells which was not started because of it
WHY = 300

#: a gate that nothing has asked for so long is of jobs that are gone
UNUSED_MS = UNFINISHED_TTL_MS + 2 * DAY_MS

_GATE = re.compile(rb"([ops])(\d{0,9}) (\d{1,15}) ?(.*)", re.DOTALL)
_STATES: dict[State, str] = {"open": "o", "paused": "p", "stopped": "s"}
_WORDS = {letter: state for state, letter in _STATES.items()}

#: a parked job: its sweep, its place among the others, itself
_MEMBER = re.compile(rb"[0-9a-f]{32}[01]\d{15}-\d{10}[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Gate:
    """What holds a sweep back."""

    state: State = "open"
    limit: int | None = None  #: how many of its jobs workers may hold at once
    why: str = ""  #: of a stopped one: the failure that stopped it


class Gates:
    """The gates of one queue."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys = store.keys
        self._server = store.server

    # -- clients -------------------------------------------------------------------------------

    async def set(self, prefix: str, *, limit: int | None = None, state: State = "open") -> None:
        """Set the gate of the sweep whose jobs' ids begin with ``prefix``.

        Workers start none of its jobs while it is ``paused``. When it is ``stopped`` they end those
        that wait, delayed ones when their time comes; what runs goes on to its end. ``limit``
        counts jobs from their claim on; those that ran before there was a limit are not counted.
        """
        if state not in _STATES:
            allowed = ", ".join(map(repr, _STATES))
            raise InvalidOption(f"state={state!r}: a gate is one of {allowed}")
        if limit is not None and (type(limit) is not int or not 1 <= limit < 10**9):
            raise InvalidOption(f"max_running={limit!r}: pass a whole number from 1 on, or None")
        await self._set(job_hex(prefix), state, "" if limit is None else limit)

    async def get(self, prefix: str) -> Gate:
        """The gate of a sweep; an open one without limit where there is none."""
        return _read(await self._server.call("HGET", self._keys.gates, job_hex(prefix)))

    async def cancel(self, task_ids: Sequence[str], who: str) -> tuple[int, int]:
        """Abort jobs: how many ended because they waited, and how many workers were asked to."""
        answers: list[int] = []
        for at in range(0, len(task_ids), CHUNK):
            keys = [self._keys.job(task_id) for task_id in task_ids[at : at + CHUNK]]
            waiting = await self._known(keys)
            answers += await self._end(waiting.values(), f"aborted by {who}", who)
        return answers.count(1), answers.count(2)

    # -- workers -------------------------------------------------------------------------------

    async def closed(self, lanes: Sequence[str]) -> tuple[frozenset[str], dict[str, int]]:
        """Sweeps (hex) that have a gate, and how many jobs are parked in each lane."""
        gates, *parked = await self._server.pipeline(
            [("HKEYS", self._keys.gates), *(("ZCARD", self._keys.parked(lane)) for lane in lanes)]
        )
        return frozenset(map(_text, gates)), dict(zip(lanes, parked, strict=True))

    async def admit(self, claims: Sequence[Claimed]) -> tuple[list[Claimed], list[tuple[str, str]]]:
        """Those of the claimed jobs that may start; the rest is not held any more.

        Also the sweeps (and lanes) of which :meth:`release` would find something to do.
        """
        groups: dict[tuple[str, str], list[Claimed]] = {}
        for claimed in claims:
            place = job_hex(claimed.spec.channel), claimed.spec.lane
            groups.setdefault(place, []).append(claimed)
        passed: frozenset[str] = frozenset()
        open_ = []
        for (sweep, lane), part in groups.items():
            jobs = [self._keys.job(claimed.spec.task_id) for claimed in part]
            entries = [f"{'b' if claimed.back else ''}{claimed.entry}" for claimed in part]
            answers = await self._server.run(
                lambda to=(sweep, lane, jobs, entries): self._server.scripts.pass_(*to)  # type: ignore[misc]
            )
            *goes, others_may = answers
            passed |= {c.ref for c, yes in zip(part, goes, strict=True) if yes}
            if others_may:
                open_.append((sweep, lane))
        return [claimed for claimed in claims if claimed.ref in passed], open_

    async def release(self, sweep: str, lane: str) -> None:
        """Let parked jobs of a sweep go on as far as its gate permits; end them if it is stopped.

        Places of jobs that are held no more are free from then on.
        """
        moved = FRONT
        while moved == FRONT:
            holders, gate, members = await self._server.pipeline(
                [
                    ("HKEYS", self._keys.holders(sweep)),
                    ("HGET", self._keys.gates, sweep),
                    self._first(sweep, lane, FRONT),
                ]
            )
            if strange := [hex_ for hex_ in holders if not is_hex(hex_)]:  # they would stay
                await self._server.call("HDEL", self._keys.holders(sweep), *strange)
            held = [_text(hex_) for hex_ in holders if is_hex(hex_)]
            jobs = await self._members(lane, members)
            moved, now = 0, _read(gate)
            if jobs and now.state == "stopped":
                await self._stop(sweep, lane, now.why)
                jobs = []
            if held or jobs:
                moved = await self._server.run(
                    lambda held=held, jobs=jobs: (  # type: ignore[misc]
                        self._server.scripts.release(sweep, lane, held, jobs)
                    )
                )

    def _first(self, sweep: str, lane: str, most: int) -> tuple[Any, ...]:
        """The command that lists parked jobs of a sweep, the first first."""
        parked = self._keys.parked(lane)
        return "ZRANGEBYLEX", parked, f"[{sweep}", f"({sweep}~", "LIMIT", 0, most

    async def _members(self, lane: str, members: Sequence[bytes]) -> list[tuple[str, str]]:
        """The jobs (member, hex) among those that are parked; anything else is taken off them."""
        strange = [member for member in members if not _MEMBER.fullmatch(member)]
        if strange:
            parked = self._keys.parked(lane)
            skipped(f"{parked}: members that are no jobs, such as {strange[0]!r}, are removed")
            await self._server.call("ZREM", parked, *strange)
        return [(_text(m), _text(m[-32:])) for m in members if _MEMBER.fullmatch(m)]

    async def parked(self, lane: str) -> AsyncIterator[str]:
        """The sweeps (hex) that have parked jobs in ``lane``."""
        key, start = self._keys.parked(lane), "-"
        while found := await self._server.call("ZRANGEBYLEX", key, start, "+", "LIMIT", 0, 1):
            for member, _ in await self._members(lane, found):
                start = f"({member[:32]}~"
                yield member[:32]

    async def startable(self) -> int:
        """How many jobs wait in the lanes, without those that are parked at a paused gate."""
        sizes, _ = await self._store.sizes()
        waiting = sum(sizes.values())
        gates = await self._server.call("HGETALL", self._keys.gates) if waiting else {}
        held = [_text(sweep) for sweep, gate in gates.items() if _read(gate).state == "paused"]
        parked = await self._server.pipeline(
            ("ZLEXCOUNT", self._keys.parked(lane), f"[{sweep}", f"({sweep}~")
            for sweep in held
            for lane in sizes
        )
        return waiting - int(sum(parked))

    async def failed(self, spec: JobSpec, outcome: Outcome | None = None) -> None:
        """Stop the sweep of a job that has failed for good, if it is to stop at that.

        ``outcome`` is what the job is about to end with; without it, that in the store counts.
        """
        if not spec.policy.stops:
            return
        if outcome is None:
            [record] = await self._store.records([spec.task_id])
            outcome = record.outcome if record else None
        if outcome is None or outcome.retry_in_ms is not None or outcome.ending not in FAILURES:
            return
        said = outcome.failure.text if outcome.failure else outcome.ending
        said = said if len(said) <= WHY else said[:WHY] + "…"
        why = f"sweep {spec.sweep!r} stops at its first failure, job {spec.task_id!r}: {said}"
        await self._set(job_hex(spec.channel), "stopped", "=", why)

    async def tidy(self) -> None:
        """Remove the gates of sweeps that are long gone."""
        latest = self._store.clock.now_ms() - UNUSED_MS
        for sweep, gate in (await self._server.call("HGETALL", self._keys.gates)).items():
            match = _GATE.fullmatch(gate)
            if match is None:
                skipped(f"{self._keys.gates}: {gate[:50]!r} is no gate; it is removed")
                await self._server.call("HDEL", self._keys.gates, sweep)
            elif int(match[3]) < latest:
                await self._set(_text(sweep), "open", "", was=gate)

    # -- parts ---------------------------------------------------------------------------------

    async def _set(
        self, sweep: str, state: State, limit: int | str, why: str = "", was: bytes = b""
    ) -> None:
        await self._server.run(
            lambda: self._server.scripts.gate(sweep, _STATES[state], limit, why, was)
        )

    async def _known(self, keys: Sequence[str]) -> dict[str, tuple[JobSpec, int]]:
        """Of the jobs that are there and readable: spec and starts, by key."""
        known = {}
        rows = await self._server.read(("HMGET", key, "m", "n") for key in keys)
        for key, row in zip(keys, rows, strict=True):
            packed, starts = row or (None, None)
            try:
                if packed:
                    known[key] = unpack_spec(packed), read_int(starts)
            except Unreadable as error:
                skipped(f"{key}: {error}; it is left alone")
        return known

    async def _stop(self, sweep: str, lane: str, why: str) -> None:
        """End the parked jobs of a sweep that has stopped."""
        while found := await self._server.call(*self._first(sweep, lane, CHUNK)):
            jobs = await self._members(lane, found)
            known = await self._known([self._keys.job_of(hex_) for _, hex_ in jobs])
            await self._end(known.values(), f"aborted: {why}", why)
            if jobs:
                await self._server.call("ZREM", self._keys.parked(lane), *(m for m, _ in jobs))

    async def _end(self, jobs: Iterable[tuple[JobSpec, int]], how: str, who: str) -> list[int]:
        """End jobs that wait (1), ask the workers of others (2); 0 of one that has ended."""
        now, answers = self._store.clock.now_ms(), []
        for lane, part in groupby(sorted(jobs, key=_lane), key=_lane):
            ends = [
                (
                    spec.task_id, pack_outcome(aborted(spec.task_id, starts, now, how)),
                    spec.channel, pack([spec.task_id, "c"]),
                )
                for spec, starts in part
            ]  # fmt: skip
            ttl = self._store.options.result_ttl_ms
            answers += await self._server.run(
                lambda to=(lane, ttl, who, ends): self._server.scripts.abort(*to)  # type: ignore[misc]
            )
        return answers


def _lane(job: tuple[JobSpec, int]) -> str:
    return job[0].lane


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _read(gate: bytes | None) -> Gate:
    match = _GATE.fullmatch(gate or b"")
    if match is None:
        return Gate()
    state, limit, _, why = match.groups()
    return Gate(_WORDS[_text(state)], int(limit) if limit else None, _text(why))
