"""The command line: what it refuses, what it teaches, and what it says of a real queue."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

import qnb
from qnb.cli import main
from tests.conftest import answers, unavailable

Wait = Callable[..., Any]


def _qnb(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qnb", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=25, check=False,
    )  # fmt: skip


class _Running:
    """``qnb`` as a process whose lines are read as they come."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qnb", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def end(self, number: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(10)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


@pytest.fixture
def running() -> Iterator[Callable[..., _Running]]:
    """Starts ``qnb`` with arguments; what still runs at the end of the test is stopped."""
    started: list[_Running] = []

    def start(*arguments: str) -> _Running:
        started.append(_Running(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.end(signal.SIGKILL)


# -- refused where it is written, and taught -------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["worker", "--max-memory", "2XB"], "'--max-memory': size='2XB': .*'2 GB'"),
        (["worker", "--max-memory", "0"], "size=0: expected bytes > 0"),
        (["worker", "--idle-timeout", "soon"], "'--idle-timeout': 'soon': .*'10 min'"),
        (["worker", "--idle-timeout", "-1"], "'-1': expected seconds > 0"),
        (["worker", "--workers", "0"], "0 is not in the range x>=1"),
        (["worker", "qnb.optons:app"], "No module named 'qnb.optons'. Did you mean 'qnb.options'"),
        (["worker", "tasky:app"], "Did you mean 'tasks'.*importable from "),
        (["worker", "tasks:ap"], "has no 'ap'. Did you mean 'app'"),
        (["worker", "tasks:number"], "'tasks:number' is 3. Expected a qnb.App"),
        (["worker", "broken"], "'broken:app': No module named 'no_such_thing'. Expected"),
        (["worker", ":app"], "':app': expected MODULE:APP, such as"),
        (["worker", "tasks:app", "--queue", "q"], "--queue 'q': the app 'tasks:app' names its"),
        (["worker", "--executor", "tasks"], "'tasks': expected --executor MODULE:FACTORY"),
        (["worker", "--executor", "tasks:pol"], "has no 'pol'. Did you mean 'pool'"),
        (["worker", "--executor", "tasks:number"], "'tasks:number' is no function"),
        (["worker", "--executor", "tasks:pool", "--max-memory", "1 GB"], "leave one of them out"),
        (["status", "--watch", "soon"], "'--watch': 'soon': expected seconds"),
        (["status", "--watch", "tasks:app"], "'10 min'; MODULE:APP comes before it"),
        (["status", "tasks:app", "--queue", "q"], "names its own"),
        (["statsu"], "Did you mean 'status'"),
    ],
)
def test_a_bad_argument_is_named_with_what_is_allowed(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "tasks.py").write_text("app = object()\nnumber = 3\ndef pool(): ...\n")
    (tmp_path / "broken.py").write_text("import no_such_thing\n")
    ran = CliRunner().invoke(main, arguments)
    sys.modules.pop("tasks", None)
    assert ran.exit_code == 2, ran.output
    assert re.search(says, " ".join(ran.output.split())), ran.output


def test_help_shows_a_command_for_each_common_case_and_every_option() -> None:
    shown = CliRunner().invoke(main, ["worker", "--help"]).output
    for case in ("--burst", "rediss://", "QNB_KEY_FILE", "shop.tasks:app", "--executor cluster:"):
        assert case in shown
    for theme in ("SIGTERM", "lease", "standard error", "job.logs()"):
        assert theme in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "qnb status --watch" in CliRunner().invoke(main, ["--help"]).output


# -- what it says of a queue -----------------------------------------------------------------------


def test_status_tells_that_jobs_wait_for_nobody_and_then_who_serves_them(
    app: qnb.App, server_url: str, queue: str, running: Callable[..., _Running], wait_until: Wait
) -> None:
    @app.task
    def work(x: int) -> int:
        return x + 1

    jobs = [work.submit(x) for x in range(3)]
    here = ["status", "--url", server_url, "--queue", queue]
    alone = _qnb(*here)
    assert (alone.returncode, alone.stderr) == (1, "")
    assert alone.stdout.splitlines()[0] == (
        f"queue '{queue}': 3 waiting, 0 delayed, 0 running; no worker serves it: start one with "
        "qnb worker"
    )
    worker = running("worker", "--url", server_url, "--queue", queue, "--workers", "2")
    assert [job.get(timeout=20) for job in jobs] == [1, 2, 3]
    served = _qnb(*here, "--json")
    said = json.loads(served.stdout)
    assert (served.returncode, said["waiting"], said["stuck"]) == (0, 0, False)
    [(name, says)] = said["workers"].items()
    assert (says["pid"], says["slots"], says["pool"]) == (worker.process.pid, 2, False)
    assert says["started"] <= says["at"] <= said["at"]
    assert name in _qnb(*here).stdout
    assert worker.end(signal.SIGTERM) == 0


def test_watching_goes_on_when_the_server_comes_back_and_ends_cleanly(
    tmp_path: Path, queue: str, running: Callable[..., _Running], wait_until: Wait
) -> None:
    program = shutil.which("redis-server") or ""
    if not program:
        unavailable("redis-server")

    def serve() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [program, "--port", "0", "--unixsocket", "s", "--appendonly", "yes"],
            cwd=tmp_path, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    server = serve()
    try:
        wait_until(lambda: answers(tmp_path / "s"), "the server listens")
        watch = running(
            "status", "--url", f"unix://{tmp_path}/s", "--queue", queue, "--json", "--watch", "0.1"
        )
        wait_until(lambda: len(watch.lines) > 2, "it looks again and again")
        assert {json.loads(line)["queue"] for line in watch.lines} == {queue}
        server.kill()
        server.wait()
        wait_until(lambda: "reconnecting" in watch.lines[-1], "it says that the server is away")
        said = len(watch.lines)
        server = serve()
        wait_until(lambda: len(watch.lines) > said, "it goes on")
        assert json.loads(watch.lines[-1])["queue"] == queue
        assert watch.end(signal.SIGINT) == 0
        assert not [line for line in watch.lines if "Traceback" in line or "Aborted" in line]
    finally:
        server.kill()
        server.wait()


def test_watching_redraws_a_terminal_and_appends_to_anything_else(
    app: qnb.App, server_url: str, queue: str, running: Callable[..., _Running], wait_until: Wait
) -> None:
    here = ["status", "--url", server_url, "--queue", queue, "--watch", "0.1"]
    plain = running(*here)
    wait_until(lambda: len(plain.lines) > 2, "a line each time")
    assert all(f"Z queue '{queue}': 0 waiting" in line for line in plain.lines)
    assert plain.end() == 0
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "qnb", *here], stdout=theirs, stdin=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    while shown.count(b"\x1b[2J") < 3:  # the screen is cleared each time
        shown += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    os.close(ours)
    assert f"queue '{queue}'" in shown.decode()


# -- workers ---------------------------------------------------------------------------------------


def test_an_executor_of_this_folder_runs_the_jobs_and_an_idle_worker_leaves(
    app: qnb.App, server_url: str, queue: str, tmp_path: Path
) -> None:
    (tmp_path / "cluster.py").write_text(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def pool(): return ThreadPoolExecutor(2, thread_name_prefix='of-the-pool')\n"
    )

    @app.task
    def where() -> str:
        import threading

        return threading.current_thread().name

    job = where.submit()
    ran = _qnb(
        "worker", "--executor", "cluster:pool", "--idle-timeout", "0.5 s", "--workers", "2",
        "--url", server_url, "--queue", queue, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert job.get(timeout=5).startswith("of-the-pool")


# -- how it ends -----------------------------------------------------------------------------------

_SERVICE = """
import asyncio, os, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import qnb
app = qnb.App({url!r}, {queue!r})
here = Path({folder!r})
@app.lifespan
async def slow():
    (here / "starting").touch()
    await asyncio.sleep(20 if (here / "slow").exists() else 0)
    yield
@app.task
def work(seconds):
    print(os.getpid(), file=(here / "pid").open("w"), flush=True)
    time.sleep(seconds)
    return "finished"
@app.task
def breaks():
    os._exit(3)
def pool():
    return ProcessPoolExecutor(2)
"""


@pytest.fixture
def service(
    server_url: str, queue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A module with an app, as a service would run it."""
    text = _SERVICE.format(url=server_url, queue=queue, folder=str(tmp_path))
    (tmp_path / "service.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import service  # type: ignore[import-not-found]

    yield service
    service.app.close()
    del sys.modules["service"]


def _pid(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int((folder / "pid").read_text())
    return 0


def test_a_signal_to_supervisor_and_children_together_lets_the_job_finish(
    service: Any, running: Callable[..., _Running], tmp_path: Path, wait_until: Wait
) -> None:
    worker = running("worker", "service:app", "-n", "1")
    job = service.work.submit(0.5)
    child = wait_until(lambda: _pid(tmp_path), "it runs", 20)
    for pid in (child, worker.process.pid):
        os.kill(pid, signal.SIGTERM)
    assert job.get(timeout=10) == "finished"
    assert worker.process.wait(10) == 0


def test_a_signal_while_it_starts_ends_it_at_once(
    service: Any, running: Callable[..., _Running], tmp_path: Path, wait_until: Wait
) -> None:
    (tmp_path / "slow").touch()
    worker = running("worker", "service:app", "-n", "1")
    wait_until((tmp_path / "starting").exists, "its lifespan begins", 20)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(5) == 0


def test_a_process_of_a_pool_can_be_ended_and_its_worker_goes_on(
    service: Any, running: Callable[..., _Running], tmp_path: Path, wait_until: Wait
) -> None:
    worker = running("worker", "service:app", "-n", "1", "--executor", "service:pool")
    job = service.work.submit(0.5)
    inner = wait_until(lambda: _pid(tmp_path), "it runs in the pool", 20)
    os.kill(inner, signal.SIGTERM)
    assert job.get(timeout=10) == "finished"  # in a fresh pool
    with pytest.raises(qnb.WorkerCrashed, match="lost its worker 3 times"):
        service.breaks.submit().get(timeout=15)
    assert service.work.submit(0).get(timeout=10) == "finished"
    assert not any("stopping" in line for line in worker.lines)
    assert worker.end(signal.SIGTERM) == 0


def test_a_second_signal_leaves_a_pool_whose_body_runs_on(
    service: Any, running: Callable[..., _Running], tmp_path: Path, wait_until: Wait
) -> None:
    worker = running("worker", "service:app", "-n", "1", "--executor", "service:pool")
    job = service.work.submit(25)
    inner = wait_until(lambda: _pid(tmp_path), "it runs in the pool", 20)
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: any("stopping" in line for line in worker.lines), "it has heard")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(5) == 1
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(inner).status() == psutil.STATUS_ZOMBIE
    wait_until(lambda: job.snapshot().status == "queued", "it was handed back", 2)
