"""What is measured, written once: each contender is a client that speaks its own public API.

``benchmarks/run.py`` runs it in a process of its own per contender, form and round. It starts the
contender's worker, has it do some work first, measures row after row, and prints them as JSON. To
drain, the worker's processes are suspended while the queue is filled, and timed from the moment
they are let go to the moment their last result is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
LAST = 64  # the jobs that were queued last: when they have ended, all have


async def nothing(x: int) -> int:
    return x


def spin_for(steps: int) -> int:
    total = 0
    for number in range(steps):
        total += number * number
    return total


async def spin(steps: int) -> int:
    return spin_for(steps)


async def echo(array: Any) -> Any:
    return -array


BODIES = {"nothing": nothing, "spin": spin, "echo": echo, "spin_plain": spin_for}


class Client(Protocol):
    """A contender's own way to say each of these."""

    spin: str  #: the task that holds the processor: a coroutine function or a plain one

    async def open(self) -> None: ...
    async def enqueue(self, task: str, *args: Any) -> Any: ...
    async def enqueue_many(self, task: str, calls: list[tuple[Any, ...]]) -> list[Any]: ...
    async def result(self, job: Any) -> Any: ...
    async def gather(self, jobs: list[Any]) -> list[Any]: ...
    def blocking(self, task: str, *args: Any) -> Any: ...


class OfTasks:
    """What is the same with ArdiQ and qnb: a call is made by its task, many are sent by the app."""

    app: Any
    tasks: Mapping[str, Any]  #: by name

    async def open(self) -> None: ...

    async def enqueue(self, task: str, *args: Any) -> Any:
        return await self.tasks[task].enqueue(*args)

    async def enqueue_many(self, task: str, calls: list[tuple[Any, ...]]) -> list[Any]:
        return await self.app.enqueue_many([self.tasks[task].prepare(*args) for args in calls])


class Workers:
    """The processes of a contender's worker, each with what it has started."""

    def __init__(self, commands: list[list[str]]) -> None:
        with Path(os.environ["BENCH_LOG"]).open("ab") as log:
            self.started = [
                subprocess.Popen(command, stdout=log, stderr=log) for command in commands
            ]
        self._stopping = False
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """A client whose worker has ended would wait for ever."""
        while not self._stopping:
            if any(one.poll() is not None for one in self.started):
                os.write(2, b"a worker has ended by itself\n")
                os._exit(1)
            time.sleep(0.2)

    def pids(self) -> list[int]:
        found = [one.pid for one in self.started]
        for pid in found:  # which grows meanwhile
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, task.read_text().split())
        return found

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        ticks = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICK

    def memory(self) -> list[float]:
        """Resident megabytes of each process."""
        statm = (Path(f"/proc/{pid}/statm").read_text() for pid in self.pids())
        return [int(text.split()[1]) * PAGE / 1e6 for text in statm]

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        pids = self.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in reversed(pids):
                os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        self._stopping = True
        for one in self.started:
            one.terminate()
        for one in self.started:
            try:
                one.wait(10)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()


def server_cpu() -> float:
    """Seconds of processor time that the server has used so far."""
    url = urlsplit(os.environ["BENCH_URL"])
    with socket.create_connection((url.hostname, url.port)) as link:
        link.sendall(b"INFO cpu\r\n")
        said = dict(line.split(":") for line in link.recv(4096).decode().split() if ":" in line)
    return float(said["used_cpu_user"]) + float(said["used_cpu_sys"])


async def drain(client: Client, workers: Workers, count: int) -> dict[str, float]:
    calls = [(number,) for number in range(count)]
    serving = server_cpu()
    with workers.suspended():
        began = time.perf_counter()
        jobs = await client.enqueue_many("nothing", calls)
        stored = time.perf_counter() - began
        cpu = workers.cpu()
        began = time.perf_counter()
    for job in jobs[-LAST:]:
        await client.result(job)
    took = time.perf_counter() - began
    return {
        "enqueue many": count / stored,
        "dispatch": count / took,
        "cpu": (workers.cpu() - cpu) / count * 1e6,
        "server cpu": (server_cpu() - serving) / count * 1e6,
    }


async def enqueue_one(client: Client, workers: Workers, count: int) -> dict[str, float]:
    with workers.suspended():
        began = time.perf_counter()
        for number in range(count):
            job = await client.enqueue("nothing", number)
        took = time.perf_counter() - began
    await client.result(job)
    return {"enqueue one": count / took}


async def round_trip(client: Client, workers: Workers, count: int) -> dict[str, float]:
    took = []
    for number in range(count):
        began = time.perf_counter()
        assert await client.result(await client.enqueue("nothing", number)) == number
        took.append((time.perf_counter() - began) * 1e3)
    took.sort()
    return {"trip p50": took[count // 2], "trip p99": took[count * 99 // 100]}


async def blocking_trip(client: Client, workers: Workers, count: int) -> dict[str, float]:
    if not hasattr(client, "blocking"):
        return {}
    took = []
    for number in range(count):
        began = time.perf_counter()
        assert client.blocking("nothing", number) == number
        took.append((time.perf_counter() - began) * 1e3)
    return {"blocking p50": statistics.median(took)}


async def fan_out(client: Client, workers: Workers, count: int) -> dict[str, float]:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        jobs = await client.enqueue_many("nothing", [(number,) for number in range(count)])
        assert await client.gather(jobs) == list(range(count))
        times.append(time.perf_counter() - began)
    return {"fan out": statistics.median(times)}


async def arrays(client: Client, workers: Workers, count: int) -> dict[str, float]:
    import numpy as np

    sent = [np.random.default_rng(number).random(500_000) for number in range(count)]
    began = time.perf_counter()
    jobs = [await client.enqueue("echo", array) for array in sent]
    back = []
    for at in range(0, count, 8):  # all at once would be more than ArdiQ's timeouts allow
        back += await client.gather(jobs[at : at + 8])
    took = time.perf_counter() - began
    assert all((there == -here).all() for there, here in zip(back, sent, strict=True))
    return {"arrays": 2 * sum(array.nbytes for array in sent) / took / 1e6}


async def compute(client: Client, workers: Workers, count: int) -> dict[str, float]:
    steps = int(os.environ["BENCH_STEPS"])
    began = time.perf_counter()
    await client.gather(await client.enqueue_many(client.spin, [(steps,)] * count))
    return {"compute": time.perf_counter() - began}


async def warm_up(client: Client, workers: Workers, count: int) -> dict[str, float]:
    """All workers are up, and have run some; a figure is what they hold now."""
    for size in (1, count):
        await client.gather(await client.enqueue_many("nothing", [(0,)] * size))
    await asyncio.sleep(0.3)
    worker, *others = sorted(workers.memory(), reverse=True)
    return {"memory": worker} | ({"slot memory": max(others)} if others else {})


WORK = {
    "warm up": warm_up,
    "drain": drain,
    "enqueue one": enqueue_one,
    "round trip": round_trip,
    "blocking trip": blocking_trip,
    "fan out": fan_out,
    "arrays": arrays,
    "compute": compute,
}


async def measured(worker: Callable[[], list[list[str]]], client: Client) -> dict[str, float]:
    await client.open()
    workers = Workers(worker())
    found: dict[str, float] = {}
    try:
        for what, count in json.loads(os.environ["BENCH_WORK"]).items():
            try:
                found |= await WORK[what](client, workers, count)
            except Exception as error:  # noqa: BLE001 - a contender's own: it has the other rows
                print(f"failed: {what}: {error!r}", file=sys.stderr)
    finally:
        workers.stop()
    return found


def main(worker: Callable[[], list[list[str]]], client: Callable[[], Any]) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(asyncio.run(measured(worker, client()))))
    sys.stdout.flush()
    os._exit(0)  # whatever the contender's own clean-up would have to say
