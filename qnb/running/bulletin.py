"""What a worker says of itself: what it runs, what has failed on it, how much memory it takes.

It says so at each heartbeat, and once a second as long as somebody looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from qnb.errors import BrokerError
from qnb.models import Ending, JobSpec, Outcome
from qnb.running.trees import memory_of

__all__ = ["Bulletin"]

#: jobs that are named, of those that run; and of those that have failed
JOBS = 16
FAILED = 5

#: characters of a name, and of an error
NAME = 80
ERROR = 200

#: seconds between two heartbeats that were asked for, at least
PAUSE = 0.9


class Bulletin:
    """Belongs to the worker's loop. A note of each job costs nothing; it is read at a heartbeat."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()  #: somebody looks, and wants to hear of this worker
        self._jobs: dict[str, tuple[JobSpec, int]] = {}
        self._failed: deque[tuple[JobSpec, Outcome]] = deque(maxlen=FAILED)

    def begun(self, ref: str, spec: JobSpec, start: int) -> None:
        """A body has been started."""
        self._jobs[ref] = spec, start

    def ended(self, ref: str) -> None:
        """It runs no more."""
        self._jobs.pop(ref, None)

    def outcome(self, spec: JobSpec, outcome: Outcome) -> None:
        """A job has ended so; one that somebody aborted has not failed."""
        failed = outcome.failure is not None and outcome.ending is not Ending.ABORTED
        if failed and outcome.retry_in_ms is None:
            self._failed.append((spec, outcome))

    async def answer(self, speak: Callable[[], Awaitable[None]]) -> None:
        """``speak`` whenever that is asked for, but not too often."""
        while True:
            await self.asked.wait()
            with contextlib.suppress(BrokerError):
                await speak()
            await asyncio.sleep(PAUSE)
            self.asked.clear()

    async def says(self) -> dict[str, Any]:
        """``jobs``: id, task and start of the longest running ones; ``failed``: id, task, end and
        error of the last ones; ``memory``: bytes, of this process and all below it."""
        memory = await asyncio.to_thread(memory_of, os.getpid())
        running = list(self._jobs.values())[:JOBS]
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "load": os.getloadavg()[0],
            "memory": memory,
            "jobs": [[*_names(spec), start] for spec, start in running],
            "failed": [
                [*_names(spec), outcome.finish, _cut(outcome.failure.text, ERROR)]
                for spec, outcome in self._failed
                if outcome.failure is not None
            ],
        }


def _names(spec: JobSpec) -> tuple[str, str]:
    return _cut(spec.task_id, NAME), _cut(spec.fn_name, NAME)


def _cut(text: str, most: int) -> str:
    """Its beginning, as text that can be sent."""
    short = text if len(text) <= most else f"{text[: most - 1]}…"
    return short.encode("utf-8", "replace").decode()
