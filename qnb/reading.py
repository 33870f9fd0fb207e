"""Records read with the queue's codec: arguments, outcomes, values and errors of jobs."""

from __future__ import annotations

from typing import Any

from qnb.display import tidy
from qnb.errors import (
    JobAborted,
    JobExpired,
    JobLost,
    MemoryLimitExceeded,
    QnbError,
    RemoteError,
    SignatureError,
    WorkerCrashed,
)
from qnb.models import Ending, JobRecord, TaskResult
from qnb.wire.codec import Codec

__all__ = ["RemoteTraceback", "call_of", "error_of", "lost", "result_of", "value_of"]

_ENDED_AS: dict[Ending, type[QnbError]] = {
    Ending.ABORTED: JobAborted,
    Ending.EXPIRED: JobExpired,
    Ending.CRASHED: WorkerCrashed,
    Ending.REFUSED: SignatureError,
}

#: what a supervisor says of a body that it had to stop
_SAID: dict[str, type[Exception]] = {
    "JobLost": JobLost,  # its record is unreadable
    "MemoryLimitExceeded": MemoryLimitExceeded,
    "TimeoutError": TimeoutError,
}


class RemoteTraceback(Exception):
    """The traceback of an exception as its worker saw it: the cause of what is raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{tidy(self.text)}"


def call_of(codec: Codec, record: JobRecord) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments a job was given."""
    return codec.unpack_call(record.task_id, record.call, binding=_binding(record))


def _binding(record: JobRecord) -> bytes | None:
    return record.spec.binding() if record.spec is not None else None


def result_of(codec: Codec, task_id: str, record: JobRecord | None) -> TaskResult:
    """A finished job's outcome; of an unknown one, a failure that says so."""
    if record is None or record.outcome is None:
        return TaskResult(False, repr(lost(task_id)), 0, 0, 0, 0)
    outcome = record.outcome
    value: Any = outcome.failure.text if outcome.failure else None
    if outcome.success:
        value = codec.unpack_result(task_id, outcome.result, binding=_binding(record))
    return TaskResult(
        success=outcome.success,
        value=value,
        tries=outcome.tries,
        enqueue_time=record.enqueue_time,
        start=outcome.start,
        finish=outcome.finish,
        aborted=outcome.ending is Ending.ABORTED,
        failure=outcome.failure,
    )


def value_of(codec: Codec, task_id: str, record: JobRecord | None) -> Any:
    """A finished job's value, or raise what it raised, its remote traceback chained."""
    if record is None or record.outcome is None:
        raise lost(task_id)
    outcome = record.outcome
    if outcome.success:
        return codec.unpack_result(task_id, outcome.result, binding=_binding(record))
    raise error_of(codec, task_id, record) from (
        RemoteTraceback(outcome.failure.traceback)
        if outcome.failure and outcome.failure.traceback
        else None
    )


def error_of(codec: Codec, task_id: str, record: JobRecord) -> Exception:
    """What a failed job raised, rebuilt; :class:`RemoteError` where that cannot be."""
    outcome = record.outcome
    if outcome is None or outcome.failure is None:
        return lost(task_id)
    ended_as = _ENDED_AS.get(outcome.ending) or _SAID.get(outcome.failure.type)
    if ended_as is not None and not outcome.result:
        return ended_as(outcome.failure.message)
    error = None
    if outcome.result:
        error = codec.unpack_error(task_id, outcome.result, binding=_binding(record))
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    why = "that cannot be rebuilt here"
    if error is not None:  # it would end the loop or the generator that it is raised in
        why = "that is not raised outside of the task, since it would end more than the wait"
    return RemoteError(
        f"job {task_id!r} of task {record.fn_name!r} raised {outcome.failure.text}, an exception "
        f"{why}"
    )


def lost(task_id: str) -> JobLost:
    """The error for a job that the store knows nothing of."""
    return JobLost(
        f"job {task_id!r} is not known: it was never enqueued, or its record has expired "
        "(App(result_ttl_ms=...))"
    )
