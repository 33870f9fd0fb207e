"""What the queue itself costs: round trips, fan-outs, draining. Prints a table; gates nothing.

Everything is on: signatures, leases, fencing, records, append-only file. One run on one machine
says little; compare two versions in turn.
"""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import qnb


def row(what: str, figure: str) -> None:
    print(f"{what:58} {figure}", flush=True)


def import_times() -> None:
    def once(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - began

    bare = statistics.median(once("pass") for _ in range(7))
    ours = statistics.median(once("import qnb; qnb.App") for _ in range(7))
    row("import qnb and its App, over a bare interpreter", f"{(ours - bare) * 1e3:.0f} ms")


def app_for(url: str) -> qnb.App:
    return qnb.App(url, f"bench-{secrets.token_hex(4)}")


async def round_trip(url: str, count: int) -> None:
    app = app_for(url)

    @app.task
    async def nothing(x: int) -> int:
        return x

    serving = asyncio.create_task(app.run())
    await (await nothing.enqueue(0))
    took = []
    for number in range(count):
        began = time.perf_counter()
        await (await nothing.enqueue(number))
        took.append(time.perf_counter() - began)
    app.stop()
    await serving
    took.sort()
    p50, p99 = took[count // 2], took[count * 99 // 100]
    row("round trip, in-process worker, p50 / p99", f"{p50 * 1e3:.2f} / {p99 * 1e3:.2f} ms")


async def gather(url: str, count: int) -> None:
    app = app_for(url)

    @app.task
    async def nothing(x: int) -> int:
        return x

    serving = asyncio.create_task(app.run())
    await (await nothing.enqueue(0))
    began = time.perf_counter()
    jobs = await app.enqueue_many([nothing.prepare(x) for x in range(count)])
    await asyncio.gather(*jobs)
    row(f"{count:,} submitted and gathered, in-process", f"{time.perf_counter() - began:.2f} s")
    app.stop()
    await serving


async def drain(url: str, count: int) -> None:
    app = app_for(url)

    @app.task
    async def nothing(x: int) -> int:
        return x

    calls = [nothing.prepare(x) for x in range(count)]
    began = time.perf_counter()
    await app.enqueue_many(calls)
    stored = time.perf_counter() - began
    app.burst = True
    began, cpu = time.perf_counter(), time.process_time()
    await app.run()
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    row(f"{count:,} prepared calls stored by enqueue_many", f"{count / stored:,.0f} jobs/s")
    row(f"{count:,} no-op jobs drained, in-process", f"{count / took:,.0f} jobs/s")
    row("worker CPU per no-op job, in-process", f"{cpu / count * 1e6:.0f} µs")


def processes(url: str, count: int) -> None:
    app = app_for(url)

    @app.task
    def nothing(x: int) -> int:
        return x

    began = time.perf_counter()
    pool = app.start_workers(2)
    row("2 worker processes ready", f"{time.perf_counter() - began:.2f} s")
    for pid, what in _memory(app):
        row(f"resident memory of an idle {what}", f"{_rss(pid):.0f} MB")
    nothing.submit(0).get(timeout=10)
    took = []
    for number in range(300):
        began = time.perf_counter()
        nothing.submit(number).get(timeout=10)
        took.append(time.perf_counter() - began)
    took.sort()
    row("round trip, blocking, child process, p50 / p99",
        f"{took[150] * 1e3:.2f} / {took[297] * 1e3:.2f} ms")  # fmt: skip
    began = time.perf_counter()
    nothing.map(range(count)).wait(120)
    row(f"sweep of {count:,} no-ops, 2 child processes", f"{time.perf_counter() - began:.2f} s")
    pool.stop()
    app.close()


def _memory(app: qnb.App) -> list[tuple[int, str]]:
    [supervisor] = [int(says["pid"]) for says in app.pool()._workers().values()]
    listed = subprocess.run(
        ["pgrep", "-P", str(supervisor)], capture_output=True, text=True, check=True
    )
    return [(supervisor, "supervisor"), (int(listed.stdout.split()[0]), "child process")]


def _rss(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def sweep(url: str, count: int) -> None:
    app = app_for(url)

    @app.task
    def nothing(x: int) -> int:
        return x

    nothing.submit(0)
    began = time.perf_counter()
    made = nothing.map(range(count))
    row(f"handle of a {count:,}-point sweep", f"{(time.perf_counter() - began) * 1e3:.0f} ms")
    while made.snapshot().note:
        time.sleep(0.01)
    row(f"all {count:,} points stored", f"{time.perf_counter() - began:.1f} s")
    app.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"QNB_DATA_DIR": f"{home}/server", "XDG_DATA_HOME": home,
                       "XDG_STATE_HOME": home}  # fmt: skip
        from qnb.storage import server

        version: Any = platform.python_version()
        print(f"Python {version}, {os.cpu_count()} cores, {platform.machine()}")
        import_times()
        began = time.perf_counter()
        url = server.ensure()
        row("embedded server, cold start", f"{(time.perf_counter() - began) * 1e3:.0f} ms")
        try:
            asyncio.run(round_trip(url, 2000))
            asyncio.run(gather(url, 2000))
            asyncio.run(drain(url, 10_000))
            processes(url, 2000)
            sweep(url, 100_000)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
