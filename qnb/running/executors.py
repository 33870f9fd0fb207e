"""Where bodies run: in this process, in child processes, or in a pool of somebody else's.

An executor knows nothing of the store. It tells a :class:`~qnb.running.attempt.Run` what becomes of
each body, and stops one as far as its kind can, which :meth:`Executor.stops` tells.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

from qnb.errors import QnbError
from qnb.models import JobSpec, Outcome, Report
from qnb.running import capture
from qnb.running.around import LifespanRun, fire, in_thread
from qnb.running.attempt import Attempt, Ended, Run, Runner, context_of, found, task_of
from qnb.running.body import News, SlotDied, SlotLost, Tell
from qnb.running.context import Reporter, Running, running_as
from qnb.running.messages import SlotConfig
from qnb.running.processes import ProcessExecutor, nothing
from qnb.running.progress import watch_tqdm

__all__ = [
    "Executor", "InlineExecutor", "News", "ProcessExecutor", "SlotDied", "SlotLost", "TaskPerBody",
    "Tell", "run_to_end",
]  # fmt: skip

#: seconds that a cancelled coroutine of this process has to end
GRACE = 1.0


class Executor(Protocol):
    """Runs bodies, up to ``slots`` of those that need a place for themselves at a time."""

    slots: int
    on_room: Callable[[], None]  #: called on the loop when there may be more room than before

    def needs_code(self, spec: JobSpec) -> bool:
        """Must :attr:`Attempt.code` be filled for this job?"""

    def room(self, spec: JobSpec | None = None) -> int:
        """How many more bodies like ``spec`` could start right now; None: of the most demanding."""

    def stops(self, spec: JobSpec) -> bool:
        """Can a running body of this job really be stopped?"""

    async def start(self) -> None:
        """Get ready, the app's lifespan included; an error if that cannot be."""

    def begin(self, attempt: Attempt, run: Run) -> None:
        """Run one attempt, now or when there is a place for it; ``run`` is told what becomes of it.

        Its end is :class:`SlotDied` if its process ended under it, :class:`SlotLost` if that was
        ended because of another body.
        """

    def stop(self, run: Run) -> None:
        """Stop a body as far as that can be done; ``run`` is told when it is gone."""

    async def report_failure(
        self, attempt: Attempt, error: str, message: str, *, will_retry: bool
    ) -> None:
        """Tell the app's error hooks of a failure that was found outside of the body."""

    async def close(self) -> None:
        """Stop whatever still runs and let go of all resources."""


class TaskPerBody:
    """``begin`` and ``stop`` of an executor that awaits each body in a task of its own."""

    def __init__(self) -> None:
        self._bodies: dict[Run, asyncio.Task[None]] = {}

    async def run(
        self, attempt: Attempt, tell: Tell, begun: Callable[[], None] = nothing
    ) -> Outcome:
        """Run one attempt to its end. When cancelled it returns as soon as the body is gone."""
        raise NotImplementedError

    def begin(self, attempt: Attempt, run: Run) -> None:
        body = self._told(attempt, run)
        self._bodies[run] = asyncio.get_running_loop().create_task(body, name="qnb-body")

    async def _told(self, attempt: Attempt, run: Run) -> None:
        end: Outcome | Exception | None = None
        try:
            end = await self.run(attempt, run.hear, run.begun)
        except Exception as error:  # noqa: BLE001 - whatever it is, `run` knows what to do
            end = error
        finally:
            del self._bodies[run]
            run.ended(end)

    def stop(self, run: Run) -> None:
        if run in self._bodies:  # not before its first step: it must tell of its end
            asyncio.get_running_loop().call_soon(self._bodies[run].cancel)


class InlineExecutor:
    """Runs coroutines on the worker's own loop and plain functions in threads of this process.

    A thread cannot be stopped, nor a coroutine that swallows its cancellation. A task with
    ``isolation="process"`` runs in a child process, for which ``config`` is needed; its
    ``max_memory`` is watched there only.
    """

    def __init__(self, runner: Runner, slots: int, config: SlotConfig | None = None) -> None:
        self.slots = slots
        self.on_room: Callable[[], None] = nothing
        self.runner = runner
        self.stubborn: set[str] = set()  #: jobs whose coroutine runs on
        self._config = config
        self._running: dict[Run, _Here | _Elsewhere] = {}
        self._started = False
        self._lifespan = LifespanRun(runner.registry)
        self._children: ProcessExecutor | None = None

    async def start(self) -> None:
        await self._lifespan.start()
        capture.divert(through=True)
        watch_tqdm()
        self._started = True

    def needs_code(self, spec: JobSpec) -> bool:
        if spec.policy.isolation == "process":
            return bool(spec.function) and ":" not in spec.function
        return self.runner.needs_code(spec)

    def room(self, spec: JobSpec | None = None) -> int:
        return max(0, self.slots - len(self._running))

    def stops(self, spec: JobSpec) -> bool:
        isolation = spec.policy.isolation
        if spec.task_id in self.stubborn:
            return False
        return isolation == "process" or (spec.is_async and isolation != "thread")

    def begin(self, attempt: Attempt, run: Run) -> None:
        if attempt.spec.policy.isolation != "process":
            self._running[run] = _Here(self, attempt, run)
            return
        self._running[run] = there = _Elsewhere(self, attempt, run)
        try:
            there.begin(self._processes())
        except QnbError as error:
            there.ended(error)

    def stop(self, run: Run) -> None:
        if run in self._running:
            self._running[run].stop()

    def over(self, run: Run, end: Outcome | Exception | None) -> None:
        """A body has ended: its place is free, and ``run`` is told."""
        del self._running[run]
        run.ended(end)

    def _processes(self) -> ProcessExecutor:
        """Child processes, each started when a body needs it."""
        if self._config is None:
            raise QnbError(
                "isolation='process' needs worker processes, and this worker was made without a "
                "SlotConfig to start them with; serve the task with `qnb worker` instead"
            )
        if self._children is None:
            self._config.packed()  # what cannot be sent is refused before any is started
            self._children = ProcessExecutor(
                self._config, self.runner.clock, self.slots, on_demand=True
            )
        return self._children

    async def report_failure(
        self, attempt: Attempt, error: str, message: str, *, will_retry: bool
    ) -> None:
        told = context_of(attempt, found(error, message), will_retry=will_retry)
        with running_as(Running(task_of(attempt), Reporter(lambda _: None))):
            await fire(self.runner.registry, told)

    async def close(self) -> None:
        here = [body for body in self._running.values() if isinstance(body, _Here)]
        for body in here:
            body.stop()
        if here:
            await asyncio.wait([body.task for body in here], timeout=GRACE)
        if self._children is not None:
            with contextlib.suppress(QnbError):
                await self._children.close()
        await self._lifespan.stop()
        if self._started:
            self._started = False
            capture.restore()


class _Here:
    """A body in this process. Its task belongs to it alone, and so does that task's context."""

    __slots__ = ("_attempt", "_executor", "_feed", "_is_over", "_loop", "_run", "_stopped", "task")

    def __init__(self, executor: InlineExecutor, attempt: Attempt, run: Run) -> None:
        self._executor = executor
        self._attempt = attempt
        self._run = run
        self._stopped = self._is_over = False
        self._loop = asyncio.get_running_loop()
        self._feed = capture.Feed(self._loop, run.hear)
        run.begun()
        self.task = self._loop.create_task(self._body(), name="qnb-body")
        self.task.add_done_callback(self._ended)

    async def _body(self) -> Ended:
        capture.capture(self._feed)
        attempt, runner, reporter = self._attempt, self._executor.runner, Reporter(self._report)
        if attempt.spec.is_async or attempt.spec.policy.isolation == "loop":
            ended = await runner.run_async(attempt, reporter, stopped=lambda: self._stopped)
        else:
            ended = await in_thread(runner.run, attempt, reporter)
        if ended.failure is not None:
            with running_as(Running(task_of(attempt), reporter)):
                await fire(runner.registry, ended.failure)
        return ended

    def _report(self, report: Report) -> None:
        """Tell of it on the loop, in order; a thread of the body may call this, too."""
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._run.hear(report)
        else:
            self._loop.call_soon_threadsafe(self._run.hear, report)

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self.task.cancel()
            self._loop.call_later(GRACE, self._give_up)

    def _give_up(self) -> None:
        """It does not yield: nobody waits for it any longer."""
        if not self._is_over:
            self._executor.stubborn.add(self._attempt.spec.task_id)
            self._over(None)

    def _ended(self, task: asyncio.Task[Ended]) -> None:
        end: Outcome | Exception | None = None
        if not task.cancelled():
            error = task.exception()
            if isinstance(error, QnbError):
                end = self._executor.runner.refused(self._attempt, error)
            elif isinstance(error, Exception):
                end = error
            elif error is None:
                end = task.result().outcome
        if self._is_over:
            self._executor.stubborn.discard(self._attempt.spec.task_id)
        else:
            self._over(end)

    def _over(self, end: Outcome | Exception | None) -> None:
        self._is_over = True
        self._feed.close()
        self._executor.over(self._run, end)


class _Elsewhere:
    """A body of an :class:`InlineExecutor` that has a process for itself."""

    def __init__(self, executor: InlineExecutor, attempt: Attempt, run: Run) -> None:
        self._executor = executor
        self._attempt = attempt
        self._run = run
        self._processes: ProcessExecutor | None = None
        self.begun = run.begun
        self.hear = run.hear

    def begin(self, processes: ProcessExecutor) -> None:
        self._processes = processes
        processes.begin(self._attempt, self)

    def stop(self) -> None:
        if self._processes is not None:
            self._processes.stop(self)

    def ended(self, end: Outcome | Exception | None) -> None:
        if isinstance(end, QnbError):
            end = self._executor.runner.refused(self._attempt, end)
        self._executor.over(self._run, end)


class _Awaited:
    """A run that somebody awaits."""

    def __init__(self, tell: Tell, begun: Callable[[], None]) -> None:
        self.hear = tell
        self.begun = begun
        self.end: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()

    def ended(self, end: Outcome | Exception | None) -> None:
        if isinstance(end, Exception):
            self.end.set_exception(end)
        else:
            self.end.set_result(end)


async def run_to_end(
    executor: Executor, attempt: Attempt, tell: Tell, begun: Callable[[], None] = nothing
) -> Outcome:
    """Run one attempt to its end. When cancelled it stops the body, and returns when it is gone."""
    awaited = _Awaited(tell, begun)
    executor.begin(attempt, awaited)
    try:
        outcome = await asyncio.shield(awaited.end)
    except asyncio.CancelledError:
        executor.stop(awaited)
        await asyncio.wait([awaited.end])
        awaited.end.exception()
        raise
    if outcome is None:
        raise asyncio.CancelledError
    return outcome
