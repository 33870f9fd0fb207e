"""A worker in the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import qnb


@contextlib.asynccontextmanager
async def serving(*apps: qnb.App) -> AsyncIterator[None]:
    """Each app runs as a worker for as long as the block."""
    running = [asyncio.create_task(app.run()) for app in apps]
    await asyncio.sleep(0)  # they have begun
    try:
        yield
    finally:
        for app in apps:
            app.stop()
        await asyncio.gather(*running)
