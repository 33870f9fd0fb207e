"""Bad input is refused where it is written, with the value, what is allowed and the remedy."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import qnb


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
    while not (tmp_path / "s").exists():
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


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: qnb.App(queue_name="a:b"), "letters, digits"),
        (lambda: qnb.App(priorities="high"), "a list of lane names"),
        (lambda: qnb.App(concurency=3), "Did you mean 'concurrency'"),
        (lambda: qnb.App(concurrency=0), "a whole number ≥ 1"),
        (lambda: qnb.App(result_ttl_ms=1.5), "a whole number"),
        (lambda: qnb.App().task(priorty="x"), "Did you mean 'priority'"),
        (lambda: qnb.App().start_workers(0), "worker slots ≥ 1"),
        (lambda: qnb.App().start_workers(1, linger="ten"), "like '10 min'"),
        (lambda: qnb.App().jobs_frame(status="done"), "queued"),
    ],
)
def test_a_misspelt_or_wrong_option_is_refused_with_a_hint(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()  # type: ignore[operator]


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
