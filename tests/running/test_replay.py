"""What was signed once cannot be used again: for another run, task or treatment of a job."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis

import qnb
from qnb.storage.keys import KeySpace
from tests.serving import serving


def test_the_result_and_the_call_of_an_earlier_run_are_refused(
    app: qnb.App, server_url: str, queue: str
) -> None:
    @app.task
    async def pay(what: str) -> str:
        return what

    keys, named = KeySpace(queue), pay.options(task_id="pay")

    async def run(what: str) -> dict[bytes, bytes]:
        job = await named.enqueue(what)
        async with serving(app):
            assert await job == what
        with redis.Redis.from_url(server_url) as link:
            found: dict[bytes, bytes] = link.hgetall(keys.job("pay"))  # type: ignore[assignment]
            return found

    async def main() -> None:
        old = await run("old")
        await run("new")
        with redis.Redis.from_url(server_url) as link:
            link.hset(keys.job("pay"), "r", old[b"r"])
            with pytest.raises(qnb.SignatureError, match="signed for another run"):
                await app.job("pay")
            job = await named.enqueue("third")
            [(entry, row)] = link.xrange(keys.lane("default"))
            row[b"p"] = old[b"p"]
            link.xdel(keys.lane("default"), entry)
            link.hset(keys.job("pay"), "e", link.xadd(keys.lane("default"), row))
            async with serving(app):
                with pytest.raises(qnb.SignatureError, match="refused unread"):
                    await job

    asyncio.run(main())


@pytest.mark.parametrize("flip", ["policy", "module"])
def test_a_job_whose_treatment_or_function_was_changed_is_refused_before_anything_is_imported(
    app: qnb.App, server_url: str, queue: str, flip: str, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "evilmod.py").write_text("def run(*args): raise SystemExit('ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    keys = KeySpace(queue)

    @app.task
    async def f() -> int:
        return 1

    async def main() -> None:
        job = await f.enqueue()
        with redis.Redis.from_url(server_url) as link:
            [(entry, row)] = link.xrange(keys.lane("default"))
            spec = msgpack.unpackb(row[b"m"])
            if flip == "policy":
                spec.append([3, 0, None, None, "loop"])
            else:
                spec[1], spec[4] = "nobody knows it", "evilmod:run"
            row[b"m"] = msgpack.packb(spec)
            link.xdel(keys.lane("default"), entry)
            fresh = link.xadd(keys.lane("default"), row)
            link.hset(keys.job(job.id), mapping={"e": fresh, "m": row[b"m"]})
        async with serving(app):
            with pytest.raises(qnb.SignatureError, match="refused unread"):
                await job
        assert "evilmod" not in sys.modules

    asyncio.run(main())
