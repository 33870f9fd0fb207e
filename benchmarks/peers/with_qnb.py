"""qnb, as it comes: signed, leased, fenced, recorded. In process, and with child processes."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import work

import qnb

FORM = os.environ["BENCH_FORM"]
KIND, _, SLOTS = os.environ["BENCH_KIND"].partition(" ")
# Jobs that hold the processor gain nothing from waiting side by side in one of two processes.
at_once = 1 if FORM == "two" else 16
app = qnb.App(os.environ["BENCH_URL"], os.environ["BENCH_QUEUE"], concurrency=at_once)
TASKS = {name: app.task(name=name)(body) for name, body in work.BODIES.items()}


def worker() -> list[list[str]]:
    if KIND == "inline":
        serve = "import asyncio, with_qnb; asyncio.run(with_qnb.app.run())"
        return [[sys.executable, "-c", serve]] * (2 if FORM == "two" else 1)
    slots = "2" if FORM == "two" else SLOTS
    return [[sys.executable, "-m", "qnb", "worker", "with_qnb:app", "--workers", slots]]


class Client(work.OfTasks):
    app, tasks = app, TASKS
    spin = "spin" if KIND == "inline" else "spin_plain"

    async def result(self, job: Any) -> Any:
        return await job

    async def gather(self, jobs: list[Any]) -> list[Any]:
        return await asyncio.gather(*jobs)

    def blocking(self, task: str, *args: Any) -> Any:
        return TASKS[task].submit(*args).get(timeout=60)


if __name__ == "__main__":
    work.main(worker, Client)
