"""What a worker does about the gates of sweeps: asks before it starts a job, and frees places.

Jobs whose sweep was made with a gate are asked about always; others, only while this worker knows
of a gate. It hears of a change at once, and looks again and again: whatever another worker has left
undone, because it died between two steps, is done within a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from qnb.batching import Batcher
from qnb.clock import backoff
from qnb.errors import BrokerError
from qnb.models import JobSpec, Outcome
from qnb.storage.gates import Gates
from qnb.storage.keys import job_hex
from qnb.storage.records import Claimed
from qnb.storage.store import Store
from qnb.storage.studies import Studies

__all__ = ["Gatekeeper"]

log = logging.getLogger("qnb.worker")

#: seconds between two looks while there is no gate, and while there are some
LOOK = 5.0
HEAL = 1.0


class Gatekeeper:
    """Asks the gates of ``store`` for its worker. Belongs to that worker's loop."""

    def __init__(self, store: Store) -> None:
        self._gates = Gates(store)
        self._studies = Studies(store)
        self._lanes = store.options.priorities
        self._known: frozenset[str] = frozenset()  # sweeps (hex) that have a gate or parked jobs
        self._parked: dict[str, int] = {}
        self._woken = asyncio.Event()
        self._places: Batcher[tuple[str, str], None] = Batcher(self._release)

    def asks(self, spec: JobSpec) -> bool:
        """Whether a job has to pass a gate."""
        if spec.policy.gated:
            return True
        return bool(self._known) and job_hex(spec.channel) in self._known

    async def admit(self, jobs: list[Claimed]) -> list[Claimed]:
        """Those of ``jobs`` that may start now; the others are not held any more."""
        asked = [claimed for claimed in jobs if self.asks(claimed.spec)]
        if not asked:
            return jobs
        passed, open_ = await self._gates.admit(asked)
        for place in open_:
            self._places.put(place)
        refused = {claimed.ref for claimed in asked} - {claimed.ref for claimed in passed}
        return [claimed for claimed in jobs if claimed.ref not in refused]

    def left(self, spec: JobSpec) -> None:
        """A job is held no more: another one of its sweep may go on."""
        if self.asks(spec):
            self._places.put((job_hex(spec.channel), spec.lane))

    async def failed(self, spec: JobSpec, outcome: Outcome | None = None) -> None:
        """A job ends, or has ended: its sweep may have to stop."""
        await self._gates.failed(spec, outcome)

    async def all_done(self) -> bool:
        """Whether nothing waits in the lanes but what is paused."""
        return not await self._gates.startable()

    async def flush(self) -> None:
        """Wait until all places are free that are to be so."""
        await self._places.flush()

    def wake(self) -> None:
        """A gate has changed, or may have."""
        self._woken.set()

    async def look(self) -> None:
        """Learn which sweeps have a gate, or jobs that are parked."""
        known, self._parked = await self._gates.closed(self._lanes)
        self._known = known | {sweep for _, sweep in await self._waiting()}

    async def run(self, reconsider: Callable[[], Awaitable[None]]) -> None:
        """Watch the gates; ``reconsider`` asks again about jobs that this worker holds ready."""
        failures = 0
        with contextlib.suppress(BrokerError):  # not later: most workers live for minutes
            await self.tidy()
        while True:
            self._woken.clear()
            try:
                await self.look()
                await reconsider()
                for lane, sweep in await self._waiting():
                    await self._gates.release(sweep, lane)
                pause, failures = HEAL if self._known else LOOK, 0
            except BrokerError as error:
                log.warning("%s", error)
                pause = backoff(failures)
                failures += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()

    async def tidy(self) -> None:
        """Remove what is left of sweeps that are long gone."""
        await self._gates.tidy()
        await self._studies.tidy()

    async def _waiting(self) -> list[tuple[str, str]]:
        """Lane and sweep of what is parked."""
        lanes = [lane for lane, count in self._parked.items() if count]
        return [(lane, sweep) for lane in lanes async for sweep in self._gates.parked(lane)]

    async def _release(self, places: list[tuple[str, str]]) -> list[None]:
        try:
            for sweep, lane in dict.fromkeys(places):
                await self._gates.release(sweep, lane)
        except BrokerError as error:  # the next look does it
            log.warning("%s", error)
        return [None] * len(places)
