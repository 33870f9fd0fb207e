"""Checked by mypy, never run: what a user's editor knows of the API."""

from __future__ import annotations

from typing import assert_type

import qnb

app = qnb.App()


@app.task
def add(a: int, b: int = 0) -> int:
    return a + b


@app.task(priority="default")
async def fetch(url: str) -> bytes:
    return url.encode()


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
