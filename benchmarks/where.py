"""Where a job's time goes: the worker's profile by part, and the server's command statistics."""

from __future__ import annotations

import asyncio
import contextlib
import cProfile
import pstats
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import redis
from rows import markdown

import qnb

#: parts of this process, by what a profile calls their functions
PARTS = {
    "signing and encoding": ("/qnb/wire/", "_hashlib", "hmac", "_blake2", "pickle", "msgpack"),
    "store: rows, scripts, leases": ("/qnb/storage/",),
    "redis-py and hiredis": ("/redis/", "hiredis"),
    "event loop and sockets": (
        "/asyncio/",
        "asyncio",
        "selectors",
        "select.",
        "_socket",
        "Context",
    ),
    "worker: intake, runs, attempts": ("/qnb/running/",),
    "client: tasks, jobs, links": ("/qnb/",),
}

#: commands that stand in the server's table by name
COMMANDS = (
    "xadd",
    "xreadgroup",
    "xack",
    "xdel",
    "hset",
    "hget",
    "hmget",
    "pexpire",
    "zadd",
    "publish",
)


def measured(url: str, *, quick: bool) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]]]:
    """µs a job: of this process by part, and of the server by command, for each kind of work."""
    return asyncio.run(_measured(url, 500 if quick else 10_000))


async def _measured(
    url: str, count: int
) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]]]:
    here: dict[str, Counter[str]] = {}
    there: dict[str, Counter[str]] = {}
    queue = f"where-{secrets.token_hex(4)}"
    works = {"made and stored": _store, "run and ended": _drain}
    for what, work in works.items():
        go = await work(url, queue, count)
        with _server(url, there.setdefault(what, Counter()), count):
            profile = cProfile.Profile(time.process_time)
            began = time.process_time()
            profile.enable()
            await go()
            profile.disable()
            took = time.process_time() - began
        here[what] = _by_part(profile, took, count)
    return here, there


async def _store(url: str, queue: str, count: int) -> Callable[[], Awaitable[object]]:
    app, task = _app(url, queue)
    await task.enqueue(0)
    return lambda: app.enqueue_many([task.prepare(x) for x in range(count)])


async def _drain(url: str, queue: str, count: int) -> Callable[[], Awaitable[object]]:
    app, _ = _app(url, queue)
    app.burst = True
    return app.run


def _app(url: str, queue: str) -> tuple[qnb.App, Any]:
    app = qnb.App(url, queue)

    @app.task
    async def nothing(x: int) -> int:
        return x

    return app, nothing


@contextlib.contextmanager
def _server(url: str, found: Counter[str], count: int) -> Iterator[None]:
    with redis.Redis.from_url(url) as link:
        link.config_resetstat()
        before = link.info("cpu")
        yield
        after, said = link.info("cpu"), link.info("commandstats")
    for name, stats in said.items():
        command = name.removeprefix("cmdstat_")
        if command in COMMANDS:
            found[command.upper()] = stats["usec"] / count
        elif command == "evalsha":
            found["scripts"] = stats["usec"] / count
    found["scripts, apart from their commands"] = found.pop("scripts", 0.0) - sum(found.values())
    spent = sum(after[part] - before[part] for part in ("used_cpu_user", "used_cpu_sys"))
    found["protocol, append-only file"] = spent * 1e6 / count - sum(found.values())


def _by_part(profile: cProfile.Profile, took: float, count: int) -> Counter[str]:
    shares: Counter[str] = Counter()
    stats: Any = pstats.Stats(profile)
    for (file, _, name), (_, _, own, _, _) in stats.stats.items():
        said = f"{file} {name}"
        part = next(
            (p for p, words in PARTS.items() if any(w in said for w in words)), "Python's own"
        )
        shares[part] += own
    whole = sum(shares.values()) or 1.0
    # A profile slows down what calls much: only the shares are told.
    return Counter({part: 100 * own / whole for part, own in shares.items()})


def table(found: tuple[dict[str, Counter[str]], dict[str, Counter[str]]]) -> str:
    here, there = found
    return "\n\n".join(
        (
            _table("share of the process's own time, %", here, "{:.0f}"),
            _table("the server's time a job, µs", there, "{:.1f}"),
        )
    )


def _table(title: str, found: dict[str, Counter[str]], form: str) -> str:
    parts = sorted(
        {part for each in found.values() for part in each},
        key=lambda part: -sum(each[part] for each in found.values()),
    )
    lines = [[title, *found], ["---"] * (1 + len(found))]
    lines += [[part, *(form.format(each[part]) for each in found.values())] for part in parts]
    if form == "{:.1f}":
        lines.append(["in all", *(form.format(sum(each.values())) for each in found.values())])
    return markdown(lines)
