"""A store that says nonsense, forgets, or dies: the one thing it spoils is what it speaks of."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis

import qnb
from qnb.errors import BrokerError
from qnb.models import JobSpec
from qnb.storage.keys import GROUP, KeySpace, job_hex
from qnb.storage.records import pack_spec
from tests.conftest import answers, unavailable
from tests.serving import serving

Wait = Callable[..., Any]
Until = Callable[..., Awaitable[Any]]


@pytest.fixture
def link(server_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server_url) as link:
        yield link


def _spec(**changes: Any) -> bytes:
    """A spec as it stands in the store, with nonsense in one place."""
    words = [*JobSpec.__dataclass_fields__][:9]
    row = msgpack.unpackb(pack_spec(JobSpec("stranger", "f", "default")))
    policy = changes.pop("policy", None)
    for word, value in changes.items():
        row[words.index(word)] = value
    return bytes(msgpack.packb([*row, policy] if policy else row))


NONSENSE: dict[str, dict[str, Any]] = {
    "function": {"m": _spec(function=5)},
    "timeout": {"m": _spec(policy=[0, 0, "abc", None, None])},
    "retries": {"m": _spec(policy=[2**64 - 1, 0, None, None, None])},
    "isolation": {"m": _spec(policy=[0, 0, None, None, "moon"])},
    "id": {"m": _spec(task_id=b"bytes")},
    "index": {"m": _spec(index="x")},
    "attempt": {"m": _spec(), "a": 10**30},
    "starts": {"m": _spec(), "n": "-1"},
    "bytes": {"m": b"\xc1"},
    "nothing": {},
}


def test_entries_that_are_no_jobs_are_dropped_and_the_worker_serves_on(
    app: qnb.App, queue: str, link: redis.Redis, caplog: pytest.LogCaptureFixture, until: Until
) -> None:
    keys = KeySpace(queue)

    @app.task
    async def f(x: int) -> int:
        return x

    async def swept() -> bool:
        return not link.zcard(keys.delayed("default")) + link.zcard(keys.expiring("default"))

    async def main() -> None:
        for row in NONSENSE.values():
            usual = {"j": job_hex("stranger"), "a": 1, "n": 0, "c": 0, "t": 1, "p": b"call"}
            link.xadd(keys.lane("default"), {**usual, **row})
        link.zadd(keys.delayed("default"), {b"\xff\xfe": 1, job_hex("bad"): 1, job_hex("list"): 1})
        link.zadd(keys.expiring("default"), {b"\xff": 1, job_hex("bad"): 1, job_hex("late"): 1})
        link.hset(
            keys.job("bad"), mapping={"s": "d", "d": 1, "x": 1, "m": b"\xc1", "p": "", "t": 1}
        )
        link.hset(keys.job("late"), mapping={"s": "q", "x": 1, "m": b"\xc1", "e": "junk"})
        link.rpush(keys.job("list"), "a list")
        for name in ("bad", "late", "list"):
            link.expire(keys.job(name), 60)
        jobs = [await f.enqueue(x) for x in range(3)]
        async with serving(app), asyncio.timeout(10):
            assert await asyncio.gather(*jobs) == [0, 1, 2]
            await until(swept, "no nonsense is left on the indexes")
            assert await (await f.enqueue(3)) == 3
        assert link.xlen(keys.lane("default")) == 0
        assert link.xpending(keys.lane("default"), GROUP)["pending"] == 0

    asyncio.run(main())
    assert caplog.text.count("is not a job") == len(NONSENSE)


def test_leases_on_nonsense_are_given_up(
    app: qnb.App, queue: str, link: redis.Redis, until: Until
) -> None:
    keys = KeySpace(queue)
    stream = keys.lane("default")
    other = qnb.App(app._client.url, queue, lease_ms=200)

    async def gone() -> bool:
        return link.xlen(stream) == 0

    async def main() -> None:
        link.xgroup_create(stream, GROUP, "0", mkstream=True)
        link.xadd(stream, {"m": b"\xc1"})
        link.xadd(stream, {"odd": 1})
        link.xreadgroup(GROUP, b"\xff~\xffnot a number", {stream: ">"})
        async with serving(other):
            await until(gone, "they are off the lane")
        assert link.xpending(stream, GROUP)["pending"] == 0

    asyncio.run(main())


def test_whatever_is_said_to_a_client_or_of_workers_ends_no_listener(
    app: qnb.App, queue: str, link: redis.Redis
) -> None:
    keys = KeySpace(queue)

    @app.task
    async def f(x: int) -> int:
        return x

    async def main() -> None:
        async with asyncio.timeout(10):
            first = await f.enqueue(1)
            channel = keys.channel(app._client.channel)
            for said in (
                b"\xc1",
                b"",
                msgpack.packb([1, 2]),
                msgpack.packb(["x", "z"]),
                msgpack.packb([first.id, "c", b"m", 1, b"o", b"r"]),
                msgpack.packb([f"{first.id}.x", "r"]),
                msgpack.packb([first.id, "g", b""]),
            ):
                assert link.publish(channel, said) == 1  # fmt: skip
            link.zadd(keys.workers, {"w1": 1e15, "w2": 1e15, "w3": 1e15, b"\xff": 1e15})
            for worker, says in (("w1", b"\xc1"), ("w2", [1]), ("w3", {"pid": "x", "pool": True})):
                packed = says if isinstance(says, bytes) else msgpack.packb(says)
                link.set(keys.worker(worker), packed, px=60_000)
            async with serving(app):
                assert await asyncio.gather(first, await f.enqueue(2)) == [1, 2]
            assert link.pubsub_numsub(channel) == [(channel.encode(), 1)]

    asyncio.run(main())
    assert asyncio.run(_workers(app)) == {}


async def _workers(app: qnb.App) -> dict[str, Any]:
    return await (await app._client.link()).store.workers()


@pytest.mark.parametrize(
    "field, nonsense", [("s", b"z"), ("o", b"\xc1"), ("m", b"\xc1"), ("t", b"9" * 30)]
)
def test_a_record_that_is_nonsense_fails_the_waits_for_that_job_alone(
    app: qnb.App, queue: str, link: redis.Redis, field: str, nonsense: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    keys = KeySpace(queue)

    @app.task
    async def f(x: int) -> int:
        return x

    async def main() -> str:
        good, bad = [await f.enqueue(x) for x in range(2)]
        async with serving(app), asyncio.timeout(10):
            assert await asyncio.gather(good, bad) == [0, 1]
        link.hset(keys.job(bad.id), field, nonsense)
        async with asyncio.timeout(10):
            value, error = await asyncio.gather(good, bad, return_exceptions=True)
            assert value == 0
            assert isinstance(error, qnb.JobError)
            assert f"job {bad.id!r} is lost: its record is unreadable" in str(error)
            result = await bad.result(timeout=5)
            assert result is not None
            assert not result.success
        return good.id

    good = asyncio.run(main())
    assert list(app.jobs_frame().index) == [good]
    assert "it is left out" in caplog.text


def test_functions_that_the_store_has_lost_are_sent_again(
    server_url: str, queue: str, link: redis.Redis
) -> None:
    app = qnb.App(server_url, queue)

    @app.task
    def double(x: int) -> int:
        return 2 * x

    for x in range(2):
        assert double.submit(x).id
        [function] = link.keys(f"qnb:[{{]{queue}[}}]:func:*")
        link.delete(*link.keys(f"qnb:[{{]{queue}[}}]:*"))
    with app.start_workers(1):
        assert double.submit(4).get(timeout=10) == 8
    assert link.exists(function)
    double.options(delay_ms=40 * 24 * 3600 * 1000).submit(1)
    assert link.pttl(function) > 69 * 24 * 3600 * 1000
    app.close()


def test_a_result_that_cannot_be_put_away_is_tried_again_by_policy(
    server_url: str, queue: str, tmp_path: Path
) -> None:
    folder = tmp_path / "blobs"
    folder.write_text("a file in the way")
    app = qnb.App(server_url, queue, blob_store=str(folder), blob_threshold=65536)
    tries = []

    @app.task(max_retries=2)
    async def large() -> bytes:
        tries.append(1)
        if len(tries) == 2:
            folder.unlink()
        return bytes(100_000)

    @app.task
    async def once() -> bytes:
        return bytes(range(256)) * 400

    async def main() -> None:
        job = await large.enqueue()
        async with serving(app), asyncio.timeout(10):
            assert len(await job) == 100_000
            shutil.rmtree(folder)
            folder.write_text("again")
            with pytest.raises(BrokerError, match="blob store"):
                await (await once.enqueue())

    asyncio.run(main())
    assert len(tries) == 2


# --- servers that die, and servers that refuse ---------------------------------------------------


def test_the_embedded_server_that_was_killed_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Wait
) -> None:
    from qnb.storage import connection, server

    monkeypatch.setenv("QNB_DATA_DIR", str(tmp_path))
    app = qnb.App(None, "default")

    @app.task
    def double(x: int) -> int:
        return 2 * x

    try:
        with app.start_workers(1):
            assert double.submit(1).get(timeout=10) == 2
            waiting = double.options(delay_ms=1500).submit(2)
            for _ in range(2):
                old = server.status().pid
                assert old is not None
                os.kill(old, signal.SIGKILL)
                assert double.submit(3).get(timeout=15) == 6
                assert server.status().pid not in (None, old)
            assert waiting.get(timeout=15) == 4
        assert server.stop()
        monkeypatch.setattr(connection, "PATIENCE", 0.2)
        with pytest.raises(BrokerError, match=r"stopped.*'qnb server start'"):
            double.submit(1)
        assert not server.status().running
        server.ensure()
        assert double.submit(5).id
    finally:
        app.close()
        server.stop()


def test_a_wait_outlasts_a_server_that_is_away_and_ends_at_its_own_timeout(
    tmp_path: Path, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qnb.storage import connection, server

    monkeypatch.setattr(connection, "PATIENCE", 0.1)
    url = server.ensure(tmp_path)
    app = qnb.App(url, queue)

    @app.task
    async def f() -> int:
        return 1

    async def main() -> None:
        job = await f.enqueue()
        waiting = asyncio.ensure_future(_value(job))
        pid = server.status(tmp_path).pid
        assert pid is not None
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(TimeoutError):
            await job.result(timeout=1.5)
        assert not waiting.done()
        await asyncio.to_thread(server.ensure, tmp_path)
        async with serving(app), asyncio.timeout(15):
            assert await waiting == 1

    try:
        asyncio.run(main())
    finally:
        app.close()
        server.stop(tmp_path)


async def _value(job: qnb.Job[Any]) -> Any:
    return await job


def test_a_read_only_replica_is_named(queue: str, tmp_path: Path, wait_until: Wait) -> None:
    program = shutil.which("redis-server") or unavailable("redis-server")
    process = subprocess.Popen(
        [str(program), "--port", "0", "--unixsocket", "s", "--appendonly", "yes",
         "--replicaof", "127.0.0.1", "1", "--replica-serve-stale-data", "yes"],
        cwd=tmp_path, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: answers(tmp_path / "s"), "it listens")
        app = qnb.App(f"unix://{tmp_path}/s", queue)
        task = app.task(name="f")(abs)
        with pytest.raises(BrokerError, match="is a read-only replica; use its primary"):
            task.submit(1)
        app.close()
    finally:
        process.terminate()
        process.wait()


def test_waiting_for_jobs_fetches_none_of_their_arguments(
    app: qnb.App, queue: str, link: redis.Redis
) -> None:
    @app.task
    async def f(text: str) -> int:
        return len(text)

    async def main() -> None:
        jobs = [await f.options(delay_ms=60_000).enqueue("x" * 500_000) for _ in range(10)]
        waits = [asyncio.ensure_future(_value(job)) for job in jobs]
        sent = link.info("stats")["total_net_output_bytes"]
        looked = (await app._client.link()).looks
        for _ in range(5):
            await asyncio.gather(*(looked.put(job.id) for job in jobs))
        assert link.info("stats")["total_net_output_bytes"] - sent < 200_000
        for job in jobs:
            await job.abort()
        await asyncio.wait(waits)
        assert all(isinstance(wait.exception(), qnb.JobAborted) for wait in waits)

    asyncio.run(main())


def test_what_is_skipped_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    from qnb.storage.store import skipped

    caplog.set_level(logging.WARNING, "qnb.store")
    for _ in range(3):
        skipped("this test's own nonsense")
    assert caplog.text.count("this test's own nonsense") == 1
