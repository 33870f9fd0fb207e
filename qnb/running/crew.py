"""As many child processes as there are slots: started, renewed when worn, replaced when lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from qnb.errors import QnbError
from qnb.running.child import Child, Keeper
from qnb.running.messages import SlotConfig, State

__all__ = ["Crew", "Employer"]

log = logging.getLogger("qnb.worker")

T = TypeVar("T")

#: seconds for a child to come up, its imports and its lifespan included; and to leave
SLOT_START = 60.0
SLOT_LEAVE = 3.0

#: bodies after which a child is replaced, so that what libraries leak stays small
RECYCLE = 10_000


class Employer(Keeper, Protocol):
    """Who has work for children."""

    def changed(self) -> None:
        """There may be a child at rest."""

    def none(self, error: QnbError) -> None:
        """A child that was wanted could not be started."""


class Crew:
    """Belongs to the loop it is used on. With ``on_demand`` children are started when wanted."""

    def __init__(
        self,
        config: SlotConfig,
        environment: dict[str, str],
        slots: int,
        employer: Employer,
        *,
        on_demand: bool,
    ) -> None:
        self.children: set[Child] = set()  #: all that live
        self.serving: set[Child] = set()  #: one for each slot
        self.idle: list[Child] = []
        self.sharing: list[Child] = []  #: those whose bodies run side by side
        self.spares: list[Child] = []  #: ready to take the place of worn ones
        self.has_hooks = False  #: of the app, as the newest child has said
        self._config = config
        self._environment = environment
        self._slots = slots
        self._employer = employer
        self._on_demand = on_demand
        self._coming = 0  # children on demand that are being started
        self.early = 0  #: children in a row that have died before they were given anything
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def start(self) -> None:
        """Have all children ready; an error if one cannot be."""
        started = await asyncio.gather(
            *(self._child() for _ in range(self._slots)), return_exceptions=True
        )
        failed = [error for error in started if isinstance(error, BaseException)]
        if failed:
            await self.close()
            raise failed[0]
        for child in started:
            if isinstance(child, Child):
                self._serve(child)

    async def close(self) -> None:
        """End all children; those at rest may clean up, what still runs is killed."""
        self._closing = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(
            *(
                child.kill() if child.bodies else child.let_go(SLOT_LEAVE)
                for child in tuple(self.children)
            ),
            return_exceptions=True,
        )
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do this meanwhile, until closed."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- coming --------------------------------------------------------------------------------

    def want(self, count: int) -> None:
        """So many bodies wait for a child: start some, where that is left until they are needed."""
        while (
            self._on_demand
            and self._coming < count
            and len(self.serving) + self._coming < self._slots
        ):
            self._coming += 1
            self.keep(self._come())

    async def _come(self) -> None:
        try:
            child = await self._child()
        except (QnbError, OSError) as error:
            self._coming -= 1
            self._employer.none(error if isinstance(error, QnbError) else QnbError(str(error)))
        else:
            self._coming -= 1
            self._serve(child)

    async def _child(self) -> Child:
        child = await Child.start(self._config, self._environment, self._employer, SLOT_START)
        if child.gone.done():
            raise QnbError(f"a worker process ended at once: {child.how()}")
        self.children.add(child)
        self.has_hooks = child.has_hooks
        return child

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

    def _serve(self, child: Child) -> None:
        self.serving.add(child)
        self.idle.append(child)
        self._employer.changed()

    # -- going ---------------------------------------------------------------------------------

    def rests(self, child: Child) -> None:
        """Nothing runs in ``child``."""
        if child in self.sharing:
            self.sharing.remove(child)
        self.idle.append(child)
        if child.worn and self.spares:
            self._swap(child, self.spares.pop())

    def look_at(self, child: Child, state: State) -> None:
        """Bodies of it have ended: is it worn?"""
        if (state is not State.FINE or child.done >= RECYCLE) and not child.worn:
            child.worn = True
            self.keep(self._renew(child))

    def end(self, child: Child) -> None:
        """Kill a child; another one takes its place at once."""
        child.doomed = True
        self.drop(child)
        self.keep(child.kill())

    def drop(self, child: Child) -> None:
        """Let ``child`` serve no more, and have another one in its place."""
        for where in (self.idle, self.sharing, self.spares):
            if child in where:
                where.remove(child)
        if child in self.serving:
            self.serving.discard(child)
            if self.spares:
                self._serve(self.spares.pop())
            elif self._on_demand:
                self._employer.changed()
            elif not self._closing:
                self.keep(self._replace())

    def lost(self, child: Child) -> None:
        """``child`` is gone."""
        self.children.discard(child)
        if not child.doomed:
            self.early = self.early + 1 if child.is_unused else 0
        child.doomed = True
        self.drop(child)

    async def _replace(self) -> None:
        if self.early > 3:  # they die without having done anything
            await asyncio.sleep(min(0.1 * 2 ** (self.early - 3), 5))
        self._serve(await self._ready())

    async def _renew(self, worn: Child) -> None:
        fresh = await self._ready()
        if worn in self.idle:
            self._swap(worn, fresh)
        elif worn in self.serving:
            self.spares.append(fresh)
        else:  # it has died, and was replaced
            await fresh.let_go(SLOT_LEAVE)

    def _swap(self, worn: Child, fresh: Child) -> None:
        self.serving.discard(worn)
        self.idle.remove(worn)
        self.keep(worn.let_go(SLOT_LEAVE))
        self._serve(fresh)
