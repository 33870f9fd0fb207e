"""Where bodies run: in this process, or in one child process per slot.

An executor knows nothing of the store. Cancelling :meth:`Executor.run` stops the body as far as
its kind can: a coroutine is cancelled, a child process is killed, a thread cannot be stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Protocol

from qnb.clock import ServerClock
from qnb.errors import QnbError
from qnb.models import JobSpec, Outcome
from qnb.running.attempt import Attempt, Runner
from qnb.running.slot import HEADER, SlotConfig, frame, outcome_of, run_frame

__all__ = ["Executor", "InlineExecutor", "ProcessExecutor", "SlotDied"]

#: seconds for a child to come up, its imports included
SLOT_START = 60.0


class SlotDied(Exception):
    """The process that ran a body is gone. ``str()`` says how it ended."""


class Executor(Protocol):
    """Runs up to ``slots`` bodies at a time."""

    slots: int

    async def start(self) -> None:
        """Get ready; an error if that cannot be."""

    def needs_code(self, spec: JobSpec) -> bool:
        """Must :attr:`Attempt.code` be filled for this job?"""

    async def run(self, attempt: Attempt) -> Outcome:
        """Run one attempt to its end. :class:`SlotDied` if its process ended under it."""

    async def close(self) -> None:
        """Stop whatever still runs and let go of all resources."""


class InlineExecutor:
    """Runs coroutines on the worker's own loop and plain functions in threads of this process."""

    def __init__(self, runner: Runner, slots: int) -> None:
        self.slots = slots
        self._runner = runner
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="qnb-task")

    async def start(self) -> None:
        return

    def needs_code(self, spec: JobSpec) -> bool:
        return self._runner.needs_code(spec)

    async def run(self, attempt: Attempt) -> Outcome:
        if attempt.spec.is_async:
            return await self._runner.run_async(attempt)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, copy_context().run, self._runner.run, attempt
        )

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Slot:
    """One child process. Owned by the loop of its executor."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self._reader = reader
        self._writer = writer
        self.functions: set[str] = set()  # shipped functions that the child has

    @classmethod
    async def start(cls, config: SlotConfig, environment: dict[str, str]) -> _Slot:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "qnb.running.slot", str(theirs.fileno()), str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )  # fmt: skip
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours)
        slot = cls(process, reader, writer)
        writer.write(
            frame([config.queue, config.key_file, config.max_payload, config.app, config.path])
        )
        try:
            async with asyncio.timeout(SLOT_START):
                await slot._answer()
        except (asyncio.IncompleteReadError, OSError, TimeoutError):
            raise QnbError(f"a worker's child process did not start: {await slot.end()}") from None
        return slot

    async def _answer(self) -> bytes:
        header = await self._reader.readexactly(HEADER.size)
        return await self._reader.readexactly(HEADER.unpack(header)[0])

    async def run(self, attempt: Attempt, server_ms: int) -> Outcome:
        self._writer.write(run_frame(attempt, server_ms))
        if attempt.code is not None:
            self.functions.add(attempt.spec.function)
        await self._writer.drain()
        answer = asyncio.ensure_future(self._answer())
        death = asyncio.ensure_future(self.process.wait())
        try:
            # A process that the body forked may keep the socket open when the child is gone.
            await asyncio.wait((answer, death), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise EOFError
            return outcome_of(attempt, answer.result())
        finally:
            answer.cancel()
            death.cancel()

    async def end(self) -> str:
        """Kill the child and all it started; how it ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.process.returncode is None and not self._reader.at_eof():
                os.killpg(self.process.pid, signal.SIGKILL)
        try:
            code = await asyncio.wait_for(self.process.wait(), 2)
        except TimeoutError:
            self.process.kill()
            code = await self.process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what the body left behind
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        if code < 0:
            return f"process {self.process.pid} was ended by signal {_signal(-code)}"
        return f"process {self.process.pid} exited with status {code}"


def _signal(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return str(number)


class ProcessExecutor:
    """Runs each body in one of ``slots`` child processes, reused while they live.

    A child that dies is replaced at once; the job it ran raises :class:`SlotDied`.
    """

    def __init__(self, config: SlotConfig, clock: ServerClock, slots: int, url: str) -> None:
        self.slots = slots
        self._config = config
        self._environment = {**os.environ, "QNB_REDIS_URL": url}  # App() in a task is this queue's
        self._clock = clock
        self._idle: asyncio.LifoQueue[_Slot] = asyncio.LifoQueue()
        self._all: set[_Slot] = set()
        self._spares: set[asyncio.Task[object]] = set()

    async def start(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.slots):
                group.create_task(self._add())

    async def _add(self) -> None:
        slot = await _Slot.start(self._config, self._environment)
        self._all.add(slot)
        self._idle.put_nowait(slot)

    async def _replace(self) -> None:
        attempt = 0
        while True:
            try:
                await self._add()
            except (QnbError, OSError):
                attempt += 1
                await asyncio.sleep(min(0.1 * 2**attempt, 5))
            else:
                return

    def needs_code(self, spec: JobSpec) -> bool:
        return bool(spec.function) and ":" not in spec.function

    async def run(self, attempt: Attempt) -> Outcome:
        slot = await self._idle.get()
        whole = False
        try:
            if attempt.spec.function in slot.functions:
                attempt = Attempt(attempt.spec, attempt.number, attempt.tries, attempt.call)
            outcome = await slot.run(attempt, self._clock.now_ms())
            whole = True
        except (EOFError, OSError, ValueError, TypeError):
            raise SlotDied(await slot.end()) from None
        finally:
            if whole:
                self._idle.put_nowait(slot)
            else:
                self._discard(slot)
        return outcome

    def _discard(self, slot: _Slot) -> None:
        self._all.discard(slot)
        self._keep(slot.end())
        self._keep(self._replace())

    def _keep(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.ensure_future(work)
        self._spares.add(task)
        task.add_done_callback(self._spares.discard)

    async def close(self) -> None:
        for task in tuple(self._spares):
            task.cancel()
        await asyncio.gather(*self._spares, return_exceptions=True)
        await asyncio.gather(*(slot.end() for slot in self._all), return_exceptions=True)
        self._all.clear()
