"""What a worker does because of the time: delayed jobs, expiries, schedules.

All of it is judged by the server's clock inside the scripts, so that any number of workers with any
clocks does each thing once. Here is only decided when to look.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from datetime import UTC, datetime

from qnb.clock import backoff
from qnb.errors import BrokerError
from qnb.models import JobSpec
from qnb.registry import Cron, Registry
from qnb.running.schedule import latest, period_ms, upcoming
from qnb.storage.leases import Leases
from qnb.wire.codec import Codec

__all__ = ["Timers"]

log = logging.getLogger("qnb.worker")

#: seconds between two looks when nothing is known to be due
LOOK = 5.0

#: how long the marker of an occurrence outlives two periods of its schedule
MARKER_EXTRA_MS = 10 * 60 * 1000


class Timers:
    """Moves what is due and starts schedules, until cancelled. Belongs to its worker's loop."""

    def __init__(self, leases: Leases, registry: Registry | None, codec: Codec) -> None:
        self._leases = leases
        self._clock = leases.store.clock
        self._registry = registry or Registry()
        self._codec = codec
        self._seen: dict[str, int] = {}  # schedule → its newest occurrence that is done with
        self._next = 0.0  # loop time of the next look
        self._woken = asyncio.Event()

    def due_at(self, server_ms: float) -> None:
        """Something is due at ``server_ms``: look then at the latest."""
        at = asyncio.get_running_loop().time() + (server_ms - self._clock.now_ms()) / 1000
        if at < self._next:
            self._next = at
            self._woken.set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        now = self._clock.now_ms()
        for cron in self._registry.crons.values():  # what was due before this worker came is over
            self._seen[cron.name] = latest(cron.schedule, now)
        while True:
            try:
                pause = await self._look()
                failures = 0
            except BrokerError as error:
                log.warning("%s", error)
                pause = backoff(failures)
                failures += 1
            self._next = loop.time() + min(pause, LOOK)
            while (left := self._next - loop.time()) > 0:
                self._woken.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._woken.wait()

    async def _look(self) -> float:
        """Do what is due; seconds until something else is."""
        until = await self._leases.tick()
        pause = LOOK if until is None else until
        for cron in tuple(self._registry.crons.values()):
            pause = min(pause, await self._start(cron))
        return pause

    async def _start(self, cron: Cron) -> float:
        now = self._clock.now_ms()
        occurrence = latest(cron.schedule, now)
        if occurrence > self._seen.setdefault(cron.name, occurrence):
            early = await self._enqueue(cron, occurrence)
            if early > 0:  # this worker's idea of the server's clock is ahead of it
                return early / 1000
            self._seen[cron.name] = occurrence
        return (upcoming(cron.schedule, now) - self._clock.now_ms()) / 1000

    async def _enqueue(self, cron: Cron, occurrence: int) -> int:
        when = datetime.fromtimestamp(occurrence / 1000, UTC)
        spec = JobSpec(
            task_id=f"{cron.name}@{when:%Y-%m-%dT%H:%M:%S}Z",
            fn_name=cron.name,
            lane=cron.lane,
            is_async=inspect.iscoroutinefunction(self._registry.get(cron.name)),
            policy=cron.policy,
        )
        keep = 2 * period_ms(cron.schedule, occurrence) + MARKER_EXTRA_MS
        call = self._codec.pack_call(spec.task_id, (), {}, binding=spec.binding())
        return await self._leases.run_cron(cron, occurrence, keep, spec, call)
