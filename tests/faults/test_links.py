"""Links that are killed, fall silent or stop hearing: work goes on and every wait stays true."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
import redis

import qnb
from qnb.storage import links
from tests.faults.conftest import Figures
from tests.faults.ledger import Ledger, note
from tests.faults.noting import KINDS, SIZES, client, noting
from tests.faults.stage import Kind, Server, Stage, eventually, invariants
from tests.serving import serving


async def read(jobs: list[qnb.Job[int]], limit: float = 60) -> list[BaseException]:
    """Wait for all jobs; what was raised instead of the value that each should have."""
    async with asyncio.timeout(limit):
        values = await asyncio.gather(*jobs, return_exceptions=True)
    wrong = [ValueError(value) for at, value in enumerate(values) if value != at]
    return [value for value in values if isinstance(value, BaseException)] or wrong


@contextmanager
def each(seconds: float, act: Callable[[redis.Redis], object], server: Server) -> Iterator[None]:
    """``act`` on a link of its own every so many ``seconds``, for as long as the block."""
    over = threading.Event()

    def run() -> None:
        with redis.Redis.from_url(server.url) as link:
            while not over.wait(seconds):
                act(link)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def kill_links(server: Server) -> None:
    server.cli("CLIENT", "KILL", "TYPE", "pubsub")
    server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


# --- all links killed ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind, size", SIZES)
def test_killed_links_cost_no_job_no_worker_and_no_wait(
    kind: Kind, size: int, stage: Stage, queue: str, ledger: Ledger, figures: Figures
) -> None:
    server = stage.server()
    workers = [stage.worker(server.url, queue, 8, kind=kind) for _ in range(2)]
    app = client(server.url, queue)
    work = noting(app, ledger.path)

    def hurt() -> None:
        for done in range(size * 3 // 20, size * 9 // 10, size * 3 // 20):
            eventually(lambda done=done: len(ledger.lines("end")) >= done, "work goes on")
            kill_links(server)

    async def main() -> list[BaseException]:
        jobs = await app.enqueue_many(work.prepare(x, 0.02) for x in range(size))
        reading = asyncio.create_task(read(jobs))
        await asyncio.to_thread(hurt)
        return await reading

    errors = asyncio.run(main())
    done, exits = len(ledger.ends()), sum(not worker.alive for worker in workers)
    figures(
        "G8", f"all links killed 5 times in {size:,} jobs ({kind})",
        f"{size:,} done, 0 exits, ≤ 16 extra runs, 0 errors to waiters",
        f"{done:,} done, {exits} exits, {ledger.extra()} extra runs, {len(errors)} errors",
        ok=done == size and not exits and ledger.extra() <= 16 and not errors,
    )  # fmt: skip
    invariants(server.url, queue)


# --- links gone silent ---------------------------------------------------------------------------


def test_links_that_fall_silent_are_replaced_and_what_was_said_on_them_is_done_once(
    stage: Stage, queue: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "SILENCE", 0.4)
    server = stage.server(tcp=True)
    proxy = stage.proxy(server)
    app = client(proxy.url, queue, concurrency=4)
    work = noting(app, ledger.path)

    async def main() -> None:
        async with serving(app):
            assert not await read([await work.enqueue(0, 0)])
            for _ in range(2):
                proxy.silence()
                proxy.restore()
                since = time.monotonic()
                jobs = await asyncio.gather(*(work.enqueue(x, 0.01) for x in range(20)))
                assert not await read(list(jobs))
                assert time.monotonic() - since < 5

    asyncio.run(main())
    assert sum(ledger.starts().values()) == 41


@pytest.mark.on_demand
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dark", [0, 9])
def test_links_that_fall_silent_are_given_up_on_both_sides(
    dark: float, kind: Kind, stage: Stage, queue: str, ledger: Ledger, figures: Figures
) -> None:
    server = stage.server(tcp=True)
    proxy = stage.proxy(server)
    worker = stage.worker(proxy.url, queue, 8, kind=kind)
    app = client(proxy.url, queue)
    work = noting(app, ledger.path)

    async def main() -> tuple[float, list[BaseException]]:
        assert not await read([await work.enqueue(0, 0)])
        proxy.silence()
        asyncio.get_running_loop().call_later(dark, proxy.restore)  # for new links, not for these
        since = time.monotonic()
        jobs = await asyncio.gather(*(work.enqueue(x, 0.01) for x in range(100)))
        errors = await read(list(jobs))
        return time.monotonic() - since, errors

    took, errors = asyncio.run(main())
    figures(
        "G9", f"all links silent on both sides, new ones too for {dark} s, none closed ({kind})",
        "100 of 100 within 20 s, 0 errors, 0 exits",
        f"{len(ledger.ends())} of 100 in {took:.1f} s, {len(errors)} errors, "
        f"{int(not worker.alive)} exits",
        ok=len(ledger.ends()) == 100 and took <= 20 and not errors and worker.alive,
    )  # fmt: skip
    invariants(server.url, queue)


# --- notices that are lost -----------------------------------------------------------------------


def delays(ledger: Ledger) -> list[float]:
    """Seconds from the end of each body to the first read of its outcome."""
    ended = {row[3]: int(row[1]) for row in ledger.lines("end")}
    return [(int(row[1]) - ended[row[3]]) / 1e9 for row in ledger.lines("read")]


Way = Callable[[qnb.App, Any, str], Awaitable[None]]


async def by_result(app: qnb.App, work: Any, path: str) -> None:
    async def wait(job: qnb.Job[int]) -> None:
        outcome = await job.result(timeout=10)
        assert outcome is not None
        note(path, "read", outcome.value)

    jobs = await app.enqueue_many(work.prepare(x, x / 80) for x in range(160))
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(wait(job))


async def by_as_completed(app: qnb.App, work: Any, path: str) -> None:
    sweep = work.zip(x=range(160), seconds=[x / 80 for x in range(160)])
    async for job in sweep.as_completed(timeout=20):
        note(path, "read", await job)


@pytest.mark.parametrize(
    "way, most",
    [
        (by_result, 3.0),  # whatever else this machine does
        pytest.param(by_result, 1.2, marks=pytest.mark.on_demand),
        pytest.param(by_as_completed, 1.2, marks=pytest.mark.on_demand),
    ],
)
def test_waits_stay_true_while_the_link_for_notices_is_cut_again_and_again(
    way: Way, most: float, stage: Stage, queue: str, ledger: Ledger, figures: Figures
) -> None:
    server = stage.server()
    stage.worker(server.url, queue, 160, kind="inline")
    app = client(server.url, queue)
    work = noting(app, ledger.path)
    false = 0

    async def main() -> None:
        nonlocal false
        try:
            await way(app, work, ledger.path)
        except* TimeoutError as group:
            false = len(group.exceptions)

    with each(0.05, lambda link: link.client_kill_filter(_type="pubsub"), server):
        asyncio.run(main())
    read = len(ledger.lines("read"))
    worst = max(delays(ledger))
    figures(
        "G10", f"pub/sub dropped each 50 ms during 160 waits ({way.__name__})",
        f"0 false timeouts of 160, worst delay ≤ {most:g} s after the end",
        f"{false} false timeouts, {read} read, worst delay {worst:.2f} s",
        ok=not false and read == 160 and worst <= most,
    )  # fmt: skip
    invariants(server.url, queue)


# --- scripts that are forgotten ------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, rounds, size",
    [
        ("inline", 1, 100),
        pytest.param("inline", 7, 300, marks=pytest.mark.on_demand),
        pytest.param("processes", 7, 300, marks=pytest.mark.on_demand),
    ],
)
def test_a_script_cache_that_is_flushed_again_and_again_has_no_effect(
    kind: Kind, rounds: int, size: int, stage: Stage, queue: str, ledger: Ledger, figures: Figures
) -> None:
    server = stage.server()
    stage.worker(server.url, queue, 8, kind=kind)
    work = noting(client(server.url, queue), ledger.path)
    flushes, wrong = 0, 0

    def flush(link: redis.Redis) -> None:
        nonlocal flushes
        link.script_flush()
        flushes += 1

    async def run(at: int) -> float:
        nonlocal wrong
        since = time.monotonic()
        names = range(at * size, (at + 1) * size)
        jobs = [await work.enqueue(x, 0.02) for x in names]
        values = await asyncio.gather(*jobs, return_exceptions=True)
        wrong += sum(value != x for x, value in zip(names, values, strict=True))
        return time.monotonic() - since

    async def main() -> float:
        await run(0)  # processes, functions and scripts are loaded
        quiet, flushed = [], []
        for at in range(1, 2 * rounds, 2):
            quiet.append(await run(at))
            with each(0.02, flush, server):
                flushed.append(await run(at + 1))
        return median(flushed) / median(quiet)

    ratio = asyncio.run(main())
    done = len(ledger.ends()) == (2 * rounds + 1) * size
    figures(
        "G18", f"SCRIPT FLUSH each 20 ms, {rounds} × {size} jobs ({kind})",
        "0 errors, 0 extra runs, ≤ 1.5 × the time without (medians of 7)",
        f"{wrong} errors, {ledger.extra()} extra runs, {ratio:.2f} × ({flushes} flushes)",
        ok=done and flushes > 5 and not wrong and not ledger.extra()
        and (ratio <= 1.5 or rounds == 1),
    )  # fmt: skip
    invariants(server.url, queue)


# --- coming back ---------------------------------------------------------------------------------


@pytest.mark.on_demand
@pytest.mark.parametrize("kind", KINDS)
def test_workers_knock_at_random_moments_and_never_stop(
    kind: Kind, stage: Stage, queue: str, figures: Figures
) -> None:
    server = stage.server(tcp=True)
    workers = [stage.worker(server.url, queue, 2, kind=kind) for _ in range(2)]
    server.kill()
    assert server.port
    knocks: list[float] = []
    with socket.create_server(("127.0.0.1", server.port)) as door:
        door.settimeout(0.2)
        since = time.monotonic()
        while (now := time.monotonic() - since) < 20:
            with contextlib.suppress(TimeoutError):
                door.accept()[0].close()
                knocks.append(now)
    settled = [at for at in knocks if at > 5]
    rate = len(settled) / 15 / len(workers)
    pause = max(b - a for a, b in pairwise(settled))
    crowd = max(sum(a <= at < a + 0.1 for at in settled) for a in settled)
    server.start()
    work = noting(client(server.url, queue), "/dev/null")
    value = work.submit(1, 0).get(timeout=5)
    figures(
        "G8", f"two workers while their server is away for 20 s ({kind})",
        "never silent for > 2.5 s, ≤ 10 connects a second and worker, served within 5 s after",
        f"silent for {pause:.1f} s at most, {rate:.1f} connects a second, {crowd} within 0.1 s",
        ok=pause <= 2.5 and rate <= 10 and value == 1 and all(w.alive for w in workers),
    )  # fmt: skip
