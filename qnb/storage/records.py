"""How jobs, outcomes and news stand in the store: bytes ↔ models. Values stay signed bytes.

Whoever may write to the store can write anything into it. What is read is checked field by field,
and nonsense is :class:`Unreadable`: it costs that one item, never who reads it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, ParamSpec, TypeVar, cast

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
from qnb.options import ISOLATIONS

__all__ = [
    "FIELDS",
    "FRONT",
    "MAX_LOST_STARTS",
    "Call",
    "Claimed",
    "Finished",
    "Notice",
    "Unreadable",
    "pack",
    "pack_end",
    "pack_failure",
    "pack_outcome",
    "pack_report",
    "pack_spec",
    "read_int",
    "read_time",
    "unpack_entry",
    "unpack_failure",
    "unpack_notices",
    "unpack_outcome",
    "unpack_record",
    "unpack_spec",
    "unpack_worker",
    "unreadable",
]

P = ParamSpec("P")
T = TypeVar("T")

#: a job that has lost its worker this often is ended
MAX_LOST_STARTS = 3

#: most jobs of a resumed sweep that go to the front of their lane at a time
FRONT = 50

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

_MOST = 2**63 - 1
_LATEST = 253_402_300_799_999  #: the end of the year 9999, in epoch ms: what a date can show

#: what a worker says of itself, as far as others rely on it
_SAYS: dict[str, Any] = {
    "host": "", "env": "",
    **dict.fromkeys(("pid", "slots", "running", "done", "started", "at"), 0),
}  # fmt: skip


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
    """A job this worker holds: its lease runs from the claim on.

    ``ref`` tells it from all else that a worker holds.
    """

    spec: JobSpec
    entry: str
    back: bool  #: the entry is in the stream of what was handed back to the lane
    attempt: int  #: fences: the store refuses the outcome of an older attempt
    starts: int  #: attempts that began before this one
    lost: int  #: of those, attempts that lost their worker
    enqueue_time: int
    expires_at: int | None
    call: bytes
    packed: bytes = b""  #: the spec as it stands in the store
    ref: str = field(init=False)

    def __post_init__(self) -> None:
        back = "b" if self.back else ""
        object.__setattr__(self, "ref", f"{back}{self.entry} {self.spec.lane}")


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


class Unreadable(ValueError):
    """Bytes in the store that are not what their place says."""


def _reading(what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Whatever the bytes of a stranger lead to is :class:`Unreadable`."""

    def strict(read: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(read)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return read(*args, **kwargs)
            except Unreadable:
                raise
            except Exception as error:  # noqa: BLE001 - of any kind
                why = f"{type(error).__name__}: {error}"[:200]
                raise Unreadable(f"{what} is unreadable ({why})") from None

        return checked

    return strict


def _expect(value: Any, kind: type) -> None:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} in place of {kind.__name__}")


def _whole(value: Any, least: int = 0, most: int = _MOST) -> int:
    _expect(value, int)
    if not least <= value <= most:
        raise ValueError(f"{value} is out of range")
    return cast("int", value)


@_reading("a number")
def read_int(text: bytes | None, most: int = _MOST) -> int:
    """A number of the store, 0 where there is none."""
    if not text:
        return 0
    if not text.isdigit() or len(text) > 19:
        raise Unreadable("a number is unreadable")
    return _whole(int(text), most=most)


@_reading("a time")
def read_time(text: bytes | None) -> int | None:
    """A time of the store that a date can show, None where there is none."""
    return read_int(text, _LATEST) if text else None


def pack(value: Any) -> bytes:
    return cast("bytes", msgpack.packb(value))


def pack_spec(spec: JobSpec) -> bytes:
    row = [
        spec.task_id, spec.fn_name, spec.lane, spec.channel, spec.function, spec.is_async,
        spec.sweep, spec.index, spec.nonce,
    ]  # fmt: skip
    if spec.content or spec.code:
        row += [_rules(spec), bytes.fromhex(spec.content), bytes.fromhex(spec.code)]
    elif spec.policy != _USUAL:
        row.append(_rules(spec))
    return pack(row)


def _rules(spec: JobSpec) -> tuple[Any, ...] | None:
    return astuple(spec.policy) if spec.policy != _USUAL else None


@_reading("a job's spec")
def unpack_spec(data: bytes) -> JobSpec:
    return _spec(data)


def _spec(data: bytes) -> JobSpec:
    task_id, fn_name, lane, channel, function, is_async, sweep, index, nonce, *more = (
        msgpack.unpackb(data)
    )
    for text in (task_id, fn_name, lane, channel, function, nonce, "" if sweep is None else sweep):
        if type(text) is not str:
            _expect(text, str)
    _expect(is_async, bool)
    if index is not None:
        _whole(index)
    if not more:
        return JobSpec(
            task_id, fn_name, lane, channel, function, is_async, sweep, index, nonce
        )  # fmt: skip
    absent = [None, b"", b""]
    rules, content, code = more + absent[len(more) :]
    for digest in (content, code):
        _expect(digest, bytes)
    return JobSpec(
        task_id, fn_name, lane, channel, function, is_async, sweep, index, nonce,
        content.hex(), code.hex(), _policy(*rules) if rules else _USUAL,
    )  # fmt: skip


@_reading("an entry")
def unpack_entry(entry: bytes, flat: Sequence[bytes], lane: str, *, back: bool) -> Claimed:
    """A held job from an entry of a ``lane``'s stream (``back``: of what was handed back to it).

    Its call is empty where it was too large for an entry.
    """
    row = dict(zip(flat[::2], flat[1::2], strict=True))
    packed = row[b"m"]
    spec = _spec(packed)
    if spec.lane != lane:
        raise ValueError(f"it is of lane {spec.lane!r}")
    zero, get = b"0", row.get
    numbers = (row[b"a"], row[b"t"], get(b"n", zero), get(b"c", zero), get(b"x", zero))
    for text in numbers:
        if not text.isdigit() or len(text) > 16:
            raise ValueError(f"{text[:20]!r} is no number")
    attempt, enqueued, starts, lost, expires = map(int, numbers)
    if max(attempt, starts, enqueued, lost, expires) > 2**53:
        raise ValueError("a number is larger than the scripts count")  # they use doubles
    return Claimed(
        spec, entry.decode(), back, attempt, starts, lost, enqueued, expires or None,
        row.get(b"p", b""), packed,
    )  # fmt: skip


def _policy(  # noqa: PLR0913 - its fields
    max_retries: Any, backoff_ms: Any, timeout_ms: Any, max_memory: Any, isolation: Any,
    gated: Any = False, stops: Any = False,
) -> Policy:  # fmt: skip
    _whole(max_retries)
    _whole(backoff_ms)
    for limit in (timeout_ms, max_memory):
        if limit is not None:
            _whole(limit, least=1)
    if isolation is not None and isolation not in ISOLATIONS:
        raise ValueError(f"isolation {isolation!r}")
    _expect(gated, bool)
    _expect(stops, bool)
    return Policy(max_retries, backoff_ms, timeout_ms, max_memory, isolation, gated, stops)


def pack_report(report: Report) -> bytes:
    return pack([report.done, report.total, report.message, dict(report.metrics)])


@_reading("a report")
def _unpack_report(data: bytes) -> Report:
    done, total, message, metrics = msgpack.unpackb(data)
    for number in (done, 0 if total is None else total):
        if not isinstance(number, int | float):
            raise TypeError(f"{type(number).__name__} in place of a number")
    _expect("" if message is None else message, str)
    _expect(metrics, dict)
    for name in metrics:
        _expect(name, str)
    return Report(done, total, message, metrics)


@_reading("what a worker says of itself")
def unpack_worker(data: bytes) -> dict[str, Any]:
    """What a worker says of itself."""
    says = msgpack.unpackb(data)
    _expect(says, dict)
    for word in says:
        _expect(word, str)
    says = {**_SAYS, **says}
    for word, usual in _SAYS.items():
        _expect(says[word], type(usual))
    return cast("dict[str, Any]", says)


def _failure_row(failure: Failure) -> list[Any]:
    return [
        failure.type, failure.message, failure.text, failure.traceback,
        [[frame.file, frame.line, frame.function, frame.text] for frame in failure.frames],
        [_failure_row(cause) for cause in failure.causes],
    ]  # fmt: skip


def _failure_of(row: list[Any]) -> Failure:
    type_, message, text, traceback, frames, causes = row
    for word in (type_, message, text, traceback):
        _expect(word, str)
    for file, line, function, source in frames:
        _whole(line, least=-1)
        for word in (file, function, source):
            _expect(word, str)
    return Failure(
        type_, message, text, traceback,
        tuple(Frame(*frame) for frame in frames), tuple(map(_failure_of, causes)),
    )  # fmt: skip


def pack_failure(failure: Failure) -> bytes:
    return pack(_failure_row(failure))


@_reading("a failure")
def unpack_failure(data: bytes) -> Failure:
    return _failure_of(msgpack.unpackb(data))


def pack_outcome(outcome: Outcome) -> bytes:
    """An outcome without its result, which has a field of its own."""
    return pack(
        [
            outcome.ending.value, outcome.tries, outcome.start, outcome.finish, outcome.worker,
            outcome.result_nbytes, outcome.peak_memory, outcome.cpu_time_us,
            outcome.failure and _failure_row(outcome.failure),
            *([outcome.cached] if outcome.cached else []),
        ]
    )  # fmt: skip


@_reading("an outcome")
def unpack_outcome(data: bytes, result: bytes = b"") -> Outcome:
    ending, tries, start, finish, worker, nbytes, memory, cpu, failure, *cached = msgpack.unpackb(
        data
    )
    _whole(tries)
    _whole(start, most=_LATEST)
    _whole(finish, most=_LATEST)
    _expect(worker, str)
    _expect(result, bytes)
    for figure in (nbytes, memory, cpu):
        if figure is not None:
            _whole(figure)
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
        cached=_cached(*cached),
    )


def _cached(source: Any = "") -> str:
    _expect(source, str)
    return cast("str", source)


def pack_end(claimed: Claimed, outcome: bytes, result: bytes) -> bytes:
    """The notice of a job's end."""
    task_id = claimed.spec.task_id
    if len(result) > NOTICE_RESULT:
        return pack([task_id, "c"])
    return pack([task_id, "c", claimed.packed, claimed.enqueue_time, outcome, result])


@_reading("a notice")
def unpack_notices(
    data: bytes, wanted: Callable[[str], bool] = lambda task_id: True
) -> list[Notice]:
    """The notices of one message: any number of them, one behind the other.

    Those of jobs that are not ``wanted`` are left out, and cost next to nothing.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(data)
    return [_notice(*row) for row in unpacker if type(row[0]) is not str or wanted(row[0])]


def _notice(task_id: Any, state: Any, *more: Any) -> Notice:
    _expect(task_id, str)
    if state == "g":
        return Notice(task_id, JobState.RUNNING, report=_unpack_report(more[0]))
    record = None
    if more:
        sent, enqueue_time, packed, result = more
        spec, outcome = unpack_spec(sent), unpack_outcome(packed, result)
        record = JobRecord(
            task_id, spec.fn_name, spec.lane, JobState.COMPLETE, _whole(enqueue_time, most=_LATEST),
            outcome.tries, start=outcome.start, worker=outcome.worker, spec=spec, outcome=outcome,
        )  # fmt: skip
    return Notice(task_id, STATES[state], record)


@_reading("a job's state")
def unpack_record(fields: Mapping[str, bytes | None]) -> JobRecord:
    spec = _spec(fields["m"] or b"")
    status = STATES[(fields["s"] or b"").decode()]
    enqueued = read_time(fields["t"]) or 0
    report = _unpack_report(fields["g"]) if fields["g"] else None
    call = fields.get("p") or b""
    if status is JobState.COMPLETE:
        outcome = unpack_outcome(fields["o"] or b"", fields.get("r") or b"")
        return JobRecord(
            spec.task_id, spec.fn_name, spec.lane, status, enqueued, outcome.tries, spec.sweep,
            spec.index, start=outcome.start, worker=outcome.worker or None, spec=spec,
            outcome=outcome, report=report, call=call, cached=bool(outcome.cached),
        )  # fmt: skip
    return JobRecord(
        spec.task_id, spec.fn_name, spec.lane, status, enqueued, read_int(fields["n"]), spec.sweep,
        spec.index, start=read_time(fields["b"]), spec=spec, report=report, call=call,
        worker=(fields["w"] or b"").decode("utf-8", "replace") or None,
        scheduled_at=read_time(fields["d"]),
        expires_at=read_time(fields["x"]),
        failure=unpack_failure(fields["f"]) if fields["f"] else None,
    )  # fmt: skip


def unreadable(task_id: str, why: str) -> JobRecord:
    """What is shown of a job whose record is nonsense: it is over, and nobody can tell how."""
    message = f"job {task_id!r} is lost: its record is unreadable: {why}. Submit it again"
    failure = Failure("JobLost", message, f"JobLost({message!r})")
    outcome = Outcome(Ending.FAILED, 0, 0, 0, failure=failure)
    return JobRecord(task_id, "", "", JobState.COMPLETE, 0, outcome=outcome)
