"""A supervisor's view of one child process: what runs there, what it says, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgpack

from qnb.errors import QnbError
from qnb.models import Outcome, Report
from qnb.running.attempt import Attempt
from qnb.running.capture import Feed
from qnb.running.messages import (
    Said,
    SlotConfig,
    State,
    Told,
    attempt_to,
    outcome_of,
    reader,
    report_of,
)
from qnb.running.trees import MARK, children, end_orphans, kill_marked, kill_tree

__all__ = [
    "Body", "Child", "Keeper", "News", "SlotDied", "SlotLost", "Suspects", "Tell", "own_children",
]  # fmt: skip

#: a report of progress, or a piece of captured output
News = Report | str

#: Called on the executor's loop while a body runs. Cheap, and never raises.
Tell = Callable[[News], None]

#: bytes of a child's last output that its death is told with, and lines
LAST_BYTES = 1000
LAST_LINES = 10

#: shipped functions that are not sent again; a child keeps more than that
KNOWN_FUNCTIONS = 64

#: bytes of output that a child can write while the supervisor is busy; bytes read in one go
PIPE = 256 * 1024
CHUNK = 64 * 1024

#: seconds between two looks at a pipe that has little in it
LOOK = 0.02

#: seconds that a child which has closed its end has to be gone by itself
CLOSED = 0.5

#: jobs that are remembered to have been in a process that died
SUSPECTS = 10_000

_F_SETPIPE_SZ = 1031


class SlotDied(Exception):
    """The process that ran a body has ended under it. ``str()`` says how, and its last output."""


class SlotLost(Exception):
    """The process that ran a body has ended, and that is not known to be this body's fault."""


class Suspects:
    """The ids of jobs that shared a process when it died. The next time each runs alone, where
    the one that kills is told from the others."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def update(self, ids: Iterable[str]) -> None:
        self._ids.update(dict.fromkeys(ids))
        while len(self._ids) > SUSPECTS:
            del self._ids[next(iter(self._ids))]

    def discard(self, task_id: str) -> None:
        self._ids.pop(task_id, None)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._ids


_living: set[int] = set()  # the processes of all children, and others that are no orphans


def own_children() -> None:
    """The processes that this one has now are no orphans of bodies."""
    _living.update(children(os.getpid()))


class Body:
    """One attempt in a child. ``ended`` is its outcome, or None if it has been stopped."""

    __slots__ = ("_feed", "alone", "attempt", "ended", "seq", "start", "tell", "verdict")

    def __init__(self, seq: int, attempt: Attempt, tell: Tell, start: int, *, alone: bool) -> None:
        loop = asyncio.get_running_loop()
        self.seq = seq
        self.attempt = attempt
        self.alone = alone
        self.start = start
        self.verdict: Outcome | None = None  #: how it ends, decided by us: its child is killed
        self.tell = tell
        self._feed: Feed | None = None
        self.ended: asyncio.Future[Outcome | None] = loop.create_future()

    def hear(self, output: bytes) -> None:
        """Take what it has put out."""
        if self._feed is None:  # most bodies are silent
            self._feed = Feed(asyncio.get_running_loop(), self.tell)
        self._feed.put(output)

    def _close(self) -> None:
        if self._feed is not None:
            self._feed.close()

    def end(self, outcome: Outcome | None) -> None:
        self._close()
        if not self.ended.done():
            self.ended.set_result(outcome)

    def fail(self, error: Exception) -> None:
        self._close()
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # seen: nobody may be waiting any more


class Keeper(Protocol):
    """Who owns children."""

    def freed(self, child: Child, state: State) -> None:
        """A body of ``child`` has ended."""

    def died(self, child: Child) -> None:
        """``child`` is gone. What it ran has not been told yet."""


class Child(asyncio.Protocol):
    """One child process. Belongs to the loop that made it."""

    def __init__(self, keeper: Keeper) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._keeper = keeper
        self._messages = reader()
        self._seq = 0
        self._functions: dict[str, None] = {}  # shipped functions that it surely has, in order
        self._last = b""
        self._started: asyncio.Future[None] = loop.create_future()
        self._hooked: dict[int, asyncio.Future[None]] = {}
        self.bodies: dict[int, Body] = {}
        self.gone: asyncio.Future[int] = loop.create_future()  #: its exit status
        self.done = 0  #: bodies that have ended in it
        self.worn = False  #: to be replaced when convenient
        self.doomed = False  #: is being ended by us
        self.has_hooks = False

    @property
    def is_unused(self) -> bool:
        """It has never been given anything to do."""
        return self._seq == 0

    @classmethod
    async def start(
        cls, config: SlotConfig, environment: dict[str, str], keeper: Keeper, patience: float
    ) -> Child:
        """A child that is ready; :class:`QnbError` with what it said if it cannot be."""
        child = cls(keeper)
        await child._spawn({**environment, MARK: secrets.token_hex(16)})
        child._write(msgpack.unpackb(config.packed()))
        try:
            async with asyncio.timeout(patience):
                await child._started
        except BaseException as error:
            child.doomed = True
            await asyncio.shield(child.kill())
            if isinstance(error, TimeoutError):
                raise QnbError(f"a worker process was not ready in {patience:g} s") from None
            raise
        return child

    async def _spawn(self, environment: dict[str, str]) -> None:
        self._mark = environment[MARK]
        ours, theirs = socket.socketpair()
        self._pipe, out = os.pipe()
        os.set_blocking(self._pipe, False)
        with contextlib.suppress(OSError):  # not Linux, or the user has too many large pipes
            fcntl.fcntl(out, _F_SETPIPE_SZ, PIPE)
        with theirs:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - see PDEATHSIG: from this thread
                [sys.executable, "-m", "qnb.running.slot", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=environment, pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        os.close(out)
        self.pid = self._process.pid
        _living.add(self.pid)
        self._socket = ours
        ours.setblocking(False)
        self._transport: asyncio.Transport
        try:
            self._transport, _ = await self._loop.create_connection(lambda: self, sock=ours)
            self._loop.add_reader(self._pipe, self._output)
            self._watch()  # last: its death is told to all of the above
        except BaseException:
            self._process.kill()
            self._process.wait()
            _living.discard(self.pid)
            self._close_pipe()
            ours.close()
            raise

    # -- its bodies ----------------------------------------------------------------------------

    def begin(self, attempt: Attempt, tell: Tell, now_ms: int, *, alone: bool) -> Body:
        """Send it an attempt to run."""
        self._seq += 1
        body = Body(self._seq, attempt, tell, now_ms, alone=alone)
        if not self.bodies:
            self._drain()  # not this body's
            self._last = b""
        self.bodies[body.seq] = body
        function = attempt.spec.function
        lacks = function not in self._functions
        self._write([Told.RUN, body.seq, alone, now_ms, attempt_to(attempt, code=lacks)])
        return body

    def stop(self, body: Body) -> None:
        """Have a body cancelled that shares this child."""
        self._write([Told.STOP, body.seq])

    async def tell_hooks(
        self, attempt: Attempt, error: str, message: str, now_ms: int, *, again: bool
    ) -> None:
        """Have its error hooks told of a failure."""
        self._seq += 1
        told = self._hooked[self._seq] = self._loop.create_future()
        seq = self._seq
        self._write(
            [Told.HOOKS, seq, now_ms, attempt_to(attempt, code=False), error, message, again]
        )
        try:
            await told
        finally:
            self._hooked.pop(seq, None)

    def _write(self, message: Any) -> None:
        if not self._transport.is_closing():
            self._transport.write(msgpack.packb(message))

    # -- what it says --------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        try:
            self._messages.feed(data)
            for message in self._messages:
                self._hear(message)
        except (ValueError, TypeError, LookupError):  # a body has written into our socket
            self._kill()

    def _hear(self, message: list[Any]) -> None:
        kind, *rest = message
        if kind == Said.READY:
            self.has_hooks = rest[0]
            self._started.set_result(None)
        elif kind == Said.FAILED:
            if not self._started.done():
                reason = f"a worker process could not start: {rest[0]}"
                self._started.set_exception(QnbError(reason))
        elif kind == Said.HOOKED:
            if (told := self._hooked.get(rest[0])) and not told.done():
                told.set_result(None)
        elif body := self.bodies.get(rest[0]):
            self._hear_of(body, kind, *rest[1:])

    def _hear_of(self, body: Body, kind: int, told: Any, outcome: Any = None) -> None:
        if kind == Said.REPORT:
            body.tell(report_of(told))
        elif kind == Said.TEXT:
            self._remember(told.encode("utf-8", "replace"))
            body.tell(told)
        else:
            self._ended(body, State(told), outcome_of(outcome) if outcome else None)

    def _ended(self, body: Body, state: State, outcome: Outcome | None) -> None:
        self._drain()
        del self.bodies[body.seq]
        self.done += 1
        if outcome is not None and outcome.success:  # so its function has been decoded there
            self._functions[body.attempt.spec.function] = None
            if len(self._functions) > KNOWN_FUNCTIONS:
                del self._functions[next(iter(self._functions))]
        if state is State.LEFT and not self.bodies:
            # What it left behind is ended before its end is told.
            self.doomed = True
            ending = self._loop.create_task(self.kill())
            ending.add_done_callback(lambda _: body.end(outcome))
        else:
            body.end(outcome)
        self._keeper.freed(self, state)

    # -- what it prints ------------------------------------------------------------------------

    def _output(self) -> None:
        # Little by little is dear: let some more come together.
        if self._read_pipe() < CHUNK // 4 and self._pipe >= 0:
            self._loop.remove_reader(self._pipe)
            self._loop.call_later(LOOK, self._look_again)

    def _look_again(self) -> None:
        if self._pipe >= 0:
            self._loop.add_reader(self._pipe, self._output)

    def _read_pipe(self) -> int:
        try:
            data = os.read(self._pipe, CHUNK)
        except (BlockingIOError, OSError):
            return 0
        if not data:
            self._close_pipe()
            return 0
        self._remember(data)
        if len(self.bodies) == 1:
            next(iter(self.bodies.values())).hear(data)
        else:  # of nobody, or nobody knows of whom
            with contextlib.suppress(Exception):
                sys.stderr.write(data.decode("utf-8", "replace"))
        return len(data)

    def _drain(self) -> None:
        left = PIPE
        while left > 0 and self._pipe >= 0 and (got := self._read_pipe()):
            left -= got

    def _remember(self, data: bytes) -> None:
        self._last = (self._last + data[-LAST_BYTES:])[-LAST_BYTES:]

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            self._loop.remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = -1

    # -- its end -------------------------------------------------------------------------------

    def _watch(self) -> None:
        """See its death at once."""
        if hasattr(os, "pidfd_open"):
            fd = os.pidfd_open(self.pid)

            def dead() -> None:
                self._loop.remove_reader(fd)
                os.close(fd)
                self._is_gone(self._process.wait())

            self._loop.add_reader(fd, dead)
            return

        def wait() -> None:
            code = self._process.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._is_gone, code)

        threading.Thread(target=wait, name="qnb-wait", daemon=True).start()

    def _is_gone(self, code: int) -> None:
        _living.discard(self.pid)
        with contextlib.suppress(OSError):
            while data := self._socket.recv(CHUNK):  # what it said last
                self.data_received(data)
        self._drain()
        self._close_pipe()
        self._transport.abort()
        self.gone.set_result(code)
        if not self._started.done():
            self._started.set_exception(QnbError(f"a worker process did not start: {self.how()}"))
        for told in self._hooked.values():
            if not told.done():
                told.set_exception(QnbError(f"the error hooks were not told: {self.how()}"))
        self._keeper.died(self)

    def connection_lost(self, error: Exception | None) -> None:
        """It has closed its end: without it, it is of no use. Mostly it is about to be gone."""
        if not self.gone.done() and not self.doomed:
            self._loop.call_later(CLOSED, self._kill)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def how(self) -> str:
        """How it has ended, and its last output."""
        code = self.gone.result()
        if code < 0:
            said = f"process {self.pid} was ended by signal {_signal(-code)}"
        else:
            said = f"process {self.pid} exited with status {code}"
        lines = self._last.decode("utf-8", "replace").splitlines()[-LAST_LINES:]
        return f"{said}. Its last output: " + "\n".join(lines) if lines else said

    async def kill(self) -> None:
        """End it and all that it has started, now. Returns when they are gone."""
        self.doomed = True
        if not self.gone.done():
            await asyncio.to_thread(kill_tree, self.pid)
            await asyncio.wait([self.gone])

    async def let_go(self, patience: float) -> None:
        """Let it clean up and leave; kill it and what it leaves behind if it takes too long."""
        self.doomed = True
        self._transport.close()
        await asyncio.wait([self.gone], timeout=patience)
        if not self.gone.done():
            await self.kill()

    async def clear(self, adopts: bool) -> None:
        """End what it has left behind at its death; if this process ``adopts`` orphans, those."""
        if adopts:  # on the loop's thread, which starts all children
            orphans = set(children(os.getpid())) - _living
            await asyncio.to_thread(end_orphans, orphans)
        await asyncio.to_thread(kill_marked, self._mark)


def _signal(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return str(number)
