"""A child process and all that it starts: how it begins, how its death is seen, how it is ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping

from qnb.running.trees import MARK, children, end_orphans, kill_marked, kill_tree

__all__ = ["Spawned", "environment", "own_children"]

#: environment variables that limit the threads of numerical libraries
THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip

_living: set[int] = set()  # the processes of all children, and others that are no orphans


def own_children() -> None:
    """The processes that this one has now are no orphans of bodies."""
    _living.update(children(os.getpid()))


def environment(url: str | None, slots: int) -> dict[str, str]:
    """The environment of child processes: the store for an ``App()`` made in a task, and as many
    threads for numerical libraries as each slot has cores, unless the user has said how many."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    each = str(max(1, cores // slots))
    store = {"QNB_REDIS_URL": url} if url else {}
    return {**dict.fromkeys(THREADS, each), **os.environ, **store}


class Spawned:
    """``python -m module`` with these arguments. Belongs to the loop that made it."""

    def __init__(
        self, module: str, arguments: Iterable[object], env: Mapping[str, str], out: int,
        fds: Iterable[int],
    ) -> None:  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._mark = secrets.token_hex(16)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            env={**env, MARK: self._mark}, pass_fds=tuple(fds), start_new_session=True,
        )  # fmt: skip
        self._killing: asyncio.Task[None] | None = None
        self.gone: asyncio.Future[int] = self._loop.create_future()  #: its exit status
        self.pid = self._process.pid
        _living.add(self.pid)

    def watch(self, died: Callable[[], None]) -> None:
        """Have ``died`` called as soon as it is dead."""

        def dead(code: int) -> None:
            _living.discard(self.pid)
            self.gone.set_result(code)
            died()

        if hasattr(os, "pidfd_open"):
            fd = os.pidfd_open(self.pid)

            def seen() -> None:
                self._loop.remove_reader(fd)
                os.close(fd)
                dead(self._process.wait())

            self._loop.add_reader(fd, seen)
            return

        def wait() -> None:
            code = self._process.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(dead, code)

        threading.Thread(target=wait, name="qnb-wait", daemon=True).start()

    def give_up(self) -> None:
        """It could not be put to use."""
        self._process.kill()
        self._process.wait()
        _living.discard(self.pid)

    def kill_now(self) -> None:
        """End the process; what it has started is left for later."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def kill(self) -> None:
        """End it and all that it has started, now. Returns when they are gone."""
        if self._killing is None and not self.gone.done():
            self._killing = self._loop.create_task(self._kill_tree())
        if self._killing is not None:
            await asyncio.shield(self._killing)

    async def _kill_tree(self) -> None:
        await asyncio.to_thread(kill_tree, self.pid)
        await asyncio.wait([self.gone])

    async def clear(self, adopts: bool) -> None:
        """End what it has left behind at its death; if this process ``adopts`` orphans, those."""
        if adopts:  # on the loop's thread, which starts all children
            orphans = set(children(os.getpid())) - _living
            await asyncio.to_thread(end_orphans, orphans)
        await asyncio.to_thread(kill_marked, self._mark)

    def how(self) -> str:
        """How it has ended."""
        code = self.gone.result()
        if code < 0:
            return f"process {self.pid} was ended by signal {_signal(-code)}"
        return f"process {self.pid} exited with status {code}"


def _signal(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return str(number)
