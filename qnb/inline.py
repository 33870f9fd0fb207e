"""A worker inside the user's own process: one run of it, from its call to its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from qnb import bridge
from qnb.client import Client

if TYPE_CHECKING:
    from qnb.running.worker import Worker

__all__ = ["InlineRun"]


class InlineRun:
    """Serves the queue of ``client`` on the loop that awaits :meth:`serve`."""

    def __init__(self, client: Client, *, burst: bool) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.worker: Worker | None = None
        self._client = client
        self._burst = burst
        self._stopped = False

    async def serve(self) -> None:
        """Be a worker until :meth:`stop`, or with ``burst`` until the queue is drained."""
        from qnb.running.serve import inline_worker
        from qnb.running.vigil import keep_leases
        from qnb.storage.store import Store

        client = self._client
        self.loop = loop = asyncio.get_running_loop()
        url = await loop.run_in_executor(None, lambda: client.url)
        store = Store(url, client.options)
        try:
            self.worker = inline_worker(store, client.registry, client.codec, url, self._burst)
            if self._stopped:
                self.worker.stop()
            vigil = bridge.spawn(keep_leases(self.worker, url, client.options))
            try:
                await self.worker.run()
            finally:
                vigil.cancel()
        finally:
            await store.close()

    def stop(self) -> None:
        """Let what runs finish and end; from any thread, also before it has begun."""
        self._stopped = True  # first: the worker may be made at this very moment
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if self.worker is not None:
            self.worker.stop()
