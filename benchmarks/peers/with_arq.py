"""arq: its own command line, 16 jobs at once. It polls: every 5 ms instead of every 500."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import work
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import func

FORM = os.environ["BENCH_FORM"]
POLL = 0.005
SETTINGS = RedisSettings.from_dsn(os.environ["BENCH_URL"])


def task(body: Any) -> Any:
    async def with_context(context: Any, *args: Any) -> Any:
        return await body(*args)

    return with_context


class Worker:
    functions = [func(task(body), name=name) for name, body in work.BODIES.items()]  # noqa: RUF012
    redis_settings = SETTINGS
    queue_name = os.environ["BENCH_QUEUE"]
    max_jobs = 1 if FORM == "two" else 16
    poll_delay = POLL
    log_results = False


def worker() -> list[list[str]]:
    one = [sys.executable, "-c", "import arq, with_arq; arq.run_worker(with_arq.Worker)"]
    return [one] * (2 if FORM == "two" else 1)


class Client:
    spin = "spin"

    async def open(self) -> None:
        self.pool = await create_pool(SETTINGS, default_queue_name=Worker.queue_name)

    async def enqueue(self, task: str, *args: Any) -> Any:
        return await self.pool.enqueue_job(task, *args)

    async def enqueue_many(self, task: str, calls: list[tuple[Any, ...]]) -> list[Any]:
        return [await self.pool.enqueue_job(task, *args) for args in calls]  # it has no other

    async def result(self, job: Any) -> Any:
        return await job.result(timeout=120, poll_delay=POLL)

    async def gather(self, jobs: list[Any]) -> list[Any]:
        return await asyncio.gather(*map(self.result, jobs))


if __name__ == "__main__":
    work.main(worker, Client)
