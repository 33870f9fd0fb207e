"""A supervisor's view of one child process: what runs there, what it says, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import Any, Protocol

import msgpack

from qnb.errors import QnbError
from qnb.models import Outcome
from qnb.running.attempt import Attempt
from qnb.running.body import Body, SlotLost
from qnb.running.messages import (
    TOKEN,
    Place,
    Said,
    SlotConfig,
    State,
    Told,
    attempt_to,
    outcome_of,
    reader,
    report_of,
)
from qnb.running.outlet import Outlet
from qnb.running.pace import Pace
from qnb.running.spawned import Spawned

__all__ = ["Child", "Keeper"]

#: brief bodies that a child is given at a time, to run one after the other
AHEAD = 8

#: shipped functions that are not sent again; a child keeps more than that
KNOWN_FUNCTIONS = 64

#: seconds that a shared child may be silent before it is asked whether its loop turns, and that it
#: may take to answer before it counts as blocked
SILENT = 0.03

#: seconds that a child which has closed its end has to be gone by itself
CLOSED = 0.5

#: bytes that may be on their way to it, or from it; the system may allow less
BUFFER = 4 * 1024 * 1024

#: bytes that are read from its socket in one go, when it is gone
CHUNK = 64 * 1024


class Keeper(Protocol):
    """Who owns children."""

    pace: Pace  #: how long bodies take

    def freed(self, child: Child, state: State) -> None:
        """Bodies of ``child`` have ended; ``state``: the worst that one has left it in."""

    def answered(self) -> None:
        """A child that was asked whether its loop turns has said so, or was given up on."""

    def again(self, bodies: list[Body]) -> None:
        """These have not begun, and are to run elsewhere."""

    def died(self, child: Child) -> None:
        """``child`` is gone. What it ran has not been told yet."""


class Child(asyncio.Protocol):
    """One child process. Belongs to the loop that made it."""

    def __init__(self, keeper: Keeper) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._keeper = keeper
        self._messages = reader()
        self._unsent: list[bytes] = []
        self._ends: list[tuple[Body, Outcome | SlotLost]] = []  # read and not told yet
        self._left = State.FINE  # the worst state that one of these has left it in
        # ended, but what it put out last is told when the next one begins
        self._closing: tuple[Body, Outcome | SlotLost] | None = None
        self._seq = 0
        self._functions: dict[str, None] = {}  # shipped functions that it surely has, in order
        self._started: asyncio.Future[None] = loop.create_future()
        self._hooked: dict[int, asyncio.Future[None]] = {}
        self._heard = 0.0  # when its loop was last seen to turn, or asked whether it does
        self._asked = 0  # the number under which that was asked; 0: it has answered
        self.bodies: dict[int, Body] = {}  #: in the order in which they were sent
        self.done = 0  #: bodies that have ended in it
        self.seen = -1  #: how many there were when somebody looked
        self.brief = False  #: what it runs, one after the other, is brief
        self.worn = False  #: to be replaced when convenient
        self.doomed = False  #: is being ended by us
        self.is_dead = False
        self.has_hooks = False

    @property
    def is_unused(self) -> bool:
        """It has never been given anything to do."""
        return self._seq == 0

    @property
    def ahead(self) -> int:
        """How many brief bodies more it may be given while it runs one."""
        usable = self.brief and self.bodies and not (self.worn or self.doomed or self.is_dead)
        return AHEAD - len(self.bodies) if usable else 0

    @classmethod
    async def start(
        cls, config: SlotConfig, environment: dict[str, str], keeper: Keeper, patience: float
    ) -> Child:
        """A child that is ready; :class:`QnbError` with what it said if it cannot be."""
        child = cls(keeper)
        await child._spawn(environment)
        child._write(msgpack.unpackb(config.packed()))
        try:
            async with asyncio.timeout(patience):
                await child._started
        except BaseException as error:
            await asyncio.shield(child.kill())
            if isinstance(error, TimeoutError):
                raise QnbError(f"a worker process was not ready in {patience:g} s") from None
            raise
        return child

    async def _spawn(self, environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):  # else a large value goes through in dozens of small steps
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self._outlet = Outlet(self)
        self._tokens, self._put = os.pipe()  # of bodies that wait in it: who takes one has the body
        os.set_blocking(self._tokens, False)
        with theirs:
            fds = (theirs.fileno(), self._outlet.fd, self._tokens)
            self._process = Spawned(  # from this thread: see PDEATHSIG
                "qnb.running.slot", (*fds, os.getpid()), environment, self._outlet.theirs, fds
            )
        os.close(self._outlet.theirs)
        self.pid, self.gone = self._process.pid, self._process.gone
        self._socket = ours
        ours.setblocking(False)
        self._transport: asyncio.Transport
        try:
            self._transport, _ = await self._loop.create_connection(lambda: self, sock=ours)
            self._outlet.open()
            self._process.watch(self._died)  # last: its death is told to all of the above
        except BaseException:
            self._process.give_up()
            self._close()
            ours.close()
            raise

    # -- its bodies ----------------------------------------------------------------------------

    def begin(self, body: Body, now_ms: int) -> None:
        """Send it a body to run, or one that may wait there until those before it have ended."""
        self._seq += 1
        body.seq, body.start = self._seq, now_ms
        place = Place.ALONE if body.alone else Place.SHARED
        if not self.bodies:
            self._outlet.forget()  # not this body's
            self._heard = self._loop.time()
            self.brief = body.brief
        if body.alone and self.bodies:
            place = Place.NEXT
            os.write(self._put, TOKEN.pack(body.seq))
        else:
            body.begin()
        self.bodies[body.seq] = body
        spec = body.attempt.spec
        told = attempt_to(body.attempt, code=spec.function not in self._functions)
        self._write([Told.RUN, body.seq, place, now_ms, told])
        if not body.alone and not self._keeper.pace.within(spec.fn_name, SILENT * 1000):
            self._ask()  # it may block the loop from its first step on

    def take_back(self) -> list[Body]:
        """Those that wait there: they will not begin."""
        taken: list[Body] = []
        if self.is_dead:  # its pipe may be another's by now
            return taken
        with contextlib.suppress(OSError):
            for (seq,) in TOKEN.iter_unpack(os.read(self._tokens, AHEAD * TOKEN.size)):
                taken.append(self.bodies.pop(seq))
        if self._closing and not self.bodies:  # what is in the pipe can only be its
            self._outlet.drain()
            self._closed()
            self._tell()
        return taken

    def turns(self) -> bool | None:
        """Can it begin another body beside those that share it? None: that is being asked.

        A body that blocks its loop would keep the next one waiting.
        """
        if not self.bodies:
            return True
        now = self._loop.time()
        if not self._asked:
            if now - self._heard < SILENT:
                return True
            self._ask()
        return None if now - self._heard < SILENT else False

    def _ask(self) -> None:
        """Ask whether its loop turns."""
        self._seq += 1
        self._asked, self._heard = self._seq, self._loop.time()
        self._write([Told.PING, self._asked])
        self._loop.call_later(SILENT, self._keeper.answered)

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
        """Send it at the end of this round of the loop: what is told in one round is one call."""
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(msgpack.packb(message))

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if not self._transport.is_closing():
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    # -- what it says --------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        try:
            self._messages.feed(data)
            for message in self._messages:
                self._hear(message)
        except (ValueError, TypeError, LookupError):  # a body has written into our socket
            self._kill()
        self._tell()

    def _tell(self) -> None:
        """Tell of all ends that were read."""
        if self._ends or self._left is not State.FINE:
            (ends, self._ends), (left, self._left) = (self._ends, []), (self._left, State.FINE)
            if not self._asked:
                self._heard = self._loop.time()
            for body, end in ends:
                body.end(end)
            self._keeper.freed(self, left)

    def _hear(self, message: list[Any]) -> None:
        kind, *rest = message
        if kind == Said.READY:
            self.has_hooks = rest[0]
            self._started.set_result(None)
        elif kind == Said.FAILED:
            if not self._started.done():
                reason = f"a worker process could not start: {rest[0]}"
                self._started.set_exception(QnbError(reason))
        elif kind == Said.PONG:
            if rest[0] == self._asked:
                self._heard, self._asked = self._loop.time(), 0
                self._keeper.answered()
        elif kind == Said.HOOKED:
            if (told := self._hooked.get(rest[0])) and not told.done():
                told.set_result(None)
        elif body := self.bodies.get(rest[0]):
            self._hear_of(body, kind, *rest[1:])

    def _hear_of(self, body: Body, kind: int, told: Any, outcome: Any = None) -> None:
        if kind == Said.ENDED:
            self._ended(body, State(told), outcome)
        elif kind == Said.BEGUN:
            self._closed(told)
            body.begin()
        elif kind == Said.REPORT:
            body.run.hear(report_of(told))
        else:
            self._outlet.remember(told.encode("utf-8", "replace"))
            body.run.hear(told)

    def _ended(self, body: Body, state: State, told: list[Any] | None) -> None:
        end: Outcome | SlotLost
        end = outcome_of(told) if told else SlotLost(f"process {self.pid} has given the job up")
        if body.alone and state is State.LEFT:  # it begins nothing more
            self.doomed = True
            self._keeper.again(self.take_back())
        is_last = len(self.bodies) == 1
        if is_last or (not body.alone and len(self.bodies) == 2):  # whose output it is changes now
            self._outlet.drain()
        del self.bodies[body.seq]
        self.done += 1
        if isinstance(end, Outcome):
            self._keeper.pace.took(body.attempt.spec.fn_name, end.finish - end.start)
        if isinstance(end, Outcome) and end.success:  # so its function has been decoded there
            self._functions[body.attempt.spec.function] = None
            if len(self._functions) > KNOWN_FUNCTIONS:
                del self._functions[next(iter(self._functions))]
        self._left = max(self._left, state)
        if body.alone and not is_last:
            self._closing = body, end
        elif state is State.LEFT and is_last:
            # What it left behind is ended before its end is told.
            self.doomed = True
            ending = self._loop.create_task(self.kill())
            ending.add_done_callback(lambda _: body.end(end))
        else:
            self._ends.append((body, end))

    def _closed(self, output: bytes = b"") -> None:
        """The body that ended last has put out just this more."""
        if self._closing is not None:
            if output:
                self._outlet.hear(output)
            self._ends.append(self._closing)
            self._closing = None

    # -- what it prints ------------------------------------------------------------------------

    def may_read(self) -> bool:
        """Can what is in the pipe be of one body only?"""
        return self._closing is None and (len(self.bodies) < 2 or not self._first().alone)

    def hear(self, output: bytes) -> None:
        """Somebody in it has put this out."""
        if self._closing is not None:
            self._closing[0].hear(output)
        elif self.bodies and (len(self.bodies) == 1 or self._first().alone):
            self._first().hear(output)
        else:  # of nobody, or nobody knows of whom
            with contextlib.suppress(Exception):
                sys.stderr.write(output.decode("utf-8", "replace"))

    def _first(self) -> Body:
        return next(iter(self.bodies.values()))

    # -- its end -------------------------------------------------------------------------------

    def _died(self) -> None:
        self.is_dead = True
        with contextlib.suppress(OSError):
            while data := self._socket.recv(CHUNK):  # what it said last
                self.data_received(data)
        self._outlet.drain()
        self._closed()
        self._tell()
        self._transport.abort()
        self._close()
        if not self._started.done():
            self._started.set_exception(QnbError(f"a worker process did not start: {self.how()}"))
        for told in self._hooked.values():
            if not told.done():
                told.set_exception(QnbError(f"the error hooks were not told: {self.how()}"))
        self._keeper.died(self)

    def _close(self) -> None:
        self._outlet.close()
        os.close(self._tokens)
        os.close(self._put)

    def connection_lost(self, error: Exception | None) -> None:
        """It has closed its end: without it, it is of no use. Mostly it is about to be gone."""
        if not self.gone.done() and not self.doomed:
            self._loop.call_later(CLOSED, self._kill)

    def _kill(self) -> None:
        self.is_dead = True
        self._process.kill_now()

    def how(self) -> str:
        """How it has ended, and its last output."""
        lines = self._outlet.last_lines()
        said = self._process.how()
        return f"{said}. Its last output: {lines}" if lines else said

    async def kill(self) -> None:
        """End it and all that it has started, now. Returns when they are gone."""
        self.doomed = True
        await self._process.kill()

    async def let_go(self, patience: float) -> None:
        """Let it clean up and leave; kill it and what it leaves behind if it takes too long."""
        self.doomed = True
        self._transport.close()
        await asyncio.wait([self.gone], timeout=patience)
        if not self.gone.done():
            await self.kill()

    async def clear(self, adopts: bool) -> None:
        """End what it has left behind at its death; if this process ``adopts`` orphans, those."""
        await self._process.clear(adopts)
