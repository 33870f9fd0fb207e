"""One I/O thread per process, with an event loop of its own: blocking calls and live feeds.

A notebook kernel's own loop does not turn while a cell blocks; this one does. A blocking call sits
on a future of this loop, so that an interrupt gets through and the work goes on.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from qnb.errors import QnbError

__all__ = ["loop", "run", "spawn"]

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_pid = 0


def loop() -> asyncio.AbstractEventLoop:
    """The I/O thread's loop, started when first asked for (anew in a forked child)."""
    global _loop, _thread, _pid
    with _lock:
        alive = _thread is not None and _thread.is_alive()
        if _loop is None or not alive or _pid != os.getpid():
            fresh = asyncio.new_event_loop()
            ready = threading.Event()
            fresh.call_soon(ready.set)
            _thread = threading.Thread(target=fresh.run_forever, name="qnb-io", daemon=True)
            _thread.start()
            ready.wait()
            if _pid != os.getpid():
                atexit.register(_close)
            _loop, _pid = fresh, os.getpid()
        return _loop


def spawn(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Run ``coroutine`` on the I/O thread."""
    return asyncio.run_coroutine_threadsafe(coroutine, loop())


def run(coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
    """Run ``coroutine`` on the I/O thread and wait for it, up to ``timeout`` seconds.

    An interrupt ends the wait, and with it the coroutine.
    """
    if _thread is not None and threading.current_thread() is _thread:
        coroutine.close()
        raise QnbError(
            "a blocking call was made on qnb's own I/O thread, which it would block; use the "
            "awaitable form there"
        )
    future = spawn(coroutine)
    try:
        return future.result(timeout)
    except CancelledError:
        raise QnbError("the wait was cancelled: qnb's I/O thread is shutting down") from None
    except BaseException:
        future.cancel()
        raise


def _close() -> None:
    """Cancel what still runs and end the thread, so that the process can leave quietly."""
    global _loop
    if _loop is None or _pid != os.getpid() or _thread is None:
        return
    ending, _loop = _loop, None

    async def cancel_all() -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)
        await asyncio.get_running_loop().shutdown_asyncgens()  # closes the links of clients

    with contextlib.suppress(Exception):
        asyncio.run_coroutine_threadsafe(cancel_all(), ending).result(2)
    ending.call_soon_threadsafe(ending.stop)
    _thread.join(2)
    if not _thread.is_alive():
        ending.close()
