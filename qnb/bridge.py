"""One I/O thread per process, with an event loop of its own: blocking calls and live feeds.

A notebook kernel's own loop does not turn while a cell blocks; this one does. A blocking call sits
on a future of this loop, so that an interrupt gets through and the work goes on.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401 - which cannot be loaded once a process ends
import contextlib
import logging
import os
import threading
from collections.abc import Coroutine, Generator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures import wait as wait_for_all
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar

from qnb.clock import seconds
from qnb.errors import QnbError

__all__ = ["Command", "apart", "arrived", "loop", "owe", "run", "running", "spawn"]

T = TypeVar("T")

log = logging.getLogger("qnb")

#: seconds that the end of a process waits for what is owed
OWED = 30.0

_owed: set[Future[Any]] = set()

#: seconds after which an error that nobody has asked for is logged
UNASKED = 1.0

#: seconds between two ticks while something is awaited, so that an interrupt gets through
TICK = 0.2

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


def running() -> asyncio.AbstractEventLoop | None:
    """The I/O thread's loop, if there is one; none is started for it."""
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


def apart(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a user's coroutine to its end in a thread and loop of its own, whatever runs here.

    An interrupt cancels it and is not kept waiting.
    """
    done: Future[T] = Future()
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = Future()

    async def main() -> T:
        started.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        return await coroutine

    def work() -> None:
        try:
            with asyncio.Runner() as runner:  # nest() replaces asyncio.run
                value = runner.run(main())
            done.set_result(value)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=copy_context().run, args=(work,), name="qnb-apart", daemon=True).start()
    try:
        return done.result()
    except BaseException:
        if not done.done():
            other, task = started.result()
            if task is not None:
                other.call_soon_threadsafe(task.cancel)
        raise


async def arrived(future: Future[T]) -> T:
    """Await what the I/O thread works on, from any loop; an interrupt gets through."""
    waiting = asyncio.wrap_future(future)
    while not waiting.done():
        await asyncio.wait({waiting}, timeout=TICK)
    return await waiting


class Command(Generic[T]):
    """What was asked of a job or sweep: it is on its way, awaited or not.

    ``await command`` and :meth:`result` wait for the answer.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], what: str) -> None:
        self._what = what
        self._state = _Asked()
        self._future = spawn(coroutine)
        owe(self._future)  # it may be a script's last line
        self._future.add_done_callback(partial(_tell_if_unasked, what, self._state))

    def __await__(self) -> Generator[Any, None, T]:
        self._state.asked = True
        return arrived(self._future).__await__()

    def result(self, timeout: float | timedelta | None = None) -> T:
        """Wait for the answer; ``TimeoutError`` after ``timeout`` seconds: the command goes on."""
        self._state.asked = True
        limit = seconds(timeout)
        try:
            return self._future.result(limit)
        except FutureTimeout:
            if self._future.done():  # the answer is a TimeoutError
                raise
            raise TimeoutError(f"{self._what}: no answer within {limit:g} s; it goes on") from None

    def __repr__(self) -> str:
        state = "sent"
        if self._future.done() and not self._future.cancelled():
            error = self._future.exception()
            state = f"failed: {error}" if error else f"answered {self._future.result()!r}"
        return f"<{self._what}: {state}>"


@dataclass(slots=True)
class _Asked:
    asked: bool = False  #: does anybody want the answer of a command?


def _tell_if_unasked(what: str, state: _Asked, future: Future[Any]) -> None:
    """A command that fails unheard is said in the log, a while later: it may yet be awaited."""

    def tell() -> None:
        if not state.asked and not future.cancelled() and (error := future.exception()):
            log.warning("%s failed: %s", what, error)

    timer = threading.Timer(UNASKED, tell)
    timer.daemon = True
    if not future.cancelled() and future.exception() is not None:
        timer.start()


def owe(future: Future[Any]) -> None:
    """Let this process not end before ``future`` is done, for :data:`OWED` seconds at most."""
    _owed.add(future)
    future.add_done_callback(_owed.discard)


def _close() -> None:
    """Finish what is owed, cancel what else runs and end the thread: the process may leave."""
    global _loop
    if _loop is None or _pid != os.getpid() or _thread is None:
        return
    wait_for_all(tuple(_owed), OWED)
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
