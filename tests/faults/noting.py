"""A client, a task that writes down what it does, and the two kinds of workers that run it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import qnb
from tests.faults.ledger import note

KINDS = ["processes", "inline"]

#: one kind always, both in the whole suite; the same with a number of jobs
IN_FULL = [pytest.param("processes", marks=pytest.mark.on_demand), "inline"]
SIZES = [
    ("inline", 200),
    pytest.param("inline", 1000, marks=pytest.mark.on_demand),
    pytest.param("processes", 1000, marks=pytest.mark.on_demand),
]


def client(url: str | None, queue: str, **options: Any) -> qnb.App:
    return qnb.App(url, queue, allow_volatile=True, **options)


def noting(app: qnb.App, path: str) -> qnb.Task[[int, float], int]:
    """A task that takes so many seconds, and notes its start and end under its number."""

    @app.task
    async def work(x: int, seconds: float) -> int:
        note(path, "start", x)
        await asyncio.sleep(seconds)
        note(path, "end", x)
        return x

    return work
