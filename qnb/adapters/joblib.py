"""A joblib backend: what runs on ``joblib.Parallel`` (scikit-learn, mostly) runs on the queue.

Only this module imports joblib, and no worker imports this module.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol

import joblib
from joblib.parallel import AutoBatchingMixin, BatchedCalls, ParallelBackendBase

from qnb.adapters.callables import name_of
from qnb.adapters.futures import QueueExecutor
from qnb.adapters.sharing import Sharing, opened
from qnb.running.context import running

__all__ = ["QueueBackend", "on_queue", "register_joblib"]


class HasExecutor(Protocol):
    """An app."""

    def executor(self, **options: Any) -> QueueExecutor:
        """An executor on its queue."""


def register_joblib(app: HasExecutor) -> None:
    """Let ``joblib.parallel_config("qnb")`` run on the queue of ``app``; the last one given counts.

    Task options go along: ``parallel_config("qnb", n_jobs=-1, priority="bulk")``.
    """

    def backend(nesting_level: int | None = None, **options: Any) -> QueueBackend:
        return QueueBackend(app.executor(**options), nesting_level=nesting_level)

    joblib.register_parallel_backend("qnb", backend)


def on_queue(executor: QueueExecutor, n_jobs: int = -1) -> contextlib.AbstractContextManager[None]:
    """A block in which joblib runs on the queue."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        with joblib.parallel_config(QueueBackend(executor), n_jobs=n_jobs):
            yield

    return block()


class QueueBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc] # they are untyped
    """Runs each batch of calls as one job. Inside of a job, nested calls run in its own process."""

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(self, executor: QueueExecutor, nesting_level: int | None = None) -> None:
        super().__init__(nesting_level=nesting_level)
        self._executor = executor
        self._large: int | None = None
        self._keep = True
        self._sharing: Sharing | None = None  # during a call

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls to have on their way; -1 is as many as the workers have slots.

        At least two, since joblib runs a single one here and not on the queue.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs=0: expected a number ≥ 1, or -1 for all worker slots")
        if running() is not None:  # the workers may all wait for what this job would send
            return 1
        if n_jobs is None:
            n_jobs = self.default_n_jobs
        return n_jobs if n_jobs > 0 else max(2, self._executor.slots() + 1 + n_jobs)

    def configure(
        self,
        n_jobs: int | None = 1,
        parallel: Any = None,
        max_nbytes: int | None = 1 << 20,
        mmap_mode: str | None = "r",
        **options: Any,
    ) -> int:
        """Prepare for a call of ``parallel``: how many jobs it may have on their way."""
        self.parallel = parallel
        self._large, self._keep = max_nbytes, mmap_mode == "r"
        if running() is None and not self._executor.slots():
            queue = self._executor.client.options.queue_name
            warnings.warn(
                f"no worker serves queue {queue!r}: these jobs wait for one. Start some with "
                "app.start_workers()",
                stacklevel=2,
            )
        return self.effective_n_jobs(n_jobs)

    def submit(
        self, func: BatchedCalls, callback: Callable[[Any], None] | None = None
    ) -> Future[Any]:
        """Send a batch; ``callback`` is called with the future when it is done."""
        future: Future[Any]
        try:
            if (sharing := self._sharing) is not None:
                func.items = [sharing.closed(item) for item in func.items]
            future = self._executor.submit_as(name_of(func.items[0][0]), opened, (func,), {})
        except Exception as error:  # noqa: BLE001 - joblib waits for the callback
            future = Future()
            future.set_exception(error)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The results of a batch, or the error that a call of it raised."""
        return out.result()

    def start_call(self) -> None:
        """The beginning of a call: nothing is shared yet."""
        self._sharing = Sharing(self._executor.client, self._large, keep=self._keep)

    def stop_call(self) -> None:
        """The end of a call: what it shared is let go."""
        self._sharing = None

    def terminate(self) -> None:
        """The end of its use by a ``Parallel``; the next one starts with small batches."""
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Abort what waits and what runs: its results are not wanted any more."""
        for future in self._executor.unfinished():
            if not future.cancel():
                future.job.abort()
