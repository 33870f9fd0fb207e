"""A worker's child process: runs bodies for the supervisor that started it.

``python -m qnb.running.slot FD PARENT`` speaks :mod:`~qnb.running.messages` on the socket ``FD``.
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
    Said,
    SlotConfig,
    State,
    Told,
    attempt_of,
    outcome_to,
    reader,
    report_to,
)
from qnb.running.progress import watch_tqdm
from qnb.wire.codec import Codec

__all__ = ["Slot", "SlotConfig", "served"]

#: seconds for the lifespan's cleanup when the supervisor lets this process go
CLEANUP = 2.0

#: seconds that threads of a body, and tasks that it has left, are given to end by themselves
THREADS = 0.05

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

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._messages = reader()
        self._sending = threading.Lock()
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._clock = ServerClock()
        self._waiting: deque[list[Any]] = deque()  # what needs the process for itself
        self._shared: dict[int, asyncio.Task[None]] = {}
        self._stopping: set[int] = set()  # of those, who are to end now
        self._threads = ThreadPoolExecutor(1000, thread_name_prefix="qnb-task")
        self._loop.set_default_executor(self._threads)
        self._own: set[int] = set()  # processes that belong to this one, not to a body
        self._theirs: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()  # tasks of bodies
        self._loop.set_task_factory(self._task)
        self._open = True
        self._libc = ctypes.CDLL(None)

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
        self._own = set(self._children())
        self._place = _Place()
        self._say(Said.READY, bool(self._registry.error_hooks))
        return True

    def serve(self) -> None:
        """Run what the supervisor sends, until it closes the socket."""
        self._loop.add_reader(self._link, self._read)
        for message in self._messages:
            self._take(message)
        while self._open:
            if not self._waiting:
                with contextlib.suppress(SystemExit, KeyboardInterrupt):  # of a body's own task
                    self._loop.run_forever()
            while self._waiting:
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
            self._loop.stop()
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
        elif kind == Told.HOOKS or message[2]:
            self._waiting.append(message)
            self._loop.stop()
        else:
            self._clock.set(message[3])
            body = self._share(seq, attempt_of(message[4]))
            task = self._shared[seq] = self._loop.create_task(body)
            task.add_done_callback(_unfinished)

    def _say(self, *message: Any) -> None:
        data = msgpack.packb(message)
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
        _, seq, _, now, fields = message
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
        self._flush()
        state = self._state(threads)
        self._say(Said.ENDED, seq, State.LEFT if left else state, outcome_to(ended.outcome))

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
            _, left = await asyncio.wait(left, timeout=THREADS)
        return bool(left)

    async def _share(self, seq: int, attempt: Attempt) -> None:
        """Run a body beside others."""
        feed = capture.Feed(self._loop, lambda text: self._say(Said.TEXT, seq, text))
        reporter = self._reporter(seq)
        ended: Ended | None = None
        with capture.capturing(feed):
            try:
                ended = await self._beside(seq, attempt, reporter)
                if ended.failure is not None:
                    await self._fire(attempt, ended.failure, reporter)
            except asyncio.CancelledError:
                ended = None
        if os.getpid() != self._process:
            os._exit(0)
        feed.close()
        del self._shared[seq]
        self._stopping.discard(seq)
        state = State.FINE
        if not self._shared:
            left = await self._end_tasks()
            self._flush()
            state = State.LEFT if left else self._state(None)
        if ended is None:
            self._say(Said.STOPPED, seq, state)
        else:
            self._say(Said.ENDED, seq, state, outcome_to(ended.outcome))

    async def _beside(self, seq: int, attempt: Attempt, reporter: Reporter) -> Ended:
        if attempt.spec.is_async or attempt.spec.policy.isolation != "thread":
            stopped = partial(self._stopping.__contains__, seq)
            return await self._runner.run_async(attempt, reporter, stopped=stopped)
        work = self._loop.run_in_executor(
            self._threads, copy_context().run, self._runner.run, attempt, reporter
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])  # it has not ended before its thread has
            raise

    def _hooks(self, message: list[Any]) -> None:
        _, seq, now, fields, error, text, again = message
        self._clock.set(now)
        attempt = attempt_of(fields)
        told = context_of(attempt, found(error, text), will_retry=again)
        self._on_loop(self._fire(attempt, told, self._reporter(seq)))
        self._flush()
        self._say(Said.HOOKED, seq, State.FINE)

    async def _fire(self, attempt: Attempt, failure: ErrorContext, reporter: Reporter) -> None:
        with running_as(Running(task_of(attempt), reporter)):
            await fire(self._registry, failure)

    # -- after a body --------------------------------------------------------------------------

    def _flush(self) -> None:
        """Bring what was printed on its way before the outcome is."""
        for name in ("stdout", "stderr"):
            with contextlib.suppress(Exception):  # the body may have closed or replaced it
                getattr(sys, name).flush()
        self._libc.fflush(None)

    def _state(self, threads: int | None) -> State:
        if not self._place.restore():
            return State.LEFT
        if self._left_processes() or (threads is not None and self._left_threads(threads)):
            return State.LEFT
        return State.WORN if self._limit and resident() > self._limit else State.FINE

    def _children(self) -> list[int]:
        if hasattr(os, "waitid"):
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return []  # nearly always; one cheap call
        import psutil

        return [child.pid for child in psutil.Process().children()]

    def _left_processes(self) -> bool:
        """Whether processes of the body live on; those that have ended are collected."""
        left = False
        for pid in self._children():
            if pid not in self._own:
                try:
                    left |= os.waitpid(pid, os.WNOHANG)[0] == 0
                except ChildProcessError:
                    continue
        return left

    def _left_threads(self, before: int) -> bool:
        if threading.active_count() <= before:
            return False
        left = False
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.main_thread():
                thread.join(THREADS)
                left |= thread.is_alive() and "qnb-task" not in thread.name
        return left


class _Place:
    """What a body finds, and may have changed: streams, the folder, the umask, timers."""

    def __init__(self) -> None:
        self._streams = sys.stdout, sys.stderr
        self._files = [self._file(fd) for fd in (1, 2)]
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._folder: int | None = None
        with contextlib.suppress(OSError):  # it may not be ours to read
            self._folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)

    def restore(self) -> bool:
        """Put things back for the next body; False if that cannot be."""
        sys.stdout, sys.stderr = self._streams
        for number in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(number, 0)
        _heed_no_signals()
        os.umask(self._umask)
        try:
            if self._folder is not None:
                os.fchdir(self._folder)
            # What the body has made of them cannot be undone for all that write there.
            return not any(stream.closed for stream in self._streams) and self._files == [
                self._file(fd) for fd in (1, 2)
            ]
        except OSError:
            return False

    @staticmethod
    def _file(fd: int) -> tuple[int, int]:
        found = os.fstat(fd)
        return found.st_dev, found.st_ino


def _heed_no_signals() -> None:
    """The supervisor decides when to stop, also when it gets the same signal as this process.

    A handler that does nothing, for a program that a body starts would inherit that a signal is
    ignored.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not _nothing:
            signal.signal(number, _nothing)
            signal.siginterrupt(number, False)


def _nothing(*_: object) -> None:
    """Not for this process."""


def _unfinished(task: asyncio.Task[None]) -> None:
    """A body whose end cannot be told must not be waited for: the death of its process is seen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)
        os._exit(1)


def _bind_to(parent: int) -> None:
    """Die with the supervisor, and be the parent of all orphans of this process's children."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent:  # it died before the lines above
        os._exit(1)


def main(fd: int, parent: int) -> None:
    """Serve the supervisor ``parent`` on the socket ``fd`` until it closes."""
    _bind_to(parent)
    _heed_no_signals()
    free_forks()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(  # type: ignore[union-attr]
            encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
    capture.divert(through=False)
    watch_tqdm()
    os.set_inheritable(fd, False)
    slot = Slot(socket.socket(fileno=fd))
    if slot.start():
        slot.serve()


if __name__ == "__main__":
    if sys.path and Path(sys.path[0]).resolve() == Path(__file__).parent:
        del sys.path[0]
    main(int(sys.argv[1]), int(sys.argv[2]))
