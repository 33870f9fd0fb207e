"""All scripts together: how they are sent, and what of the server they need."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis

import qnb
from qnb.errors import BrokerError
from qnb.models import JobSpec, Policy, Report
from qnb.registry import Cron
from qnb.storage import scripts, server
from qnb.storage.gates import Gates
from qnb.storage.keys import job_hex
from qnb.storage.records import pack_spec
from qnb.storage.studies import Studies, Study
from tests.storage.desk import DONE, LATER, LOST, Desk, call, opened, overdue

SCRIPTS = sorted(path.stem for path in (Path(scripts.__file__).parent / "lua").glob("*.lua"))


def test_each_script_has_its_test() -> None:
    tests = {path.stem for path in Path(__file__).parent.glob("test_script_*.py")}
    assert tests == {f"test_script_{name}" for name in SCRIPTS}


async def _life(desk: Desk) -> None:
    """Every script once, at least."""
    worker, transitions = desk.worker(), desk.store.server.scripts
    [waiting, delayed, expiring] = await desk.put(
        call("x", payload=b"L" * 100_000), call(delay_ms=LATER), call(expire_ms=LATER)
    )
    await worker.heartbeat("w", {"running": 0}, 60_000)
    assert await worker.tick() is not None
    assert await transitions.promote("default", [job_hex(delayed)]) == 0
    assert await desk.store.expire("default", [job_hex(expiring)]) == 0
    cron, spec = Cron("tick", "", "default", Policy()), JobSpec("tick@1", "tick", "default")
    assert await worker.run_cron(cron, 1, 1000, spec, b"") == 0
    held = await desk.claim(count=3)
    assert [claimed.spec.task_id for claimed in held] == [waiting, expiring, "tick@1"]
    await desk.start(held[0])
    await worker.report([(held[0], Report(1, 2), "said\n")])
    assert await worker.renew(held[:1]) == ({held[0].ref}, {})
    assert await desk.retry(held[0]) == 1
    assert await worker.recover(overdue(held[1]), LOST) == 1
    assert await desk.finish(held[2])
    back, again = await desk.claim(count=2)
    assert await desk.finish(back)
    assert await desk.finish(again, has_log=True)
    record = await desk.record("x")
    assert record is not None
    assert await desk.store.log(record) == ("said\n", 5)
    assert await desk.store.rerun(replace(again.spec, nonce="again"), b"call")
    assert await desk.abort(delayed) == 1
    assert await desk.store.sizes() == ({"default": 1}, 0)
    assert await desk.store.keep_functions({"ab": 1}) == ["ab"]
    await desk.store.put_function("ab", b"code")
    assert await desk.store.function("ab") == b"code"
    assert await worker.sweep_index() == 0
    gates = Gates(desk.store)
    await gates.set("s", limit=1)
    await desk.put(call(channel="s"))
    queued = await desk.claim(count=2)
    assert await gates.admit(queued) == (queued, [])
    await gates.release(job_hex("s"), "default")
    await gates.set("s", state="paused")
    assert await gates.admit(queued[1:]) == ([], [])
    assert await gates.closed(["default"]) == ({job_hex("s")}, {"default": 1})
    assert [sweep async for sweep in gates.parked("default")] == [job_hex("s")]
    assert await gates.startable() == 0
    await gates.tidy()
    await _sweep(Studies(desk.store))
    await worker.leave("w")


async def _sweep(studies: Studies) -> None:
    """The life of a sweep of one job, which is complete from the start."""
    study = await studies.create(Study("s", "s-1", "f", "default", b"", jobs=1), [b"one"])
    assert study
    spec = JobSpec(study.id(0), "f", "default", channel="s-1", content="ab", code="cd")
    assert all(await studies.adopt("s-1", [(spec, b"call", DONE)]))
    await studies.computes({"ab": study.id(0)})
    assert await studies.computing(["ab"]) == [study.id(0)]
    assert await studies.tally([study.id(0)]) == [(2, 10, 20)]
    job, pick = studies.store.keys.job(study.id(0)), studies.store.server.scripts.pick
    assert await pick([job], "f", "", "c", ["n"], ["p"], 9) == [
        [pack_spec(spec), b"c", b"0", b"call"]
    ]
    assert await studies.mark(study, stored=1, digests=(0, b"d" * 16), points=[b"two"])
    assert await studies.points("s") == [b"one", b"two"]
    assert await studies.digests("s") == b"d" * 16
    assert len(await studies.all()) == 1
    assert await studies.forget(study) == 1
    assert await studies.all() == []


@pytest.mark.parametrize("flushed", [False, True])
async def test_a_server_that_has_never_seen_them_learns_them(desk: Desk, flushed: bool) -> None:
    if flushed:
        await desk.raw("SCRIPT", "FLUSH")
    await desk.put(call())
    assert len(await desk.claim()) == 1


async def test_a_server_that_forgets_them_at_any_moment_is_no_matter(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = scripts.Scripts._run, set()

    async def forgetful(self: scripts.Scripts, name: str, *sent: Any) -> Any:
        seen.add(name)
        await desk.raw("SCRIPT", "FLUSH")
        return await run(self, name, *sent)

    monkeypatch.setattr(scripts.Scripts, "_run", forgetful)
    await _life(desk)
    assert sorted(seen) == SCRIPTS


#: all that clients and workers ever send, and their scripts
COMMANDS = [
    "ping", "hello", "auth", "client|setinfo", "select", "time", "multi", "exec",
    "get", "set", "del", "exists", "pexpire", "pttl",
    "hset", "hget", "hmget", "hgetall", "hkeys", "hlen", "hstrlen", "hdel", "hincrby",
    "getrange", "setrange", "rpush", "lpop", "lrange", "lindex",
    "zadd", "zrem", "zrange", "zrevrange", "zrangebyscore", "zrangebylex", "zlexcount",
    "zremrangebyscore", "zscore", "zcard",
    "xadd", "xreadgroup", "xrange", "xack", "xdel", "xclaim", "xpending", "xlen",
    "xgroup|create", "xgroup|delconsumer", "xinfo|groups",
    "eval", "evalsha", "subscribe", "unsubscribe", "publish",
]  # fmt: skip


@contextlib.contextmanager
def _limited(url: str, queue: str, *rules: str) -> Iterator[str]:
    """The URL of a user who may use one queue with these commands, and do nothing else."""
    with redis.Redis.from_url(url) as admin:
        acl = [f"+{name}" for name in COMMANDS if name != "client|setinfo"]
        limits = ["reset", "on", ">pw", "-@all", *acl, f"~qnb:{{{queue}}}:*", *rules]
        admin.execute_command("ACL", "SETUSER", queue, *limits)
        with contextlib.suppress(redis.ResponseError):  # unknown before Redis 7.2
            admin.execute_command("ACL", "SETUSER", queue, "+client|setinfo")
        try:
            parts = urlsplit(url)
            yield urlunsplit(parts._replace(netloc=f"{queue}:pw@{parts.netloc}"))
        finally:
            admin.execute_command("ACL", "DELUSER", queue)


async def test_a_user_who_may_touch_one_queue_needs_no_more(any_url: str, queue: str) -> None:
    with _limited(any_url, queue, f"&qnb:{{{queue}}}:*") as url:
        async with opened(url, queue, watched=False) as desk:
            await _life(desk)
            async with desk.hearing(desk.keys.channel("me")):
                pass
            for command in (("CONFIG", "GET", "*"), ("INFO",), ("KEYS", "*"), ("GET", "other")):
                with pytest.raises(BrokerError, match="does not permit"):
                    await desk.raw(*command)


async def test_a_user_who_may_not_hear_is_told_so_at_once(any_url: str, queue: str) -> None:
    with _limited(any_url, queue, "resetchannels") as url:
        app = qnb.App(url, queue)
        task = app.task(name="f")(abs)
        async with asyncio.timeout(5):
            for _ in range(2):
                with pytest.raises(BrokerError, match=f"channels '&qnb:{{{queue}}}:\\*'"):
                    await task.enqueue(1)


async def test_a_wrong_password_ends_a_subscription(any_url: str, queue: str) -> None:
    with _limited(any_url, queue, f"&qnb:{{{queue}}}:*") as url:
        async with opened(url, queue, watched=False) as desk:
            with redis.Redis.from_url(any_url) as admin:
                admin.execute_command("ACL", "SETUSER", queue, "resetpass", ">other")
            async with asyncio.timeout(5):
                with pytest.raises(BrokerError, match="refused the login"):
                    await anext(desk.store.hear(desk.keys.channel("me"), lambda: None))


@pytest.fixture
def cluster_url(tmp_path: Path, wait_until: Callable[..., object]) -> Iterator[str]:
    """A cluster of one node, which refuses keys of more than one slot in one script."""
    with socket.socket() as one, socket.socket() as two:
        ports = []
        for probe in (one, two):
            probe.bind(("127.0.0.1", 0))
            ports.append(str(probe.getsockname()[1]))
    process = subprocess.Popen(
        [server._program(), "--bind", "127.0.0.1", "--port", ports[0], "--cluster-enabled", "yes",
         "--cluster-port", ports[1], "--appendonly", "yes"],
        cwd=tmp_path, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"redis://127.0.0.1:{ports[0]}"
    try:
        with redis.Redis.from_url(url) as link:

            def told(*command: str) -> bytes:
                try:
                    return bytes(link.execute_command(*command))
                except (redis.ConnectionError, redis.BusyLoadingError):
                    return b""

            wait_until(lambda: told("PING"), "it answers")
            told("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            wait_until(lambda: b"cluster_state:ok" in told("CLUSTER", "INFO"), "it is a cluster")
        yield url
    finally:
        process.terminate()
        process.wait()


async def test_a_cluster_takes_them_all(
    cluster_url: str, until: Callable[..., Awaitable[object]]
) -> None:
    async with opened(cluster_url, "sweeps") as desk:
        await _life(desk)
        with pytest.raises(Exception, match="same slot"):
            await desk.raw("EVAL", "return 1", 2, desk.keys.jobs, "qnb:{other}:jobs")
