"""One attempt at a job: decode, run, classify into an :class:`Outcome`. No store, no processes."""

from __future__ import annotations

import asyncio
import inspect
import os
import resource
import socket
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qnb.clock import ServerClock
from qnb.errors import QnbError, SignatureError, UnknownTask
from qnb.models import Ending, Failure, JobSpec, Outcome
from qnb.registry import Registry
from qnb.running.context import TaskContext, current
from qnb.wire.codec import Codec

__all__ = ["Attempt", "Runner", "failure_of"]

#: functions shipped by value that a process keeps decoded
KEPT_FUNCTIONS = 128

_HERE = str(Path(__file__).parent.parent) + os.sep


@dataclass(frozen=True, slots=True)
class Attempt:
    """Everything a process needs to run a job once. ``code`` is the shipped function, if any."""

    spec: JobSpec
    number: int
    tries: int
    call: bytes
    code: bytes | None = None


def failure_of(error: BaseException) -> Failure:
    """``error`` as text, its traceback without qnb's own frames."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_HERE)
    ]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames)]
    lines += traceback.format_exception_only(error)
    try:
        text = repr(error)
    except Exception:  # noqa: BLE001 - a user's __repr__ may do anything
        text = f"{type(error).__name__}(…)"
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - likewise
        message = ""
    trace = "".join(lines if frames else lines[1:])
    return Failure(*map(_sendable, (type(error).__name__, message, text, trace)))


def _sendable(text: str) -> str:
    """``text`` with what UTF-8 cannot carry (lone surrogates) escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


class Runner:
    """Runs attempts in this process.

    ``shipped_first`` tells which function runs where a job carries its own and the registry has
    one of that name: a worker process takes the shipped one, your own process yours.
    """

    def __init__(
        self, codec: Codec, registry: Registry, clock: ServerClock, *, shipped_first: bool
    ) -> None:
        self._codec = codec
        self._registry = registry
        self._clock = clock
        self._shipped_first = shipped_first
        self._functions: OrderedDict[str, Callable[..., Any]] = OrderedDict()
        self._worker = f"{socket.gethostname()}:{os.getpid()}"

    def needs_code(self, spec: JobSpec) -> bool:
        """Must the caller bring the function of ``spec`` as bytes?"""
        if not spec.function or ":" in spec.function or spec.function in self._functions:
            return False
        return self._shipped_first or self._registry.get(spec.fn_name) is None

    def run(self, attempt: Attempt) -> Outcome:
        """Run a plain function here and now."""
        start = self._clock.now_ms()
        before = resource.getrusage(resource.RUSAGE_SELF)
        token = current.set(_context(attempt))
        try:
            fn, args, kwargs = self._decode(attempt)
            return self._done(attempt, start, before, fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
            return self._failed(attempt, start, error)
        finally:
            current.reset(token)

    async def run_async(self, attempt: Attempt) -> Outcome:
        """Run a coroutine function on this loop."""
        start = self._clock.now_ms()
        before = resource.getrusage(resource.RUSAGE_SELF)
        token = current.set(_context(attempt))
        try:
            fn, args, kwargs = self._decode(attempt)
            value = fn(*args, **kwargs)
            if inspect.isawaitable(value):
                value = await value
            return self._done(attempt, start, before, value)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the worker stops it; otherwise the body raised it by itself
            return self._failed(attempt, start, error)
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
            return self._failed(attempt, start, error)
        finally:
            current.reset(token)

    def _decode(self, attempt: Attempt) -> tuple[Callable[..., Any], Any, Any]:
        fn = self._function(attempt)
        args, kwargs = self._codec.unpack_call(
            attempt.spec.task_id, attempt.call, binding=attempt.spec.binding()
        )
        return fn, args, kwargs

    def _function(self, attempt: Attempt) -> Callable[..., Any]:
        spec = attempt.spec
        registered = self._registry.get(spec.fn_name)
        if registered is not None and not (self._shipped_first and spec.function):
            return registered
        if ":" in spec.function:
            return self._codec.resolve(spec.function)
        if not spec.function:
            raise UnknownTask(
                f"task {spec.fn_name!r} is not known to this worker ({self._worker}). Known: "
                f"{', '.join(sorted(self._registry)) or 'none'}. Start it with the app that "
                "defines the task: qnb worker module:app"
            )
        fn = self._functions.get(spec.function)
        if fn is None:
            if attempt.code is None:
                raise QnbError(
                    f"the function of task {spec.fn_name!r} is no longer stored; submit it again"
                )
            fn = self._codec.unpack_function(
                bytes.fromhex(spec.function), attempt.code, task=spec.fn_name
            )
            self._functions[spec.function] = fn
            if len(self._functions) > KEPT_FUNCTIONS:
                self._functions.popitem(last=False)
        return fn

    def _done(
        self, attempt: Attempt, start: int, before: resource.struct_rusage, value: Any
    ) -> Outcome:
        finish = self._clock.now_ms()
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        result = self._codec.pack_result(attempt.spec.task_id, attempt.number, value)
        return Outcome(
            ending=Ending.DONE,
            tries=attempt.tries,
            start=start,
            finish=finish,
            result=result,
            worker=self._worker,
            result_nbytes=len(result),
            peak_memory=after.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            cpu_time_us=int(cpu * 1e6),
        )

    def _failed(self, attempt: Attempt, start: int, error: BaseException) -> Outcome:
        refused = isinstance(error, SignatureError)
        return Outcome(
            ending=Ending.REFUSED if refused else Ending.FAILED,
            tries=attempt.tries,
            start=start,
            finish=self._clock.now_ms(),
            result=self._codec.pack_error(attempt.spec.task_id, attempt.number, error),
            failure=failure_of(error),
            worker=self._worker,
        )


def _context(attempt: Attempt) -> TaskContext:
    return TaskContext(attempt.spec.task_id, attempt.spec.fn_name, attempt.tries)
