"""Workers in processes of their own: ``start_workers`` and ``qnb worker``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qnb

Wait = Callable[..., Any]


@pytest.fixture
def pool(app: qnb.App) -> Iterator[qnb.Pool]:
    with app.start_workers(2, linger="60 s") as pool:
        yield pool


def test_functions_run_on_workers_that_have_never_seen_them(app: qnb.App, pool: qnb.Pool) -> None:
    factor = 10

    def helper(x: int) -> int:
        return x * factor

    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    @app.task
    def scale(point: Point) -> tuple[Point, int]:
        return Point(helper(point.x)), os.getpid()

    @app.task
    async def later(x: int) -> int:
        return helper(x)

    point, pid = scale.submit(Point(2)).get(timeout=10)
    assert (point.x, pid != os.getpid()) == (20, True)
    assert later.submit(3).get(timeout=10) == 30

    def helper(x: int) -> int:  # noqa: F811 - a cell run again
        return -x

    @app.task
    async def later(x: int) -> int:  # type: ignore[no-redef]
        return helper(x)

    assert later.submit(3).get(timeout=10) == -3


def test_start_workers_tops_up_and_never_doubles(app: qnb.App, pool: qnb.Pool) -> None:
    assert pool.slots == 2
    assert app.start_workers(2).slots == 2
    assert app.pool().scale(3).slots == 3
    assert app.pool().scale(1).slots == 1
    pool.stop()
    assert pool.slots == 0


def test_a_worker_that_dies_with_its_job_is_replaced_and_the_job_repeated(
    app: qnb.App, pool: qnb.Pool, tmp_path: Path
) -> None:
    ledger = tmp_path / "starts"

    @app.task
    def fragile(path: str, lives: int) -> int:
        with Path(path).open("a") as file:
            file.write("start\n")
        print("about to", "die")
        count = len(Path(path).read_text().splitlines())
        if count <= lives:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    begun = time.monotonic()
    assert fragile.submit(str(ledger), 1).get(timeout=10) == 2
    assert time.monotonic() - begun < 5  # seen at once, not after a lease of 15 s
    ledger.unlink()
    job = fragile.submit(str(ledger), 99)
    with pytest.raises(qnb.WorkerCrashed, match=r"'fragile' lost its worker 3 times") as crashed:
        job.get(timeout=15)
    assert re.search(r"process \d+ was ended by signal SIGKILL", str(crashed.value))
    assert "about to die" in str(crashed.value)  # its last lines
    assert job.logs().count("about to die") == 3
    assert len(ledger.read_text().splitlines()) == 3
    assert fragile.submit(str(tmp_path / "sound"), 0).get(timeout=10) == 1


def test_workers_outlive_the_process_that_started_them(
    server_url: str, queue: str, tmp_path: Path, wait_until: Wait
) -> None:
    script = tmp_path / "kernel.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, signal, time
        import qnb
        app = qnb.App({server_url!r}, {queue!r})
        @app.task
        def work(x):
            time.sleep(0.05)
            return x + 1
        app.start_workers(2, linger=30)
        sweep = work.grid(x=range(20))
        while sweep.snapshot().note:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    died = subprocess.run([sys.executable, script], check=False, timeout=25)
    assert died.returncode == -signal.SIGKILL
    app = qnb.App(server_url, queue)
    wait_until(
        lambda: (app.jobs_frame()["status"] == "complete").sum() == 20, "all jobs have ended", 15
    )
    frame = app.jobs_frame(values=True, params="columns")
    assert (frame["value"] == frame["x"] + 1).all()
    app.pool().stop()
    app.close()


def test_a_lease_that_ends_gives_the_job_to_another_worker_and_fences_the_first(
    server_url: str, queue: str, tmp_path: Path, wait_until: Wait
) -> None:
    app = qnb.App(server_url, queue, lease_ms=500)
    ledger = tmp_path / "ledger"

    @app.task
    def work(path: str) -> int:
        with Path(path).open("a") as file:
            file.write(f"{os.getppid()}\n")
        runs = len(Path(path).read_text().splitlines())
        if runs == 1:
            time.sleep(1)
        return runs

    first = app.start_workers(1)
    job = work.submit(str(ledger))
    supervisor = int(wait_until(lambda: ledger.exists() and ledger.read_text(), "it started"))
    slots = subprocess.run(
        ["pgrep", "-P", str(supervisor)], capture_output=True, text=True, check=True
    ).stdout.split()
    for pid in (supervisor, *map(int, slots)):
        os.kill(pid, signal.SIGSTOP)
    try:
        app.start_workers(2)
        assert job.get(timeout=15) == 2
    finally:
        for pid in (*map(int, slots), supervisor):
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: len(ledger.read_text().splitlines()) == 2, "two starts")
    wait_until(lambda: first.slots == 2, "the first worker is heard again")
    first.stop()
    assert job.get(timeout=5) == 2  # the first worker's late outcome was refused
    app.close()


@pytest.mark.parametrize("returns", ["threading.Lock()", "(x for x in 'ab')"])
def test_a_result_that_cannot_be_sent_fails_at_once_naming_its_type(
    app: qnb.App, pool: qnb.Pool, returns: str
) -> None:
    @app.task
    def odd(code: str) -> object:
        import threading

        return eval(code, {"threading": threading})  # noqa: S307 - the test's own text

    begun = time.monotonic()
    with pytest.raises(qnb.ResultError, match=r"cannot be sent back.*of type"):
        odd.submit(returns).get(timeout=10)
    assert time.monotonic() - begun < 2
    assert odd.submit("1").get(timeout=10) == 1


def test_an_import_that_the_worker_lacks_is_named_with_the_remedy(
    app: qnb.App, pool: qnb.Pool
) -> None:
    @app.task
    def needs() -> None:
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401

    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        needs.submit().get(timeout=10)


def test_qnb_worker_serves_an_app_by_name_and_leaves_when_drained(
    server_url: str, queue: str, tmp_path: Path
) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "tasks.py").write_text(
        textwrap.dedent(f"""
        import qnb
        from shop.prices import price
        app = qnb.App({server_url!r}, {queue!r})
        @app.task
        def total(n): return n * price()
        @app.task
        async def late(n): return n
        """)
    )
    (tmp_path / "shop" / "prices.py").write_text("def price(): return 7\n")
    client = textwrap.dedent("""
        from shop.tasks import app, total, late
        jobs = [total.submit(3), late.submit(4)]
        print(*(job.id for job in jobs))
        """)
    sent = subprocess.run(
        [sys.executable, "-c", client], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    served = subprocess.run(
        [sys.executable, "-m", "qnb", "worker", "shop.tasks:app", "--workers", "1", "--burst"],
        cwd=tmp_path, capture_output=True, text=True, timeout=25, check=False,
    )  # fmt: skip
    assert served.returncode == 0, served.stderr
    app = qnb.App(server_url, queue)
    assert [app.job(id_).get(timeout=5) for id_ in sent.stdout.split()] == [21, 4]
    app.close()


def test_a_worker_process_loads_neither_pandas_nor_widgets(app: qnb.App, pool: qnb.Pool) -> None:
    @app.task
    def loaded() -> list[str]:
        import sys

        return sorted({name.partition(".")[0] for name in sys.modules})

    found = loaded.submit().get(timeout=10)
    assert not {"pandas", "numpy", "ipywidgets", "IPython", "redis", "matplotlib"} & set(found)


@pytest.mark.parametrize("flip", ["call", "function", "task"])
def test_a_tampered_job_is_refused_unread(
    app: qnb.App, server_url: str, queue: str, flip: str, tmp_path: Path
) -> None:
    import msgpack
    import redis

    from qnb.storage.keys import KeySpace

    marker = tmp_path / "ran"

    @app.task
    def touch(path: str) -> None:
        Path(path).touch()

    job = touch.submit(str(marker))
    keys = KeySpace(queue)
    with redis.Redis.from_url(server_url) as link:
        [(entry, row)] = link.xrange(keys.lane("default"))
        if flip == "call":
            row[b"p"] = row[b"p"][:-1] + bytes([row[b"p"][-1] ^ 1])
        else:
            spec = msgpack.unpackb(row[b"m"])
            at = 4 if flip == "function" else 1
            spec[at] = "os:system" if flip == "function" else "other"
            row[b"m"] = msgpack.packb(spec)
        link.xdel(keys.lane("default"), entry)
        fresh = link.xadd(keys.lane("default"), row)
        link.hset(keys.job(job.id), mapping={"e": fresh, "p": row[b"p"], "m": row[b"m"]})
    with app.start_workers(1):
        begun = time.monotonic()
        with pytest.raises(qnb.SignatureError, match="refused unread"):
            job.get(timeout=5)
        assert time.monotonic() - begun < 2
    assert not marker.exists()


def test_garbage_in_a_lane_is_removed_and_sound_jobs_go_on(
    app: qnb.App, pool: qnb.Pool, server_url: str, queue: str, wait_until: Wait
) -> None:
    import redis

    from qnb.storage.keys import KeySpace

    @app.task
    def f(x: int) -> int:
        return x

    lane = KeySpace(queue).lane("default")
    with redis.Redis.from_url(server_url) as link:
        for fields in ({"a": "1"}, {"m": b"\xc1", "a": "x", "n": "0"}, {"j": "", "m": b"\x90"}):
            link.xadd(lane, fields)
        assert f.submit(1).get(timeout=5) == 1
        wait_until(lambda: link.xlen(lane) == 0, "nothing stays behind")


def test_stopping_twice_lets_running_jobs_finish_and_who_leaves_counts_no_more(
    app: qnb.App, pool: qnb.Pool, tmp_path: Path, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qnb import pool as pools

    @app.task
    def work(path: str) -> str:
        Path(path).touch()
        while not Path(path).with_name("go").exists():
            time.sleep(0.01)
        return "finished"

    job = work.submit(str(tmp_path / "up"))
    wait_until((tmp_path / "up").exists, "it runs")
    monkeypatch.setattr(pools, "STOP", 0.5)
    for _ in range(2):
        with pytest.raises(qnb.QnbError, match="still finish their jobs"):
            pool.stop()
    assert pool.slots == 0
    assert app.start_workers(1).slots == 1  # one that serves
    with pytest.raises(qnb.QnbError, match="still finish their jobs"):
        pool.stop()
    (tmp_path / "go").touch()
    assert job.get(timeout=5) == "finished"
    monkeypatch.undo()
    pool.stop()


def test_scaling_down_starts_the_smaller_pool_before_the_larger_has_left(
    app: qnb.App, pool: qnb.Pool, tmp_path: Path, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qnb import pool as pools

    @app.task
    def work(path: str | None) -> str:
        if path is not None:
            Path(path).touch()
            while not Path(path).with_name("go").exists():
                time.sleep(0.01)
        return "finished"

    job = work.submit(str(tmp_path / "up"))
    wait_until((tmp_path / "up").exists, "it runs")
    monkeypatch.setattr(pools, "STOP", 0.1)
    with pytest.raises(qnb.QnbError, match="still finish their jobs"):
        pool.scale(1)
    assert pool.slots == 1
    assert work.submit(None).get(timeout=5) == "finished"
    (tmp_path / "go").touch()
    assert job.get(timeout=5) == "finished"


def test_hooks_larger_than_an_environment_can_be_travel_to_the_pool(
    app: qnb.App, tmp_path: Path, wait_until: Wait
) -> None:
    ballast, ledger = os.urandom(90_000), str(tmp_path / "ledger")

    @app.on_error
    def hook(failure: qnb.ErrorContext) -> None:
        Path(ledger).write_text(str(len(ballast)))

    @app.task
    def fails() -> None:
        raise ValueError

    with app.start_workers(1):
        fails.submit().wait(timeout=10)
        wait_until(lambda: Path(ledger).exists() and Path(ledger).read_text(), "it was told")
    assert Path(ledger).read_text() == "90000"


def test_a_number_as_prefetch_keeps_that_many_jobs_here(
    server_url: str, queue: str, tmp_path: Path
) -> None:
    from qnb import bridge

    app = qnb.App(server_url, queue, prefetch=3)

    @app.task
    def work(seconds: float) -> None:
        time.sleep(seconds)

    async def claims(job: qnb.Job[None]) -> bytes:
        store = (await app._client.link()).store
        return await store.server.call("HGET", store.keys.job(job.id), "a")

    with app.start_workers(1):
        jobs = [work.submit(seconds) for seconds in (0.6, 0, 0)]
        for job in jobs:
            job.get(timeout=5)
        assert [int(bridge.run(claims(job))) for job in jobs] == [1, 1, 1]
    app.close()


def test_workers_that_do_not_read_all_lanes_do_not_count(server_url: str, queue: str) -> None:
    plain = qnb.App(server_url, queue)
    laned = qnb.App(server_url, queue, ["default", "urgent"])

    @laned.task(priority="urgent")
    def f() -> int:
        return 1

    with plain.start_workers(1):
        assert laned.pool().slots == 0
        with laned.start_workers(1):
            assert f.submit().get(timeout=10) == 1
    laned.close()
    plain.close()
