"""Keeps the leases of a worker whose own loop stands still: a body blocks it, or a notebook's cell.

Without it other workers would take over what runs there, block as well, and after three of them the
job would be called crashed. A body that holds the interpreter's lock stops this too.
"""

from __future__ import annotations

import asyncio
import contextlib

from qnb.errors import BrokerError
from qnb.options import AppOptions
from qnb.running.worker import Worker
from qnb.storage.leases import Leases
from qnb.storage.store import Store

__all__ = ["keep_leases"]


async def keep_leases(worker: Worker, url: str, options: AppOptions) -> None:
    """Renew what ``worker`` holds whenever it has not done so for half a lease, until cancelled.

    To be awaited on the loop of another thread.
    """
    lease = options.lease_ms / 1000
    store = Store(url, options)
    leases = Leases(store, worker.consumer)
    try:
        while True:
            await asyncio.sleep(lease / 6)
            if asyncio.get_running_loop().time() - worker.renewed > lease / 2:
                with contextlib.suppress(BrokerError):
                    await store.open()
                    await leases.renew(worker.held)
    finally:
        await store.close()
