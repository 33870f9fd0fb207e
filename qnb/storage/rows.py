"""Many jobs as a table needs them: chosen and read where they are stored, a page a script call.

What does not fit never leaves the server, nor does a result larger than asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import NamedTuple

import msgpack

from qnb.models import Ending, Failure, JobRecord, JobSpec, JobState
from qnb.options import FrameOptions
from qnb.storage.keys import is_hex
from qnb.storage.records import (
    STATES,
    Unreadable,
    read_time,
    unpack_record,
    unpack_spec,
    unreadable,
)
from qnb.storage.store import Store, skipped

__all__ = ["Row", "failed", "find", "look"]

#: jobs of one script call: a few milliseconds of the server's time
PAGE = 500

#: most jobs that are looked up in the index at a time
LISTED = 10_000

#: most bytes of a call that ride in a page; a larger one is fetched by itself
INLINE = 16 * 1024

_FIELDS = ("t", "n", "d", "x", "b", "w", "g", "f", "o")
_CALL = 2 + len(_FIELDS)  #: the place of the call in a page's row, behind spec, state and these
_REPORT, _OUTCOME = 2 + _FIELDS.index("g"), 2 + _FIELDS.index("o")
_LETTERS = {state: letter for letter, state in STATES.items()}

_LATEST = 253_402_300_799_999  #: the end of the year 9999, in epoch ms: what a date can show

_Raw = list[bytes | None]


class Row(NamedTuple):
    """A job as a table shows it: what :class:`JobRecord` says, flat, and made in no time."""

    task_id: str
    fn_name: str | None = None
    sweep: str | None = None
    place: int | None = None  #: in its sweep
    priority: str | None = None
    status: JobState = JobState.NOT_FOUND
    worker: str | None = None
    tries: int | None = None
    enqueue_time: int | None = None
    scheduled_at: int | None = None
    start: int | None = None
    finish: int | None = None
    progress: float | None = None
    message: str | None = None
    ending: Ending | None = None
    failure: Failure | None = None
    result_nbytes: int | None = None
    peak_memory: int | None = None
    cpu_time_us: int | None = None
    cached: bool | None = None
    spec: JobSpec | None = None
    call: bytes = b""
    result: bytes = b""

    @classmethod
    def of(cls, record: JobRecord) -> Row:
        """What ``record`` says."""
        spec, end = record.spec, record.outcome
        host_pid = ":".join((record.worker or "").split(":")[:2])  # a worker's id says more
        row = cls(
            record.task_id, record.fn_name or None, record.sweep, record.index,
            record.priority or None, record.status, host_pid or None, record.tries,
            record.enqueue_time, record.scheduled_at, record.start,
            progress=record.progress, message=record.message, cached=record.cached,
            spec=spec, call=record.call,
        )  # fmt: skip
        if end is None:
            return row
        return row._replace(
            worker=end.worker or None, tries=end.tries, start=end.start,
            finish=end.finish, ending=end.ending, failure=end.failure,
            result_nbytes=end.result_nbytes, peak_memory=end.peak_memory,
            cpu_time_us=end.cpu_time_us, result=end.result,
        )  # fmt: skip


async def find(store: Store, wanted: FrameOptions, results_up_to: int = 0) -> list[Row]:
    """The jobs that fit, the newest first, with their calls.

    And with their results up to so many bytes, if values are wanted.
    """
    state = "" if wanted.status is None else _LETTERS.get(JobState(wanted.status), "-")
    reader = _Reader(
        store, results_up_to if wanted.values else -1, wanted.task or "", wanted.sweep or "", state
    )
    found: list[Row] = []
    async with aclosing(_newest(store, wanted)) as listed:
        async for keys in listed:
            async for part, rows in reader.pages(keys):
                for key, row in zip(part, rows, strict=True):
                    if isinstance(row, Unreadable):
                        skipped(f"{key}: {row}; it is left out")
                    elif row is not None:
                        found.append(row)
            if wanted.limit and len(found) >= wanted.limit:
                break
    return found[: wanted.limit]


async def look(store: Store, task_ids: Sequence[str], results_up_to: int = -1) -> list[Row]:
    """What is known of each job; one that is not known has the status ``not_found``.

    With its result, if that has up to ``results_up_to`` bytes. One that is unreadable is shown as
    failed, its failure of type ``JobLost``.
    """
    reader = _Reader(store, results_up_to, calls=False)
    found: list[Row] = []
    async for _, rows in reader.pages([store.keys.job(id_) for id_ in task_ids]):
        for row in rows:
            id_ = task_ids[len(found)]
            if isinstance(row, Unreadable):
                found.append(Row.of(unreadable(id_, str(row))))
            else:
                found.append(row or Row(id_))
    return found


async def failed(store: Store, among: int, most: int) -> list[Row]:
    """Of the ``among`` newest jobs the ``most`` that have failed last, the last one first."""
    listed = await store.server.call("ZREVRANGE", store.keys.jobs, 0, among - 1)
    keys = [store.keys.job_of(hex_.decode()) for hex_ in listed if is_hex(hex_)]
    reader = _Reader(store, -1, state=_LETTERS[JobState.COMPLETE], calls=False)
    found = [
        row
        async for _, rows in reader.pages(keys)
        for row in rows
        if isinstance(row, Row) and row.failure and row.ending not in (Ending.DONE, Ending.ABORTED)
    ]
    return sorted(found, key=lambda row: -(row.finish or 0))[:most]


async def _newest(store: Store, wanted: FrameOptions) -> AsyncGenerator[list[str], None]:
    """The keys of jobs enqueued since then, the newest first, no more of them than needed."""
    since = "-inf" if wanted.since is None else wanted.since.timestamp() * 1000
    any_job = not (wanted.task or wanted.sweep or wanted.status)
    count = LISTED if wanted.limit is None else min(wanted.limit, PAGE) if any_job else PAGE
    until: object = "+inf"
    seen: set[bytes] = set()
    while True:
        listed = await store.server.call(
            "ZREVRANGEBYSCORE", store.keys.jobs, until, since, "WITHSCORES", "LIMIT", 0, count
        )
        fresh = [hex_ for hex_ in listed[::2] if hex_ not in seen]
        if keys := [store.keys.job_of(hex_.decode()) for hex_ in fresh if is_hex(hex_)]:
            yield keys
        if len(listed) < 2 * count:
            return
        if not fresh:
            count *= 2  # more jobs were enqueued in this very millisecond
        seen.update(fresh)
        until = listed[-1]


class _Reader:
    """Reads pages of jobs that fit; with results if ``results_up_to`` is 0 or more."""

    def __init__(  # noqa: PLR0913 - the script's own arguments
        self, store: Store, results_up_to: int, task: str = "", sweep: str = "", state: str = "",
        *, calls: bool = True,
    ) -> None:  # fmt: skip
        self._store = store
        self._fits = (task, sweep, state)
        self._calls, self._results = calls, results_up_to >= 0
        self._bulky = ["p"] * self._calls + ["r"] * self._results
        self._most = max(INLINE if calls else 0, results_up_to)

    async def pages(
        self, keys: Sequence[str]
    ) -> AsyncIterator[tuple[Sequence[str], list[Row | Unreadable | None]]]:
        """The jobs in order, a page at a time: its keys, and what is known of each."""
        row = self._row
        parts = [keys[at : at + PAGE] for at in range(0, len(keys), PAGE)]
        asked = asyncio.create_task(self._ask(parts[0])) if parts else None
        try:
            for at, part in enumerate(parts):
                assert asked is not None
                raw = await asked
                if at + 1 < len(parts):  # the server works on the next while this is unpacked
                    asked = asyncio.create_task(self._ask(parts[at + 1]))
                    for _ in range(4):  # until it is sent
                        await asyncio.sleep(0)
                yield part, [row(each) if each else None for each in raw]
        finally:
            if asked is not None:
                asked.cancel()

    async def _ask(self, keys: Sequence[str]) -> list[_Raw | None]:
        server = self._store.server
        found: list[_Raw | None] = await server.run(
            lambda: server.scripts.pick(keys, *self._fits, _FIELDS, self._bulky, self._most)
        )
        if self._calls:
            away = {
                k: raw for k, raw in zip(keys, found, strict=True) if raw and raw[_CALL] is None
            }
            calls = await server.read(("HGET", key, "p") for key in away)
            for raw, call in zip(away.values(), calls, strict=True):
                raw[_CALL] = call
        return found

    def _row(self, raw: _Raw) -> Row | Unreadable:
        call = raw[_CALL] if self._calls else None
        result = raw[-1] if self._results else None
        try:
            if raw[1] == b"c" and not raw[_REPORT] and (end := _went_well(raw[_OUTCOME] or b"")):
                # as below, without an object for each part: most of a large table is of this kind
                tries, start, finish, worker, nbytes, memory, cpu = end
                spec = unpack_spec(raw[0] or b"")
                return Row(
                    spec.task_id, spec.fn_name, spec.sweep, spec.index, spec.lane,
                    JobState.COMPLETE, worker or None, tries, read_time(raw[2]) or 0, None, start,
                    finish, None, None, Ending.DONE, None, nbytes, memory, cpu, False, spec,
                    call or b"", result or b"",
                )  # fmt: skip
            fields = dict(zip(("m", "s", *_FIELDS), raw, strict=False))
            return Row.of(unpack_record({**fields, "p": call, "r": result}))
        except Unreadable as error:
            return error


_Figures = tuple[int, int, int, str, int | None, int | None, int | None]


def _went_well(outcome: bytes) -> _Figures | None:
    """What :func:`pack_outcome` packs for a job that is done; None where that takes a closer look.

    Tries, start, finish, worker, bytes of the result, peak memory, microseconds of the CPU.
    """
    try:
        ending, tries, start, finish, worker, *figures, failure = msgpack.unpackb(outcome)
        plain = (
            ending == "done"
            and failure is None
            and len(figures) == 3
            and type(tries) is type(start) is type(finish) is int
            and type(worker) is str
            and 0 <= start <= finish <= _LATEST
            and all(n is None or (type(n) is int and 0 <= n < 2**63) for n in (tries, *figures))
        )
    except Exception:  # noqa: BLE001 - whatever a stranger wrote there
        return None
    return (tries, start, finish, worker, *figures) if plain else None
