"""A worker's child process: runs bodies for the supervisor that started it.

``python -m qnb.running.slot LINK OUTPUT TOKENS PARENT`` speaks :mod:`~qnb.running.messages` on the
socket ``LINK``; ``OUTPUT`` and ``TOKENS`` are pipes that it and its supervisor read.
It knows nothing of the store; it dies with its supervisor, or when that closes the socket.

The main thread runs an event loop, and steps out of it to run a body that has the process to
itself: ``asyncio.run``, signal handlers and plotting work there as in a script. Bodies that share
the process are tasks of that loop, or threads beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import traceback
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

import msgpack

from qnb.clock import ServerClock
from qnb.models import ErrorContext, Report
from qnb.registry import Registry, serving
from qnb.running import capture
from qnb.running.around import LifespanRun, fire, free_forks
from qnb.running.attempt import Attempt, Ended, Runner, context_of, found, task_of
from qnb.running.context import Reporter, Running, running, running_as
from qnb.running.measure import resident
from qnb.running.messages import (
    TOKEN,
    Place,
    Said,
    SlotConfig,
    State,
    Told,
    attempt_of,
    outcome_to,
    reader,
    report_to,
)
from qnb.running.outlet import read_all
from qnb.running.pace import Pace
from qnb.running.progress import watch_tqdm
from qnb.running.traces import Traces, heed_no_signals
from qnb.wire.codec import Codec

__all__ = ["Slot", "SlotConfig", "served"]

#: seconds for the lifespan's cleanup when the supervisor lets this process go
CLEANUP = 2.0

#: milliseconds: the outcomes of bodies that share this process and take less are sent together
BRIEF = 1.0

#: most ends that are sent together: the supervisor acts on some while others still run
TOGETHER = 8

#: seconds that the loop stands still, at most, while bodies run one after the other
ROUND = 0.02

#: seconds that tasks which a body has left are given to end by themselves
TASKS = 0.05

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def served(config: SlotConfig) -> tuple[Codec, Registry]:
    """The codec and the tasks, hooks and lifespan that ``config`` tells of."""
    if config.app is not None:
        module, _, attribute = config.app.partition(":")
        app = getattr(importlib.import_module(module), attribute or "app")
        return app._client.codec, app.registry
    codec = Codec.of(config.options, config.url)
    registry = Registry()
    serving[config.options.queue_name] = registry
    if config.setup is not None:
        (lifespan, hooks), _ = codec.unpack_call("setup", config.setup)
        registry.lifespan = lifespan
        for hook in hooks:
            registry.add_error_hook(hook)
    return codec, registry


class Slot:
    """The child's end of the socket."""

    def __init__(self, link: socket.socket, output: int, tokens: int) -> None:
        self._link = link
        self._output = output
        self._tokens = tokens
        self._token = 0  # the last that was taken
        self._messages = reader()
        self._sending = threading.Lock()
        self._ends: list[bytes] = []  # of bodies, not sent yet
        self._pace = Pace()
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._clock = ServerClock()
        self._waiting: deque[list[Any]] = deque()  # what needs the process for itself
        self._shared: dict[int, asyncio.Task[None]] = {}
        self._stopping: set[int] = set()  # of those, who are to end now
        self._threads = ThreadPoolExecutor(1000, thread_name_prefix="qnb-task")
        self._loop.set_default_executor(self._threads)
        self._theirs: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()  # tasks of bodies
        self._loop.set_task_factory(self._task)
        self._open = True
        self._spent = False  # something that a body has left behind goes on

    def start(self) -> bool:
        """Read the configuration, import the app, begin its lifespan; whether that worked."""
        data = self._link.recv(1 << 20)
        self._messages.feed(data)
        message: list[Any] | None = None
        while data and (message := next(self._messages, None)) is None:
            data = self._link.recv(1 << 20)
            self._messages.feed(data)
        if message is None:
            return False
        try:
            config = SlotConfig.unpacked(message)
            sys.path.extend(entry for entry in config.path if entry not in sys.path)
            self._codec, self._registry = served(config)
            serving[config.options.queue_name] = self._registry
            # does nothing where the app has set logging up
            logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
            self._limit = config.max_memory
            self._runner = Runner(self._codec, self._registry, self._clock, shipped_first=True)
            self._lifespan = LifespanRun(self._registry)
            self._loop.run_until_complete(self._lifespan.start())
        except Exception as error:
            self._say(Said.FAILED, f"{type(error).__name__}: {error}")
            raise
        self._traces = Traces()
        self._say(Said.READY, bool(self._registry.error_hooks))
        return True

    def serve(self) -> None:
        """Run what the supervisor sends, until it closes the socket."""
        self._loop.add_reader(self._link, self._read)
        for message in self._messages:
            self._take(message)
        turned = 0.0
        while self._open:
            if not self._waiting or self._loop.time() - turned > ROUND:
                if self._waiting:
                    self._loop.stop()  # after one round
                with contextlib.suppress(SystemExit, KeyboardInterrupt):  # of a body's own task
                    self._loop.run_forever()
                turned = self._loop.time()
            if self._waiting:
                self._alone(self._waiting.popleft())
        self._loop.remove_reader(self._link)
        with contextlib.suppress(TimeoutError):
            self._loop.run_until_complete(asyncio.wait_for(self._lifespan.stop(), CLEANUP))

    # -- messages ------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            data = self._link.recv(1 << 18, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._open = False
            self._stop()
            return
        self._messages.feed(data)
        for message in self._messages:
            self._take(message)

    def _take(self, message: list[Any]) -> None:
        kind, seq, *_ = message
        if kind == Told.STOP:
            if task := self._shared.get(seq):
                self._stopping.add(seq)
                self._loop.call_soon(task.cancel)  # not before its first step: it must answer
        elif kind == Told.PING:
            self._loop.call_soon(self._say, Said.PONG, seq)  # after the first steps of bodies
        elif self._spent:
            return
        elif kind == Told.HOOKS or message[2] != Place.SHARED:
            self._waiting.append(message)
            self._stop()
        else:
            self._clock.set(message[3])
            body = self._share(seq, attempt_of(message[4]))
            self._shared[seq] = asyncio.Task(body, loop=self._loop)

    def _stop(self) -> None:
        """Leave the loop, if this is called on it."""
        if self._loop.is_running():
            self._loop.stop()

    def _say(self, *message: Any) -> None:
        self._send(msgpack.packb(message))

    def _say_ended(self, *message: Any) -> None:
        """Say it at the end of this round of the loop at the latest, together with others."""
        if not self._ends and self._shared:
            self._loop.call_soon(self._send_ends)
        self._ends.append(msgpack.packb((Said.ENDED, *message)))
        if not self._shared or len(self._ends) == TOGETHER:
            self._send_ends()

    def _send_ends(self) -> None:
        ends, self._ends = self._ends, []
        if ends and os.getpid() == self._process:
            self._send(b"".join(ends))

    def _send(self, data: bytes) -> None:
        with self._sending, contextlib.suppress(OSError):  # its end is seen by reading
            self._link.sendall(data)

    def _reporter(self, seq: int) -> Reporter:
        def send(report: Report) -> None:
            self._say(Said.REPORT, seq, report_to(report))

        return Reporter(send)

    # -- bodies --------------------------------------------------------------------------------

    def _alone(self, message: list[Any]) -> None:
        """Run a body that has this process to itself."""
        if message[0] == Told.HOOKS:
            self._hooks(message)
            return
        _, seq, place, now, fields = message
        if place == Place.NEXT and not self._begins(seq):
            return
        if place == Place.ALONE:  # what has waited here knows an older time
            self._clock.set(now)
        attempt = attempt_of(fields)
        threads = threading.active_count()
        reporter = self._reporter(seq)
        if attempt.spec.is_async:
            ended = self._on_loop(self._runner.run_async(attempt, reporter, alone=True))
        else:
            run = partial(self._runner.run, attempt, reporter, alone=True)
            ended = copy_context().run(run)
        if os.getpid() != self._process:  # the body forked, and this is its copy
            os._exit(0)
        if ended.failure is not None:
            self._on_loop(self._fire(attempt, ended.failure, reporter))
        left = self._on_loop(self._end_tasks()) if self._theirs else False
        self._traces.flush()
        state = State.LEFT if left else self._state(threads)
        if state is State.LEFT:  # this process is to be ended: it begins nothing more
            self._spent = True
            self._waiting.clear()
        self._ends.append(msgpack.packb((Said.ENDED, seq, state, outcome_to(ended.outcome))))
        if not self._waiting:
            self._read()  # what has come meanwhile
        if not (self._waiting and self._waiting[0][:3:2] == [Told.RUN, Place.NEXT]):
            self._send_ends()  # else together with the next one's beginning

    def _begins(self, seq: int) -> bool:
        """Begin a body that has waited here; False if the supervisor has taken it back."""
        with contextlib.suppress(BlockingIOError):
            while self._token < seq:
                (self._token,) = TOKEN.unpack(os.read(self._tokens, TOKEN.size))
        if self._token == seq:
            self._ends.append(msgpack.packb((Said.BEGUN, seq, read_all(self._output))))
        self._send_ends()
        return self._token == seq

    def _on_loop(self, work: Any) -> Any:
        """Run ``work`` on the loop, which reads no messages meanwhile."""
        self._loop.remove_reader(self._link)
        task = self._loop.create_task(work)
        try:
            while not task.done():
                with contextlib.suppress(SystemExit, KeyboardInterrupt):  # of another task
                    self._loop.run_until_complete(task)
            return task.result()
        finally:
            self._loop.add_reader(self._link, self._read)

    def _task(self, loop: asyncio.AbstractEventLoop, work: Any, **how: Any) -> asyncio.Task[Any]:
        """A task; those that bodies make are known, to be ended with them."""
        task = asyncio.Task(work, loop=loop, **how)
        if running() is not None:
            self._theirs.add(task)
        return task

    async def _end_tasks(self) -> bool:
        """End the tasks that bodies have left on the loop; True if some go on."""
        left = {task for task in self._theirs if not task.done()}
        if left:
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=TASKS)
        return bool(left)

    async def _share(self, seq: int, attempt: Attempt) -> None:
        """Run a body beside others."""
        if not self._pace.within(attempt.spec.fn_name, BRIEF):
            self._send_ends()  # it may block this process, or end it
        feed = capture.Feed(self._loop, lambda text: self._say(Said.TEXT, seq, text))
        capture.capture(feed)
        try:
            ended = await self._beside(seq, attempt)
            feed.close()
            del self._shared[seq]
            self._stopping.discard(seq)
            if ended is not None:
                took = ended.outcome.finish - ended.outcome.start
                self._pace.took(attempt.spec.fn_name, took)
            state = State.FINE if self._shared else await self._rest()
            self._say_ended(seq, state, outcome_to(ended.outcome) if ended else None)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - nobody must wait for an end that is not told
            traceback.print_exception(error)
            os._exit(1)

    async def _beside(self, seq: int, attempt: Attempt) -> Ended | None:
        """How a body has ended; None if it was told to."""
        reporter, ended = self._reporter(seq), None
        with contextlib.suppress(asyncio.CancelledError):
            if attempt.spec.is_async or attempt.spec.policy.isolation != "thread":
                stopped = partial(self._stopping.__contains__, seq)
                ended = await self._runner.run_async(attempt, reporter, stopped=stopped)
            else:
                ended = await self._in_thread(attempt, reporter)
            if ended.failure is not None:
                await self._fire(attempt, ended.failure, reporter)
        if os.getpid() != self._process:  # the body forked, and this is its copy
            os._exit(0)
        return ended

    async def _in_thread(self, attempt: Attempt, reporter: Reporter) -> Ended:
        work = self._loop.run_in_executor(
            self._threads, copy_context().run, self._runner.run, attempt, reporter
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])  # it has not ended before its thread has
            raise

    async def _rest(self) -> State:
        """Be as before, when no body runs any more."""
        left = await self._end_tasks() if self._theirs else False
        self._traces.flush()
        return State.LEFT if left else self._state(None)

    def _state(self, threads: int | None) -> State:
        """How this process is after a body, before which it had so many threads."""
        if self._traces.remain(threads):
            return State.LEFT
        return State.WORN if self._limit and resident() > self._limit else State.FINE

    def _hooks(self, message: list[Any]) -> None:
        _, seq, now, fields, error, text, again = message
        self._clock.set(now)
        attempt = attempt_of(fields)
        told = context_of(attempt, found(error, text), will_retry=again)
        self._on_loop(self._fire(attempt, told, self._reporter(seq)))
        self._traces.flush()
        self._say(Said.HOOKED, seq, State.FINE)

    async def _fire(self, attempt: Attempt, failure: ErrorContext, reporter: Reporter) -> None:
        with running_as(Running(task_of(attempt), reporter)):
            await fire(self._registry, failure)


def _bind_to(parent: int) -> None:
    """Die with the supervisor, and be the parent of all orphans of this process's children."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent:  # it died before the lines above
        os._exit(1)


def main(link: int, output: int, tokens: int, parent: int) -> None:
    """Serve the supervisor ``parent`` on the socket ``link`` until it closes."""
    _bind_to(parent)
    heed_no_signals()
    free_forks()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(  # type: ignore[union-attr]
            encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
    capture.divert(through=False)
    watch_tqdm()
    for fd in (link, output, tokens):
        os.set_inheritable(fd, False)
    slot = Slot(socket.socket(fileno=link), output, tokens)
    if slot.start():
        slot.serve()


if __name__ == "__main__":
    if sys.path and Path(sys.path[0]).resolve() == Path(__file__).parent:
        del sys.path[0]
    main(*map(int, sys.argv[1:]))
