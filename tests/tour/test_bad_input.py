"""Bad input is refused where it is written, with the value, what is allowed and the remedy."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import qnb
from tests.conftest import answers


@pytest.mark.parametrize(
    "url, says",
    [
        ("http://localhost:6379", "rediss://host:port/db"),
        ("redis://", "names no host"),
        ("unix://", "names no socket"),
        ("redis://store.example.org:6379", "insecure=True"),
        ("redis://user:secret@store.example.org", "store.example.org"),
        ("redis://localhost:notaport", "expected redis://"),
    ],
)
def test_a_wrong_url_is_refused_before_anything_else(url: str, says: str) -> None:
    with pytest.raises(qnb.InvalidOption, match="redis_url=") as raised:
        qnb.App(url)
    assert says in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "unix:///nowhere/at/all"])
def test_a_server_that_does_not_answer_is_named_within_a_second(url: str) -> None:
    app = qnb.App(url, "q")

    @app.task
    def f(x: int) -> int:
        return x

    for call in (lambda: f.submit(1), lambda: f.grid(x=[1, 2])):
        begun = time.monotonic()
        with pytest.raises(qnb.BrokerError, match="no server answers at") as raised:
            call()
        assert time.monotonic() - begun < 1.5
        assert "embedded server" in str(raised.value)


@pytest.fixture
def bare_server(tmp_path: Path) -> Iterator[str]:
    """A server without persistence and with an eviction policy."""
    from qnb.storage.server import _program  # the binary, not the service

    process = subprocess.Popen(
        [_program(), "--port", "0", "--unixsocket", "s", "--save", "", "--appendonly", "no"],
        cwd=tmp_path, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 10
    while not answers(tmp_path / "s"):
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    yield f"unix://{tmp_path}/s"
    process.kill()
    process.wait()


def test_a_server_that_would_lose_jobs_is_refused(bare_server: str) -> None:
    import redis

    with pytest.raises(qnb.UnsafeStore, match=r"appendonly 'no'.*allow_volatile=True"):
        qnb.App(bare_server, "q").start_workers(1)
    with redis.Redis.from_url(bare_server) as link:
        link.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(qnb.UnsafeStore, match=r"maxmemory-policy 'allkeys-lru'.*noeviction"):
        qnb.App(bare_server, "q", allow_volatile=True).start_workers(1)


def test_a_name_that_another_function_owns_is_refused_naming_it(app: qnb.App) -> None:
    @app.task(name="clean")
    def clean_rows() -> None: ...

    with pytest.raises(qnb.NameTaken, match=r"'clean' belongs to .*clean_rows.*name="):

        @app.task(name="clean")
        def clean_columns() -> None: ...


def test_the_same_function_defined_again_takes_its_name_over(app: qnb.App) -> None:
    for version in (1, 2):

        @app.task
        def f(version: int = version) -> int:
            return version

    assert f() == 2


def test_a_lane_that_nobody_reads_is_refused_with_the_lanes(server_url: str, queue: str) -> None:
    app = qnb.App(server_url, queue, ["low", "high"])

    @app.task
    def f() -> None: ...

    with pytest.raises(qnb.UnknownLane, match=r"'hihg'.*Did you mean 'high'.*low, high"):
        f.options(priority="hihg")
    with pytest.raises(qnb.UnknownLane):
        app.task(priority="urgent")


def f(x: int = 0) -> int:
    return x


def yields() -> Iterator[int]:
    yield 1


async def yields_later() -> AsyncIterator[int]:
    yield 1


App: Any = qnb.App  # that types are wrong is the point
Retry: Any = qnb.Retry
CENTURIES = 10**25
ANY_ID = r"expected text of 1 to 256 bytes|UTF-8 can carry"

#: what is written, with an app at hand, and the words that the message has
BAD: list[tuple[Callable[[Any], object], str]] = [
    # an app
    (lambda _: App(queue_name="a:b"), "'a:b'.*letters, digits"),
    (lambda _: App(priorities="high"), "priorities='high'.*a list of lane names"),
    (lambda _: App(priorities={"a"}), "priorities={'a'}.*a list of lane names"),
    (lambda _: App(priorities=5), "priorities=5.*a list of lane names"),
    (lambda _: App(priorities=(n for n in "a")), "a list of lane names"),
    (lambda _: App(default_priority="b"), "default_priority='b'.*default.*priorities="),
    (lambda _: App(concurency=3), "Did you mean 'concurrency'"),
    (lambda _: App(concurrency=0), "concurrency=0.*a whole number ≥ 1"),
    (lambda _: App(prefetch="Auto"), "prefetch='Auto'.*'auto'"),
    (lambda _: App(insecure="yes"), "insecure='yes'.*True or False"),
    (lambda _: App(allow_volatile=0), "allow_volatile=0.*True or False"),
    (lambda _: App(key_file=5), "key_file=5.*path of a file"),
    (lambda _: App(blob_store=5), "blob_store=5.*fsspec URL"),
    (lambda _: App(blob_store="memry://b"), "no protocol 'memry'.*Did you mean 'memory'"),
    (lambda _: App(blob_store="simplecache::nope://b"), "no protocol 'nope'.*s3://"),
    (lambda _: App(serializer=5), "serializer=5: expected a function"),
    (lambda _: App(serializer=repr), "give both"),
    (lambda _: App(result_ttl_ms=1.5), "result_ttl_ms=1.5.*a whole number"),
    *((lambda _, w=w: App(**{w: CENTURIES}), f"{w}={CENTURIES}.*≤ ") for w in
      ("result_ttl_ms", "lease_ms", "idle_timeout_ms", "max_payload", "concurrency", "prefetch")),
    (lambda app: setattr(app, "brust", True), "app.brust.*Did you mean 'burst'"),
    (lambda app: setattr(app, "burst", 1), "burst=1.*True or False"),
    # a task and its options
    (lambda app: app.task(unqiue=True), "Did you mean 'unique'.*Known: name, [^.]*, cache$"),
    (lambda app: app.task(delay_ms=0), r"belongs to one call.*task\.options\(delay_ms"),
    (lambda app: app.task(yields), "yields.*return a list instead"),
    (lambda app: app.task(yields_later), "yields.*return a list instead"),
    (lambda app: app.cron(every=30)(yields), "yields.*return a list instead"),
    (lambda app: app.on_error(lambda: None), "<lambda>.* with an ErrorContext, which it does not"),
    (lambda app: app.on_error(lambda a, b: None), "with an ErrorContext.*argument: 'b'"),
    *((lambda app, w=w: app.task(f).options(**{w: CENTURIES}), f"{w}={CENTURIES}.*≤ ") for w in
      ("max_retries", "backoff_ms", "delay_ms", "schedule_ms", "expire_ms", "timeout")),
    *((lambda app, t=t: app.task(f).options(timeout=t), "timeout=.*seconds") for t in
      (0, -1, True, "5", float("inf"), float("nan"), 10**400)),
    *((lambda app, m=m: app.task(f).options(max_memory=m), r"max_memory=.*< 2.*'2 GB'") for m in
      (0, True, 2.5, "2 parsecs", 2**53, "9" * 400 + " TB")),
    (lambda app: app.task(f).options(name=" "), "name=' '.*not all blank"),
    (lambda _: Retry(ValueError("x")), r"ValueError\('x'\).*Retry\(str\(error\)\)"),
    (lambda _: Retry("x", delay_ms=CENTURIES), f"delay_ms={CENTURIES}.*≤ "),
    # ids, batches, frames, workers
    *((lambda app, q=q, i=i: getattr(app, q)(i), ANY_ID) for q in
      ("result", "status", "info", "abort", "job") for i in (None, 5, "", 257 * "x", "\ud800")),
    (lambda app: app.enqueue_many(None), r"expects a list, not one NoneType: use \[\.\.\.\]"),
    (lambda app: app.enqueue_many(app.task(f).prepare(1)), r"not one PreparedCall: use \[\.\.\.\]"),
    (lambda app: app.enqueue_many([f]), r"task\.prepare\(\.\.\.\) returns, not <function f"),
    (lambda app: app.jobs_frame(status="done"), "status='done'.*queued"),
    *((lambda app, n=n: app.jobs_frame(limit=n), f"limit={n!r}.*≥ 1.*None for all") for n in
      (0, -1, "5", True)),
    (lambda app: app.jobs_frame(since="yesterday"), "since='yesterday'.*datetime"),
    (lambda app: app.jobs_frame(since=datetime.now()), "since=.*time zone"),  # noqa: DTZ005
    (lambda app: app.jobs_frame(task=5), "task=5.*a task or its name"),
    (lambda app: app.jobs_frame(sweep=4), "sweep=4.*name of a sweep"),
    (lambda app: app.jobs_frame(values="x"), "values='x'.*True or False"),
    (lambda app: app.jobs_frame(params="x"), "params='x'.*objects, columns, text"),
    (lambda app: app.start_workers(0), "n=0.*worker slots ≥ 1"),
    *((lambda app, n=n: app.start_workers(1, linger=n), "linger=.*like '10 min'") for n in
      ("ten", "-5 min", "nan s", "1e400 h", None, True, -1, float("nan"), float("inf"), CENTURIES)),
]  # fmt: skip


@pytest.mark.parametrize("write, says", BAD)
def test_what_is_wrong_is_refused_where_it_is_written(
    app: qnb.App, write: Callable[[qnb.App], object], says: str
) -> None:
    async def written() -> None:
        answer = write(app)
        if inspect.isawaitable(answer):
            await answer

    with pytest.raises((ValueError, AttributeError), match=says):
        asyncio.run(written())
    assert asyncio.run(app.queue_size()) == 0


def test_a_call_prepared_for_another_queue_is_refused_naming_both(
    app: qnb.App, server_url: str, queue: str
) -> None:
    async def send() -> list[qnb.Job[Any]]:
        other = qnb.App(server_url, f"{queue}-b")
        with pytest.raises(qnb.InvalidOption, match=rf"for queue '{queue}-b'.* of queue '{queue}'"):
            await app.enqueue_many([mine, other.task(f).prepare(2)])
        assert await app.queue_size() == 0
        return await app.enqueue_many([mine, qnb.App(server_url, queue).task(f).prepare(2)])

    mine = app.task(f).options(delay_ms=60_000).prepare(1)
    later, now = asyncio.run(send())
    assert ("scheduled" in repr(later), "queued" in repr(now)) == (True, True)
    assert asyncio.run(app.queue_size()) == 2


def test_the_path_of_a_key_file_may_be_a_path(server_url: str, queue: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    app = qnb.App(server_url, queue, key_file=key)
    with app.start_workers(1):
        assert app.task(f).submit(4).get(timeout=20) == 4


class Torn:
    """Comes apart where it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _fall_apart, ()


def _fall_apart() -> None:
    raise RuntimeError("torn")


@pytest.mark.parametrize("params", ["objects", "columns", "text"])
def test_a_job_that_cannot_be_read_costs_a_frame_no_more_than_its_own_values(
    app: qnb.App, server_url: str, queue: str, tmp_path: Path, params: Any
) -> None:
    @app.task
    def torn(x: object) -> Torn:
        return Torn()

    async def fill() -> list[str]:
        key = tmp_path / "key"
        key.write_text("cd" * 32)
        key.chmod(0o600)
        stranger = qnb.App(server_url, queue, key_file=str(key))
        ran = await torn.enqueue(x=1)
        app.burst = True
        await app.run()
        rows = [ran, await torn.enqueue(x=Torn()), await stranger.ref("torn").enqueue(x=2)]
        return [job.id for job in rows]

    ids = asyncio.run(fill())
    frame = app.jobs_frame(params=params, values=True)
    assert list(frame.index) == ids
    assert list(frame["status"]) == ["complete", "queued", "queued"]
    assert frame["value"].isna().all()
    if params == "columns":
        assert (frame["x"].iloc[0], list(frame["x"].isna())) == (1, [False, True, True])
    else:
        assert str(frame["kwargs"].iloc[0]) == "{'x': 1}"
        assert list(frame["kwargs"].isna()) == list(frame["args"].isna()) == [False, True, True]


def test_a_stop_right_after_the_start_is_heard_and_one_before_it_changes_nothing(
    app: qnb.App,
) -> None:
    async def main() -> None:
        job = await app.task(f).enqueue(3)
        for _ in range(2):
            running = asyncio.create_task(app.run())
            app.stop()
            await asyncio.wait_for(running, 10)
        app.stop()
        app.run().close()  # called, and never begun
        assert await job.status() == "queued"
        app.burst = True
        await asyncio.wait_for(app.run(), 10)
        assert await job == 3

    asyncio.run(main())


def test_an_app_runs_once_at_a_time(app: qnb.App) -> None:
    async def main() -> None:
        first, second = asyncio.create_task(app.run()), asyncio.create_task(app.run())
        with pytest.raises(qnb.QnbError, match="another App for another worker"):
            await first
        with pytest.raises(qnb.QnbError, match="runs already"):
            await app.run()
        app.stop()
        await second

    asyncio.run(main())


def test_a_dict_whose_keys_cannot_come_back_is_refused_naming_the_key(
    server_url: str, queue: str
) -> None:
    app = qnb.App(server_url, queue, codec="msgpack")
    with pytest.raises(qnb.ArgumentError, match=r"args\[0\]\['a'\].*key \(1, 2\) would be a list"):
        app.task(f).submit({"a": {(1, 2): 3}})  # type: ignore[arg-type]
    app.task(f).prepare({1: 2.5, "a": None, b"b": [True], 0.5: ()})  # type: ignore[arg-type]


def test_a_blob_store_that_fails_is_what_is_named_and_no_argument(
    server_url: str, queue: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    app = qnb.App(server_url, queue, blob_store=str(tmp_path / "file" / "folder"))
    with pytest.raises(qnb.BrokerError, match="blob_store=") as raised:
        app.task(f).submit(bytes(2 << 20))  # type: ignore[arg-type]
    assert "argument" not in str(raised.value)


def test_a_call_that_does_not_fit_the_function_is_refused_here(app: qnb.App) -> None:
    @app.task
    def f(x: int) -> None: ...

    with pytest.raises(TypeError, match=r"f\(x.*does not take this call"):
        f.submit(y=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="does not take this call"):
        f.grid(z=[1, 2])


def test_an_argument_that_cannot_be_sent_is_named_and_nothing_is_stored(app: qnb.App) -> None:
    @app.task
    def f(x: object) -> None: ...

    with pytest.raises(qnb.ArgumentError, match=r"lock"):
        f.submit(threading.Lock())
    with pytest.raises(qnb.PayloadTooLarge, match="max_payload"):
        f.submit(bytes(17 * 1024 * 1024))
    assert len(app.jobs_frame()) == 0
