"""Is it as fast on a store that holds a million finished jobs? What does a job take there?

And can more results than fit into a client's memory pass through it? Prints three tables; gates
nothing. ``--jobs 50000 --gigabytes 1`` is a short run, of two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import qnb

T = TypeVar("T")

QUEUE = "flat"
ROUNDS = 5

#: bytes of memory, that of the interpreter and its libraries too, that the client is given
CLIENT_BYTES = 10**9

#: bytes of one result that passes through it
RESULT_BYTES = 4_000_000


def an_app(url: str) -> tuple[qnb.App, qnb.Task[[int], int]]:
    app = qnb.App(url, QUEUE)

    @app.task
    async def nothing(x: int) -> int:
        return x

    return app, nothing


async def on_server(url: str, ask: Callable[[Any], Awaitable[T]]) -> T:
    """What ``ask`` finds out with a link to the server."""
    app = qnb.App(url, QUEUE)
    store = (await app._client.link()).store
    try:
        return await ask(store)
    finally:
        await app._client.close()


# -- a store that is full of finished jobs --------------------------------------------------------


async def fill(url: str, count: int) -> None:
    """Have the queue hold ``count`` finished jobs, as if they had run."""
    from qnb.models import Ending, Outcome
    from qnb.storage.studies import Studies

    app, nothing = an_app(url)
    codec, studies = app._client.codec, Studies((await app._client.link()).store)
    for at in range(0, count, 10_000):
        rows = []
        for x in range(at, min(at + 10_000, count)):
            call = nothing.prepare(x).call
            spec = call.spec
            result = codec.pack_result(spec.task_id, 1, x, binding=spec.binding())
            outcome = Outcome(Ending.DONE, 1, 1, 2, result, worker="host:1", result_nbytes=5)
            rows.append((spec, call.payload, outcome))
        await studies.adopt("nobody", rows)
    await app._client.close()


# -- what is measured -----------------------------------------------------------------------------


async def enqueue_many(url: str) -> float:
    """Microseconds a job; they are taken away again."""
    app, nothing = an_app(url)
    calls = [nothing.prepare(x) for x in range(10_000)]
    await nothing.enqueue(0)
    began = time.perf_counter()
    await app.enqueue_many(calls)
    took = time.perf_counter() - began
    app.burst = True
    await app.run()
    return took / len(calls) * 1e6


async def drain(url: str) -> float:
    """Microseconds a job."""
    app, nothing = an_app(url)
    await app.enqueue_many([nothing.prepare(x) for x in range(10_000)])
    app.burst = True
    began = time.perf_counter()
    await app.run()
    return (time.perf_counter() - began) / 10_000 * 1e6


async def served(
    url: str, ask: Callable[[qnb.App, qnb.Task[[int], int]], Awaitable[float]]
) -> float:
    app, nothing = an_app(url)
    serving = asyncio.create_task(app.run())
    await (await nothing.enqueue(0))
    try:
        return await ask(app, nothing)
    finally:
        app.stop()
        await serving


async def round_trip(url: str) -> float:
    """Median, in milliseconds."""

    async def ask(app: qnb.App, nothing: qnb.Task[[int], int]) -> float:
        took = []
        for x in range(500):
            began = time.perf_counter()
            await (await nothing.enqueue(x))
            took.append(time.perf_counter() - began)
        return statistics.median(took) * 1e3

    return await served(url, ask)


async def fan_out(url: str) -> float:
    """Of 2,000, in milliseconds."""

    async def ask(app: qnb.App, nothing: qnb.Task[[int], int]) -> float:
        began = time.perf_counter()
        await asyncio.gather(*await app.enqueue_many([nothing.prepare(x) for x in range(2000)]))
        return (time.perf_counter() - began) * 1e3

    return await served(url, ask)


def sweep(url: str) -> float:
    """Until the handle of 20,000 points is here, in milliseconds; they are taken away again."""
    app, nothing = an_app(url)
    app.jobs_frame(limit=1)  # it is connected
    began = time.perf_counter()
    made = nothing.map(range(20_000))
    took = (time.perf_counter() - began) * 1e3
    while not made.snapshot().whole:
        time.sleep(0.01)
    app.forget(made.name).result()
    app.close()
    return took


def jobs_frame(url: str) -> float:
    """Of the newest 100, in milliseconds."""
    app, _ = an_app(url)
    app.jobs_frame(limit=100)
    took = []
    for _ in range(20):
        began = time.perf_counter()
        assert len(app.jobs_frame(limit=100)) == 100
        took.append(time.perf_counter() - began)
    app.close()
    return statistics.median(took) * 1e3


def status(url: str) -> float:
    """``qnb status``, in milliseconds, the start of Python too."""
    command = [sys.executable, "-m", "qnb", "status", "--url", url, "--queue", QUEUE]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1e3


MEASURES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "enqueue_many, 10,000 prepared": ("µs a job", enqueue_many),
    "drain, 10,000 no-ops in process": ("µs a job", drain),
    "round trip, in process": ("ms", round_trip),
    "fan-out of 2,000, gathered": ("ms", fan_out),
    "handle of a sweep of 20,000": ("ms", sweep),
    "jobs_frame(limit=100)": ("ms", jobs_frame),
    "qnb status": ("ms", status),
}


def flat(empty: str, full: str, home: Path, count: int) -> None:
    """The same on both, in turn; ``home`` is the folder of the full one."""
    from qnb.storage import server

    began = time.perf_counter()
    asyncio.run(fill(full, count))
    stored = time.perf_counter() - began
    server.stop(home)  # and start it anew: what it still does for what was stored is not measured
    began = time.perf_counter()
    server.ensure(home)
    loaded = time.perf_counter() - began
    print(f"\n{count:,} finished jobs: stored in {stored:.0f} s, loaded in {loaded:.1f} s")
    print(f"medians of {ROUNDS} rounds, in turn\n")
    print(f"{'':34}{'empty':>10}{'full':>10}  {'':10}{'ratio':>6}")
    for what, (unit, measure) in MEASURES.items():
        figures: dict[str, list[float]] = {empty: [], full: []}
        for number in range(ROUNDS):
            for url in (empty, full) if number % 2 else (full, empty):
                found = measure(url)
                figures[url].append(asyncio.run(found) if asyncio.iscoroutine(found) else found)
        less, more = (statistics.median(figures[url]) for url in (empty, full))
        print(f"{what:34}{less:10.2f}{more:10.2f}  {unit:10}{more / less:6.2f}", flush=True)


# -- what a job takes -----------------------------------------------------------------------------


async def memory(url: str, count: int) -> None:
    """Bytes of the server's memory for each job that waits, and for each that has ended."""

    async def used(store: Any) -> int:
        await store.server.call("MEMORY", "PURGE")
        return int((await store.server.redis.info("memory"))["used_memory"])

    await on_server(url, lambda store: store.server.call("FLUSHALL"))
    app, nothing = an_app(url)
    await nothing.enqueue(0)
    before = await on_server(url, used)
    await app.enqueue_many([nothing.prepare(x) for x in range(count)])
    waiting = await on_server(url, used)
    app.burst = True
    await app.run()
    ended = await on_server(url, used)
    print(f"\n{count:,} jobs with a small call and a small result, in the server's memory\n")
    print(f"{'bytes of a waiting job':34}{(waiting - before) / count:10,.0f}")
    print(f"{'bytes of a finished job':34}{(ended - before) / count:10,.0f}", flush=True)


# -- more than fits -------------------------------------------------------------------------------


def read_all(url: str, count: int) -> None:
    """The client: reads each result as it comes, and drops it. Its memory is bounded."""
    import numpy as np

    resource.setrlimit(resource.RLIMIT_AS, (CLIENT_BYTES, CLIENT_BYTES))
    app = qnb.App(url, "through")

    @app.task
    def make(seed: int, nbytes: int) -> Any:
        return np.random.default_rng(seed).integers(0, 255, nbytes, dtype=np.uint8)

    began, nbytes = time.perf_counter(), 0
    made = make.zip(seed=range(count), nbytes=RESULT_BYTES)
    for job in made.as_completed(timeout=3600):
        nbytes += job.get(timeout=60).nbytes
    took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"nbytes": nbytes, "took": took, "peak": peak}))


def through(url: str, gigabytes: float) -> None:
    """Results of so many bytes in all pass through a client that has 1 GB."""
    count = round(gigabytes * 1e9 / RESULT_BYTES)
    app = qnb.App(url, "through")
    with app.start_workers(2, linger="5 min"):
        program = [sys.executable, __file__, "--read", str(count), "--url", url]
        read = subprocess.run(program, check=True, capture_output=True, text=True)
    said = json.loads(read.stdout)

    async def info(store: Any) -> tuple[int, int]:
        found = await store.server.redis.info("memory")
        return found["used_memory_peak"], found["used_memory"]

    peak, _ = asyncio.run(on_server(url, info))
    blobs = Path(os.environ["XDG_DATA_HOME"]) / "qnb" / "blobs" / "through"
    stored = sum(file.stat().st_size for file in blobs.iterdir())
    print(f"\n{count:,} results of {RESULT_BYTES / 1e6:.0f} MB through a client of "
          f"{CLIENT_BYTES / 1e9:.0f} GB (RLIMIT_AS)\n")  # fmt: skip
    print(f"{'read in all':34}{said['nbytes'] / 1e9:10.1f} GB")
    print(f"{'seconds':34}{said['took']:10.1f}")
    print(f"{'MB a second':34}{said['nbytes'] / said['took'] / 1e6:10.0f}")
    print(f"{'most memory of the client':34}{said['peak'] / 1e6:10.0f} MB")
    print(f"{'most memory of the server':34}{peak / 1e6:10.0f} MB")
    print(f"{'in files of the blob store':34}{stored / 1e9:10.1f} GB", flush=True)
    app.close()


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--jobs", type=int, default=1_000_000, help="finished jobs of a full store")
    parse.add_argument("--gigabytes", type=float, default=10, help="results that pass through")
    parse.add_argument("--only", choices=("flat", "memory", "through"), help="one of the tables")
    parse.add_argument("--read", type=int, help=argparse.SUPPRESS)
    parse.add_argument("--url", help=argparse.SUPPRESS)
    given = parse.parse_args()
    if given.read:
        read_all(given.url, given.read)
        return
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"XDG_DATA_HOME": home, "XDG_STATE_HOME": home}
        from qnb.storage import server

        places = [Path(home) / "empty", Path(home) / "full"]
        print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}")
        try:
            empty, full = map(server.ensure, places)
            if given.only in (None, "flat"):
                flat(empty, full, places[1], given.jobs)
            if given.only in (None, "memory"):
                asyncio.run(memory(empty, min(100_000, given.jobs)))
            if given.only in (None, "through"):
                through(empty, given.gigabytes)
        finally:
            for place in places:
                server.stop(place)


if __name__ == "__main__":
    main()
