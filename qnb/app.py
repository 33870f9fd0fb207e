"""The front door: an app names a queue, collects its tasks, and makes everything else."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from qnb import bridge
from qnb.client import Client
from qnb.display import Displayed
from qnb.errors import InvalidOption, QnbError
from qnb.inline import InlineRun
from qnb.job import Job
from qnb.lookout import Lookout
from qnb.models import ErrorContext, JobState, QueueSnapshot, TaskInfo, TaskResult
from qnb.options import AppOptions, FrameOptions, TaskOptions, check_takes, check_task_id, hint
from qnb.pool import Pool
from qnb.registry import Cron, Registry, State, check_task_name, serving
from qnb.storage.connection import masked
from qnb.sweeps.listing import forget, infos
from qnb.sweeps.opening import attach, check_sweep_name
from qnb.sweeps.sweep import Sweep
from qnb.task import PreparedCall, Task

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from qnb.adapters.futures import QueueExecutor
    from qnb.analysis.frames import DataFrame

__all__ = ["App"]

P = ParamSpec("P")
R = TypeVar("R")
Hook = TypeVar("Hook", bound=Callable[[ErrorContext], Any])
Setup = TypeVar("Setup", bound=Callable[[], AsyncIterator[Any]])


class App(Displayed):
    """A queue and the tasks that go through it.

    ``redis_url=None`` is ``$QNB_REDIS_URL``, else the embedded server, which is found or started
    when first needed. ``priorities`` are the lanes, lowest first. The other keywords are the
    fields of :class:`~qnb.options.AppOptions`; an unknown one is refused with a hint.

    >>> app = App("redis://localhost", "nightly", ["bulk", "urgent"])
    >>> app.default_priority
    'urgent'
    """

    __slots__ = ("__weakref__", "_client", "_lookout", "_run", "burst", "registry")

    burst: bool  #: end :meth:`run` when the lanes are empty; delayed jobs stay for another worker

    def __init__(
        self,
        redis_url: str | None = None,
        queue_name: str = "default",
        priorities: Sequence[str] = ("default",),
        **options: Any,
    ) -> None:
        lanes = tuple(priorities) if isinstance(priorities, list) else priorities
        settings = AppOptions.of(queue_name=queue_name, priorities=lanes, **options)
        registry = Registry()
        self._set_up(Client(redis_url, settings, registry), registry)

    def _set_up(self, client: Client, registry: Registry) -> None:
        self.registry = registry
        self._client = client
        self._lookout = Lookout.of(client)
        self.burst = False
        self._run: InlineRun | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self._client,)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "burst" and not isinstance(value, bool):
            raise InvalidOption(f"burst={value!r}: expected True or False")
        try:
            super().__setattr__(name, value)
        except AttributeError:
            raise AttributeError(
                f"app.{name} cannot be set.{hint(name, ['burst'])} Only app.burst can: options "
                "are given to App(...), and what tasks share is set up by @app.lifespan"
            ) from None

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
    def crons(self) -> list[str]:
        """The names of the tasks that run by themselves."""
        return sorted(self.registry.crons)

    @property
    def state(self) -> State:
        """What :meth:`lifespan` has set up where this runs."""
        return self.registry.state

    @property
    def worker_id(self) -> str | None:
        """The id of the worker that :meth:`run` is, while it runs."""
        return self._run.worker.id if self._run and self._run.worker else None

    def __repr__(self) -> str:
        return f"<App queue {self.queue_name!r}, {len(self.tasks)} tasks>"

    # -- tasks ---------------------------------------------------------------------------------

    @overload
    def task(self, fn: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        fn: None = None,
        /,
        *,
        name: str | None = None,
        priority: str | None = None,
        max_retries: int = 0,
        backoff_ms: int = 0,
        timeout: float | timedelta | None = None,
        max_memory: int | str | None = None,
        isolation: Literal["loop", "thread", "process"] | None = None,
        unique: bool = False,
        cache: bool = False,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...
    def task(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Make a function a task: ``@app.task`` or ``@app.task(name=..., max_retries=3, ...)``.

        The name is the function's own by default. One that another function owns is refused; the
        same function defined again replaces it. The other options are those of
        :class:`~qnb.options.TaskOptions` that are not of a single call.
        """
        name = options.pop("name", None)
        chosen = self._options_of_a_task("app.task", options)

        def decorate(fn: Callable[..., Any]) -> Task[..., Any]:
            if isinstance(fn, Task) and fn.fn is not None:
                fn = fn.fn
            if not callable(fn) or isinstance(fn, Task):
                raise InvalidOption(f"@app.task expects a function, not {fn!r}")
            if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
                raise InvalidOption(f"@app.task: {fn!r} yields: have it return a list instead")
            called = name if name is not None else getattr(fn, "__name__", "")
            if called in ("", "<lambda>"):
                raise InvalidOption(f"{fn!r} has no name of its own: app.task(name=...) gives one")
            task: Task[..., Any] = Task(self._client, called, fn, chosen)
            self.registry.add(called, fn, task.policy)
            return task

        return decorate if fn is None else decorate(fn)

    def _options_of_a_task(self, where: str, options: dict[str, Any]) -> TaskOptions:
        chosen = TaskOptions.of_a_task(where, options)
        self._client.options.lane(chosen.priority)
        return chosen

    def cron(
        self,
        expression: str | None = None,
        /,
        *,
        every: float | timedelta | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Callable[[Callable[P, R]], Task[P, R]]:
        """Make a function without arguments a task that runs by itself.

        ``@app.cron("0 3 * * *")`` has five fields, in UTC; ``@app.cron(every=30)`` is a period in
        seconds. However many workers serve the app, each occurrence runs once; what was due while
        none did is not made up for. Workers are ``app.run()`` and ``qnb worker module:app``.
        """
        from qnb.running.schedule import parse

        schedule = parse(expression, every)
        if options.get("unique"):
            raise InvalidOption("unique=True: an occurrence is unique by itself; leave it out")
        chosen = self._options_of_a_task("app.cron", options)

        def decorate(fn: Callable[P, R]) -> Task[P, R]:
            task: Task[P, R] = self.task(name=name, **options)(fn)
            task._fits((), {})
            lane = self._client.options.lane(chosen.priority)
            self.registry.crons[task.name] = Cron(task.name, schedule, lane, task.policy)
            return task

        return decorate

    def lifespan(self, setup: Setup) -> Setup:
        """Run an async generator function around a worker's life: ``@app.lifespan``.

        What stands before its one ``yield`` runs before the first job, wherever tasks run: on
        ``app.run()``'s loop, or in each child process of a worker. The items of a mapping that it
        yields become attributes of :attr:`state`. What follows runs when the worker leaves.
        """
        hook: Any = setup
        if not inspect.isasyncgenfunction(hook):
            raise InvalidOption(
                f"@app.lifespan expects an async function with one yield, not {setup!r}"
            )
        check_takes("@app.lifespan", hook)
        self.registry.lifespan = setup
        return setup

    def on_error(self, hook: Hook) -> Hook:
        """Call a function, async or not, after each failed attempt: ``@app.on_error``.

        It is given an :class:`~qnb.ErrorContext`, in the process in which the body ran, or in
        another one of that worker where that was stopped. Not after an abort, nor after a
        :class:`~qnb.Retry` that will run again. Its own errors are logged and change nothing.
        """
        if not callable(hook):
            raise InvalidOption(f"@app.on_error expects a function, not {hook!r}")
        check_takes("@app.on_error", hook, "an ErrorContext")
        self.registry.add_error_hook(hook)
        return hook

    def ref(self, name: str, **options: Any) -> Task[..., Any]:
        """A task that is defined elsewhere, by its name: all of a task but the function.

        Its calls are checked by the worker that knows it; one that nobody knows fails there.
        """
        check_task_name(name)
        return Task(self._client, name, None, self._options_of_a_task("app.ref", options))

    async def send(self, name: str, /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Enqueue a call of a task that is defined elsewhere, by its name."""
        return await self.ref(name).enqueue(*args, **kwargs)

    async def enqueue_many(self, calls: Iterable[PreparedCall[Any]]) -> list[Job[Any]]:
        """Store calls made by ``task.prepare(...)``, of any tasks and options, in order.

        A round trip for each 500 or so. All are checked before the first is sent.
        """
        if not isinstance(calls, Iterable):
            raise InvalidOption(
                f"enqueue_many() expects a list, not one {type(calls).__name__}: use [...]"
            )
        prepared = list(calls)
        for call in prepared:
            if not isinstance(call, PreparedCall):
                raise InvalidOption(
                    f"enqueue_many() expects what task.prepare(...) returns, not {call!r}"
                )
            if not _is_same(call.client, self._client):
                raise InvalidOption(
                    f"a call of task {call.call.spec.fn_name!r} was prepared for "
                    f"{_place(call.client)}, and enqueue_many() is of {_place(self._client)}: use "
                    "the app whose task has prepared it"
                )
        await self._client.enqueue([one.call for one in prepared])
        return [one.job() for one in prepared]

    # -- jobs by id ----------------------------------------------------------------------------

    def job(self, task_id: str) -> Job[Any]:
        """The handle of a job whose id is known."""
        return Job(self._client, check_task_id(task_id))

    async def result(
        self,
        task_id: str,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109 - the seed's signature
    ) -> TaskResult | None:
        """As :meth:`Job.result <qnb.Job.result>`."""
        return await self.job(task_id).result(timeout)

    async def status(self, task_id: str) -> JobState:
        """As :meth:`Job.status <qnb.Job.status>`."""
        return await self.job(task_id).status()

    async def info(self, task_id: str) -> TaskInfo | None:
        """As :meth:`Job.info <qnb.Job.info>`."""
        return await self.job(task_id).info()

    async def abort(self, task_id: str) -> bool:
        """As :meth:`Job.abort <qnb.Job.abort>`."""
        return await self.job(task_id).abort()

    # -- sweeps --------------------------------------------------------------------------------

    def sweep(self, name: str) -> Sweep[Any]:
        """The sweep of that name, from whatever kernel or machine it was started.

        If its kernel died while its jobs were being stored, the rest is stored from here.
        :class:`~qnb.UnknownSweep` if the queue does not know it.
        """
        found: Sweep[Any] = Sweep(
            self._client, bridge.run(attach(self._client, check_sweep_name(name)))
        )
        return found._until_known()

    def forget(self, name: str) -> bridge.Command[bool]:
        """Remove a sweep with all its jobs and results; what has not ended is aborted first.

        The answer is false if there is none of that name.
        """
        return bridge.Command(
            forget(self._client, check_sweep_name(name)), f"forget of sweep {name!r}"
        )

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
        ``limit`` the newest so many; the server chooses, and sends nothing else. ``values`` adds
        the column ``value``: what each finished job returned, a :class:`~qnb.LazyValue` where that
        is large. ``params="columns"`` makes a column of each parameter, ``"text"`` text that can be
        written to a file. What cannot be read here (it was signed with another key, or its class
        is not here) is missing.
        """
        name = task.name if isinstance(task, Task) else task
        wanted = FrameOptions(
            task=name, sweep=sweep, status=status, since=since, limit=limit, params=params,
            values=values,
        )  # fmt: skip
        from qnb.analysis import gather

        return gather.jobs_frame(self._client, wanted)

    def sweeps_frame(self) -> DataFrame:
        """All sweeps of the queue as a DataFrame, indexed by ``name``, the newest first."""
        from qnb.analysis import tables

        return tables.sweeps_frame(bridge.run(infos(self._client)))

    def workers_frame(self) -> DataFrame:
        """The workers that serve the queue as a DataFrame, by what each last said of itself."""
        from qnb.analysis import tables

        async def read() -> dict[str, dict[str, Any]]:
            return await (await self._client.link()).store.workers()

        return tables.workers_frame(bridge.run(read()))

    # -- showing -------------------------------------------------------------------------------

    def snapshot(self) -> QueueSnapshot:
        """The last that was seen of the queue; no I/O."""
        return self._lookout.snapshot()

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """As :meth:`Pool.watch <qnb.Pool.watch>`."""
        return self._lookout.watch(changed)

    # -- other libraries -----------------------------------------------------------------------

    def executor(self, **options: Any) -> QueueExecutor:
        """A ``concurrent.futures.Executor`` whose calls run on the workers of this queue.

        ``options`` are those of a task: ``priority max_retries timeout ...``. Any callable will do.
        """
        from qnb.adapters.futures import QueueExecutor

        return QueueExecutor(self._client, **options)

    def joblib(self, n_jobs: int = -1, **options: Any) -> AbstractContextManager[None]:
        """Have joblib, and with it scikit-learn, run on the queue: ``with app.joblib(): ...``.

        ``n_jobs=-1`` is as many as there are worker slots; ``options`` are those of a task.
        """
        from qnb.adapters.joblib import on_queue

        return on_queue(self.executor(**options), n_jobs)

    # -- workers -------------------------------------------------------------------------------

    def start_workers(
        self,
        n: int | Literal["auto"] = "auto",
        *,
        linger: str | float = "10 min",
        max_memory: int | str | None = None,
    ) -> Pool:
        """Make sure that ``n`` local worker slots serve the queue; ``"auto"`` is one a core.

        They run functions of this notebook without having seen them, with the :meth:`lifespan` and
        :meth:`on_error` of now. They go on when it dies, and leave when they have been idle for
        ``linger``. A slot whose process has grown above ``max_memory`` (bytes, or text like
        ``"2 GB"``) is renewed between two jobs. Called again, it tops up and never doubles.
        """
        return Pool(self._client, self.registry).scale(n, linger=linger, max_memory=max_memory)

    def pool(self) -> Pool:
        """The workers that :meth:`start_workers` started, from this or another kernel."""
        return Pool(self._client, self.registry)

    def run(self) -> Coroutine[Any, Any, None]:
        """Be a worker in this process until :meth:`stop`; with :attr:`burst`, until drained.

        Coroutine tasks run on this loop, plain functions in threads: they share your objects,
        and cannot be killed. ``isolation="process"`` runs a task in a child process instead.
        """
        if self._run is not None and self._run.loop is not None:
            raise QnbError(f"{self!r} runs already; start another App for another worker")
        # now, so that a stop() before the loop's next turn is heard
        self._run = run = InlineRun(self._client, burst=self.burst)
        return self._serve(run)

    async def _serve(self, run: InlineRun) -> None:
        if self._run is not run:
            raise QnbError(f"{self!r} was started twice; start another App for another worker")
        try:
            await run.serve()
        finally:
            self._run = None

    def stop(self) -> None:
        """End :meth:`run`, from any thread: what runs may finish, the rest goes back.

        It ends a run that has been called, even if it has not begun yet, and none that comes later.
        """
        if (run := self._run) is not None:
            run.stop()

    def close(self) -> None:
        """Close the connections of blocking calls and live views. Jobs and workers go on."""
        bridge.run(self._client.close())


def _is_same(client: Client, other: Client) -> bool:
    """Whether what was prepared for the one may be sent by the other."""
    return client is other or (client.options == other.options and client.url == other.url)


def _place(client: Client) -> str:
    return f"queue {client.options.queue_name!r} at {masked(client.url)}"


def _rebuilt(client: Client) -> App:
    """The app that a function by value refers to: on a worker, the one it serves."""
    app = App.__new__(App)
    app._set_up(client, serving.get(client.options.queue_name) or Registry())
    return app
