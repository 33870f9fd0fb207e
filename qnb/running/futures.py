"""Bodies in any ``concurrent.futures`` pool: Dask, MPI, a cluster's own.

The pool's processes need qnb, the queue's key and, for values kept there, its blob store. What a
body prints and reports comes back with its end. A body that runs cannot be stopped from here.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import BrokenExecutor
from concurrent.futures import Executor as Pool
from typing import Any

import msgpack

from qnb.clock import ServerClock, now_ms
from qnb.errors import InvalidOption, QnbError
from qnb.models import JobSpec, Outcome, Report
from qnb.running import capture
from qnb.running.around import LifespanRun, fire
from qnb.running.attempt import Attempt, Ended, Runner, context_of, found, task_of
from qnb.running.child import SlotDied, Tell
from qnb.running.context import Reporter, Running, running_as
from qnb.running.messages import (
    SlotConfig,
    attempt_of,
    attempt_to,
    outcome_of,
    outcome_to,
    report_of,
    report_to,
)
from qnb.running.slot import served

__all__ = ["FuturesExecutor", "hooks_there", "run_there"]

#: seconds for the pool to give a first sign of life, and to tell error hooks
START = 60.0
HOOKS = 5.0


class FuturesExecutor:
    """Runs bodies in the pool that ``factory`` (a callable, or ``module:attribute``) makes.

    A pool that breaks is replaced by a fresh one; the bodies it ran raise :class:`SlotDied`.
    """

    def __init__(
        self,
        factory: str | Callable[[], Pool],
        config: SlotConfig,
        slots: int,
        clock: ServerClock | None = None,
    ) -> None:
        self.slots = slots
        self.on_room: Callable[[], None] = lambda: None
        self._factory = factory
        self._config = config.packed()
        self._clock = clock or ServerClock()
        self._pool: Pool | None = None
        self._running = 0

    async def start(self) -> None:
        """Make the pool and have one process of it ready."""
        pool = await self._fresh()
        try:
            async with asyncio.timeout(START):
                await asyncio.wrap_future(pool.submit(run_there, self._config, b""))
        except Exception as error:
            await self.close()
            raise QnbError(f"the pool {pool!r} cannot run jobs: {_said(error)}") from error

    async def _fresh(self) -> Pool:
        factory = _imported(self._factory) if isinstance(self._factory, str) else self._factory
        pool = await asyncio.to_thread(factory)
        if not isinstance(pool, Pool):
            raise InvalidOption(
                f"the executor factory {self._factory!r} gave {pool!r}: expected a "
                "concurrent.futures.Executor, such as Client(...).get_executor() of Dask"
            )
        self._pool = pool
        return pool

    def needs_code(self, spec: JobSpec) -> bool:
        return bool(spec.function) and ":" not in spec.function

    def room(self, spec: JobSpec | None = None) -> int:
        return max(0, self.slots - self._running)

    def stops(self, spec: JobSpec) -> bool:
        return False

    async def run(self, attempt: Attempt, tell: Tell) -> Outcome:
        outcome, text, report = msgpack.unpackb(
            await self._submit(run_there, [self._skew(), attempt_to(attempt)])
        )
        if text:
            tell(text)
        if report is not None:
            tell(report_of(report))
        return outcome_of(outcome)

    async def report_failure(
        self, attempt: Attempt, error: str, message: str, *, will_retry: bool
    ) -> None:
        told = [self._skew(), attempt_to(attempt, code=False), error, message, will_retry]
        try:
            async with asyncio.timeout(HOOKS):
                await self._submit(hooks_there, told)
        except (TimeoutError, SlotDied):
            return

    def _skew(self) -> int:
        """What this machine's clock lacks to the server's; the pool's machines keep its time."""
        return self._clock.now_ms() - now_ms()

    async def _submit(self, run: Callable[[bytes, bytes], bytes], message: list[Any]) -> bytes:
        pool = self._pool or await self._fresh()
        try:
            future = pool.submit(run, self._config, msgpack.packb(message))
        except RuntimeError as error:  # broken, or shut down by somebody
            self._broken(pool)
            raise SlotDied(f"the pool takes no more work: {_said(error)}") from None
        loop = asyncio.get_running_loop()
        self._running += 1
        # A body that was given up on keeps its place until it has really ended.
        future.add_done_callback(lambda _: _safely(loop, self._ended))
        try:
            return await asyncio.wrap_future(future)
        except BrokenExecutor as error:
            self._broken(pool)
            raise SlotDied(f"the pool has lost the process that ran it: {_said(error)}") from None
        except Exception as error:
            raise SlotDied(f"the pool could not run it: {_said(error)}") from error

    def _ended(self) -> None:
        self._running -= 1
        self.on_room()

    def _broken(self, pool: Pool) -> None:
        if self._pool is pool:
            self._pool = None
            pool.shutdown(wait=False)

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown, wait=False)


def _imported(name: str) -> Callable[[], Any]:
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidOption(
            f"executor {name!r}: {error}. Expected module:factory, a callable without arguments "
            "that gives a concurrent.futures.Executor"
        ) from None
    return factory  # type: ignore[no-any-return]


def _safely(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(act)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


# --- in a process of the pool ----------------------------------------------------------------


class _There:
    """What a process of the pool keeps from job to job. Its threads may run several at once."""

    def __init__(self, config: bytes) -> None:
        codec, registry = served(SlotConfig.unpacked(msgpack.unpackb(config)))
        self.runner = Runner(codec, registry, ServerClock(), shipped_first=True)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="qnb-loop", daemon=True).start()
        self.wait(LifespanRun(registry).start())
        capture.divert(through=True)

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What ``work`` gives, run on the one loop of this process, where the lifespan is."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def run(self, skew: int, attempt: Attempt) -> bytes:
        self.runner.clock.set(now_ms() + skew)
        ring, last = capture.Ring(), _Last()
        with capture.capturing(ring):
            if attempt.spec.is_async:
                ended = self.wait(self._async(attempt, ring, Reporter(last)))
            else:
                ended = self.runner.run(attempt, Reporter(last))
            if ended.failure is not None:
                self.wait(self.fire(attempt, ended.failure))
        report = report_to(last.report) if last.report else None
        answer = [outcome_to(ended.outcome), ring.take(final=True), report]
        data: bytes = msgpack.packb(answer)
        return data

    async def _async(self, attempt: Attempt, ring: capture.Ring, reporter: Reporter) -> Ended:
        with capture.capturing(ring):  # this loop's tasks do not see the caller's context
            return await self.runner.run_async(attempt, reporter)

    async def fire(self, attempt: Attempt, failure: Any) -> None:
        with running_as(Running(task_of(attempt), Reporter(lambda _: None))):
            await fire(self.runner.registry, failure)


class _Last:
    """Keeps the last report."""

    report: Report | None = None

    def __call__(self, report: Report) -> None:
        self.report = report


_there: dict[bytes, _There] = {}
_making = threading.Lock()


def _get(config: bytes) -> _There:
    with _making:
        if config not in _there:
            _there[config] = _There(config)
    return _there[config]


def run_there(config: bytes, message: bytes) -> bytes:
    """Run one attempt in this process of a pool; without one, only get ready."""
    there = _get(config)
    if not message:
        return b""
    skew, attempt = msgpack.unpackb(message)
    return there.run(skew, attempt_of(attempt))


def hooks_there(config: bytes, message: bytes) -> bytes:
    """Tell the error hooks, in this process of a pool, of a failure found outside."""
    there = _get(config)
    skew, fields, error, text, again = msgpack.unpackb(message)
    there.runner.clock.set(now_ms() + skew)
    attempt = attempt_of(fields)
    there.wait(there.fire(attempt, context_of(attempt, found(error, text), will_retry=again)))
    return b""
