"""What running bodies say, on its way into the store: newest progress, all output, in batches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from qnb.errors import BrokerError
from qnb.models import Report
from qnb.storage.leases import Leases
from qnb.storage.records import Claimed

__all__ = ["Newsroom"]

#: seconds between two batches
PERIOD = 0.1

#: most characters of one job's output that wait here; what is older is dropped
WAITING = 1_000_000


@dataclass(slots=True)
class _Pending:
    claimed: Claimed
    report: Report | None = None
    output: list[str] = field(default_factory=list)
    size: int = 0

    def add(self, text: str) -> None:
        self.output.append(text)
        self.size += len(text)
        while self.size > WAITING and len(self.output) > 1:
            self.size -= len(self.output.pop(0))


class Newsroom:
    """Collects news of all jobs of a worker. Belongs to the worker's loop."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._pending: dict[str, _Pending] = {}
        self._logged: set[str] = set()
        self._some = asyncio.Event()
        self._sending = asyncio.Lock()  # keeps the pieces of a log in order

    def hear(self, claimed: Claimed, news: Report | str) -> None:
        """A body has said something."""
        pending = self._pending.get(claimed.ref)
        if pending is None:
            pending = self._pending[claimed.ref] = _Pending(claimed)
        if isinstance(news, str):
            self._logged.add(claimed.ref)
            pending.add(news)
        else:
            pending.report = news
        self._some.set()

    def has_log(self, ref: str) -> bool:
        """Has the body of this job printed anything?"""
        return ref in self._logged

    def forget(self, ref: str) -> None:
        """The job is held no more."""
        self._pending.pop(ref, None)
        self._logged.discard(ref)

    async def run(self) -> None:
        """Send what was heard, ten times a second at most, until cancelled."""
        while True:
            await self._some.wait()
            self._some.clear()
            await self.flush(tuple(self._pending))
            await asyncio.sleep(PERIOD)

    async def flush(self, refs: Iterable[str]) -> None:
        """Send what was heard of these jobs; kept for the next time if the store is away."""
        if not self._pending and not self._sending.locked():
            return
        async with self._sending:
            batch = {ref: self._pending.pop(ref) for ref in refs if ref in self._pending}
            if not batch:
                return
            news = [(p.claimed, p.report, "".join(p.output)) for p in batch.values()]
            try:
                await self._leases.report(news)
            except BrokerError:
                for ref, pending in batch.items():
                    self._keep(ref, pending)
            except asyncio.CancelledError:
                for ref, pending in batch.items():
                    self._keep(ref, pending)
                raise

    def _keep(self, ref: str, pending: _Pending) -> None:
        newer = self._pending.get(ref)
        self._pending[ref] = pending
        if newer is not None:
            pending.report = newer.report or pending.report
            for text in newer.output:
                pending.add(text)
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().call_later(PERIOD, self._some.set)
