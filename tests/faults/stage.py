"""Real servers, links and workers that can be hurt one at a time."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import psutil
import redis

from qnb.storage.keys import GROUP
from tests.conftest import leaks

Kind = Literal["processes", "inline"]

#: the settings of the embedded server that matter to a queue
KEPT = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
}


#: a program that is a worker, and stops as one that is told to
INLINE = """
import asyncio, logging, signal
from {0} import app

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.stop)
    await app.run()

logging.basicConfig(level="INFO")
asyncio.run(main())
"""


def eventually(predicate: Callable[[], Any], what: str, limit: float = 20) -> Any:
    """What ``predicate`` gave once it was true."""
    deadline = time.monotonic() + limit
    while not (found := predicate()):
        assert time.monotonic() < deadline, f"never came true in {limit:g} s: {what}"
        time.sleep(0.01)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Process:
    """A process that is signalled by its number and never by another's."""

    _process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was never started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """None while it lives."""
        return None if self._process is None else self._process.poll()

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def suspend(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.signal(signal.SIGKILL)
        self._wait()

    def _wait(self, limit: float = 20) -> None:
        if self._process is not None:
            self._process.wait(limit)


class Server(_Process):
    """A redis-server of its own: on a unix socket, or on ``port`` of the loopback device."""

    def __init__(
        self, folder: Path, *, port: int | None = None, config: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.port = port
        self.config = {**KEPT, **(config or {})}
        self.url = f"redis://127.0.0.1:{port}/0" if port else f"unix://{folder}/s"
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, *, wait: bool = True) -> Server:
        """Start it, with the data that its folder has; returns when it answers."""
        program = shutil.which("redis-server")
        assert program, "redis-server is missing: install it to run the fault suite"
        words = [program, "--port", str(self.port or 0), "--bind", "127.0.0.1"]
        if not self.port:
            words += ["--unixsocket", str(self.folder / "s")]
        for name, value in self.config.items():
            words += [f"--{name}", value]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(words, cwd=self.folder, stdout=log, stderr=log)
        if wait:
            eventually(self._answers, "the server answers")
        return self

    def _answers(self) -> bool:
        assert self.alive, (self.folder / "log").read_text()[-2000:]
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self.url) as link:
            return bool(link.ping())
        return False

    def stop(self) -> None:
        """SIGTERM: it saves what it has."""
        if self.alive:
            self.resume()
            self.signal(signal.SIGTERM)
            self._wait()

    def cli(self, *command: Any) -> Any:
        """What it answers to one command."""
        with redis.Redis.from_url(self.url) as link:
            return link.execute_command(*command)


class Proxy:
    """Forwards loopback TCP to a server on TCP, until it is told to hurt."""

    def __init__(self, server: Server) -> None:
        assert server.port, "a proxy stands before a server on TCP"
        self._to = ("127.0.0.1", server.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._mute: set[socket.socket] = set()
        self._silent = False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def silence(self) -> None:
        """Links stay open and carry nothing from now on; new ones are accepted and silent."""
        with self._lock:
            self._silent = True
            self._mute.update(self._pairs)

    def restore(self) -> None:
        """New links work again. Those that went silent stay so: what they carried is lost."""
        with self._lock:
            self._silent = False

    def cut(self) -> int:
        """Close all links; how many there were."""
        with self._lock:
            ends = list(self._pairs)
            for end in ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            return len(ends) // 2

    def close(self) -> None:
        self._closing.set()
        self._thread.join(5)
        self._listener.close()
        for end in tuple(self._pairs):
            end.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            with self._lock:
                heard = [end for end in self._pairs if end not in self._mute]
            ready, _, _ = select.select([self._listener, *heard], [], [], 0.02)
            for end in ready:
                if end is self._listener:
                    self._accept()
                else:
                    self._forward(end)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._to, timeout=5)
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.settimeout(20)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._pairs |= {near: far, far: near}
            if self._silent:
                self._mute |= {near, far}

    def _forward(self, end: socket.socket) -> None:
        other = self._pairs.get(end)
        if other is None:
            return
        try:
            if data := end.recv(1 << 16):
                other.sendall(data)
                return
        except OSError:
            pass
        with self._lock:
            for each in (end, other):
                self._pairs.pop(each, None)
                self._mute.discard(each)
                each.close()


class Worker(_Process):
    """A worker that is a process group of its own: ``qnb worker``, or a program's ``app.run()``.

    ``options`` are those of its app; ``tasks`` is source text of that app's module.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        queue: str,
        slots: int = 2,
        *,
        kind: Kind = "processes",
        options: Mapping[str, Any] | None = None,
        tasks: str = "",
        env: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        given = {"allow_volatile": True, **(options or {})}
        if kind == "inline":
            given.setdefault("concurrency", slots)
        name = f"served_{os.urandom(4).hex()}"
        (folder / f"{name}.py").write_text(
            f"import qnb\n\napp = qnb.App({url!r}, {queue!r}, **{given!r})\n{tasks}\n"
        )
        if kind == "processes":
            words = ["-m", "qnb", "worker", f"{name}:app", "--workers", str(slots)]
        else:
            words = ["-c", INLINE.format(name)]
        self._log = folder / f"{name}.log"
        self._url, self._queue = url, queue
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *words], cwd=folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env={**os.environ, **(env or {})}, start_new_session=True,
            )  # fmt: skip
        if wait:
            eventually(self._is_up, "the worker serves")

    def _is_up(self) -> bool:
        assert self.alive, f"it ended with status {self.exit_status}: {self.log()[-2000:]}"
        with redis.Redis.from_url(self._url) as link:
            listed = link.zrange(f"qnb:{{{self._queue}}}:workers", 0, -1)
        return any(f":{self.pid}:".encode() in name for name in listed)

    def children(self) -> list[int]:
        """The processes that run its bodies."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self.pid).children()]
        return []

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def kill_all(self) -> None:
        """SIGKILL to it and to all its children at once."""
        for pid in (*self.children(), self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._wait()

    def terminate(self, limit: float = 20) -> int:
        """SIGTERM; its exit status once it has left."""
        self.resume()
        self.signal(signal.SIGTERM)
        self._wait(limit)
        status = self.exit_status
        assert status is not None
        return status

    def end(self) -> None:
        """However it stands: it is gone, and its children too."""
        children = self.children()
        if self.alive:
            self.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


class Stage:
    """Makes servers, proxies and workers, and ends whatever is left of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Callable[[], None]] = []

    def _next(self) -> Path:
        return self._folder / str(len(self._made))

    def server(self, *, tcp: bool = False, config: Mapping[str, str] | None = None) -> Server:
        """A server that runs; on TCP if a :meth:`proxy` is to stand before it."""
        server = Server(self._next(), port=free_port() if tcp else None, config=config)
        self._made.append(server.stop)
        return server.start()

    def proxy(self, server: Server) -> Proxy:
        proxy = Proxy(server)
        self._made.append(proxy.close)
        return proxy

    def worker(self, url: str, queue: str, slots: int = 2, **given: Any) -> Worker:
        """A worker that serves (``wait=False``: that has been started)."""
        worker = Worker(self._next(), url, queue, slots, **given)
        self._made.append(worker.end)
        return worker

    def close(self) -> None:
        for end in reversed(self._made):
            with contextlib.suppress(Exception):
                end()


def invariants(url: str, queue: str) -> None:
    """After a drain nothing is pending or leased, and no key stays that should not."""
    with redis.Redis.from_url(url) as link:
        for key in link.scan_iter(match=f"qnb:[{{]{queue}[}}]:*"):
            kind = key.split(b":")[2].decode()
            if kind in ("delayed", "expiring", "parked"):
                assert link.zcard(key) == 0, f"jobs are left in {key!r}"
            if link.type(key) != b"stream":
                continue
            assert link.xlen(key) == 0, f"jobs are left in {key!r}"
            if any(group["name"] == GROUP.encode() for group in link.xinfo_groups(key)):
                assert link.xpending(key, GROUP)["pending"] == 0, f"leases are left in {key!r}"
    assert not leaks(url, queue)
