"""Checked by mypy, never run: what a user's editor knows of the API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

import qnb

app = qnb.App()


@app.task
def add(a: int, b: int = 0) -> int:
    return a + b


@app.task(priority="default")
async def fetch(url: str) -> bytes:
    return url.encode()


@app.cron("0 3 * * *", max_retries=2)
def nightly() -> None: ...


@app.lifespan
async def resources() -> AsyncIterator[dict[str, Any]]:
    yield {"db": 1}


@app.on_error
def report(context: qnb.ErrorContext) -> None:
    assert_type(context.exc, BaseException)
    assert_type(context.will_retry, bool)


async def main() -> None:
    assert_type(add(1), int)
    job = await add.enqueue(1, b=2)
    assert_type(job, qnb.Job[int])
    assert_type(await job, int)
    assert_type(job.get(), int)
    assert_type(await job.result(), qnb.TaskResult | None)
    await add.enqueue("one")  # type: ignore[arg-type]
    add.submit(1, c=2)  # type: ignore[call-arg]
    assert_type(add.map([1, 2]), qnb.Sweep[int])
    assert_type(await add.grid(a=[1, 2]), list[int])
    await add.options(delay_ms=5).enqueue("two")  # type: ignore[arg-type]
    add.prepare(b=3)  # type: ignore[call-arg]
    assert_type(await app.enqueue_many([add.prepare(1), fetch.prepare("u")]), list[qnb.Job[Any]])
    assert_type(await app.send("add", 1, 2), qnb.Job[Any])
    assert_type(app.ref("add").submit("anything"), qnb.Job[Any])
    assert_type(await job.abort(), bool)
    assert_type(job.retry().result(timeout=1), bool)
    assert_type(job.logs(), str)
    assert_type(job.logs(follow=True), Iterator[str])
    assert_type(job.reproduce(), int)
    for step in qnb.progress([1, 2]):
        assert_type(step, int)
    app.task(timeout="soon")  # type: ignore[call-overload]
    qnb.report(1, total="many")  # type: ignore[arg-type]
