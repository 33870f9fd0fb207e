"""How jobs, outcomes and news stand in the store: bytes ↔ models. Values stay signed bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any, cast

import msgpack

from qnb.models import (
    Ending,
    Failure,
    Frame,
    JobRecord,
    JobSpec,
    JobState,
    Outcome,
    Policy,
    Report,
)

__all__ = [
    "FIELDS",
    "MAX_LOST_STARTS",
    "Call",
    "Claimed",
    "Finished",
    "Notice",
    "pack",
    "pack_end",
    "pack_failure",
    "pack_outcome",
    "pack_report",
    "pack_spec",
    "unpack_failure",
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
FIELDS = ("m", "t", "s", "n", "d", "x", "b", "w", "g", "f", "o")

STATES = {
    "q": JobState.QUEUED,
    "d": JobState.SCHEDULED,
    "r": JobState.RUNNING,
    "c": JobState.COMPLETE,
}

_USUAL = Policy()


@dataclass(frozen=True, slots=True)
class Call:
    """A job that is ready to be sent; ``code`` is its function, if that is shipped by value."""

    spec: JobSpec
    payload: bytes
    code: bytes | None = None
    delay_ms: int = 0
    schedule_ms: int = 0
    expire_ms: int = 0

    @property
    def due(self) -> str:
        """When it may run, as the store's script reads it."""
        if self.schedule_ms:
            return f"@{self.schedule_ms}"
        return f"+{self.delay_ms}" if self.delay_ms else ""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job this worker holds: its lease runs from the claim on."""

    spec: JobSpec
    entry: str
    back: bool  #: the entry is in the stream of what was handed back to the lane
    attempt: int  #: fences: the store refuses the outcome of an older attempt
    starts: int  #: attempts that began before this one
    lost: int  #: of those, attempts that lost their worker
    enqueue_time: int
    expires_at: int | None
    call: bytes

    @property
    def ref(self) -> str:
        """Tells it from all else that a worker holds."""
        return f"{'b' if self.back else ''}{self.entry} {self.spec.lane}"


@dataclass(frozen=True, slots=True)
class Finished:
    claimed: Claimed
    outcome: Outcome
    has_log: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """News of a job; ``record`` holds the outcome of one that has ended, if it is small."""

    task_id: str
    status: JobState
    record: JobRecord | None = None
    report: Report | None = None


def pack(value: Any) -> bytes:
    return cast("bytes", msgpack.packb(value))


def pack_spec(spec: JobSpec) -> bytes:
    row = [
        spec.task_id, spec.fn_name, spec.lane, spec.channel, spec.function, spec.is_async,
        spec.sweep, spec.index, spec.nonce,
    ]  # fmt: skip
    if spec.policy != _USUAL:
        row.append(astuple(spec.policy))
    return pack(row)


def unpack_spec(data: bytes) -> JobSpec:
    row: list[Any] = msgpack.unpackb(data)
    return JobSpec(*row[:9], *(Policy(*rules) for rules in row[9:]))


def pack_report(report: Report) -> bytes:
    return pack([report.done, report.total, report.message, dict(report.metrics)])


def _unpack_report(data: bytes) -> Report:
    return Report(*msgpack.unpackb(data))


def _failure_row(failure: Failure) -> list[Any]:
    return [
        failure.type, failure.message, failure.text, failure.traceback,
        [[frame.file, frame.line, frame.function, frame.text] for frame in failure.frames],
        [_failure_row(cause) for cause in failure.causes],
    ]  # fmt: skip


def _failure_of(row: list[Any]) -> Failure:
    type_, message, text, traceback, frames, causes = row
    return Failure(
        type_, message, text, traceback,
        tuple(Frame(*frame) for frame in frames), tuple(map(_failure_of, causes)),
    )  # fmt: skip


def pack_failure(failure: Failure) -> bytes:
    return pack(_failure_row(failure))


def unpack_failure(data: bytes) -> Failure:
    return _failure_of(msgpack.unpackb(data))


def pack_outcome(outcome: Outcome) -> bytes:
    """An outcome without its result, which has a field of its own."""
    return pack(
        [
            outcome.ending.value, outcome.tries, outcome.start, outcome.finish, outcome.worker,
            outcome.result_nbytes, outcome.peak_memory, outcome.cpu_time_us,
            outcome.failure and _failure_row(outcome.failure),
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
        failure=_failure_of(failure) if failure else None,
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
    for task_id, state, *more in unpacker:
        if state == "g":
            report = _unpack_report(more[0])
            notices.append(Notice(task_id, JobState.RUNNING, report=report))
            continue
        record = None
        if more:
            fn_name, lane, enqueue_time, packed, result = more
            outcome = unpack_outcome(packed, result)
            record = JobRecord(
                task_id, fn_name, lane, JobState.COMPLETE, enqueue_time, outcome.tries,
                start=outcome.start, worker=outcome.worker, outcome=outcome,
            )  # fmt: skip
        notices.append(Notice(task_id, STATES[state], record))
    return notices


def unpack_record(fields: Mapping[str, bytes | None]) -> JobRecord:
    spec = unpack_spec(fields["m"] or b"")
    status = STATES[(fields["s"] or b"q").decode()]
    record = JobRecord(
        task_id=spec.task_id,
        fn_name=spec.fn_name,
        priority=spec.lane,
        status=status,
        enqueue_time=int(fields["t"] or 0),
        tries=int(fields["n"] or 0),
        sweep=spec.sweep,
        index=spec.index,
        function=spec.function,
        is_async=spec.is_async,
        report=_unpack_report(fields["g"]) if fields["g"] else None,
        call=fields.get("p") or b"",
    )
    if fields["o"]:
        outcome = unpack_outcome(fields["o"], fields.get("r") or b"")
        return replace(
            record, tries=outcome.tries, start=outcome.start, worker=outcome.worker or None,
            outcome=outcome,
        )  # fmt: skip
    return replace(
        record,
        scheduled_at=int(fields["d"]) if fields["d"] else None,
        expires_at=int(fields["x"]) if fields["x"] else None,
        start=int(fields["b"]) if fields["b"] else None,
        worker=(fields["w"] or b"").decode() or None,
        failure=unpack_failure(fields["f"]) if fields["f"] else None,
    )
