"""ArdiQ: its own command line, 16 jobs at once, pickle 5 only where arrays travel."""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import sys
from typing import Any

import work
from ardiq import Ardiq

FORM = os.environ["BENCH_FORM"]
CODEC = {"serializer": functools.partial(pickle.dumps, protocol=5), "deserializer": pickle.loads}

# Jobs that hold the processor gain nothing from waiting side by side in one of two processes.
app = Ardiq(
    os.environ["BENCH_URL"],
    os.environ["BENCH_QUEUE"],
    **({"concurrency": 1, "prefetch": 1} if FORM == "two" else {"concurrency": 16}),
    **(CODEC if FORM == "arrays" else {}),
)
TASKS = {name: app.task(name=name)(body) for name, body in work.BODIES.items()}


def worker() -> list[list[str]]:
    processes = "2" if FORM == "two" else "1"
    return [[sys.executable, "-m", "ardiq", "run", "with_ardiq:app", "--workers", processes]]


class Client(work.OfTasks):
    app, tasks = app, TASKS
    spin = "spin"

    async def result(self, job: Any) -> Any:
        found = await job.result(timeout=120)
        assert found.success, found
        return found.value

    async def gather(self, jobs: list[Any]) -> list[Any]:
        return await asyncio.gather(*map(self.result, jobs))


if __name__ == "__main__":
    work.main(worker, Client)
