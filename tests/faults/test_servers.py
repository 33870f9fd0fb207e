"""Servers that die, load, fill up or do not fit: what was accepted is kept, and why is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

import qnb
from qnb import link
from qnb.errors import BrokerError
from qnb.storage import connection
from qnb.storage import server as embedded
from tests.faults.conftest import Figures
from tests.faults.ledger import Ledger
from tests.faults.noting import IN_FULL, KINDS, SIZES, client, noting
from tests.faults.stage import Kind, Server, Stage, Worker, eventually, invariants

# --- killed under load ---------------------------------------------------------------------------


class Own:
    """A server of one's own on TCP."""

    def __init__(self, stage: Stage, fsync: str) -> None:
        self._server = stage.server(tcp=True, config={"appendfsync": fsync})
        self.url = self._server.url

    def kill(self) -> None:
        self._server.kill()

    def start(self) -> None:
        """Return at the moment when it answers."""
        self._server.start(wait=False)
        eventually(self._answers, "it answers")

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._server.port or 0), 1) as link:
                link.sendall(b"PING\r\n")
                return link.recv(100).startswith(b"+PONG")
        except OSError:
            return False


class Embedded:
    """The embedded server with its defaults; whoever needs it starts it again."""

    def __init__(self) -> None:
        self.url = embedded.ensure()

    def kill(self) -> None:
        pid = embedded.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def start(self) -> None:
        eventually(lambda: embedded.status().running, "somebody has started it")


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An embedded server of this test's own."""
    monkeypatch.setenv("QNB_DATA_DIR", str(tmp_path / "home"))
    yield
    embedded.stop()


def killed_twice(
    host: Own | Embedded,
    work: qnb.Task[[int, float], int],
    size: int,
    ledger: Ledger,
    outage: float,
) -> tuple[int, int, float]:
    """Errors of so many enqueues, and of their waits, and the longest pause after a restart (s)."""
    up: list[int] = []

    def pause(at: int) -> float:
        """Seconds until something has ended since, 0 if nothing has yet."""
        ends = [int(row[1]) for row in ledger.lines("end")]
        return min((end - at for end in ends if end > at), default=0) / 1e9

    def hurt() -> None:
        if up:
            eventually(lambda: pause(up[-1]), "work goes on after the first time")
        host.kill()
        time.sleep(outage)
        host.start()
        up.append(time.monotonic_ns())

    async def main() -> tuple[int, int]:
        jobs, refused, hurting = [], 0, []
        for x in range(size):
            if x in (size * 3 // 10, size * 13 // 20):
                hurting.append(asyncio.create_task(asyncio.to_thread(hurt)))
            try:
                jobs.append(await work.enqueue(x, 0.005))
            except BrokerError:
                refused += 1
        async with asyncio.timeout(60):
            values = await asyncio.gather(*jobs, return_exceptions=True)
            await asyncio.gather(*hurting)
        return refused, sum(value != x for x, value in enumerate(values))

    refused, wrong = asyncio.run(main())
    return refused, wrong, max(pause(at) for at in up)


@pytest.mark.on_demand
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outage", [0.5, 9.5])
@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_an_own_server_killed_under_load_loses_nothing_and_no_caller_notices(
    fsync: str, outage: float, kind: Kind, stage: Stage, queue: str, ledger: Ledger,
    figures: Figures,
) -> None:  # fmt: skip
    host = Own(stage, fsync)
    workers = [stage.worker(host.url, queue, 4, kind=kind) for _ in range(2)]
    work = noting(client(host.url, queue), ledger.path)
    tell(
        f"own server on TCP, AOF {fsync}, away {outage:g} s, SIGKILLed twice ({kind})",
        killed_twice(host, work, 1000, ledger, outage), 1000, ledger, workers, figures,
    )  # fmt: skip
    invariants(host.url, queue)


@pytest.mark.parametrize("kind, size", SIZES)
def test_the_embedded_server_killed_under_load_loses_nothing_and_no_caller_notices(
    kind: Kind,
    size: int,
    own_home: None,
    stage: Stage,
    queue: str,
    ledger: Ledger,
    figures: Figures,
) -> None:
    host = Embedded()
    workers = [stage.worker(host.url, queue, 4, kind=kind) for _ in range(2)]
    work = noting(client(None, queue), ledger.path)
    tell(
        f"the embedded server SIGKILLed twice ({kind})",
        killed_twice(host, work, size, ledger, 0), size, ledger, workers, figures,
    )  # fmt: skip
    invariants(host.url, queue)


def tell(
    what: str,
    found: tuple[int, int, float],
    size: int,
    ledger: Ledger,
    workers: list[Worker],
    figures: Figures,
) -> None:
    refused, wrong, pause = found
    done, exits = len(ledger.ends()), sum(not worker.alive for worker in workers)
    figures(
        "G6", f"{what} during {size:,} enqueues",
        "0 lost, 0 enqueues refused, 0 waits wrong, resumed ≤ 3 s after it answers, 0 exits, "
        "0 extra runs",
        f"{size - done} lost, {refused} refused, {wrong} wrong, resumed after {pause:.2f} s, "
        f"{exits} exits, {ledger.extra()} extra runs",
        ok=done == size and not refused and not wrong and pause <= 3 and not exits
        and not ledger.extra(),
    )  # fmt: skip


@pytest.mark.on_demand
@pytest.mark.parametrize("kind", KINDS)
def test_an_outage_longer_than_a_lease_runs_nothing_twice(
    kind: Kind, stage: Stage, queue: str, ledger: Ledger, figures: Figures
) -> None:
    server, lease = stage.server(), {"lease_ms": 2000}
    workers = [stage.worker(server.url, queue, 4, kind=kind, options=lease) for _ in range(3)]
    work = noting(client(server.url, queue), ledger.path)

    async def main() -> list[int]:
        jobs = [await work.enqueue(x, 8) for x in range(8)]
        await asyncio.to_thread(eventually, lambda: len(ledger.starts()) == 8, "all run")
        server.kill()
        await asyncio.sleep(5)
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(30):
            return await asyncio.gather(*jobs)

    values = asyncio.run(main())
    exits = sum(not worker.alive for worker in workers)
    figures(
        "G6", f"server away for 2.5 leases while 8 bodies run, an idle worker beside ({kind})",
        "8 of 8 right, 0 extra runs, 0 exits",
        f"{sum(v == x for x, v in enumerate(values))} right, {ledger.extra()} extra runs, "
        f"{exits} exits",
        ok=values == list(range(8)) and not ledger.extra() and not exits,
    )  # fmt: skip
    invariants(server.url, queue)


@pytest.mark.on_demand
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_hangs_for_a_while_does_nothing_twice(
    kind: Kind, stage: Stage, queue: str, ledger: Ledger, figures: Figures
) -> None:
    server = stage.server()
    workers = [stage.worker(server.url, queue, 4, kind=kind) for _ in range(2)]
    work = noting(client(server.url, queue), ledger.path)

    def hang() -> float:
        eventually(lambda: len(ledger.ends()) >= 50, "work goes on")
        server.suspend()
        time.sleep(8)
        server.resume()
        return time.monotonic()

    async def main() -> tuple[float, int]:
        hanging = asyncio.create_task(asyncio.to_thread(hang))
        jobs = [await work.enqueue(x, 0.02) for x in range(1000)]
        async with asyncio.timeout(50):
            values = await asyncio.gather(*jobs, return_exceptions=True)
        return time.monotonic() - await hanging, sum(v != x for x, v in enumerate(values))

    took, wrong = asyncio.run(main())
    done, exits = len(ledger.ends()), sum(not worker.alive for worker in workers)
    figures(
        "G9", f"the server hangs for 8 s (SIGSTOP) during 1,000 enqueues ({kind})",
        "1,000 done within 20 s after, 0 waits wrong, 0 extra runs, 0 exits",
        f"{done:,} done {took:.1f} s after, {wrong} wrong, {ledger.extra()} extra runs, "
        f"{exits} exits",
        ok=done == 1000 and took <= 20 and not wrong and not ledger.extra() and not exits,
    )  # fmt: skip
    invariants(server.url, queue)


def test_a_wait_for_a_server_that_never_comes_back_ends_and_says_why(
    stage: Stage, queue: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PATIENCE", 0.2)
    monkeypatch.setattr(link, "PATIENCE", 1.0)
    server = stage.server()
    work = noting(client(server.url, queue), ledger.path)

    async def main() -> None:
        job = await work.enqueue(0, 0)
        server.kill()
        async with asyncio.timeout(5):
            with pytest.raises(BrokerError, match="no server answers at"):
                await job

    asyncio.run(main())


# --- read-only, loading, stopped -----------------------------------------------------------------


@pytest.mark.parametrize("kind", IN_FULL)
def test_a_worker_on_a_read_only_replica_leaves_and_names_it(
    kind: Kind, stage: Stage, queue: str
) -> None:
    server = stage.server()
    server.cli("REPLICAOF", "127.0.0.1", 1)
    worker = stage.worker(server.url, queue, 1, kind=kind, wait=False)
    eventually(lambda: not worker.alive, "the worker leaves")
    assert worker.exit_status, "with a status that says so"
    assert "is a read-only replica; use its primary" in worker.log()


@pytest.mark.on_demand
@pytest.mark.parametrize("kind", KINDS)
def test_workers_outlast_a_server_that_is_a_replica_for_a_while(
    kind: Kind, stage: Stage, queue: str, ledger: Ledger
) -> None:
    server = stage.server()
    worker = stage.worker(server.url, queue, 4, kind=kind)
    work = noting(client(server.url, queue), ledger.path)

    async def main() -> None:
        jobs = [await work.enqueue(x, 0.4) for x in range(8)]
        await asyncio.to_thread(eventually, lambda: len(ledger.starts()) >= 4, "four run")
        server.cli("REPLICAOF", "127.0.0.1", 1)
        await asyncio.to_thread(eventually, lambda: len(ledger.ends()) >= 4, "four are over")
        with pytest.raises(BrokerError, match="is a read-only replica; use its primary"):
            await work.enqueue(8, 0)
        server.cli("REPLICAOF", "NO", "ONE")
        async with asyncio.timeout(10):
            assert await asyncio.gather(*jobs) == list(range(8))

    asyncio.run(main())
    assert worker.alive
    assert not ledger.extra()
    invariants(server.url, queue)


def slow_to_load(server: Server, seconds: float) -> None:
    """Have it load its data for so long at least when it is started next."""
    with redis.Redis.from_url(server.url) as link:
        pipe = link.pipeline(transaction=False)
        for _ in range(10_000):  # it answers after each 1,024
            pipe.incr("ballast")
        pipe.expire("ballast", 600)
        pipe.execute()
    server.config["key-load-delay"] = str(int(seconds * 100))  # microseconds


def loads(server: Server) -> bool:
    with contextlib.suppress(redis.ConnectionError):  # it does not listen yet
        return bool(server.cli("INFO", "persistence")["loading"])
    return False


@pytest.mark.on_demand
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_still_loads_its_data_is_waited_for(
    kind: Kind, stage: Stage, queue: str, ledger: Ledger
) -> None:
    server = stage.server()
    there = stage.worker(server.url, queue, 2, kind=kind)
    work = noting(client(server.url, queue), ledger.path)

    async def main() -> None:
        assert await (await work.enqueue(0, 0)) == 0
        slow_to_load(server, 1.5)
        server.kill()
        server.start(wait=False)
        new = stage.worker(server.url, queue, 2, kind=kind, wait=False)
        await asyncio.to_thread(eventually, lambda: loads(server), "it says that it loads")
        jobs = [await work.enqueue(x, 0) for x in range(1, 20)]
        late = noting(client(server.url, queue), ledger.path)
        jobs.append(await late.enqueue(20, 0))
        async with asyncio.timeout(15):
            assert await asyncio.gather(*jobs) == list(range(1, 21))
        known = f"qnb:{{{queue}}}:workers"
        eventually(lambda: server.cli("ZCARD", known) == 2, "the new worker serves, too")
        assert there.alive
        assert new.alive

    asyncio.run(main())


def test_after_a_stop_on_purpose_a_caller_is_told_within_seconds(
    own_home: None, queue: str, figures: Figures
) -> None:
    embedded.ensure()
    app = client(None, queue)
    task = app.task(name="f")(abs)
    task.submit(1)
    assert embedded.stop()
    since = time.monotonic()
    with pytest.raises(BrokerError, match=r"it was stopped .*start it with 'qnb server start'"):
        task.submit(2)
    took = time.monotonic() - since
    figures(
        "G6", "submit after `qnb server stop`",
        "told within 3 s, with the remedy; the server stays stopped",
        f"told after {took:.1f} s",
        ok=took <= 3 and not embedded.status().running,
    )  # fmt: skip
    embedded.ensure()
    assert task.submit(3).id
    app.close()
