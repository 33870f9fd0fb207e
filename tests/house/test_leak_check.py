"""The check that no test leaves a key behind is itself checked; so is the table of keys."""

from __future__ import annotations

import asyncio

import redis

import qnb
from qnb.storage import keys
from tests.conftest import leaks


def test_a_key_that_stays_for_ever_is_found(server_url: str, queue: str) -> None:
    with redis.Redis.from_url(server_url) as link:
        link.set(f"qnb:{{{queue}}}:job:1", "x")
        link.set(f"qnb:{{{queue}}}:func:1", "x", ex=60)
        link.zadd(f"qnb:{{{queue}}}:jobs", {"1": 1})
        assert leaks(server_url, queue) == [f"qnb:{{{queue}}}:job:1"]
        link.delete(f"qnb:{{{queue}}}:job:1")


def test_the_table_of_keys_lists_every_kind_that_is_seen(
    app: qnb.App, server_url: str, queue: str
) -> None:
    @app.task
    async def f(x: int) -> int:
        return x

    async def main() -> None:
        jobs = [await f.enqueue(x) for x in range(3)]
        running = asyncio.create_task(app.run())
        await jobs[-1]
        with redis.Redis.from_url(server_url) as link:
            found = {key.decode() for key in link.scan_iter(match=f"qnb:[{{]{queue}[}}]:*")}
        app.stop()
        await running
        kinds = {key.removeprefix(f"qnb:{{{queue}}}:").partition(":")[0] for key in found}
        assert kinds <= {*keys.STRUCTURAL, *keys.EXPIRING}
        assert {"lane", "jobs", "job", "worker", "workers"} <= kinds

    asyncio.run(main())
    for kind in (*keys.STRUCTURAL, *keys.EXPIRING):
        assert f"``{kind}" in (keys.__doc__ or "")
