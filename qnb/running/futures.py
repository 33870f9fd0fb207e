"""Bodies in any ``concurrent.futures`` pool: Dask, MPI, a cluster's own.

The pool's processes need qnb, the queue's key and, for values kept there, its blob store. What a
body prints and reports comes back with its end. A body that runs cannot be stopped from here.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import BrokenExecutor, Future
from concurrent.futures import Executor as Pool
from functools import partial, reduce
from typing import Any

import msgpack

from qnb.clock import ServerClock, backoff, now_ms
from qnb.errors import InvalidOption, QnbError
from qnb.models import JobSpec, Outcome, Report
from qnb.running import capture
from qnb.running.around import LifespanRun, fire, in_thread
from qnb.running.attempt import Attempt, Ended, Runner, context_of, found, task_of
from qnb.running.body import SlotDied, SlotLost, Suspects, Tell
from qnb.running.context import Reporter, Running, running_as
from qnb.running.executors import TaskPerBody
from qnb.running.messages import (
    SlotConfig,
    attempt_of,
    attempt_to,
    outcome_of,
    outcome_to,
    report_of,
    report_to,
)
from qnb.running.processes import nothing
from qnb.running.progress import watch_tqdm
from qnb.running.slot import served

__all__ = ["FuturesExecutor", "hooks_there", "run_there"]

#: seconds for the pool to give a first sign of life, and to tell error hooks
START = 60.0
HOOKS = 5.0


class FuturesExecutor(TaskPerBody):
    """Runs bodies in the pool that ``factory`` (a callable, or ``module:attribute``) makes.

    A pool that breaks is replaced by a fresh one. A body that it ran alone raises
    :class:`SlotDied`; if it ran several they raise :class:`SlotLost`, and each runs alone next.
    """

    def __init__(
        self,
        factory: str | Callable[[], Pool],
        config: SlotConfig,
        slots: int,
        clock: ServerClock | None = None,
    ) -> None:
        super().__init__()
        self.slots = slots
        self.on_room: Callable[[], None] = nothing
        self._factory = factory
        self._config = config.packed()
        self._clock = clock or ServerClock()
        self._pool: Pool | None = None
        self._failures = 0  # in a row, of pools to take a body
        self._running = 0
        self._inside: dict[Future[bytes], str] = {}  # what the pool has, and for which jobs
        self._suspects = Suspects()
        self._emptied = asyncio.Event()
        self._gate = asyncio.Lock()  # who holds it sends to the pool, or has it for itself

    async def start(self) -> None:
        """Make the pool and have one process of it ready."""
        try:
            pool = await self._fresh()
        except QnbError:
            raise
        except Exception as error:
            raise QnbError(f"executor {self._factory!r} gave no pool: {_said(error)}") from error
        try:
            async with asyncio.timeout(START):
                await asyncio.wrap_future(pool.submit(run_there, self._config, b""))
        except Exception as error:
            await self.close()
            raise QnbError(f"the pool {pool!r} cannot run jobs: {_said(error)}") from error

    async def _fresh(self) -> Pool:
        factory = _imported(self._factory) if isinstance(self._factory, str) else self._factory
        pool = await in_thread(factory)
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

    async def run(
        self, attempt: Attempt, tell: Tell, begun: Callable[[], None] = nothing
    ) -> Outcome:
        message = [self._skew(), attempt_to(attempt)]
        outcome, text, report = msgpack.unpackb(
            await self._submit(attempt.spec.task_id, run_there, message, begun)
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
                await self._submit(attempt.spec.task_id, hooks_there, told, nothing)
        except (TimeoutError, SlotDied, SlotLost):
            return

    def _skew(self) -> int:
        """What this machine's clock lacks to the server's; the pool's machines keep its time."""
        return self._clock.now_ms() - now_ms()

    async def _submit(
        self,
        task_id: str,
        run: Callable[[bytes, bytes], bytes],
        message: list[Any],
        begun: Callable[[], None],
    ) -> bytes:
        self._running += 1
        future: Future[bytes] | None = None
        try:
            async with self._gate:
                alone = task_id in self._suspects
                while alone and self._inside:
                    self._emptied.clear()
                    await self._emptied.wait()
                future = await self._send(task_id, run, msgpack.packb(message))
                begun()
                if alone:
                    return await self._answer(future, task_id, alone)
            return await self._answer(future, task_id, alone)
        finally:
            if future is None:
                self._left()

    async def _send(
        self, task_id: str, run: Callable[[bytes, bytes], bytes], message: bytes
    ) -> Future[bytes]:
        pool = self._pool
        try:
            pool = pool or await self._fresh()
            future = pool.submit(run, self._config, message)
        except Exception as error:  # noqa: BLE001 - broken, shut down by somebody, not to be made
            self._broken(pool)
            self._failures += 1
            await asyncio.sleep(backoff(self._failures))
            raise SlotLost(f"the pool takes no work: {_said(error)}") from None
        loop = asyncio.get_running_loop()
        self._inside[future] = task_id
        # A body that was given up on keeps its place until it has really ended.
        future.add_done_callback(lambda _: _safely(loop, lambda: self._ended(future, pool)))
        return future

    async def _answer(self, future: Future[bytes], task_id: str, alone: bool) -> bytes:
        this = asyncio.current_task()
        try:
            answer = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if this is not None and this.cancelling():
                raise
            raise SlotLost("the pool has cancelled it") from None
        except BrokenExecutor as error:
            said = f"the pool has lost the process that ran it: {_said(error)}"
            if task_id in self._suspects and not alone:
                raise SlotLost(f"{said}\nOthers ran in it too; each runs alone next") from None
            raise SlotDied(said) from None
        except Exception as error:
            raise SlotDied(f"the pool could not run it: {_said(error)}") from error
        finally:
            if alone:
                self._suspects.discard(task_id)
        self._failures = 0
        return answer

    def _ended(self, future: Future[bytes], pool: Pool) -> None:
        """A future of ``pool`` is done; runs before whoever awaits it hears of that."""
        broke = not future.cancelled() and isinstance(future.exception(), BrokenExecutor)
        if broke and self._pool is pool:  # the first to say so
            if len(self._inside) > 1:
                self._suspects.update(self._inside.values())
            self._broken(pool)
        del self._inside[future]
        if not self._inside:
            self._emptied.set()
        self._left()

    def _left(self) -> None:
        self._running -= 1
        self.on_room()

    def _broken(self, pool: Pool | None) -> None:
        if pool is not None and self._pool is pool:
            self._pool = None
            pool.shutdown(wait=False)

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await in_thread(partial(pool.shutdown, wait=False))


def _imported(name: str) -> Callable[[], Any]:
    module, _, attribute = name.partition(":")
    try:
        factory = reduce(getattr, attribute.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidOption(
            f"executor {name!r}: {error}. Expected module:factory, a callable without arguments "
            "that gives a concurrent.futures.Executor"
        ) from None
    return factory  # type: ignore[return-value]


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
        watch_tqdm()

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
