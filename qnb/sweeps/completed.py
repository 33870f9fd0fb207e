"""The jobs of a sweep as they end, for loops of both kinds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Generic, TypeVar

from qnb import bridge
from qnb.job import Job
from qnb.sweeps.feed import Feed

__all__ = ["Completed", "how_to_return"]

R = TypeVar("R")


def how_to_return(name: str) -> str:
    """What whoever interrupts a wait is told."""
    return f"sweep {name!r} goes on: app.sweep({name!r}) shows it, and its cancel() ends it"


class Completed(Generic[R]):
    """The jobs of a sweep as they end; each once. An iterator for loops of both kinds."""

    def __init__(
        self, feed: Callable[[], Feed], job: Callable[[int], Job[R]], limit: float | None
    ) -> None:
        self._feed = feed
        self._job = job
        self._limit = limit
        self._deadline: float | None = None

    def __iter__(self) -> Iterator[Job[R]]:
        wait = self._waits()
        for more in wait:
            if isinstance(more, Future):
                try:
                    more.result(self._left())
                except FutureTimeout:
                    raise self._late() from None
                except KeyboardInterrupt as interrupt:
                    interrupt.add_note(how_to_return(self._feed().study.name))
                    raise
            else:
                yield more

    async def __aiter__(self) -> AsyncIterator[Job[R]]:
        for more in self._waits():
            if isinstance(more, Future):
                try:
                    async with asyncio.timeout(self._left()):
                        await bridge.arrived(more)
                except TimeoutError:
                    raise self._late() from None
            else:
                yield more

    def _waits(self) -> Iterator[Job[R] | Future[None]]:
        """Jobs that have ended, and what to wait for where there is none."""
        self._deadline = None if self._limit is None else time.monotonic() + self._limit
        given: set[str] = set()
        order, at = None, 0
        while True:
            feed = self._feed()
            more, ended = feed.more, feed.ended
            if order is not feed.order:  # jobs run again, or there are other points
                order, at = feed.order, 0
            while at < len(order):
                job = self._job(order[at])
                if order is not feed.order:  # whose place was that?
                    break
                at += 1
                if job.id not in given:
                    given.add(job.id)
                    yield job
            if ended.done() and ended is feed.ended and order is feed.order:
                ended.result()  # it may have an error to tell
                if at == len(order):
                    return
            else:
                yield more

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _late(self) -> TimeoutError:
        feed = self._feed()
        name, left = feed.study.name, feed.left
        return TimeoutError(
            f"{left:,} jobs of sweep {name!r} have not ended within {self._limit:g} s; {feed.why()}"
        )
