"""What a running task says, and what is known of it, seen through the store."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qnb
from tests.serving import serving

Wait = Callable[..., Any]


@pytest.fixture
def pool(app: qnb.App) -> Iterator[qnb.Pool]:
    with app.start_workers(1, linger="60 s") as pool:
        yield pool


def test_output_of_every_kind_can_be_followed_while_the_job_runs(
    app: qnb.App, pool: qnb.Pool, tmp_path: Path
) -> None:
    @app.task
    def talk(go: str) -> None:
        import logging
        import os
        import subprocess
        import sys
        import threading
        import time
        from pathlib import Path

        print("printed")
        while not Path(go).exists():
            time.sleep(0.01)
        print("to stderr", file=sys.stderr)
        logging.getLogger("mine").info("logged")
        os.write(1, b"from C\n")
        thread = threading.Thread(target=lambda: print("from a thread"))
        thread.start()
        thread.join()
        subprocess.run([sys.executable, "-c", "print('from a process')"], check=True)
        print("last", end="")

    go = tmp_path / "go"
    job = talk.submit(str(go))
    pieces = job.logs(follow=True)
    assert next(pieces) == "printed\n"  # it still runs
    go.touch()
    told = "".join(pieces)
    for word in ("to stderr", "logged", "from C", "from a thread", "from a process"):
        assert word in told
    assert told.endswith("last")
    assert job.logs() == "printed\n" + told
    with pytest.raises(qnb.JobLost):
        app.job("nobody").logs()


def test_a_log_keeps_the_newest_megabyte_and_says_what_is_gone(
    app: qnb.App, pool: qnb.Pool
) -> None:
    @app.task
    def flood() -> None:
        for number in range(40_000):
            print(f"{number:06d}", "x" * 93)

    job = flood.submit()
    job.get(timeout=20)
    text = job.logs()
    assert 0.8e6 < len(text) <= 1.1e6
    assert "bytes of earlier output were dropped" in text.splitlines()[0]
    assert text.splitlines()[-1].startswith("039999")


def test_progress_and_resources_of_a_job_are_in_its_record_and_frame(
    app: qnb.App, pool: qnb.Pool, wait_until: Wait, tmp_path: Path
) -> None:
    @app.task
    def fit(go: str) -> int:
        ballast = bytearray(80_000_000)
        for step in qnb.progress(range(4), desc="fitting"):
            if step == 2:
                qnb.report(2, 4, "halfway", loss=0.5)
                while not Path(go).exists():
                    time.sleep(0.01)
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
        return len(ballast)

    job = fit.submit(str(tmp_path / "go"))
    [row] = wait_until(
        lambda: [*app.jobs_frame().query("message == 'halfway'").itertuples()],
        "the report arrives",
    )
    assert (row.Index, row.progress, row.status) == (job.id, 0.5, "running")
    (tmp_path / "go").touch()
    assert job.get(timeout=10) == 80_000_000
    row = app.jobs_frame().loc[job.id]
    assert row["peak_memory"] > 80_000_000
    assert row["cpu_time"].total_seconds() >= 0.2
    host, _, pid = row["worker"].rpartition(":")
    assert host == os.uname().nodename
    assert int(pid) != os.getpid()


def test_a_job_above_its_memory_fails_naming_both_figures(app: qnb.App, pool: qnb.Pool) -> None:
    @app.task(max_memory="120 MB", max_retries=0)
    def hog() -> None:
        held = []
        while True:
            held.append(bytearray(b"x") * 10_000_000)
            time.sleep(0.01)

    @app.task
    def sound() -> int:
        return 1

    job = hog.submit()
    with pytest.raises(qnb.MemoryLimitExceeded, match=r"held 1[2-9]\d,.* 120,000,000"):
        job.get(timeout=15)
    assert sound.submit().get(timeout=10) == 1


def test_a_notebooks_lifespan_and_hooks_travel_to_its_pool(
    server_url: str, queue: str, tmp_path: Path, wait_until: Wait
) -> None:
    app = qnb.App(server_url, queue)
    ledger = str(tmp_path / "ledger")

    @app.lifespan
    async def resources():  # type: ignore[no-untyped-def]
        yield {"factor": 6}

    @app.on_error
    def note(context: qnb.ErrorContext) -> None:
        with Path(ledger).open("a") as file:
            print(context.name, type(context.exc).__name__, context.will_retry, file=file)

    @app.task
    def scaled(x: int) -> int:
        return x * int(app.state.factor)

    @app.task(timeout=0.2, max_retries=1)
    def slow() -> None:
        time.sleep(60)

    @app.task
    def bad() -> None:
        raise ValueError

    with app.start_workers(1):
        assert scaled.submit(7).get(timeout=10) == 42
        for task, error in ((bad, ValueError), (slow, TimeoutError)):
            with pytest.raises(error):
                task.submit().get(timeout=15)
        wait_until(lambda: len(Path(ledger).read_text().splitlines()) == 3, "all are noted")
    assert Path(ledger).read_text().splitlines() == [
        "bad ValueError False", "slow TimeoutError True", "slow TimeoutError False",
    ]  # fmt: skip
    app.close()


SHOP = """
import asyncio, os, time
from pathlib import Path
import qnb
app = qnb.App({url!r}, {queue!r}, ["low", "high"])
ledger = Path({ledger!r})

def note(*words):
    with ledger.open("a") as file:
        print(*words, file=file)

@app.lifespan
async def resources():
    note("up")
    yield {{"db": "connected"}}
    note("down")

@app.on_error
async def report(context):
    note("error", context.name, repr(context.exc), context.will_retry)

@app.cron(every=1)
def tick():
    note("tick", qnb.current_task().task_id)

@app.task(max_retries=1)
def flaky():
    if qnb.current_task().tries == 1:
        raise OSError("once")
    return app.state.db

@app.task
async def together(n):
    await asyncio.sleep(0.5)
    return os.getpid()
"""


def test_qnb_worker_serves_an_app_with_all_it_has(
    server_url: str, queue: str, tmp_path: Path, wait_until: Wait
) -> None:
    ledger = tmp_path / "ledger"
    text = SHOP.format(url=server_url, queue=queue, ledger=str(ledger))
    (tmp_path / "shop.py").write_text(text)
    with subprocess.Popen(
        [sys.executable, "-m", "qnb", "worker", "shop:app", "-n", "2"],
        cwd=tmp_path, stderr=subprocess.DEVNULL,
    ) as worker:  # fmt: skip
        client = qnb.App(server_url, queue, ["low", "high"])
        assert client.ref("flaky").submit().get(timeout=20) == "connected"
        begun = time.monotonic()
        jobs = [client.ref("together", priority="high").submit(n) for n in range(16)]
        pids = {job.get(timeout=10) for job in jobs}
        assert time.monotonic() - begun < 3  # coroutines share the children
        assert len(pids) <= 2

        def lines() -> list[str]:
            return ledger.read_text().splitlines()

        wait_until(lambda: sum("tick" in line for line in lines()) >= 2, "the schedule runs")
        worker.terminate()
        assert worker.wait(15) == 0
    client.close()
    assert lines().count("up") == lines().count("down") == 2
    assert "error flaky OSError('once') True" in lines()
    ticks = [line for line in lines() if line.startswith("tick")]
    assert len(ticks) == len(set(ticks))


def test_qnb_worker_stands_in_front_of_any_pool(
    server_url: str, queue: str, tmp_path: Path
) -> None:
    (tmp_path / "cluster.py").write_text(
        textwrap.dedent("""
        from concurrent.futures import ProcessPoolExecutor
        def pool():
            return ProcessPoolExecutor(2)
        """)
    )
    app = qnb.App(server_url, queue)

    @app.task
    def work(x: int) -> tuple[int, int]:
        print("working on", x)
        return x + 1, os.getppid()

    jobs = [work.submit(x) for x in range(20)]
    served = subprocess.run(
        [sys.executable, "-m", "qnb", "worker", "--queue", queue, "--url", server_url,
         "--executor", "cluster:pool", "-n", "4", "--burst"],
        cwd=tmp_path, capture_output=True, text=True, timeout=25, check=False,
    )  # fmt: skip
    assert served.returncode == 0, served.stderr
    assert [job.get(timeout=5)[0] for job in jobs] == list(range(1, 21))
    assert jobs[3].logs() == "working on 3\n"
    app.close()


def test_blocking_and_async_callers_see_the_same_output_in_process(
    app: qnb.App, capsys: pytest.CaptureFixture[str]
) -> None:
    @app.task
    def speak(word: str) -> None:
        print(word)

    async def main() -> None:
        async with serving(app):
            first, second = await speak.enqueue("one"), await speak.enqueue("two")
            await asyncio.gather(first, second)
            logs = [await asyncio.to_thread(job.logs) for job in (first, second)]
            assert logs == ["one\n", "two\n"]

    asyncio.run(main())
    assert sorted(capsys.readouterr().out.split()) == ["one", "two"]  # shown here too


@pytest.mark.parametrize("skews", [(-1.5, 1.5), (-3600, 3600)])
def test_workers_whose_clocks_differ_run_each_occurrence_once(
    server_url: str, queue: str, tmp_path: Path, wait_until: Wait, skews: tuple[float, float]
) -> None:
    ledger = tmp_path / "ledger"
    text = SHOP.format(url=server_url, queue=queue, ledger=str(ledger))
    (tmp_path / "shop.py").write_text(text)
    workers = []
    for skew in skews:
        folder = tmp_path / f"clock{skew}"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            "import time\n"
            "_time, _time_ns = time.time, time.time_ns\n"
            f"time.time = lambda: _time() + {skew}\n"
            f"time.time_ns = lambda: _time_ns() + int({skew} * 1e9)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        command = [sys.executable, "-m", "qnb", "worker", "shop:app", "-n", "1"]
        workers.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
            )
        )  # fmt: skip

    def ticks() -> list[str]:
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        return [line for line in lines if line.startswith("tick")]

    try:
        wait_until(lambda: len(ticks()) >= 5, "five occurrences have run", 15)
    finally:
        for worker in workers:
            worker.terminate()
        assert [worker.wait(15) for worker in workers] == [0, 0]
    seconds = sorted(int(line.removesuffix("Z")[-2:]) for line in ticks())
    assert len(set(seconds)) == len(seconds)  # none twice
    gaps = sorted((b - a) % 60 for a, b in zip(seconds, [*seconds[1:], seconds[0]], strict=True))
    assert gaps[:-1] == [1] * (len(seconds) - 1)  # and none left out
