"""How jobs, outcomes and news stand in the store: bytes ↔ models. Values stay signed bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgpack

from qnb.models import Ending, Failure, JobRecord, JobSpec, JobState, Outcome

__all__ = [
    "FIELDS",
    "MAX_LOST_STARTS",
    "Claimed",
    "Finished",
    "Notice",
    "pack",
    "pack_end",
    "pack_outcome",
    "pack_spec",
    "unpack_notices",
    "unpack_outcome",
    "unpack_record",
    "unpack_spec",
]

#: a job that has lost its worker this often is ended
MAX_LOST_STARTS = 3

#: a result up to this size travels inside its notice
NOTICE_RESULT = 32 * 1024

#: fields of a job's hash that make a record; ``p`` (call) and ``r`` (result) may be added
FIELDS = ("m", "t", "s", "n", "b", "w", "o")

STATES = {
    "q": JobState.QUEUED,
    "d": JobState.SCHEDULED,
    "r": JobState.RUNNING,
    "c": JobState.COMPLETE,
}


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job this worker holds: its lease runs from the claim on."""

    spec: JobSpec
    entry: str
    attempt: int  #: fences: the store refuses the outcome of an older attempt
    starts: int  #: attempts that began before this one
    enqueue_time: int
    call: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    claimed: Claimed
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Notice:
    """News of a job; ``record`` holds the outcome of one that has ended, if it is small."""

    task_id: str
    status: JobState
    record: JobRecord | None = None


def pack(value: Any) -> bytes:
    return cast("bytes", msgpack.packb(value))


def pack_spec(spec: JobSpec) -> bytes:
    return pack(
        [
            spec.task_id, spec.fn_name, spec.lane, spec.channel, spec.function, spec.is_async,
            spec.sweep, spec.index, spec.nonce,
        ]
    )  # fmt: skip


def unpack_spec(data: bytes) -> JobSpec:
    return JobSpec(*msgpack.unpackb(data))


def pack_outcome(outcome: Outcome) -> bytes:
    """An outcome without its result, which has a field of its own."""
    failure = outcome.failure
    return pack(
        [
            outcome.ending.value, outcome.tries, outcome.start, outcome.finish, outcome.worker,
            outcome.result_nbytes, outcome.peak_memory, outcome.cpu_time_us,
            failure and [failure.type, failure.message, failure.text, failure.traceback],
        ]
    )  # fmt: skip


def unpack_outcome(data: bytes, result: bytes = b"") -> Outcome:
    ending, tries, start, finish, worker, nbytes, memory, cpu, failure = msgpack.unpackb(data)
    return Outcome(
        ending=Ending(ending),
        tries=tries,
        start=start,
        finish=finish,
        worker=worker,
        result=result,
        result_nbytes=nbytes,
        peak_memory=memory,
        cpu_time_us=cpu,
        failure=Failure(*failure) if failure else None,
    )


def pack_end(claimed: Claimed, outcome: bytes, result: bytes) -> bytes:
    """The notice of a job's end."""
    spec = claimed.spec
    if len(result) > NOTICE_RESULT:
        return pack([spec.task_id, "c"])
    row = [spec.task_id, "c", spec.fn_name, spec.lane, claimed.enqueue_time, outcome, result]
    return pack(row)


def unpack_notices(data: bytes) -> list[Notice]:
    """The notices of one message: any number of them, one behind the other."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(data)
    notices = []
    for task_id, state, *end in unpacker:
        record = None
        if end:
            fn_name, lane, enqueue_time, packed, result = end
            outcome = unpack_outcome(packed, result)
            record = JobRecord(
                task_id, fn_name, lane, JobState.COMPLETE, enqueue_time, outcome.tries,
                start=outcome.start, worker=outcome.worker, outcome=outcome,
            )  # fmt: skip
        notices.append(Notice(task_id, STATES[state], record))
    return notices


def unpack_record(fields: Mapping[str, bytes | None]) -> JobRecord:
    spec = unpack_spec(fields["m"] or b"")
    outcome = unpack_outcome(fields["o"], fields.get("r") or b"") if fields["o"] else None
    start = int(fields["b"]) if fields["b"] else None
    return JobRecord(
        task_id=spec.task_id,
        fn_name=spec.fn_name,
        priority=spec.lane,
        status=STATES[(fields["s"] or b"q").decode()],
        enqueue_time=int(fields["t"] or 0),
        tries=outcome.tries if outcome else int(fields["n"] or 0),
        sweep=spec.sweep,
        index=spec.index,
        start=outcome.start if outcome else start,
        worker=outcome.worker if outcome else (fields["w"] or b"").decode() or None,
        function=spec.function,
        is_async=spec.is_async,
        outcome=outcome,
        call=fields.get("p") or b"",
    )
