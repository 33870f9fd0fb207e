"""A function that can be enqueued: called, it runs here; the other ways run it on a worker."""

from __future__ import annotations

import functools
import inspect
import secrets
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, ParamSpec, TypeVar

from qnb import bridge
from qnb.client import Client, new_id
from qnb.errors import EnvironmentMismatch, InvalidOption
from qnb.job import Job
from qnb.models import JobRecord, JobSpec, JobState, Policy
from qnb.options import TaskOptions
from qnb.storage.records import Call
from qnb.sweeps import designs
from qnb.sweeps.sweep import Sweep

__all__ = ["PreparedCall", "Task"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class PreparedCall(Generic[R]):
    """A call that has been checked and encoded, for :meth:`App.enqueue_many`."""

    call: Call


class Task(Generic[P, R]):
    """A function with a name in the queue.

    Calling it runs the function here. :meth:`enqueue` (a coroutine) and :meth:`submit` (its
    blocking twin) run it on a worker, :meth:`map` and :meth:`grid` run it once per point. A task
    made by :meth:`App.ref <qnb.App.ref>` has no function here: it can do all but be called.
    """

    def __init__(
        self, client: Client, name: str, fn: Callable[P, R] | None, options: TaskOptions
    ) -> None:
        self.name = name
        self.fn = fn
        self._client = client
        self._options = options
        if fn is not None:
            functools.update_wrapper(self, fn)

    def __reduce__(self) -> tuple[Any, ...]:
        return Task, (self._client, self.name, self.fn, self._options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.fn is None:
            raise TypeError(
                f"{self!r} has no function here and cannot be called: it is known by name only. "
                f"Enqueue it: await app.send({self.name!r}, ...)"
            )
        return self.fn(*args, **kwargs)

    def options(self, **changes: Any) -> Task[P, R]:
        """The same task with other options for the calls made through it.

        Any of ``priority max_retries backoff_ms timeout max_memory isolation unique`` in place of
        the task's own; ``task_id delay_ms schedule_ms expire_ms`` of one job; ``name`` of a sweep
        (:class:`~qnb.options.TaskOptions`). An unknown one is refused with a hint.
        """
        merged = self._options.merge(**changes)
        self._client.options.lane(merged.priority)
        return Task(self._client, self.name, self.fn, merged)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Store one call and return its job.

        Arguments are checked and encoded first: :class:`~qnb.ArgumentError` names one that cannot
        be sent, ``TypeError`` a call that does not fit the function.
        """
        call = self.prepare(*args, **kwargs).call
        await self._client.enqueue([call])
        await self._warn(call)
        return self._job(call)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """The blocking twin of :meth:`enqueue`."""
        call = self.prepare(*args, **kwargs).call
        bridge.run(self._client.enqueue([call]))
        self._tell(bridge.run(self._compare(call)))
        return self._job(call)

    def prepare(self, *args: P.args, **kwargs: P.kwargs) -> PreparedCall[R]:
        """Check and encode a call without sending it."""
        self._fits(args, kwargs)
        return PreparedCall(self._call(self._shipped(), args, kwargs))

    # -- fanning out ---------------------------------------------------------------------------

    def map(self, *iterables: Iterable[Any]) -> Sweep[R]:
        """One job per position, as the builtin ``map``; the iterables must be equally long."""
        names = self._positional(len(iterables))
        return self._sweep(designs.zipped(*iterables).named(*names))

    def grid(self, **axes: Any) -> Sweep[R]:
        """One job per combination of the axes' values, the last axis fastest.

        An axis is any sequence, range, array or Series; a single value is a constant.
        """
        return self._sweep(designs.grid(**axes))

    def _sweep(self, design: designs.Design) -> Sweep[R]:
        chosen = self._options
        if chosen.task_id is not None or chosen.unique:
            raise InvalidOption(
                f"{'task_id' if chosen.task_id else 'unique'}= is of single jobs; the jobs of a "
                "sweep have ids of their own: leave it out, or name the sweep with options(name=)"
            )
        if len(design):
            self._fits(*design.calls(0, 1)[0])
        shipped = self._shipped()
        name = chosen.name or f"{self.name}-{secrets.token_hex(3)}"
        prefix = f"{name}-{secrets.token_hex(4)}"

        def calls(start: int, stop: int) -> list[Call]:
            return [
                self._call(shipped, *given, f"{prefix}.{index}", sweep=name, index=index)
                for index, given in enumerate(design.calls(start, stop), start)
            ]

        sweep: Sweep[R] = Sweep(self._client, name, prefix, self.name, design, calls)
        if len(design):
            self._tell(bridge.run(self._compare(calls(0, 1)[0])))
        return sweep

    def _positional(self, count: int) -> list[str]:
        if self.fn is None:
            raise InvalidOption(
                f"map() needs the names of the arguments of task {self.name!r}, which has no "
                "function here: use grid(name=values, ...)"
            )
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in inspect.signature(self.fn).parameters.values() if p.kind in kinds]
        if not 0 < count <= len(names):
            raise InvalidOption(
                f"task {self.name!r} takes {len(names)} positional arguments "
                f"({', '.join(names)}); map() was given {count} iterables"
            )
        return names[:count]

    # -- encoding ------------------------------------------------------------------------------

    def _fits(self, args: Any, kwargs: Any) -> None:
        """Refuse a call that the function would refuse, here rather than on the worker."""
        if self.fn is None:
            return
        try:
            inspect.signature(self.fn).bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"{self.name}{inspect.signature(self.fn)} does not take this call: {error}"
            ) from None

    def _shipped(self) -> tuple[str, bytes | None]:
        """What the workers are told of the function: where to import it, or its digest and code."""
        if self.fn is None or self._client.options.codec == "msgpack":
            return "", None  # a worker that serves the app knows the name
        reference = self._client.codec.reference(self.fn)
        if reference is not None:
            return reference, None
        digest, code = self._client.codec.pack_function(self.fn)
        return digest.hex(), code

    def _call(  # noqa: PLR0913 - what makes a job
        self,
        shipped: tuple[str, bytes | None],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        task_id: str | None = None,
        *,
        sweep: str | None = None,
        index: int | None = None,
    ) -> Call:
        function, code = shipped
        chosen = self._options
        own_id = chosen.task_id or (self._unique_id(args, kwargs) if chosen.unique else None)
        spec = JobSpec(
            task_id=task_id or own_id or new_id(),
            fn_name=self.name,
            lane=self._client.options.lane(chosen.priority),
            channel=self._client.channel,
            function=function,
            is_async=inspect.iscoroutinefunction(self.fn),
            sweep=sweep,
            index=index,
            nonce=secrets.token_hex(8) if own_id else "",
            policy=self.policy,
        )
        payload = self._client.codec.pack_call(spec.task_id, args, kwargs, binding=spec.binding())
        return Call(spec, payload, code, chosen.delay_ms, chosen.schedule_ms, chosen.expire_ms)

    @functools.cached_property
    def policy(self) -> Policy:
        """How workers treat its jobs."""
        policy = self._options.policy
        return replace(policy, isolation=policy.isolation or self._client.options.isolation)

    def _unique_id(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        from qnb.wire.fingerprint import call_digest

        return f"{self.name[:200]}#{call_digest(self.name, args, kwargs)}"

    async def _compare(self, call: Call) -> list[str]:
        if self.fn is None:
            return []
        return await self._client.compare(self.name, self.fn, by_value=call.code is not None)

    async def _warn(self, call: Call) -> None:
        self._tell(await self._compare(call))

    def _tell(self, told: list[str]) -> None:
        for text in told:
            warnings.warn(text, EnvironmentMismatch, stacklevel=3)

    def _job(self, call: Call) -> Job[R]:
        state = JobState.SCHEDULED if call.due else JobState.QUEUED
        seen = JobRecord(call.spec.task_id, self.name, call.spec.lane, state, 0)
        return Job(self._client, call.spec.task_id, seen)

    def __repr__(self) -> str:
        return f"<Task {self.name!r}>"
