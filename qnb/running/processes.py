"""Bodies in child processes, which can be killed: one per slot, warm, reused, replaced."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from qnb.clock import ServerClock
from qnb.errors import QnbError
from qnb.models import Ending, Failure, JobSpec, Outcome
from qnb.running.attempt import Attempt, retry_delay
from qnb.running.child import Body, Child, SlotDied, SlotLost, Suspects, Tell, own_children
from qnb.running.messages import SlotConfig, State
from qnb.running.trees import memory_of

__all__ = ["ProcessExecutor", "nothing"]

log = logging.getLogger("qnb.worker")

T = TypeVar("T")

#: seconds for a child to come up, its imports and its lifespan included; and to leave
SLOT_START = 60.0
SLOT_LEAVE = 3.0

#: bodies after which a child is replaced, so that what libraries leak stays small
RECYCLE = 10_000

#: seconds that a cancelled body which shares its child has to end
GRACE = 0.3

#: seconds between two looks at the memory of a body that has a limit
MEMORY_EVERY = 0.05

#: seconds for error hooks to be told of what was found here
HOOKS = 5.0

#: environment variables that limit the threads of numerical libraries
THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip


def nothing() -> None:
    """Nobody wants to know."""


class ProcessExecutor:
    """Runs bodies in ``slots`` child processes.

    A child runs one body at a time that has it to itself, or up to ``concurrency`` that share it:
    coroutines, and those whose task says ``isolation="thread"`` or ``"loop"``. A child that dies
    is replaced at once; who shared it runs alone next. With ``on_demand`` children are started
    when a body needs one. ``adopts`` tells that all other children of this process are orphans of
    bodies (:func:`~qnb.running.trees.adopt_orphans`).
    """

    def __init__(  # noqa: PLR0913 - how many, and how they live
        self,
        config: SlotConfig,
        clock: ServerClock,
        slots: int,
        url: str | None = None,
        *,
        max_memory: int | None = None,
        on_demand: bool = False,
        adopts: bool = False,
    ) -> None:
        self.slots = slots
        self.on_room: Callable[[], None] = nothing
        self._on_demand = on_demand
        self._adopts = adopts
        self._config = dataclasses.replace(
            config, url=url or config.url, max_memory=max_memory or config.max_memory
        )
        self._clock = clock
        self._concurrency = config.options.concurrency
        self._environment = environment(self._config.url, slots)
        self._children: set[Child] = set()  # all that live
        self._serving: set[Child] = set()  # one for each slot
        self._idle: list[Child] = []
        self._sharing: list[Child] = []
        self._spares: list[Child] = []  # ready to take the place of worn ones
        self._waiting: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._suspects = Suspects()
        self._coming = 0  # children on demand that are being started
        self._early = 0  # children in a row that have died before they were given anything
        self._has_hooks = False  # of the app, as the newest child has said
        self._closing = False

    async def start(self) -> None:
        """Have all children ready; an error if one cannot be."""
        self._config.packed()  # what cannot be sent is refused before any is started
        if self._adopts:
            own_children()
        started = await asyncio.gather(
            *(self._child() for _ in range(self.slots)), return_exceptions=True
        )
        failed = [error for error in started if isinstance(error, BaseException)]
        if failed:
            await self.close()
            raise failed[0]
        for child in started:
            if isinstance(child, Child):
                self._serve(child)

    # -- what the worker asks ------------------------------------------------------------------

    def needs_code(self, spec: JobSpec) -> bool:
        """Children that lack a shipped function are sent it."""
        return bool(spec.function) and ":" not in spec.function

    def room(self, spec: JobSpec | None = None) -> int:
        """How many more bodies like ``spec`` could start now; None: bodies that need a child."""
        # Those who wait here, hooks among them, come before new bodies.
        idle = max(0, len(self._idle) - len(self._waiting))
        if spec is None or self._is_alone(spec):
            return idle
        taken = sum(len(child.bodies) for child in self._sharing)
        return self._concurrency * (idle + len(self._sharing)) - taken

    def _is_alone(self, spec: JobSpec) -> bool:
        return _alone(spec) or spec.task_id in self._suspects

    def stops(self, spec: JobSpec) -> bool:
        """Every body can be stopped here."""
        return True

    async def run(
        self, attempt: Attempt, tell: Tell, begun: Callable[[], None] = nothing
    ) -> Outcome:
        """Run one attempt to its end. Cancelling it ends the body and all that it has started."""
        alone = self._is_alone(attempt.spec)
        child = await self._place(alone)
        begun()
        body = child.begin(attempt, tell, self._clock.now_ms(), alone=alone)
        limit = attempt.spec.policy.max_memory
        watch = self._keep(self._limit(child, body, limit)) if limit else None
        try:
            outcome = await body.ended
        except asyncio.CancelledError:
            await asyncio.shield(self._keep(self._stop(child, body)))
            raise
        finally:
            if watch is not None:
                watch.cancel()
            if alone:
                self._suspects.discard(attempt.spec.task_id)
        if outcome is None:  # told to stop by nobody here
            raise SlotLost(f"process {child.pid} has given the job up")
        if outcome is body.verdict and outcome.failure is not None:
            await self.report_failure(
                attempt, outcome.failure.type, outcome.failure.message,
                will_retry=outcome.retry_in_ms is not None,
            )  # fmt: skip
        return outcome

    async def report_failure(
        self, attempt: Attempt, error: str, message: str, *, will_retry: bool
    ) -> None:
        """Tell the error hooks, in a child, of a failure that was found out here."""
        if not self._has_hooks:
            return
        with contextlib.suppress(TimeoutError, QnbError):
            async with asyncio.timeout(HOOKS):
                child = await self._place(alone=True)
                try:
                    await child.tell_hooks(
                        attempt, error, message, self._clock.now_ms(), again=will_retry
                    )
                except BaseException:
                    self._end(child)  # they hang in it
                    raise
                self.freed(child, State.FINE)

    async def close(self) -> None:
        """End all children; those at rest may clean up, what still runs is killed."""
        self._closing = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(
            *(
                child.kill() if child.bodies else child.let_go(SLOT_LEAVE)
                for child in tuple(self._children)
            ),
            return_exceptions=True,
        )
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- children ------------------------------------------------------------------------------

    async def _place(self, alone: bool) -> Child:
        """A child for a body, as soon as there is one."""
        while (child := self._take(alone)) is None:
            if self._on_demand and len(self._serving) + self._coming < self.slots:
                self._coming += 1
                try:
                    self._serve(await self._child())
                finally:
                    self._coming -= 1
            else:
                await self._wait()
        return child

    def _take(self, alone: bool) -> Child | None:
        if not alone:
            for child in self._sharing:
                if len(child.bodies) < self._concurrency and not (child.worn and self._spares):
                    return child
        if not self._idle:
            return None
        child = self._idle.pop()
        if not alone:
            self._sharing.append(child)
        return child

    def freed(self, child: Child, state: State) -> None:
        """A body of ``child`` has ended: it may serve others, or make place for a fresh one."""
        if child.doomed:  # of what it has left behind, or of another body
            self._drop(child)
            return
        if (state is State.WORN or child.done >= RECYCLE) and not child.worn:
            child.worn = True
            self._keep(self._renew(child))
        if not child.bodies:
            if child in self._sharing:
                self._sharing.remove(child)
            self._idle.append(child)
            if child.worn and self._spares:
                self._swap(child, self._spares.pop())
        self._changed()

    def died(self, child: Child) -> None:
        """``child`` is gone: its bodies are told, and another one takes its place."""
        was_ours, child.doomed = child.doomed, True
        self._children.discard(child)
        bodies = list(child.bodies.values())
        child.bodies.clear()
        if was_ours:
            lost = SlotLost(f"process {child.pid} was ended because of another job in it")
            for body in bodies:
                body.fail(lost) if body.verdict is None else body.end(body.verdict)
        else:
            self._early = self._early + 1 if child.is_unused else 0
            log.warning("%s", child.how())
            self._keep(self._tell(child, bodies))
        self._drop(child)

    async def _tell(self, child: Child, bodies: list[Body]) -> None:
        """Say that ``child`` has died, when what it left behind is gone too."""
        several = len(bodies) > 1
        if several:  # nobody knows whose fault it was: each shows it alone
            self._suspects.update(body.attempt.spec.task_id for body in bodies)
        try:
            await child.clear(self._adopts)
        finally:
            for body in bodies:
                shared = f"{child.how()}\n{len(bodies)} jobs shared it; each runs alone next"
                body.fail(SlotLost(shared) if several else SlotDied(child.how()))

    def _end(self, child: Child) -> asyncio.Task[None]:
        """Kill a child; another one takes its place at once."""
        child.doomed = True
        self._drop(child)
        return self._keep(child.kill())

    def _drop(self, child: Child) -> None:
        """Let ``child`` serve no more, and have another one in its place."""
        for where in (self._idle, self._sharing, self._spares):
            if child in where:
                where.remove(child)
        if child in self._serving:
            self._serving.discard(child)
            if self._spares:
                self._serve(self._spares.pop())
            elif self._on_demand:
                self._changed()
            elif not self._closing:
                self._keep(self._replace())

    def _serve(self, child: Child) -> None:
        self._serving.add(child)
        self._idle.append(child)
        self._changed()

    def _swap(self, worn: Child, fresh: Child) -> None:
        self._serving.discard(worn)
        self._idle.remove(worn)
        self._keep(worn.let_go(SLOT_LEAVE))
        self._serve(fresh)

    async def _replace(self) -> None:
        if self._early > 3:  # they die without having done anything
            await asyncio.sleep(min(0.1 * 2 ** (self._early - 3), 5))
        self._serve(await self._ready())

    async def _renew(self, worn: Child) -> None:
        fresh = await self._ready()
        if worn in self._idle:
            self._swap(worn, fresh)
        elif worn in self._serving:
            self._spares.append(fresh)
        else:  # it has died, and was replaced
            await fresh.let_go(SLOT_LEAVE)

    async def _ready(self) -> Child:
        """A fresh child, as soon as one will start."""
        failures = 0
        while True:
            try:
                return await self._child()
            except (QnbError, OSError) as error:
                log.warning("%s", error)
                failures += 1
                await asyncio.sleep(min(0.1 * 2**failures, 5))

    async def _child(self) -> Child:
        child = await Child.start(self._config, self._environment, self, SLOT_START)
        if child.gone.done():
            raise QnbError(f"a worker process ended at once: {child.how()}")
        self._children.add(child)
        self._has_hooks = child.has_hooks
        return child

    # -- stopping ------------------------------------------------------------------------------

    async def _stop(self, child: Child, body: Body) -> None:
        """End a body; its child too, if it has that for itself or does not yield."""
        if body.seq not in child.bodies:
            return
        if not body.alone and not child.doomed:
            body.ended = asyncio.get_running_loop().create_future()  # its waiter took the first
            child.stop(body)
            await asyncio.wait([body.ended], timeout=GRACE)
        if body.seq in child.bodies:
            await (asyncio.wait([child.gone]) if child.doomed else self._end(child))

    async def _limit(self, child: Child, body: Body, limit: int) -> None:
        """End a body that holds more memory than its task allows."""
        used = 0
        while used <= limit:
            await asyncio.sleep(MEMORY_EVERY)
            used = await asyncio.to_thread(memory_of, child.pid)
        if body.seq not in child.bodies or child.doomed:
            return
        attempt, spec = body.attempt, body.attempt.spec
        message = (
            f"job {spec.task_id!r} of task {spec.fn_name!r} held {used:,} bytes of memory, and its "
            f"max_memory is {limit:,}: give it more, or less to do at a time"
        )
        text = f"MemoryLimitExceeded({message!r})"
        body.verdict = Outcome(
            Ending.FAILED, attempt.tries, body.start, self._clock.now_ms(),
            failure=Failure("MemoryLimitExceeded", message, text),
            worker=f"{socket.gethostname()}:{child.pid}",
            peak_memory=used,
            retry_in_ms=retry_delay(spec.policy, attempt.failures),
        )  # fmt: skip
        self._end(child)

    # -- waiting -------------------------------------------------------------------------------

    async def _wait(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    def _changed(self) -> None:
        self.on_room()
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _alone(spec: JobSpec) -> bool:
    """Whether a body gets a child for itself."""
    policy = spec.policy
    if policy.max_memory is not None or policy.isolation == "process":
        return True
    return not spec.is_async and policy.isolation is None


def environment(url: str | None, slots: int) -> dict[str, str]:
    """The environment of child processes: the store for an ``App()`` made in a task, and as many
    threads for numerical libraries as each slot has cores, unless the user has said how many."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    each = str(max(1, cores // slots))
    store = {"QNB_REDIS_URL": url} if url else {}
    return {**dict.fromkeys(THREADS, each), **os.environ, **store}
