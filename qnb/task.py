"""A function that can be enqueued: called, it runs here; the other ways run it on a worker."""

from __future__ import annotations

import functools
import inspect
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, ParamSpec, TypeVar

from qnb import bridge
from qnb.client import Client, new_id
from qnb.errors import CodeChanged, EncodingError, EnvironmentMismatch, InvalidOption
from qnb.job import Job
from qnb.models import JobRecord, JobSpec, JobState, Policy
from qnb.options import TaskOptions, hint
from qnb.storage.records import Call
from qnb.sweeps import designs, spaces
from qnb.sweeps.comparing import changed
from qnb.sweeps.layout import point_digests
from qnb.sweeps.manifest import Manifest
from qnb.sweeps.opening import begin, plan
from qnb.sweeps.reuse import serve
from qnb.sweeps.sampling import Method, sample
from qnb.sweeps.sweep import Sweep

__all__ = ["PreparedCall", "Task"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class PreparedCall(Generic[R]):
    """A call that has been checked and encoded, for :meth:`App.enqueue_many`."""

    call: Call
    client: Client

    def job(self) -> Job[R]:
        """The job that it is once it has been sent."""
        spec = self.call.spec
        state = JobState.SCHEDULED if self.call.due else JobState.QUEUED
        seen = JobRecord(spec.task_id, spec.fn_name, spec.lane, state, 0)
        return Job(self.client, spec.task_id, seen)


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
        self._checked: TaskOptions | None = None
        if fn is not None:
            functools.update_wrapper(self, fn, updated=())  # a callable object has its own dict

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
        the task's own; ``task_id delay_ms schedule_ms expire_ms`` of one job; ``name on_error
        on_code_change max_running shuffle dry_run`` of a sweep. They are described at
        :class:`~qnb.options.TaskOptions`; an unknown one is refused with a hint.
        """
        merged = self._options.merge(**changes)
        self._client.options.lane(merged.priority)
        return Task(self._client, self.name, self.fn, merged)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Store one call and return its job.

        Arguments are checked and encoded first: :class:`~qnb.ArgumentError` names one that cannot
        be sent, ``TypeError`` a call that does not fit the function.
        """
        prepared = self.prepare(*args, **kwargs)
        await self._send(prepared.call)
        self._tell(await self._compare(by_value=prepared.call.code is not None))
        return prepared.job()

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """The blocking twin of :meth:`enqueue`."""
        prepared = self.prepare(*args, **kwargs)
        bridge.run(self._send(prepared.call))
        self._tell(bridge.run(self._compare(by_value=prepared.call.code is not None)))
        return prepared.job()

    async def _send(self, call: Call) -> None:
        rest = [call]
        if self._options.cache:
            await self._client.keep_code(self._client.code(self.fn))
            rest = await serve(self._client, rest)
        await self._client.enqueue(rest)

    def prepare(self, *args: P.args, **kwargs: P.kwargs) -> PreparedCall[R]:
        """Check and encode a call without sending it."""
        self._fits(args, kwargs)
        if self._options is not self._checked:
            self._options.check_single()
            self._checked = self._options
        return PreparedCall(self._call(args, kwargs), self._client)

    # -- fanning out ---------------------------------------------------------------------------

    def map(self, *iterables: Iterable[Any]) -> Sweep[R]:
        """One job per position, as the builtin ``map``; the iterables must be equally long."""
        names = self._positional(len(iterables), "map")
        return self._sweep(designs.zipped(*iterables).named(*names))

    def starmap(self, rows: Iterable[Sequence[Any]]) -> Sweep[R]:
        """One job per tuple of arguments, as ``itertools.starmap``; all of one length."""
        design = spaces.starmap(rows)
        return self._sweep(design.named(*self._positional(len(design.names), "starmap")))

    def grid(self, **axes: Any) -> Sweep[R]:
        """One job per combination of the axes' values, the last axis fastest.

        An axis is any sequence, range, array or Series; a single value is a constant.
        """
        return self._sweep(designs.grid(**axes))

    def zip(self, **columns: Any) -> Sweep[R]:
        """One job per position of the columns, which must be equally long; constants apart."""
        return self._sweep(designs.zip_(**columns))

    def star(self, center: Mapping[str, Any], /, **axes: Any) -> Sweep[R]:
        """One factor at a time around ``center``: that point once, then each axis in turn."""
        return self._sweep(designs.star(center, **axes))

    def rows(self, frame: Any, /, columns: Sequence[str] | None = None) -> Sweep[R]:
        """One job per row of a pandas or polars frame; ``columns`` of it, or all."""
        return self._sweep(spaces.rows(frame, columns))

    def sample(
        self, n: int, /, *, method: Method = "sobol", seed: int = 0, **distributions: Any
    ) -> Sweep[R]:
        """``n`` points spread over ranges ``(low, high)``, lists of choices or distributions.

        ``method`` is ``"sobol"``, ``"halton"``, ``"lhs"`` (Latin hypercube) or ``"random"``;
        ranges of whole numbers include their ends; a frozen distribution is one of scipy's.
        """
        taken = {"n", "method", "seed"} & self._parameters()
        if taken:
            raise InvalidOption(
                f"task {self.name!r} has a parameter {min(taken)!r}, which sample() takes for its "
                f"own: use sweep(qnb.sample({n!r}, ...) * qnb.grid({min(taken)}=...))"
            )
        return self._sweep(sample(n, method=method, seed=seed, **distributions))

    def sweep(self, space: Any, /) -> Sweep[R]:
        """One job per point of a space, of scikit-learn's ``ParameterGrid`` or of a list of dicts.

        A generator of dicts is gone through in the background, and never held whole. Spaces are
        made by ``qnb.grid zip star points rows sample`` and combine: ``a * b`` is their product,
        the last fastest; ``a + b`` is one after the other.
        """
        return self._sweep(spaces.space_of(space))

    def _parameters(self) -> set[str]:
        return set(inspect.signature(self.fn).parameters) if self.fn is not None else set()

    def _sweep(self, space: spaces.Space) -> Sweep[R]:
        chosen = self._options
        if chosen.task_id is not None or chosen.unique:
            raise InvalidOption(
                f"{'task_id' if chosen.task_id else 'unique'}= is of single jobs; the jobs of a "
                "sweep have ids of their own: leave it out, or name the sweep with options(name=)"
            )
        manifest = self._manifest()
        first = space.preview(1) if isinstance(space, spaces.Stream) else space.calls(0, 1)
        for point in first:
            args, kwargs = ((), point) if isinstance(point, dict) else point
            self._fits(args, kwargs)  # and an argument that cannot be sent is refused here, too
            self._client.codec.pack_call("", args, kwargs)
        if chosen.dry_run:
            return Sweep(self._client, bridge.run(plan(self._client, manifest, chosen.name, space)))
        opened = bridge.run(
            begin(self._client, manifest, chosen.name, space, shuffle=chosen.shuffle)
        )
        if chosen.on_code_change == "warn" and (said := bridge.run(changed(self._client, opened))):
            warnings.warn(said, CodeChanged, stacklevel=3)
        self._tell(bridge.run(self._compare(by_value=manifest.blob is not None)))
        return Sweep(
            self._client, opened, shuffle=chosen.shuffle, rerun=chosen.on_code_change == "rerun"
        )

    def _manifest(self) -> Manifest:
        """How the jobs of a sweep of it are made."""
        chosen, now = self._options, bridge.run(self._client.server_ms())
        spec = JobSpec(
            task_id="",
            fn_name=self.name,
            lane=self._client.options.lane(chosen.priority),
            policy=self.policy,
        )
        manifest = Manifest(
            spec,
            on_error=chosen.on_error,
            max_running=chosen.max_running,
            cache=chosen.cache,
            schedule_ms=chosen.schedule_ms or (now + chosen.delay_ms if chosen.delay_ms else 0),
            expire_ms=chosen.expire_ms,
        )
        is_async = inspect.iscoroutinefunction(self.fn)
        return manifest.of(*self._client.shipped(self.fn), self._client.code(self.fn), is_async)

    def _positional(self, count: int, what: str) -> list[str]:
        if self.fn is None:
            raise InvalidOption(
                f"{what}() needs the names of the arguments of task {self.name!r}, which has no "
                "function here: use grid(name=values, ...)"
            )
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(self.fn).parameters.values()
        names = [p.name for p in parameters if p.kind in kinds]
        for parameter in parameters:
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                names += [f"{parameter.name}_{at}" for at in range(count - len(names))]
        if count > len(names) or (what == "map" and not count):
            raise InvalidOption(
                f"task {self.name!r} takes {len(names)} by position ({', '.join(names)}); "
                f"{what}() was given {count}"
            )
        return names[:count]

    # -- encoding ------------------------------------------------------------------------------

    def _fits(self, args: Any, kwargs: Any) -> None:
        """Refuse a call that the function would refuse, here rather than on the worker."""
        signature = self._signature
        least, most = self._positions
        if signature is None or (not kwargs and least <= len(args) <= most):
            return
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            unknown = [word for word in kwargs if word not in signature.parameters]
            remedy = "".join(
                f" It has no {word!r}.{hint(word, signature.parameters)}" for word in unknown
            )
            options = [word for word in unknown if word in TaskOptions.__dataclass_fields__]
            if options:
                remedy = f" Options go apart: task.options({options[0]}=...)"
            raise TypeError(
                f"{self.name}{signature} does not take this call: {error}.{remedy}"
            ) from None

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        function, code = self._client.shipped(self.fn)
        chosen = self._options
        own_id = chosen.task_id or (self._unique_id(args, kwargs) if chosen.unique else None)
        known = self._client.code(self.fn) if chosen.cache else None
        spec = JobSpec(
            task_id=own_id or new_id(),
            fn_name=self.name,
            lane=self._client.options.lane(chosen.priority),
            channel=self._client.channel,
            function=function,
            is_async=self._is_async,
            nonce=secrets.token_hex(8) if own_id else "",
            content=self._content(args, kwargs) if chosen.cache else "",
            code=known.digest if known is not None and known.comparable else "",
            policy=self.policy,
        )
        payload = self._client.codec.pack_call(spec.task_id, args, kwargs, binding=spec.binding())
        return Call(spec, payload, code, chosen.delay_ms, chosen.schedule_ms, chosen.expire_ms)

    def _content(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """What the arguments are, by name: as of the same point of a sweep."""
        given = self._by_name(args, kwargs)
        design = designs.Columns(given, [(value,) for value in given.values()], 1)
        try:
            return point_digests(design, 0, 1)[0].hex()
        except EncodingError:
            return ""

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by the names they have in the function."""
        if self.fn is None:
            return {f"arg_{at}": value for at, value in enumerate(args)} | kwargs
        signature = inspect.signature(self.fn)
        given: dict[str, Any] = {}
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                given |= {f"*{at}": one for at, one in enumerate(value)}
            elif kind is inspect.Parameter.VAR_KEYWORD:  # one may be called as one before the "/"
                given |= {f"**{w}" if w in given else w: one for w, one in value.items()}
            else:
                given[name] = value
        return given

    @functools.cached_property
    def _signature(self) -> inspect.Signature | None:
        return None if self.fn is None else inspect.signature(self.fn)

    @functools.cached_property
    def _positions(self) -> tuple[int, float]:
        """How many arguments by position, at least and at most, are enough without any by name."""
        parameters = list(self._signature.parameters.values()) if self._signature else []
        empty = inspect.Parameter.empty
        by_place = [p for p in parameters if p.kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD]
        if any(p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is empty for p in parameters):
            return 1, 0  # one is needed by name
        endless = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
        least = sum(p.default is empty for p in by_place)
        return least, float("inf") if endless else len(by_place)

    @functools.cached_property
    def _is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.fn)

    @functools.cached_property
    def policy(self) -> Policy:
        """How workers treat its jobs."""
        policy = self._options.policy
        return replace(policy, isolation=policy.isolation or self._client.options.isolation)

    def _unique_id(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        from qnb.content.walk import content_of

        name = self.name.encode()[:200].decode(errors="ignore")  # an id has at most 256 bytes
        return f"{name}#{content_of(args, kwargs)}"

    async def _compare(self, *, by_value: bool) -> list[str]:
        if self.fn is None:
            return []
        return await self._client.compare(self.name, self.fn, by_value=by_value)

    def _tell(self, told: list[str]) -> None:
        for text in told:
            warnings.warn(text, EnvironmentMismatch, stacklevel=3)

    def __repr__(self) -> str:
        return f"<Task {self.name!r}>"
