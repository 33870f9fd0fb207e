"""What all tests share: a private home, real servers, a queue of one's own, and the leak check."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# How long one example takes says nothing on a shared machine; every test has its own limit.
settings.register_profile("qnb", deadline=None)
settings.load_profile("qnb")

# Before anything of qnb is imported: no test may see the user's own server, keys or logs.
_HOME = Path(tempfile.mkdtemp(prefix="qnb-test-"))
for _name, _folder in {
    "XDG_DATA_HOME": "data",
    "XDG_STATE_HOME": "state",
    "XDG_RUNTIME_DIR": "run",
    "QNB_DATA_DIR": "server",
}.items():
    (_HOME / _folder).mkdir(mode=0o700)
    os.environ[_name] = str(_HOME / _folder)
for _name in ("QNB_REDIS_URL", "QNB_KEY_FILE"):
    os.environ.pop(_name, None)


def unavailable(what: str) -> None:
    """Skip here; fail where everything must be there."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing; CI must have it")
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="session", autouse=True)
def _private_home() -> Iterator[None]:
    yield
    from qnb.storage import server

    server.stop()
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def server_url() -> str:
    """The embedded server of this test run."""
    from qnb.storage import server

    return server.ensure()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Debian ``redis-server`` of this test run, append-only."""
    program = shutil.which("redis-server")
    if program is None:
        unavailable("redis-server")
    folder = _HOME / "redis"
    folder.mkdir()
    process = subprocess.Popen(
        [program or "", "--port", "0", "--unixsocket", "s", "--appendonly", "yes"],
        cwd=folder, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _poll(lambda: answers(folder / "s"), "redis-server listens", 10)
        yield f"unix://{folder}/s"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(params=["embedded", "redis"])
def any_url(request: pytest.FixtureRequest) -> str:
    """Each kind of server in turn."""
    return str(
        request.getfixturevalue("server_url" if request.param == "embedded" else "redis_url")
    )


def answers(path: Path) -> bool:
    """Does somebody listen on this socket? Its file is there a moment before."""
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(str(path))
        except OSError:
            return False
    return True


def _poll(predicate: Callable[[], Any], description: str, timeout: float) -> Any:
    deadline = time.monotonic() + timeout
    while not (found := predicate()):
        assert time.monotonic() < deadline, f"never came true in {timeout:g} s: {description}"
        time.sleep(0.01)
    return found


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """``wait_until(predicate, description, timeout=10)``: what the predicate gave once true."""

    def wait(predicate: Callable[[], Any], description: str, timeout: float = 10) -> Any:
        return _poll(predicate, description, timeout)

    return wait


@pytest.fixture
def until() -> Callable[..., Awaitable[Any]]:
    """The awaitable twin of ``wait_until``; its predicate is a coroutine function."""

    async def wait(
        predicate: Callable[[], Awaitable[Any]], description: str, limit: float = 10
    ) -> Any:
        deadline = time.monotonic() + limit
        while not (found := await predicate()):
            assert time.monotonic() < deadline, f"never came true in {limit:g} s: {description}"
            await asyncio.sleep(0.01)
        return found

    return wait


def leaks(url: str, queue: str) -> list[str]:
    """Keys of ``queue`` that neither expire nor are structural."""
    import redis

    from qnb.storage.keys import STRUCTURAL

    with redis.Redis.from_url(url) as link:
        prefix = f"qnb:{{{queue}}}:"
        return [
            name
            for key in link.scan_iter(match=prefix.replace("{", "[{]").replace("}", "[}]") + "*")
            for name in [key.decode()]
            if name.removeprefix(prefix).partition(":")[0] not in STRUCTURAL
            and link.pttl(name) == -1
        ]


@pytest.fixture
def queue() -> Iterator[str]:
    """A queue name of this test's own; afterwards no key of it may stay for ever."""
    import redis

    from qnb.storage import server

    name = f"t-{secrets.token_hex(6)}"
    yield name
    url = server.ensure()
    left = leaks(url, name)
    with redis.Redis.from_url(url) as link:
        if keys := list(link.scan_iter(match=f"qnb:[{{]{name}[}}]:*")):
            link.delete(*keys)
    assert not left, f"these keys neither expire nor are structural: {left}"


@pytest.fixture
def app(server_url: str, queue: str) -> Iterator[Any]:
    """An app on the embedded server with a queue of its own."""
    import qnb

    app = qnb.App(server_url, queue)
    yield app
    with contextlib.suppress(qnb.QnbError):
        app.close()


@pytest.fixture
def serving(app: Any) -> Iterator[Any]:
    """The app with a worker in a thread of this process."""
    thread = threading.Thread(target=lambda: asyncio.run(app.run()), daemon=True)
    thread.start()
    yield app
    app.stop()
    thread.join(20)
    assert not thread.is_alive(), "its worker has not ended"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults", action="store_true", help="also run what takes long: the whole fault suite"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Browser tests run last: their driver keeps an event loop running in this thread."""
    if not config.getoption("--faults"):
        late = [item for item in items if item.get_closest_marker("on_demand")]
        config.hook.pytest_deselected(items=late)
        items[:] = [item for item in items if not item.get_closest_marker("on_demand")]
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)
