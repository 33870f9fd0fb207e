"""A worker process: the supervisor that ``qnb worker`` and ``App.start_workers`` run."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from dataclasses import replace
from typing import Any

from qnb.errors import QnbError
from qnb.options import AppOptions
from qnb.registry import Registry
from qnb.running.around import free_forks
from qnb.running.attempt import Runner
from qnb.running.executors import Executor, InlineExecutor
from qnb.running.futures import FuturesExecutor
from qnb.running.messages import SlotConfig
from qnb.running.processes import ProcessExecutor
from qnb.running.trees import adopt_orphans, descendants, kill_tree
from qnb.running.worker import Worker
from qnb.storage.connection import masked
from qnb.storage.store import Store
from qnb.wire import environment
from qnb.wire.codec import Codec

__all__ = ["serve"]

log = logging.getLogger("qnb.worker")


async def serve(  # noqa: PLR0913 - what a worker process is told
    url: str,
    options: AppOptions,
    *,
    app: str | None = None,
    registry: Registry | None = None,
    slots: int,
    burst: bool = False,
    linger: float | None = None,
    says: dict[str, Any] | None = None,
    setup: bytes | None = None,
    factory: str | None = None,
    max_memory: int | None = None,
) -> int:
    """Serve the queue until told to stop; the exit status.

    ``app`` is ``module:attribute``, and ``registry`` its own; ``setup`` the signed hooks of a
    notebook's app; ``factory`` the ``module:attribute`` of a ``concurrent.futures`` pool. A first
    SIGTERM or SIGINT lets running jobs finish, a second one stops them.
    """
    codec = Codec.of(options, url)  # a missing key is said here, once
    store = Store(url, options)
    config = SlotConfig.of(options, app=app, setup=setup, path=sys.path)
    executor: Executor
    if factory is not None:
        executor = FuturesExecutor(factory, config, slots)
    else:
        executor = ProcessExecutor(
            config, store.clock, slots, url, max_memory=max_memory, adopts=adopt_orphans()
        )
    here = environment.describe()
    worker = Worker(
        store,
        executor,
        registry=registry,
        codec=codec,
        burst=burst,
        linger=linger,
        says=says,
        environment=(environment.digest(here), environment.pack(here)),
    )
    stopped = _stop_on_signals(worker)
    log.info(
        "%s serves queue %r at %s with %d slots",
        worker.id, options.queue_name, masked(url), executor.slots,
    )  # fmt: skip
    try:
        await worker.run()
    except asyncio.CancelledError:
        if factory is not None:  # its pool waits for what runs
            await _leave_hard()
        return 1
    except ExceptionGroup as group:
        for error in group.exceptions:
            log.error("%s", error, exc_info=None if isinstance(error, QnbError) else error)
        return 1
    finally:
        stopped()
        await store.close()
    return 0


async def _leave_hard() -> None:
    """End this process now, and those of a pool that it has started."""
    for pid in await asyncio.to_thread(descendants, os.getpid()):
        await asyncio.to_thread(kill_tree, pid)
    logging.shutdown()
    os._exit(1)


def _stop_on_signals(worker: Worker) -> Any:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    signals = 0

    def stop() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            log.info("stopping: running jobs may finish; once more stops them")
            worker.stop()
        elif task is not None:
            task.cancel()

    def restore() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    free_forks()  # those of a pool
    return restore


def inline_worker(store: Store, registry: Registry, codec: Codec, url: str, burst: bool) -> Worker:
    """The worker that ``app.run()`` is: bodies run in this process."""
    idle = store.options.idle_timeout_ms
    return Worker(
        store,
        InlineExecutor(
            Runner(codec, registry, store.clock, shipped_first=False),
            store.options.concurrency,
            replace(SlotConfig.of(store.options, path=sys.path), url=url),
        ),
        registry=registry,
        codec=codec,
        burst=burst,
        linger=None if idle is None else idle / 1000,
    )
