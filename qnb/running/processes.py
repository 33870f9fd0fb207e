"""Bodies in child processes, which can be killed: one per slot, warm, reused, replaced."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
from collections.abc import Callable
from functools import partial

from qnb.clock import ServerClock
from qnb.errors import QnbError
from qnb.models import Ending, Failure, JobSpec, Outcome
from qnb.running.attempt import Attempt, Run, retry_delay
from qnb.running.body import Body, SlotDied, SlotLost, Suspects, Unbegun
from qnb.running.child import Child
from qnb.running.crew import Crew
from qnb.running.messages import SlotConfig, State
from qnb.running.pace import Pace
from qnb.running.spawned import environment, own_children
from qnb.running.trees import memory_of

__all__ = ["ProcessExecutor", "nothing"]

log = logging.getLogger("qnb.worker")

#: seconds that a cancelled body which shares its child has to end
GRACE = 0.3

#: seconds between two looks at the memory of a body that has a limit
MEMORY_EVERY = 0.05

#: seconds for error hooks to be told of what was found here
HOOKS = 5.0

#: milliseconds: bodies that take less are handed to a child while it runs another one
BRIEF = 1.0

#: seconds without an end after which they are taken back; and that they may wait for a place then
OVERDUE = 0.005
HOLD = 0.1

#: who waits for a child gets it, or the reason why there will be none
Asker = Callable[[Child | QnbError], None]


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
        self._adopts = adopts
        self._config = dataclasses.replace(
            config, url=url or config.url, max_memory=max_memory or config.max_memory
        )
        self._clock = clock
        self._concurrency = config.options.concurrency
        self._crew = Crew(
            self._config, environment(self._config.url, slots), slots, self, on_demand=on_demand
        )
        self._waiting: dict[object, tuple[bool, bool, Asker]] = {}  # see _ask; in turn
        self._refused = False  # a body that needs a child at rest, since there last was one
        self._looking = False  # at children that were given bodies ahead of time
        self._suspects = Suspects()
        self.pace = Pace()
        self._closing = False

    async def start(self) -> None:
        """Have all children ready; an error if one cannot be."""
        self._config.packed()  # what cannot be sent is refused before any is started
        if self._adopts:
            own_children()
        await self._crew.start()

    # -- what the worker asks ------------------------------------------------------------------

    def needs_code(self, spec: JobSpec) -> bool:
        """Children that lack a shipped function are sent it."""
        return bool(spec.function) and ":" not in spec.function

    def room(self, spec: JobSpec | None = None) -> int:
        """How many more bodies like ``spec`` could start now; None: bodies that need a child."""
        # Those who wait here, hooks among them, come before new bodies.
        idle = max(0, len(self._crew.idle) - len(self._waiting))
        if spec is None:
            return idle
        if self._is_alone(spec):
            room = idle
            if self._is_brief(spec):
                return idle + (0 if self._is_kept() else sum(c.ahead for c in self._crew.serving))
        else:
            sharing = [child for child in self._crew.sharing if child.turns()]
            taken = sum(len(child.bodies) for child in sharing)
            room = self._concurrency * (idle + len(sharing)) - taken
        self._refused |= room <= 0
        return room

    def _is_kept(self) -> bool:
        """Does somebody need a child at rest? There would be none as long as brief bodies come."""
        return self._refused or any(not brief for _, brief, _ in self._waiting.values())

    def _is_alone(self, spec: JobSpec) -> bool:
        return _alone(spec) or spec.task_id in self._suspects

    def _is_brief(self, spec: JobSpec) -> bool:
        """May it be handed to a child that runs another one?"""
        return (
            self.pace.within(spec.fn_name, BRIEF)
            and spec.policy.max_memory is None
            and spec.task_id not in self._suspects
        )

    def stops(self, spec: JobSpec) -> bool:
        """Every body can be stopped here."""
        return True

    def begin(self, attempt: Attempt, run: Run) -> None:
        """Run one attempt as soon as there is a place for it; ``run`` is told what becomes of it.

        :class:`QnbError` as its end: no child could be started for it.
        """
        alone = self._is_alone(attempt.spec)
        body = Body(attempt, run, alone=alone, brief=alone and self._is_brief(attempt.spec))
        self._ask(run, partial(self._begin, body), alone=alone, brief=body.brief)

    def _begin(self, body: Body, child: Child | QnbError) -> None:
        if isinstance(child, QnbError):
            body.stopped = self._closing
            body.end(child)
            return
        spec = body.attempt.spec
        body.shared = self._suspects.discard(spec.task_id)
        child.begin(body, self._clock.now_ms())
        if not body.has_begun and not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(OVERDUE, self._look)
        if limit := spec.policy.max_memory:
            self._crew.keep(self._limit(child, body, limit))

    def stop(self, run: Run) -> None:
        """End a body and all that it has started; ``run`` is told when they are gone."""
        if self._waiting.pop(run, None):
            run.ended(None)
            return
        for child in tuple(self._crew.children):
            for body in tuple(child.bodies.values()):
                if body.run is run:
                    self._stop(child, body)

    async def report_failure(
        self, attempt: Attempt, error: str, message: str, *, will_retry: bool
    ) -> None:
        """Tell the error hooks, in a child, of a failure that was found out here."""
        if not self._crew.has_hooks:
            return
        with contextlib.suppress(TimeoutError, QnbError):
            async with asyncio.timeout(HOOKS):
                child = await self._place()
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
        waiting, self._waiting = self._waiting, {}
        closed = QnbError("this worker is being stopped")
        for *_, asker in waiting.values():
            asker(closed)
        for child in self._crew.children:
            for body in child.bodies.values():
                body.stopped = True
        await self._crew.close()

    # -- children ------------------------------------------------------------------------------

    def _ask(self, who: object, asker: Asker, *, alone: bool, brief: bool = False) -> None:
        """Give ``asker`` a child for a body, now or as soon as there is one."""
        child = self._take(alone, brief)
        if child is not None:
            asker(child)
            return
        self._waiting[who] = alone, brief, asker
        self._crew.want(len(self._waiting))

    def none(self, error: QnbError) -> None:
        """There will be no child for the next one who waits."""
        if self._waiting:
            *_, asker = self._waiting.pop(next(iter(self._waiting)))
            asker(error)
        self._crew.want(len(self._waiting))

    async def _place(self) -> Child:
        """A child for hooks, as soon as there is one."""
        given: asyncio.Future[Child | QnbError] = asyncio.get_running_loop().create_future()
        self._ask(given, given.set_result, alone=True)
        try:
            child = await given
        except asyncio.CancelledError:
            self._waiting.pop(given, None)
            if not given.cancelled() and isinstance(child := given.result(), Child):
                self.freed(child, State.FINE)
            raise
        if isinstance(child, QnbError):
            raise child
        return child

    def _take(self, alone: bool, brief: bool) -> Child | None:
        if not alone:
            asked = False
            for child in self._crew.sharing:
                if len(child.bodies) < self._concurrency and not (child.worn and self._crew.spares):
                    if turns := child.turns():
                        return child
                    asked |= turns is None
            if asked:  # a moment later it is known who can take it
                return None
        if self._crew.idle:
            child = self._crew.idle.pop()
            self._refused = False
            if not alone:
                self._crew.sharing.append(child)
            return child
        if not brief or self._is_kept():
            return None
        most = max(self._crew.serving, key=lambda child: child.ahead, default=None)
        return most if most and most.ahead else None

    def freed(self, child: Child, state: State) -> None:
        """Bodies of ``child`` have ended: it may serve others, or make place for a fresh one."""
        if child.doomed or child.is_dead:  # of what it has left behind, or of another body
            self._crew.drop(child)
            return
        self._crew.look_at(child, state)
        if not child.bodies:
            self._crew.rests(child)
        self.changed()

    def answered(self) -> None:
        """It is known whether a child's loop turns."""
        self.changed()

    def died(self, child: Child) -> None:
        """``child`` is gone: its bodies are told, and another one takes its place."""
        bodies = [body for body in child.bodies.values() if body.has_begun]
        waited = [body for body in child.bodies.values() if not body.has_begun]
        child.bodies.clear()
        if child.doomed:  # by us
            self._crew.keep(self._tell_ended(child, bodies))
        else:
            log.warning("%s", child.how())
            self._crew.keep(self._tell(child, bodies))
        self._crew.lost(child)
        self.again(waited)

    async def _tell_ended(self, child: Child, bodies: list[Body]) -> None:
        """Say that we have ended ``child``, when all that it has started is gone too."""
        await child.kill()
        for body in bodies:
            if (verdict := body.verdict) is None:
                said = f"process {child.pid} was ended because of another job in it"
                body.end(SlotLost(said))
                continue
            if (failure := verdict.failure) is not None:
                await self.report_failure(
                    body.attempt, failure.type, failure.message,
                    will_retry=verdict.retry_in_ms is not None,
                )  # fmt: skip
            body.end(verdict)

    async def _tell(self, child: Child, bodies: list[Body]) -> None:
        """Say that ``child`` has died, when what it left behind is gone too."""
        several = len(bodies) > 1  # nobody knows whose fault it was: each shows it alone
        self._suspects.update((body.attempt.spec.task_id for body in bodies), shared=several)
        try:
            await child.clear(self._adopts)
        finally:
            for body in bodies:
                shared = f"{child.how()}\n{len(bodies)} jobs shared it; each runs alone next"
                dead = SlotDied(child.how(), 1 + body.shared)
                body.end(SlotLost(shared) if several else dead)

    def _end(self, child: Child) -> None:
        """Kill a child; another one takes its place at once."""
        child.doomed = True
        self.again(child.take_back())
        self._crew.end(child)

    # -- stopping ------------------------------------------------------------------------------

    def _stop(self, child: Child, body: Body) -> None:
        """End a body; its child too, if it has that for itself or does not yield."""
        body.stopped = True
        if not body.has_begun:
            self.again(child.take_back())
        if child.doomed or body.seq not in child.bodies:
            return
        if body.alone:
            self._end(child)
        else:
            child.stop(body)
            asyncio.get_running_loop().call_later(GRACE, self._insist, body, child)

    def _insist(self, body: Body, child: Child) -> None:
        if body.seq in child.bodies and not child.doomed:
            self._end(child)

    async def _limit(self, child: Child, body: Body, limit: int) -> None:
        """End a body that holds more memory than its task allows."""
        used = 0
        while used <= limit:
            await asyncio.sleep(MEMORY_EVERY)
            if body.seq not in child.bodies:
                return
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

    # -- bodies that wait in children ----------------------------------------------------------

    def _look(self) -> None:
        """Take back what waits in a child behind a body that is not brief after all."""
        self._looking = False
        loop = asyncio.get_running_loop()
        for child in tuple(self._crew.serving):
            if child.brief and len(child.bodies) > 1:
                if child.done == child.seen:
                    child.brief = False
                    self.again(child.take_back())
                else:
                    child.seen = child.done
                    self._looking = True
        if self._looking:
            loop.call_later(OVERDUE, self._look)

    def again(self, bodies: list[Body]) -> None:
        """Find another place for bodies that have waited in a child."""
        for body in bodies:
            if body.stopped or self._closing:
                body.stopped = True
                body.end(Unbegun("it was stopped before it began"))
                continue
            self._ask(body.run, partial(self._begin, body), alone=True, brief=True)
            if body.run in self._waiting:
                asyncio.get_running_loop().call_later(HOLD, self._give_up, body)

    def _give_up(self, body: Body) -> None:
        if self._waiting.pop(body.run, None):
            body.end(Unbegun(f"it has waited {HOLD:g} s behind a job that takes longer"))

    def changed(self) -> None:
        """There may be room now: for those who wait here, or for more."""
        for who, (alone, brief, asker) in tuple(self._waiting.items()):
            if who in self._waiting and (child := self._take(alone, brief)) is not None:
                del self._waiting[who]
                asker(child)
        self._crew.want(len(self._waiting))
        self.on_room()


def _alone(spec: JobSpec) -> bool:
    """Whether a body gets a child for itself."""
    policy = spec.policy
    if policy.max_memory is not None or policy.isolation == "process":
        return True
    return not spec.is_async and policy.isolation is None
