"""What a task can know of the job it is running for."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from qnb.errors import QnbError

__all__ = ["TaskContext", "current", "current_task"]


@dataclass(frozen=True, slots=True)
class TaskContext:
    """The running job: its id, its task's name, and which attempt this is (from 1)."""

    task_id: str
    name: str
    tries: int


current: ContextVar[TaskContext] = ContextVar("qnb_current_task")


def current_task() -> TaskContext:
    """The job that the calling code runs for; an error outside of a task."""
    try:
        return current.get()
    except LookupError:
        raise QnbError(
            "current_task() was called outside of a task; call it in a function that a worker runs"
        ) from None
