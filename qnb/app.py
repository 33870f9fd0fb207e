"""The front door: an app names a queue, collects its tasks, and makes everything else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from qnb import bridge
from qnb.client import Client
from qnb.clock import seconds
from qnb.display import Displayed
from qnb.errors import InvalidOption, QnbError
from qnb.job import Job
from qnb.models import JobRecord, JobState, TaskInfo, TaskResult
from qnb.options import AppOptions, TaskOptions
from qnb.pool import Pool
from qnb.registry import Registry
from qnb.storage.connection import masked
from qnb.task import PreparedCall, Task

if TYPE_CHECKING:
    from qnb.analysis.frames import DataFrame
    from qnb.running.worker import Worker

__all__ = ["App"]

P = ParamSpec("P")
R = TypeVar("R")


class App(Displayed):
    """A queue and the tasks that go through it.

    ``redis_url=None`` is ``$QNB_REDIS_URL``, else the embedded server, which is found or started
    when first needed. ``priorities`` are the lanes, lowest first. The other keywords are the
    fields of :class:`~qnb.options.AppOptions`; an unknown one is refused with a hint.

    >>> app = App("redis://localhost", "nightly", ["bulk", "urgent"])
    >>> app.default_priority
    'urgent'
    """

    #: end :meth:`run` when nothing waits any more
    burst: bool = False

    def __init__(
        self,
        redis_url: str | None = None,
        queue_name: str = "default",
        priorities: Sequence[str] = ("default",),
        **options: Any,
    ) -> None:
        settings = AppOptions.of(
            queue_name=queue_name,
            priorities=tuple(priorities) if isinstance(priorities, list) else priorities,
            **options,
        )
        self.registry = Registry()
        self._client = Client(redis_url, settings)
        self._worker: Worker | None = None
        self._worker_loop: asyncio.AbstractEventLoop | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self._client,)

    # -- what it is ----------------------------------------------------------------------------

    @property
    def queue_name(self) -> str:
        return self._client.options.queue_name

    @property
    def default_priority(self) -> str:
        """The lane of a task that names none."""
        return self._client.options.default_lane

    @property
    def redis_url(self) -> str:
        """Where the store is, its password masked."""
        return masked(self._client.url)

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks registered here."""
        return sorted(self.registry)

    @property
    def worker_id(self) -> str | None:
        """The id of the worker that :meth:`run` is, while it runs."""
        return self._worker.id if self._worker else None

    def __repr__(self) -> str:
        return f"<App queue {self.queue_name!r}, {len(self.tasks)} tasks>"

    # -- tasks ---------------------------------------------------------------------------------

    @overload
    def task(self, fn: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self, fn: None = None, /, *, name: str | None = None, priority: str | None = None
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...
    def task(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Make a function a task: ``@app.task`` or ``@app.task(name=..., priority=...)``.

        The name is the function's own by default. One that another function owns is refused; the
        same function defined again replaces it.
        """
        name = options.pop("name", None)
        chosen = TaskOptions().merge(**options)
        if chosen.task_id is not None:
            raise InvalidOption("task_id belongs to one call: task.options(task_id=...)")
        self._client.options.lane(chosen.priority)

        def decorate(fn: Callable[..., Any]) -> Task[..., Any]:
            if isinstance(fn, Task):
                fn = fn.fn
            if not callable(fn):
                raise InvalidOption(f"@app.task expects a function, not {fn!r}")
            called = name if name is not None else getattr(fn, "__name__", "")
            self.registry.add(called, fn)
            return Task(self._client, called, fn, chosen)

        return decorate if fn is None else decorate(fn)

    async def enqueue_many(self, calls: Sequence[PreparedCall[Any]]) -> list[Job[Any]]:
        """Store calls made by ``task.prepare(...)``, in order; a round trip for each 500 or so."""
        for call in calls:
            if not isinstance(call, PreparedCall):
                raise InvalidOption(
                    f"enqueue_many() expects what task.prepare(...) returns, not {call!r}"
                )
        await self._client.enqueue([prepared.call for prepared in calls])
        return [
            Job(self._client, spec.task_id, _queued(spec.task_id, spec.fn_name, spec.lane))
            for spec in (prepared.call.spec for prepared in calls)
        ]

    # -- jobs by id ----------------------------------------------------------------------------

    def job(self, task_id: str) -> Job[Any]:
        """The handle of a job whose id is known."""
        return Job(self._client, task_id)

    async def result(
        self,
        task_id: str,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109 - the seed's signature
    ) -> TaskResult | None:
        """As :meth:`Job.result <qnb.Job.result>`."""
        return await self._client.result(task_id, seconds(timeout))

    async def status(self, task_id: str) -> JobState:
        """As :meth:`Job.status <qnb.Job.status>`."""
        return await self._client.status(task_id)

    async def info(self, task_id: str) -> TaskInfo | None:
        """As :meth:`Job.info <qnb.Job.info>`."""
        return await self._client.info(task_id)

    async def queue_size(self) -> int:
        """How many jobs wait, in all lanes, delayed ones included."""
        return await self._client.queue_size()

    # -- tables --------------------------------------------------------------------------------

    def jobs_frame(  # noqa: PLR0913 - filters, each by its name
        self,
        *,
        task: str | Task[Any, Any] | None = None,
        sweep: str | None = None,
        status: str | None = None,
        since: datetime | None = None,
        limit: int | None = None,
        params: Literal["objects", "columns", "text"] = "objects",
        values: bool = False,
    ) -> DataFrame:
        """All jobs of the queue as a DataFrame, indexed by ``task_id``, by enqueue time.

        ``task``, ``sweep``, ``status`` and ``since`` (an aware datetime) keep only what fits,
        ``limit`` the newest so many. ``values`` adds the column ``value``: what each finished job
        returned. ``params="columns"`` makes a column of each parameter, ``"text"`` text that can
        be written to a file.
        """
        if status is not None and status not in set(JobState):
            raise InvalidOption(f"status={status!r}: expected one of {', '.join(JobState)}")
        if since is not None and since.tzinfo is None:
            raise InvalidOption(
                f"since={since!r}: expected a datetime with a time zone, such as "
                "datetime.now(timezone.utc)"
            )
        name = task.name if isinstance(task, Task) else task
        least = since.timestamp() * 1000 if since else 0

        async def read() -> list[JobRecord]:
            store = (await self._client.link()).store
            return await store.all_records(call=True, result=values)

        records = [
            record
            for record in bridge.run(read())
            if record.enqueue_time >= least
            and (name is None or record.fn_name == name)
            and (sweep is None or record.sweep == sweep)
            and (status is None or record.status == status)
        ]
        from qnb.analysis import frames

        def value(record: JobRecord) -> Any:
            if record.outcome is None or not record.outcome.success:
                return frames.MISSING
            return self._client.value_of(record.task_id, record)

        return frames.jobs_frame(
            records[-limit:] if limit else records,
            self._client.call_of,
            params=params,
            values=value if values else None,
        )

    # -- workers -------------------------------------------------------------------------------

    def start_workers(
        self, n: int | Literal["auto"] = "auto", *, linger: str | float = "10 min"
    ) -> Pool:
        """Make sure that ``n`` local worker slots serve the queue; ``"auto"`` is one a core.

        They run functions of this notebook without having seen them, go on when it dies, and
        leave when they have been idle for ``linger``. Called again, it tops up and never doubles.
        """
        return Pool(self._client).scale(n, linger=linger)

    def pool(self) -> Pool:
        """The workers that :meth:`start_workers` started, from this or another kernel."""
        return Pool(self._client)

    async def run(self) -> None:
        """Be a worker in this process until :meth:`stop`; with :attr:`burst`, until drained.

        Coroutine tasks run on this loop, plain functions in threads: they share your objects,
        and cannot be killed.
        """
        from qnb.running.attempt import Runner
        from qnb.running.executors import InlineExecutor
        from qnb.running.worker import Worker
        from qnb.storage.store import Store

        if self._worker is not None:
            raise QnbError(f"{self!r} runs already; start another App for another worker")
        loop = asyncio.get_running_loop()
        url = await loop.run_in_executor(None, lambda: self._client.url)
        options = self._client.options
        store = Store(url, options)
        runner = Runner(self._client.codec, self.registry, store.clock, shipped_first=False)
        executor = InlineExecutor(runner, options.concurrency)
        self._worker = Worker(store, executor, options, burst=self.burst)
        self._worker_loop = loop
        try:
            await self._worker.run()
        finally:
            self._worker = self._worker_loop = None
            await store.close()

    def stop(self) -> None:
        """End :meth:`run`, from any thread: what runs may finish, the rest goes back."""
        worker, loop = self._worker, self._worker_loop
        if worker is not None and loop is not None:
            loop.call_soon_threadsafe(worker.stop)

    def close(self) -> None:
        """Close the connections of blocking calls and live views. Jobs and workers go on."""
        bridge.run(self._client.close())


def _queued(task_id: str, fn_name: str, lane: str) -> JobRecord:
    return JobRecord(task_id, fn_name, lane, JobState.QUEUED, 0)


def _rebuilt(client: Client) -> App:
    app = App.__new__(App)
    app.registry = Registry()
    app._client = client
    app._worker = app._worker_loop = None
    return app
