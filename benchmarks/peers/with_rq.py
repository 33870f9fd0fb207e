"""RQ: SimpleWorker, which forks no process for a job, so one job at a time in each worker."""

from __future__ import annotations

import os
import sys
from typing import Any

import work
from redis import Redis
from rq import Queue

FORM = os.environ["BENCH_FORM"]
QUEUE = os.environ["BENCH_QUEUE"]
URL = os.environ["BENCH_URL"]


def nothing(x: int) -> int:
    return x


def spin(steps: int) -> int:
    return work.spin_for(steps)


def echo(array: Any) -> Any:
    return -array


def worker() -> list[list[str]]:
    one = [
        *(sys.executable, "-m", "rq.cli", "worker", "--worker-class", "rq.SimpleWorker"),
        *("--url", URL, "--path", ".", "--disable-job-desc-logging", "--logging_level", "WARNING"),
        QUEUE,
    ]
    return [one] * (2 if FORM == "two" else 1)


class Client:
    spin = "spin"

    """It blocks; nothing else runs on the loop that calls it."""

    async def open(self) -> None:
        self.queue = Queue(QUEUE, connection=Redis.from_url(URL))

    async def enqueue(self, task: str, *args: Any) -> Any:
        return self.queue.enqueue(f"with_rq.{task}", *args)

    async def enqueue_many(self, task: str, calls: list[tuple[Any, ...]]) -> list[Any]:
        prepare = self.queue.prepare_data
        return self.queue.enqueue_many([prepare(f"with_rq.{task}", args) for args in calls])

    async def result(self, job: Any) -> Any:
        found = job.latest_result(timeout=120)
        assert found.type is found.Type.SUCCESSFUL, found
        return found.return_value

    async def gather(self, jobs: list[Any]) -> list[Any]:
        return [await self.result(job) for job in jobs]


if __name__ == "__main__":
    work.main(worker, Client)
