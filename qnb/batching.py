"""Calls that coalesce: one batch in flight; whatever arrives meanwhile is the next one.

Immediate when idle, growing under load, no timer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Batcher"]

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Collects items for ``send``, which takes a list and returns one result for each, in order.

    Belongs to the event loop it is used on. An error of ``send`` reaches every item of its batch
    and no other.
    """

    __slots__ = ("_most", "_send", "_task", "_waiting")

    def __init__(
        self, send: Callable[[list[T]], Awaitable[Sequence[R]]], *, most: int = 256
    ) -> None:
        self._send = send
        self._most = most
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._task: asyncio.Task[None] | None = None

    def put(self, item: T) -> asyncio.Future[R]:
        """Add ``item`` to the next batch; the future is its result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = loop.create_task(self._drain(), name="qnb-batch")
        return future

    async def flush(self) -> None:
        """Wait until everything put so far has been sent."""
        while self._task is not None:
            await asyncio.shield(self._task)

    async def _drain(self) -> None:
        try:
            while self._waiting:
                batch = [
                    self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))
                ]
                try:
                    results = await self._send([item for item, _ in batch])
                except BaseException as error:
                    for _, future in batch:
                        if not future.done():
                            if isinstance(error, Exception):
                                future.set_exception(error)
                            else:
                                future.cancel()
                    if not isinstance(error, Exception):
                        raise
                    continue
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
        finally:
            self._task = None
            for _, future in self._waiting:  # only when cancelled
                future.cancel()
            self._waiting.clear()
