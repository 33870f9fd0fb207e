"""What work costs the store, counted: requests, commands, scripts and bytes, of each kind of work.

Times say more about the machine than about the code; counts say the same on every machine. Each
bound is what was measured and a little slack.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from typing import Any

import pytest
import redis

import qnb
from tests.serving import serving

JOBS = 1000


@dataclass(frozen=True)
class Cost:
    """Of one job, or of one second."""

    requests: float  #: that this process has sent; each waits for one answer
    scripts: float  #: run by the server
    commands: float  #: run by the server, within scripts too
    sent: float  #: bytes that the server was sent
    received: float  #: bytes that it sent back, to all who listen


#: The most that each kind of work may cost: what was measured (``-s`` shows it) and 15 %. The size
#: of a batch depends on the machine's load, so what each batch costs is given twice that.
MOST = {
    #                                requests  scripts  commands     sent  received
    "enqueue, awaited":         Cost(    1.10,    1.10,      9.4,     875,      30),
    "enqueue_many":             Cost(   0.003,   0.003,      4.6,     410,      20),
    "drain, in process":        Cost(   0.300,   0.300,      4.2,     710,     720),
    "drain, child processes":   Cost(   0.000,   0.300,      4.9,     730,     860),
    "round trip":               Cost(    3.50,    2.40,     19.5,    2050,     900),
    "fan-out":                  Cost(   0.300,    0.30,     10.0,    1150,     850),
    "sweep":                    Cost(   0.300,    0.30,     12.5,    1640,    1440),
    "prints and progress":      Cost(    0.50,    0.50,     15.5,    1620,     790),
    "1,000 waits, a second":    Cost(    20.0,     0.1,     2200, 340_000, 400_000),
    "idle worker, a second":    Cost(    10.0,     2.0,     14.0,    1500,     500),
}  # fmt: skip


class Meter:
    """Counts at the server, which nobody else uses meanwhile, and the requests of this process."""

    def __init__(self, url: str) -> None:
        self.link = redis.Redis.from_url(url)
        self.requests = 0

    @contextlib.contextmanager
    def costs(self, work: str, per: float) -> Iterator[None]:
        """What is done in the block, ``per`` times ``work``, stays within its bounds."""
        self.link.config_resetstat()
        self.requests = 0
        yield
        requests, stats = self.requests, self.link.info("all")
        scripts = [stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval")]
        cost = Cost(
            requests / per,
            sum(scripts) / per,
            stats["total_commands_processed"] / per,
            stats["total_net_input_bytes"] / per,
            stats["total_net_output_bytes"] / per,
        )
        most = MOST[work]
        figures = ", ".join(
            f"{field.name} {got:.4g} of {bound:g}"
            for field, got, bound in zip(fields(Cost), astuple(cost), astuple(most), strict=True)
        )
        print(f"{work}: {figures}")
        over = [got > bound for got, bound in zip(astuple(cost), astuple(most), strict=True)]
        assert not any(over), f"{work} costs more than it may: {figures}"


@pytest.fixture
def meter(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Meter]:
    meter = Meter(redis_url)
    send = asyncio.StreamWriter.writelines

    def counted(self: asyncio.StreamWriter, data: Iterable[bytes]) -> None:
        meter.requests += 1
        send(self, data)

    monkeypatch.setattr(asyncio.StreamWriter, "writelines", counted)
    yield meter
    meter.link.close()


@pytest.fixture
def app(redis_url: str) -> Iterator[qnb.App]:
    app = qnb.App(redis_url, f"counted-{secrets.token_hex(4)}")
    yield app
    with contextlib.suppress(qnb.QnbError):
        app.close()


@pytest.fixture
def nothing(app: qnb.App) -> qnb.Task[[int], int]:
    @app.task
    async def nothing(x: int) -> int:
        return x

    return nothing


Nothing = qnb.Task[[int], int]
Until = Callable[..., Awaitable[Any]]


async def _pass(until: Until, seconds: float) -> None:
    """Let time pass: what it costs is the question."""
    end = time.monotonic() + seconds

    async def is_over() -> bool:
        return time.monotonic() >= end

    await until(is_over, "time passes", seconds + 10)


async def test_one_call_is_stored_in_one_request(meter: Meter, nothing: Nothing) -> None:
    await nothing.enqueue(0)
    with meter.costs("enqueue, awaited", 100):
        for x in range(100):
            await nothing.enqueue(x)


async def test_many_calls_are_stored_in_a_few_requests(
    meter: Meter, app: qnb.App, nothing: Nothing
) -> None:
    await nothing.enqueue(0)
    with meter.costs("enqueue_many", JOBS):
        await app.enqueue_many([nothing.prepare(x) for x in range(JOBS)])


async def test_jobs_are_claimed_and_finished_in_batches(
    meter: Meter, app: qnb.App, nothing: Nothing
) -> None:
    await app.enqueue_many([nothing.prepare(x) for x in range(JOBS)])
    app.burst = True
    with meter.costs("drain, in process", JOBS):
        await app.run()


async def test_child_processes_cost_the_store_no_more(
    meter: Meter, app: qnb.App, nothing: Nothing, redis_url: str
) -> None:
    await app.enqueue_many([nothing.prepare(x) for x in range(JOBS)])
    program = [sys.executable, "-m", "qnb", "worker", "--burst", "-n", "2", "--url", redis_url]
    with meter.costs("drain, child processes", JOBS):
        worker = await asyncio.create_subprocess_exec(
            *program, "--queue", app.queue_name, stderr=subprocess.DEVNULL
        )
        assert await worker.wait() == 0


async def test_a_result_comes_with_the_news(meter: Meter, app: qnb.App, nothing: Nothing) -> None:
    async with serving(app):
        await (await nothing.enqueue(0))
        with meter.costs("round trip", 100):
            for x in range(100):
                assert await (await nothing.enqueue(x)) == x


async def test_a_fan_out_is_stored_run_and_heard_in_batches(
    meter: Meter, app: qnb.App, nothing: Nothing
) -> None:
    async with serving(app):
        await (await nothing.enqueue(0))
        with meter.costs("fan-out", JOBS):
            jobs = await app.enqueue_many([nothing.prepare(x) for x in range(JOBS)])
            assert await asyncio.gather(*jobs) == list(range(JOBS))


def test_a_sweep_costs_no_more_than_its_jobs(meter: Meter, app: qnb.App, nothing: Nothing) -> None:
    worker = threading.Thread(target=lambda: asyncio.run(app.run()))
    worker.start()
    try:
        nothing.submit(0).get(timeout=10)
        with meter.costs("sweep", JOBS):
            assert nothing.map(range(JOBS)).wait(20).results() == list(range(JOBS))
    finally:
        app.stop()
        worker.join(20)


async def test_what_bodies_say_is_stored_in_batches(meter: Meter, app: qnb.App) -> None:
    @app.task
    async def says(x: int) -> None:
        for step in range(20):
            print(f"step {step}")
            qnb.progress(step, 20)

    async with serving(app):
        await (await says.enqueue(0))
        with meter.costs("prints and progress", 100):
            await asyncio.gather(*await app.enqueue_many([says.prepare(x) for x in range(100)]))


async def test_waiting_for_many_jobs_reads_their_states_together(
    meter: Meter, app: qnb.App, nothing: Nothing, until: Until
) -> None:
    jobs = await app.enqueue_many([nothing.prepare(x) for x in range(JOBS)])
    waiting = [asyncio.ensure_future(job.result(20)) for job in jobs]
    await _pass(until, 0.5)
    with meter.costs("1,000 waits, a second", 2):
        await _pass(until, 2)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_an_idle_worker_hardly_speaks(
    meter: Meter, app: qnb.App, nothing: Nothing, until: Until
) -> None:
    async with serving(app):
        await (await nothing.enqueue(0))
        with meter.costs("idle worker, a second", 2):
            await _pass(until, 2)
