"""A :class:`concurrent.futures.Executor` on the queue: what takes one runs on the workers."""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from concurrent.futures import wait as wait_for_all
from typing import Any, ParamSpec, TypeVar

from qnb import bridge
from qnb.adapters.callables import Each, Plain, name_of, plain
from qnb.adapters.dispatch import Dispatch, QueueFuture
from qnb.client import Client, new_id
from qnb.errors import InvalidOption
from qnb.job import Job
from qnb.options import TaskOptions
from qnb.storage.records import Call
from qnb.task import Task

__all__ = ["QueueExecutor"]

P = ParamSpec("P")
R = TypeVar("R")


class QueueExecutor(Executor):
    """Runs calls as jobs of a queue, on whatever workers serve it.

    Made by :meth:`App.executor <qnb.App.executor>`. Any callable will do: a notebook's function, a
    lambda, a method, a partial, a task (with its own name and options). The end of a ``with`` block
    waits for the jobs; the end of the process does not, and they go on.
    """

    def __init__(self, client: Client, /, **options: Any) -> None:
        if options.get("unique"):
            raise InvalidOption(
                "unique=True: each future of an executor is a job of its own; leave it out, or "
                "have equal calls computed once with cache=True"
            )
        if "max_workers" in options:
            raise InvalidOption(
                f"max_workers={options['max_workers']!r}: an executor has as many as the workers "
                "of its queue have slots; app.start_workers(n) starts some"
            )
        self.client = client
        self._given = options
        self._options = TaskOptions.of_a_task("app.executor", options)
        client.options.lane(self._options.priority)
        self._last: tuple[str, Any, Task[..., Any]] | None = None  # name, callable and its task
        self._codes = {""}  # fingerprints whose parts are stored
        self._dispatch = Dispatch(client)
        self._unfinished: set[QueueFuture[Any]] = set()
        self._is_shut = False
        self._lock = threading.RLock()  # what is being pickled may call submit

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(QueueExecutor, **self._given), (self.client,)

    # -- who runs them -------------------------------------------------------------------------

    def slots(self) -> int:
        """How many jobs the living workers run at a time."""

        async def count() -> int:
            workers = await (await self.client.link()).store.workers()
            return sum(int(says["slots"]) for says in workers.values() if not says.get("leaving"))

        return bridge.run(count())

    @property
    def max_workers(self) -> int:
        """As :meth:`slots`, and 1 while nobody works: it counts on workers to come."""
        return max(1, self.slots())

    _max_workers = max_workers  # where dask looks for it

    # -- calls ---------------------------------------------------------------------------------

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> QueueFuture[R]:
        """Have a worker call ``fn(*args, **kwargs)``.

        The future raises what the call does, its remote traceback chained, or why it could not be
        sent (:class:`~qnb.ArgumentError`, :class:`~qnb.BrokerError`).
        """
        return self.submit_as(name_of(fn), fn, args, kwargs)

    def submit_as(
        self, name: str, fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> QueueFuture[R]:
        """As :meth:`submit`, under a name of the caller's choice in tables and views."""
        with self._lock:
            if self._is_shut:
                raise RuntimeError(f"{self!r} has been shut down; take another app.executor()")
            future: QueueFuture[R]
            try:
                call = self._call(name, plain(fn, args, kwargs))
            except Exception as error:  # noqa: BLE001 - a user's __reduce__ may raise anything
                future = QueueFuture(Job(self.client, new_id()), self._dispatch.drop)
                future.set_exception(error)
                return future
            future = QueueFuture(Job(self.client, call.spec.task_id), self._dispatch.drop)
            self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        self._dispatch.put(call, future)
        return future

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **later: Any,
    ) -> Iterator[R]:
        """As the builtin ``map``, on the workers; results come in the order of the input.

        ``chunksize`` puts so many calls into one job, for calls that take less than a millisecond.
        ``TimeoutError`` if a result is not there ``timeout`` seconds after this call. Other options
        are those of this Python's ``Executor.map``.
        """
        if type(chunksize) is not int or chunksize < 1:
            raise InvalidOption(f"chunksize={chunksize!r}: expected a whole number ≥ 1")
        called = fn.fn if isinstance(fn, Task) else fn
        if chunksize == 1 or called is None or inspect.iscoroutinefunction(called):
            return super().map(fn, *iterables, timeout=timeout, **later)
        rows = _chunks(zip(*iterables, strict=False), chunksize)
        chunks = super().map(Each(name_of(fn), called), rows, timeout=timeout, **later)
        return itertools.chain.from_iterable(chunks)

    def unfinished(self) -> list[QueueFuture[Any]]:
        """The futures that are neither done nor cancelled."""
        return list(self._unfinished)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait for those that were made, or cancel those that do not run yet.

        Workers stay. An interrupt ends the wait; the jobs go on.
        """
        with self._lock:
            self._is_shut = True
        left = self.unfinished()
        if cancel_futures:
            for future in left:
                future.cancel()
        if wait:
            wait_for_all([*left, *self._dispatch.aborting])

    def __repr__(self) -> str:
        queue = self.client.options.queue_name
        return f"<QueueExecutor of queue {queue!r}: {len(self._unfinished)} unfinished>"

    # -- encoding ------------------------------------------------------------------------------

    def _call(self, name: str, given: Plain) -> Call:
        last = self._last  # most calls are of the same function as the one before
        if last is not None and last[0] == name and last[1] is given.fn:
            task, is_new = last[2], False
        else:
            task, is_new = self._task_of(name, given.fn), True
        call = task._call(given.args, given.kwargs)
        if call.spec.code not in self._codes:
            bridge.run(self.client.keep_code(self.client.code(task.fn)))
            self._codes.add(call.spec.code)
        if is_new:
            self._last = name, given.fn, task
            task._tell(bridge.run(task._compare(by_value=call.code is not None)))
        return call

    def _task_of(self, name: str, fn: Any) -> Task[..., Any]:
        if isinstance(fn, Task):
            return Task(self.client, fn.name, fn.fn, fn._options.merge(**self._given))
        if self.client.options.codec == "msgpack":
            raise InvalidOption(
                f"{name!r} cannot be sent: App(codec='msgpack') sends names, no code. Submit a "
                "task that the workers know: app.ref(name)"
            )
        owner = self.client.registry.get(name)
        if owner is not None and owner is not fn:  # a worker in this process would call that one
            name = f"{name[:240]} (executor)"
        return Task(self.client, name, fn, self._options)


def _chunks(rows: Iterable[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk
