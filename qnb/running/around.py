"""What runs around bodies, where they run: an app's lifespan, its error hooks,
threads and forks."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, TypeVar

from qnb.errors import InvalidOption
from qnb.models import ErrorContext
from qnb.registry import Registry

__all__ = ["LifespanRun", "fire", "free_forks", "in_thread"]

T = TypeVar("T")

log = logging.getLogger("qnb.worker")

#: seconds for all hooks of one failure together
HOOKS = 5.0


class LifespanRun:
    """One run of an app's lifespan; its loop is the one that awaits it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._generator: AsyncIterator[object] | None = None

    async def start(self) -> None:
        """Run it up to its ``yield`` and fill ``app.state`` with what it yields."""
        lifespan = self._registry.lifespan
        if lifespan is None:
            return
        if not inspect.isasyncgenfunction(lifespan):
            raise InvalidOption(
                f"@app.lifespan expects an async generator function, not {lifespan!r}: write "
                "`async def lifespan(): ...` with one `yield` between setup and cleanup"
            )
        generator = lifespan()
        try:
            given = await anext(generator)
        except StopAsyncIteration:
            raise InvalidOption(
                f"lifespan {lifespan.__qualname__!r} ended without a yield; give it exactly one"
            ) from None
        if given is not None and not (
            isinstance(given, Mapping) and all(isinstance(name, str) for name in given)
        ):
            raise InvalidOption(
                f"lifespan {lifespan.__qualname__!r} yielded {given!r}: expected a mapping of "
                "names to values, which become attributes of app.state, or nothing"
            )
        vars(self._registry.state).update(given or {})
        self._generator = generator

    async def stop(self) -> None:
        """Run what follows its ``yield``. An error of it is logged."""
        generator, self._generator = self._generator, None
        if generator is None:
            return
        try:
            await anext(generator)
        except StopAsyncIteration:
            pass
        except Exception:
            log.exception("the lifespan's cleanup failed")
        else:
            log.error("the lifespan has more than one yield; what follows the second never runs")
        finally:
            vars(self._registry.state).clear()


async def fire(registry: Registry, failure: ErrorContext) -> None:
    """Tell the app's hooks of a failed attempt. They change nothing, whatever they do."""
    this = asyncio.current_task()
    before = this.cancelling() if this else 0
    name = ""
    try:
        async with asyncio.timeout(HOOKS):
            for hook in tuple(registry.error_hooks.values()):
                name = getattr(hook, "__qualname__", repr(hook))
                try:
                    if inspect.iscoroutinefunction(hook):
                        await hook(failure)
                    elif inspect.isawaitable(answer := await in_thread(hook, failure)):
                        await answer
                except BaseException:  # SystemExit too: it is not the body's, nor the worker's
                    if this and this.cancelling() > before:
                        raise
                    log.exception("error hook %s failed for job %r", name, failure.task_id)
    except TimeoutError:
        log.error(
            "error hook %s for job %r took longer than the %g s of all hooks together",
            name, failure.task_id, HOOKS,
        )  # fmt: skip


# --- threads ---------------------------------------------------------------------------------

_Work = Callable[[], None]
_idle: list[SimpleQueue[_Work]] = []  # threads that wait for work, the latest last
os.register_at_fork(after_in_child=_idle.clear)  # a copy of this process has none of them


async def in_thread(fn: Callable[..., T], *args: Any) -> T:
    """What ``fn`` gives, called in a thread with this context.

    A daemon: unlike those of ``asyncio.to_thread``, one that hangs keeps no process from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    run = copy_context().run

    def work() -> None:
        given: Any = None
        failed: BaseException | None = None
        try:
            given = run(fn, *args)
        except BaseException as error:  # noqa: BLE001 - all of them are the caller's
            failed = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, future, given, failed)

    try:
        todo = _idle.pop()
    except IndexError:
        todo = SimpleQueue()
        threading.Thread(target=_thread, args=(todo,), name="qnb-task", daemon=True).start()
    todo.put(work)
    return await future


def _settle(future: asyncio.Future[T], given: T, failed: BaseException | None) -> None:
    if future.done():  # given up on
        return
    if isinstance(failed, StopIteration):  # which no future carries
        failed = RuntimeError(f"StopIteration: {failed}")
    if failed is not None:
        future.set_exception(failed)
    else:
        future.set_result(given)


def _thread(todo: SimpleQueue[_Work]) -> None:
    while True:
        todo.get()()
        _idle.append(todo)


# --- forks -----------------------------------------------------------------------------------


def free_forks() -> None:
    """From now on a process that is forked off here obeys SIGTERM and SIGINT as any other does.

    It would inherit the handlers of now, and with them the pipe through which a loop hears of
    signals.
    """
    usual: dict[int, Any] = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    ours = {number: signal.getsignal(number) for number in usual}

    mask = threading.local()

    def hold() -> None:
        mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, usual)

    def go_on() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask.before)

    def as_usual() -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in usual.items():
            if signal.getsignal(number) is ours[number]:
                signal.signal(number, handler)
        go_on()  # what came meanwhile comes now

    os.register_at_fork(before=hold, after_in_parent=go_on, after_in_child=as_usual)
