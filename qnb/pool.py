"""Workers on this machine, started from a notebook, that outlive it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import platformdirs

from qnb import bridge
from qnb.client import Client
from qnb.display import Displayed
from qnb.errors import LONGEST_MS, InvalidOption, QnbError
from qnb.lookout import Lookout
from qnb.models import PoolSnapshot, WorkerInfo
from qnb.options import byte_size
from qnb.registry import Registry

__all__ = ["OPTIONS_VARIABLE", "Pool", "linger_seconds", "most_slots"]

#: set where a pool tells its workers the app's options on their standard input
OPTIONS_VARIABLE = "QNB_POOL_OPTIONS"

#: seconds for workers to come up, and to go
START = 30.0
STOP = 30.0

State = Literal["looking", "serving", "idle", "starting", "leaving", "stopped"]

_UNITS = {"s": 1, "min": 60, "h": 3600}
_started: list[subprocess.Popen[bytes]] = []  # kept, so that their ends are collected


def linger_seconds(linger: str | float) -> float:
    """Seconds from a number or from words like ``"10 min"``, ``"30 s"``, ``"2 h"``."""
    given: object = linger  # a notebook is not type-checked
    found = float("nan")
    with contextlib.suppress(ValueError, KeyError, OverflowError):
        if isinstance(given, str):
            number, _, unit = given.strip().partition(" ")
            found = float(number) * _UNITS[unit.strip() or "s"]
        elif type(given) in (int, float):
            found = float(linger)
    if not 0 <= found <= LONGEST_MS / 1000:
        raise InvalidOption(
            f"linger={linger!r}: expected seconds ≥ 0 and ≤ {LONGEST_MS // 1000:,}, or text like "
            "'10 min', '30 s', '2 h'"
        )
    return found


class Pool(Displayed):
    """The local workers of one queue. They finish and go on when this process dies.

    Made by :meth:`App.start_workers <qnb.App.start_workers>`; as a context manager it stops them
    at the end of the block.
    """

    def __init__(self, client: Client, registry: Registry) -> None:
        self._client = client
        self._registry = registry
        self._lookout = Lookout.of(client)

    @property
    def slots(self) -> int:
        """How many jobs the local workers run at a time."""
        return sum(int(says["slots"]) for says in self._serving().values())

    def scale(
        self,
        n: int | Literal["auto"],
        *,
        linger: str | float = "10 min",
        max_memory: int | str | None = None,
    ) -> Pool:
        """Make sure that ``n`` slots serve the queue; ``"auto"`` is one per core.

        ``linger`` and ``max_memory`` are those of the slots that are started by it.
        """
        if n == "auto":
            n = os.cpu_count() or 1
        if type(n) is not int or n < 1:
            raise InvalidOption(f"n={n!r}: expected a number of worker slots ≥ 1, or 'auto'")
        idle = linger_seconds(linger)
        most = None if max_memory is None else byte_size("max_memory", max_memory)
        with self._turn() as logs, self._wanting(n):
            workers = self._serving()
            have = sum(int(says["slots"]) for says in workers.values())
            leaving = []
            for says in workers.values():
                if have > n:
                    leaving.append(int(says["pid"]))
                    have -= int(says["slots"])
            _stop(leaving)
            if have < n:  # before the others have finished their jobs
                self._start(n - have, idle, most, logs)
            self._gone(leaving)
        return self

    def stop(self) -> None:
        """End the local workers: running jobs finish, waiting ones stay in the queue."""
        with self._turn():
            workers = self._workers()
            _stop([int(says["pid"]) for says in _staying(workers).values()])
            self._gone([int(says["pid"]) for says in workers.values()])

    # -- showing -------------------------------------------------------------------------------

    def snapshot(self) -> PoolSnapshot:
        """The last that was seen of the local workers; no I/O."""
        seen, here = self._lookout.snapshot(), socket.gethostname()
        lanes = set(self._client.options.priorities)
        workers = tuple(
            worker for worker in seen.workers
            if worker.pool and worker.host == here and lanes <= set(worker.lanes)
            and _lives(worker.pid)
        )  # fmt: skip
        slots, wanted = sum(w.slots for w in workers if not w.leaving), self._lookout.wanted
        return PoolSnapshot(
            seen.queue, here, seen.at, _state(seen.at, workers, slots, wanted), workers, slots,
            wanted, most_slots(), seen.note,
        )  # fmt: skip

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Look once a second, and have ``changed`` called, on qnb's I/O thread, after each look.

        Call the answer to stop.
        """
        return self._lookout.watch(changed, whole=False)

    @contextlib.contextmanager
    def _wanting(self, slots: int) -> Iterator[None]:
        """Have views say what is on its way."""
        try:
            self._lookout.wanted = slots
            self._lookout.tell()
            yield
        finally:
            self._lookout.wanted = None
            self._lookout.tell()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pool stays in this process: a task that needs it calls app.pool()")

    def __repr__(self) -> str:
        return f"<Pool of queue {self._client.options.queue_name!r} on {socket.gethostname()}>"

    # -- processes -----------------------------------------------------------------------------

    def _workers(self) -> dict[str, dict[str, Any]]:
        """The living pool workers of this queue on this host."""

        async def ask() -> dict[str, dict[str, Any]]:
            return await (await self._client.link()).store.workers()

        here = socket.gethostname()
        return {
            worker: says
            for worker, says in bridge.run(ask()).items()
            if says.get("pool") and says["host"] == here and _lives(int(says["pid"]))
        }

    def _serving(self) -> dict[str, dict[str, Any]]:
        """Those that stay, and read every lane of this app."""
        lanes = set(self._client.options.priorities)
        return {
            worker: says
            for worker, says in _staying(self._workers()).items()
            if lanes <= set(says.get("lanes", ()))
        }

    @contextlib.contextmanager
    def _turn(self) -> Iterator[Path]:
        """One at a time on this machine may change the pool; the folder of its logs."""
        folder = Path(platformdirs.user_state_path("qnb")) / "workers"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / f"{self._client.options.queue_name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder

    def _start(self, slots: int, idle: float, max_memory: int | None, logs: Path) -> None:
        options = self._client.options
        if options.serializer is not None:
            raise InvalidOption(
                "start_workers() cannot send serializer= and deserializer= along: put the app into "
                "a module and start its workers with 'qnb worker module:app'"
            )
        given = dataclasses.asdict(options)
        del given["serializer"], given["deserializer"]
        environment = {**os.environ, "QNB_REDIS_URL": self._client.url, OPTIONS_VARIABLE: "stdin"}
        told = {"options": given, "linger": idle, "max_memory": max_memory, "setup": self._setup()}
        log = logs / f"{self._client.options.queue_name}.log"
        at = log.stat().st_size if log.exists() else 0
        # A file: hooks may be larger than an environment can be.
        with log.open("ab") as out, tempfile.TemporaryFile() as options_file:
            options_file.write(json.dumps(told).encode())
            options_file.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-m", "qnb", "worker", "--workers", str(slots)],
                stdin=options_file, stdout=out, stderr=out,
                env=environment, start_new_session=True,
            )  # fmt: skip
        _started[:] = [old for old in _started if old.poll() is None] + [process]

        def ended() -> str | None:
            if process.poll() is None:
                return None
            said = log.read_bytes()[at:].decode(errors="replace").strip()
            return f"exited with status {process.returncode}. Its log, {log}, ends: {said[-2000:]}"

        def is_up() -> bool:
            return any(int(says["pid"]) == process.pid for says in self._workers().values())

        self._until(is_up, START, "did not come up", ended)

    def _setup(self) -> str | None:
        """The lifespan and hooks of the app as signed bytes, in hex."""
        registry = self._registry
        hooks = list(registry.error_hooks.values())
        if registry.lifespan is None and not hooks:
            return None
        return self._client.codec.pack_call("setup", (registry.lifespan, hooks), {}).hex()

    def _gone(self, pids: list[int]) -> None:
        """Wait until these workers have left."""
        self._until(
            lambda: not any(_lives(pid) for pid in pids), STOP,
            "still finish their jobs; they will leave after them", lambda: None,
        )  # fmt: skip

    def _until(self, true: Any, limit: float, else_: str, ended: Any) -> None:
        async def wait() -> None:
            async with asyncio.timeout(limit):
                while not await asyncio.to_thread(true):
                    if (how := ended()) is not None:
                        raise QnbError(f"the workers of {self!r} {how}")
                    await asyncio.sleep(0.05)

        try:
            bridge.run(wait())
        except TimeoutError:
            raise QnbError(f"the workers of {self!r} {else_} (waited {limit:g} s)") from None


def most_slots() -> int:
    """How many slots a view offers."""
    return 4 * (os.cpu_count() or 1)


def _state(at: int, workers: Sequence[WorkerInfo], slots: int, wanted: int | None) -> State:
    if wanted is not None and slots < wanted:
        return "starting"
    if not at:
        return "looking"
    if not workers:
        return "stopped"
    if all(worker.leaving for worker in workers):
        return "leaving"
    return "serving" if any(worker.running for worker in workers) else "idle"


def _staying(workers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those that have not been told to stop: once more would end the jobs that they finish."""
    return {worker: says for worker, says in workers.items() if not says.get("leaving")}


def _stop(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _lives(pid: int) -> bool:
    for process in _started:
        if process.pid == pid:
            return process.poll() is None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
