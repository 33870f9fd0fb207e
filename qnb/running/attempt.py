"""One attempt at a job: decode, run, classify into an :class:`Outcome`. No store, no processes."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from traceback import clear_frames
from typing import Any, NamedTuple, Protocol

from qnb.clock import ServerClock
from qnb.errors import (
    BrokerError,
    JobError,
    MemoryLimitExceeded,
    QnbError,
    Retry,
    SignatureError,
    UnknownTask,
    WorkerCrashed,
)
from qnb.models import (
    Ending,
    ErrorContext,
    Failure,
    JobSpec,
    Outcome,
    Policy,
    Report,
    TaskContext,
)
from qnb.registry import Registry
from qnb.running.context import Reporter, Running, running_as
from qnb.running.failures import failure_of
from qnb.running.measure import Meter
from qnb.storage.records import MAX_LOST_STARTS
from qnb.wire.codec import Codec

__all__ = [
    "Attempt", "Ended", "Run", "Runner", "context_of", "failure_of", "found", "lost_outcome",
    "retry_delay", "task_of",
]  # fmt: skip

#: functions shipped by value that a process keeps decoded
KEPT_FUNCTIONS = 128

#: the longest pause between two attempts that backoff grows to
LONGEST_PAUSE_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Attempt:
    """Everything a process needs to run a job once. ``code`` is the shipped function, if any."""

    spec: JobSpec
    number: int
    tries: int
    call: bytes
    code: bytes | None = None
    lost: int = 0  #: how many of ``tries`` lost their process; they do not count as retries

    @property
    def failures(self) -> int:
        """How many attempts will have failed if this one does."""
        return self.tries - self.lost


class Run(Protocol):
    """Who is told what becomes of one attempt; called on the worker's loop."""

    def begun(self) -> None:
        """It has a place to run in, from which its time counts."""

    def hear(self, news: Report | str) -> None:
        """Its body has reported, or put out, this."""

    def ended(self, end: Outcome | Exception | None) -> None:
        """Said last: how it ended, or how its process did under it; None: it was stopped."""


class Ended(NamedTuple):
    """How an attempt ended, and what error hooks are to be told of it."""

    outcome: Outcome
    failure: ErrorContext | None = None


def retry_delay(policy: Policy, tries: int, asked_ms: int | None = None) -> int | None:
    """Milliseconds until the attempt after number ``tries``, None if the retries are used up.

    >>> [retry_delay(Policy(max_retries=3, backoff_ms=100), tries) for tries in (1, 2, 3, 4)]
    [100, 200, 400, None]
    """
    if tries > policy.max_retries:
        return None
    if asked_ms is not None:
        return asked_ms
    return min(LONGEST_PAUSE_MS, policy.backoff_ms << min(tries - 1, 40))


class _Refused(Exception):
    """The body was never entered, or its value cannot be sent: trying again changes nothing."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(reason)
        self.reason = reason


class Runner:
    """Runs attempts in this process.

    ``shipped_first`` tells which function runs where a job carries its own and the registry has
    one of that name: a worker process takes the shipped one, your own process yours.
    """

    def __init__(
        self, codec: Codec, registry: Registry, clock: ServerClock, *, shipped_first: bool
    ) -> None:
        self.registry = registry
        self.clock = clock
        self._codec = codec
        self._shipped_first = shipped_first
        self._functions: OrderedDict[str, Callable[..., Any]] = OrderedDict()
        self._worker = f"{socket.gethostname()}:{os.getpid()}"

    def needs_code(self, spec: JobSpec) -> bool:
        """Must the caller bring the function of ``spec`` as bytes?"""
        if not spec.function or ":" in spec.function or spec.function in self._functions:
            return False
        return self._shipped_first or self.registry.get(spec.fn_name) is None

    def run(self, attempt: Attempt, reporter: Reporter, *, alone: bool = False) -> Ended:
        """Run a plain function here and now; ``alone``: as the only body of this process."""
        start, binding = self.clock.now_ms(), attempt.spec.binding()
        meter = Meter(alone=alone, thread=not alone)
        with running_as(Running(task_of(attempt), reporter), alone=alone):
            try:
                fn, args, kwargs = self._decode(attempt, binding)
                value = fn(*args, **kwargs)
                if inspect.iscoroutine(value):  # of a partial, or a callable object
                    value = asyncio.run(value)
                ended = self._done(attempt, binding, start, meter, value)
            except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
                ended = self._failed(attempt, start, meter, error)
        reporter.flush()
        return ended

    async def run_async(
        self,
        attempt: Attempt,
        reporter: Reporter,
        *,
        stopped: Callable[[], bool] = lambda: False,
        alone: bool = False,
    ) -> Ended:
        """Run a coroutine function, or a plain one, on this loop.

        When the calling task has been cancelled because it is ``stopped``, it raises
        ``CancelledError``, whatever the body made of that. A body may also cancel itself.
        """
        start, binding = self.clock.now_ms(), attempt.spec.binding()
        meter = Meter(alone=alone)
        this = asyncio.current_task()
        before = this.cancelling() if this else 0
        with running_as(Running(task_of(attempt), reporter), alone=alone):
            try:
                fn, args, kwargs = self._decode(attempt, binding)
                value = fn(*args, **kwargs)
                if inspect.isawaitable(value):
                    value = await value
                ended = self._done(attempt, binding, start, meter, value)
            except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
                ended = self._failed(attempt, start, meter, error)
        reporter.flush()
        if this and this.cancelling() > before:
            await self._cancelled(this, before, stopped())
        return ended

    async def _cancelled(self, this: asyncio.Task[Any], before: int, stopped: bool) -> None:
        if stopped:
            raise asyncio.CancelledError
        while this.cancelling() > before:
            this.uncancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)  # where Python 3.11 delivers it all the same

    def refused(self, attempt: Attempt, error: QnbError) -> Outcome:
        """How ``attempt`` ends where its body cannot even be started."""
        return self._failed(attempt, self.clock.now_ms(), Meter(), _Refused(error)).outcome

    def _decode(self, attempt: Attempt, binding: bytes) -> tuple[Callable[..., Any], Any, Any]:
        try:
            # Verified first: nothing that a stranger wrote may name a module to import.
            args, kwargs = self._codec.unpack_call(
                attempt.spec.task_id, attempt.call, binding=binding
            )
            fn = self._function(attempt)
        except QnbError as error:
            if isinstance(error, BrokerError):
                raise
            raise _Refused(error) from None
        return fn, args, kwargs

    def _function(self, attempt: Attempt) -> Callable[..., Any]:
        spec = attempt.spec
        registered = self.registry.get(spec.fn_name)
        if registered is not None and not (self._shipped_first and spec.function):
            return registered
        if ":" in spec.function:
            return self._codec.resolve(spec.function)
        if not spec.function:
            raise UnknownTask(
                f"task {spec.fn_name!r} is not known to this worker ({self._worker}). Known: "
                f"{', '.join(sorted(self.registry)) or 'none'}. Start it with the app that "
                "defines the task: qnb worker module:app"
            )
        fn = self._functions.get(spec.function)
        if fn is not None and attempt.code is not None:  # sent again: kept as if it were new
            self._functions[spec.function] = self._functions.pop(spec.function, fn)
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
        self, attempt: Attempt, binding: bytes, start: int, meter: Meter, value: Any
    ) -> Ended:
        finish = self.clock.now_ms()
        cpu = meter.cpu_us()
        try:
            result, nbytes = self._codec.pack_sized_result(
                attempt.spec.task_id, attempt.number, value, binding=binding
            )
        except QnbError as error:
            raise error if isinstance(error, BrokerError) else _Refused(error) from None
        return Ended(
            Outcome(
                ending=Ending.DONE,
                tries=attempt.tries,
                start=start,
                finish=finish,
                result=result,
                worker=self._worker,
                result_nbytes=nbytes,
                peak_memory=meter.peak(),
                cpu_time_us=cpu,
            )
        )

    def _failed(self, attempt: Attempt, start: int, meter: Meter, error: BaseException) -> Ended:
        spec = attempt.spec
        retry_in_ms: int | None = None
        quiet = False
        refused = isinstance(error, _Refused)
        if isinstance(error, MemoryError):
            clear_frames(error.__traceback__)  # else the report has no more room than the body had
        if isinstance(error, _Refused):
            error = error.reason
        elif isinstance(error, Retry):
            retry_in_ms = retry_delay(spec.policy, attempt.failures, error.delay_ms)
            quiet = retry_in_ms is not None
            error = error if quiet else _used_up(error, spec.policy)
        else:
            retry_in_ms = retry_delay(spec.policy, attempt.failures)
        forged = refused and isinstance(error, SignatureError)
        outcome = Outcome(
            ending=Ending.REFUSED if forged else Ending.FAILED,
            tries=attempt.tries,
            start=start,
            finish=self.clock.now_ms(),
            result=self._packed(attempt, error),
            failure=failure_of(error),
            worker=self._worker,
            peak_memory=meter.peak(),
            cpu_time_us=meter.cpu_us(),
            retry_in_ms=retry_in_ms,
        )
        if quiet or not self.registry.error_hooks:
            return Ended(outcome)
        return Ended(outcome, context_of(attempt, error, will_retry=retry_in_ms is not None))

    def _packed(self, attempt: Attempt, error: BaseException) -> bytes:
        spec = attempt.spec
        try:
            return self._codec.pack_error(
                spec.task_id, attempt.number, error, binding=attempt.spec.binding()
            )
        except QnbError:
            raise
        except BaseException:  # noqa: BLE001 - its own __reduce__ or __str__ may even exit
            return b""


def _used_up(error: Retry, policy: Policy) -> Retry:
    """``error`` with the way out: the task asked for one more attempt than it has."""
    told = Retry(
        f"{error} (the task asked to be run again, but its max_retries={policy.max_retries} "
        f"{'are used up' if policy.max_retries else 'allows no retry'}: give it more with "
        "@app.task(max_retries=...))",
        delay_ms=error.delay_ms,
    )
    told.__cause__, told.__context__ = error.__cause__, error.__context__
    told.__suppress_context__ = error.__suppress_context__
    return told.with_traceback(error.__traceback__)


def task_of(attempt: Attempt) -> TaskContext:
    """What the body is told of its job."""
    return TaskContext(attempt.spec.task_id, attempt.spec.fn_name, attempt.tries)


def context_of(attempt: Attempt, error: BaseException, *, will_retry: bool) -> ErrorContext:
    """What hooks are told when ``attempt`` has failed with ``error``."""
    return ErrorContext(
        attempt.spec.fn_name, attempt.spec.task_id, error, attempt.tries, will_retry
    )


def lost_outcome(
    spec: JobSpec, now: int, reason: str, tries: int = MAX_LOST_STARTS, start: int | None = None
) -> Outcome:
    """How a job ends that has lost its worker too often."""
    message = (
        f"job {spec.task_id!r} of task {spec.fn_name!r} lost its worker {MAX_LOST_STARTS} times: "
        f"{reason}"
    )
    return Outcome(
        ending=Ending.CRASHED,
        tries=tries,
        start=now if start is None else start,
        finish=now,
        failure=Failure("WorkerCrashed", message, f"WorkerCrashed({message!r})"),
    )


#: failures that are found outside of the body, as the exceptions that hooks are told
_FOUND: dict[str, type[Exception]] = {
    "TimeoutError": TimeoutError,
    "WorkerCrashed": WorkerCrashed,
    "MemoryLimitExceeded": MemoryLimitExceeded,
}


def found(error: str, message: str) -> Exception:
    """The exception of that name, for hooks."""
    return _FOUND.get(error, JobError)(message)
