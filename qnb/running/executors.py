"""Where bodies run: in this process, in child processes, or in a pool of somebody else's.

An executor knows nothing of the store. Cancelling :meth:`Executor.run` stops the body as far as
its kind can, which :meth:`Executor.stops` tells.
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
from qnb.running.attempt import Attempt, Ended, Runner, context_of, found, task_of
from qnb.running.child import News, SlotDied, SlotLost, Tell
from qnb.running.context import Reporter, Running, running_as
from qnb.running.messages import SlotConfig
from qnb.running.processes import ProcessExecutor, nothing
from qnb.running.progress import watch_tqdm

__all__ = [
    "Executor", "InlineExecutor", "News", "ProcessExecutor", "SlotDied", "SlotLost", "Tell",
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

    async def run(
        self, attempt: Attempt, tell: Tell, begun: Callable[[], None] = nothing
    ) -> Outcome:
        """Run one attempt to its end; ``tell`` gets its reports and output meanwhile.

        ``begun`` is called when it has a place to run in, from which its time counts.
        :class:`SlotDied` if its process ended under it, :class:`SlotLost` if that was ended because
        of another body. When cancelled it returns as soon as the body is gone.
        """

    async def report_failure(
        self, attempt: Attempt, error: str, message: str, *, will_retry: bool
    ) -> None:
        """Tell the app's error hooks of a failure that was found outside of the body."""

    async def close(self) -> None:
        """Stop whatever still runs and let go of all resources."""


class InlineExecutor:
    """Runs coroutines on the worker's own loop and plain functions in threads of this process.

    A thread cannot be stopped, nor a coroutine that swallows its cancellation. A task with
    ``isolation="process"`` runs in a child process, for which ``config`` is needed; its
    ``max_memory`` is watched there only.
    """

    def __init__(self, runner: Runner, slots: int, config: SlotConfig | None = None) -> None:
        self.slots = slots
        self.on_room: Callable[[], None] = nothing
        self._runner = runner
        self._config = config
        self._running = 0
        self._started = False
        self._lifespan = LifespanRun(runner.registry)
        self._children: ProcessExecutor | None = None
        self._stubborn: set[str] = set()  # jobs whose coroutine runs on

    async def start(self) -> None:
        await self._lifespan.start()
        capture.divert(through=True)
        watch_tqdm()
        self._started = True

    def needs_code(self, spec: JobSpec) -> bool:
        if spec.policy.isolation == "process":
            return bool(spec.function) and ":" not in spec.function
        return self._runner.needs_code(spec)

    def room(self, spec: JobSpec | None = None) -> int:
        return max(0, self.slots - self._running)

    def stops(self, spec: JobSpec) -> bool:
        isolation = spec.policy.isolation
        if spec.task_id in self._stubborn:
            return False
        return isolation == "process" or (spec.is_async and isolation != "thread")

    async def run(
        self, attempt: Attempt, tell: Tell, begun: Callable[[], None] = nothing
    ) -> Outcome:
        self._running += 1
        try:
            if attempt.spec.policy.isolation == "process":
                return await self._processes().run(attempt, tell, begun)
            begun()
            return await self._here(attempt, tell)
        except QnbError as error:
            return self._runner.refused(attempt, error)
        finally:
            self._running -= 1

    async def _here(self, attempt: Attempt, tell: Tell) -> Outcome:
        loop = asyncio.get_running_loop()
        feed = capture.Feed(loop, tell)
        stopped = False
        with capture.capturing(feed):
            work = self._body(attempt, _reporter(loop, tell), lambda: stopped)
            body = loop.create_task(work)
        try:
            return (await asyncio.shield(body)).outcome
        except asyncio.CancelledError:
            stopped = True
            body.cancel()
            await asyncio.wait([body], timeout=GRACE)
            if not body.done():  # this worker does not wait for it
                task_id = attempt.spec.task_id
                self._stubborn.add(task_id)
                body.add_done_callback(lambda _: self._stubborn.discard(task_id))
            raise
        finally:
            feed.close()

    async def _body(
        self, attempt: Attempt, reporter: Reporter, stopped: Callable[[], bool]
    ) -> Ended:
        if attempt.spec.is_async or attempt.spec.policy.isolation == "loop":
            ended = await self._runner.run_async(attempt, reporter, stopped=stopped)
        else:
            ended = await in_thread(self._runner.run, attempt, reporter)
        if ended.failure is not None:
            with running_as(Running(task_of(attempt), reporter)):
                await fire(self._runner.registry, ended.failure)
        return ended

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
                self._config, self._runner.clock, self.slots, on_demand=True
            )
        return self._children

    async def report_failure(
        self, attempt: Attempt, error: str, message: str, *, will_retry: bool
    ) -> None:
        told = context_of(attempt, found(error, message), will_retry=will_retry)
        with running_as(Running(task_of(attempt), Reporter(lambda _: None))):
            await fire(self._runner.registry, told)

    async def close(self) -> None:
        if self._children is not None:
            with contextlib.suppress(QnbError):
                await self._children.close()
        await self._lifespan.stop()
        if self._started:
            self._started = False
            capture.restore()


def _reporter(loop: asyncio.AbstractEventLoop, tell: Tell) -> Reporter:
    """Reports of a body of this process, told on the loop, in order."""

    def send(report: Report) -> None:
        try:
            here = asyncio.get_running_loop() is loop
        except RuntimeError:
            here = False
        if here:
            tell(report)
        else:
            loop.call_soon_threadsafe(tell, report)

    return Reporter(send)
