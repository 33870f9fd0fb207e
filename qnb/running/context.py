"""What a running body is and can say: the job it runs for, and where its reports go."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from qnb.errors import QnbError
from qnb.models import Report, TaskContext

__all__ = ["Reporter", "Running", "TaskContext", "current_task", "running", "running_as"]

#: seconds between two reports of one body
REPORT_EVERY = 0.1


class Reporter:
    """Sends what a body reports, at most ten times a second; the last report always arrives.

    Any thread of the body may call it. ``send`` must be cheap and allow that too.
    """

    def __init__(self, send: Callable[[Report], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._next = 0.0
        self._held: Report | None = None
        self._timer: threading.Timer | None = None

    def __call__(self, report: Report) -> None:
        if os.getpid() != self._process:
            return  # a forked copy: its bytes would mix with those of the original
        with self._lock:
            now = time.monotonic()
            if now >= self._next:
                self._next = now + REPORT_EVERY
                self._held = None
                self._tell(report)
                return
            self._held = report
            if self._timer is None:
                self._timer = threading.Timer(self._next - now, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Send what was held back."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._held is not None:
                held, self._held = self._held, None
                self._next = time.monotonic() + REPORT_EVERY
                self._tell(held)

    def _tell(self, report: Report) -> None:
        with contextlib.suppress(Exception):  # who listens has gone: never the body's problem
            self._send(report)


@dataclass(frozen=True, slots=True)
class Running:
    """The job that a body runs for, and what takes its reports."""

    task: TaskContext
    report: Reporter


_current: ContextVar[Running] = ContextVar("qnb_current_task")
_alone: Running | None = None  # of a process that runs one body; its threads belong to it too


def running() -> Running | None:
    """What the calling code runs as, None outside of a task."""
    return _current.get(_alone)


class running_as:
    """Run the block as ``body``; if ``alone``, all threads of this process too."""

    __slots__ = ("_alone", "_body", "_token")

    def __init__(self, body: Running, *, alone: bool = False) -> None:
        self._body = body
        self._alone = alone

    def __enter__(self) -> None:
        global _alone
        self._token = _current.set(self._body)
        if self._alone:
            _alone = self._body

    def __exit__(self, *error: object) -> None:
        global _alone
        _current.reset(self._token)
        if self._alone:
            _alone = None


def current_task() -> TaskContext:
    """The job that the calling code runs for; an error outside of a task."""
    body = running()
    if body is None:
        raise QnbError(
            "current_task() was called outside of a task; call it in a function that a worker runs"
        )
    return body.task
