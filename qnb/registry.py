"""Names and the functions they stand for, hooks and schedules. A worker needs this, not the app."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from qnb.errors import InvalidName, NameTaken
from qnb.models import ErrorContext, JobSpec, Policy

__all__ = ["Cron", "ErrorHook", "Lifespan", "Registry", "State", "check_task_name", "serving"]

Function = Callable[..., Any]
_USUAL = Policy()
ErrorHook = Callable[[ErrorContext], Any]
Lifespan = Callable[[], AsyncIterator[Any]]


def _home(fn: Any) -> str:
    """Where ``fn`` is defined, as far as a name can tell."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    named = fn if hasattr(fn, "__qualname__") else type(fn)
    return f"{getattr(named, '__module__', '?')}.{named.__qualname__}"


def _is_other(fn: Any, owner: Any) -> bool:
    """Is ``fn`` another function than ``owner``, and not the same one defined again?

    A cell that runs again compiles anew. Functions that one ``def`` made, holding on to different
    things, are different ones, though they share a name.
    """
    if _home(fn) != _home(owner):
        return True
    code = getattr(fn, "__code__", None)
    if code is None or getattr(owner, "__code__", None) is not code or fn is owner:
        return False
    return any(
        ours.cell_contents is not theirs.cell_contents
        for ours, theirs in zip(fn.__closure__ or (), owner.__closure__ or (), strict=True)
    )


def _place(hook: Any) -> tuple[str, ...]:
    """Where a hook is defined; lambdas and inner functions of one name are told apart by line."""
    home, code = _home(hook), getattr(hook, "__code__", None)
    if code is None or not ("<lambda>" in home or "<locals>" in home):
        return (home,)
    return home, code.co_filename, str(code.co_firstlineno)


def check_task_name(name: object) -> str:
    """``name``, if it may name a task."""
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= 256
        or not name.isprintable()
        or not name.strip()
    ):
        raise InvalidName(
            f"task name {name!r} is not allowed: use 1 to 256 printable characters, not all blank"
        )
    return name


class State:
    """What ``@app.lifespan`` has set up, as attributes: ``app.state.db``."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"app.state has no {name!r}: let @app.lifespan yield {{{name!r}: ...}}; it runs where "
            "tasks run, not where they are enqueued"
        )

    def __repr__(self) -> str:
        return f"<State {', '.join(sorted(vars(self))) or 'empty'}>"


@dataclass(frozen=True, slots=True)
class Cron:
    """A task that runs by itself; ``schedule`` as :mod:`qnb.running.schedule` reads it."""

    name: str
    schedule: str
    lane: str
    policy: Policy


class Registry:
    """The tasks of one app by name, and what a worker does around them.

    A name belongs to the first function that takes it. The same function defined again (a cell run
    twice, a module reloaded) replaces it; another one is refused.
    """

    __slots__ = ("_functions", "_policies", "crons", "error_hooks", "lifespan", "state")

    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}
        self._policies: dict[str, Policy] = {}
        self.crons: dict[str, Cron] = {}
        self.error_hooks: dict[tuple[str, ...], ErrorHook] = {}  # by place: a cell may run twice
        self.lifespan: Lifespan | None = None
        self.state = State()

    def add(self, name: str, fn: Function, policy: Policy = _USUAL) -> None:
        """Let ``name`` stand for ``fn``, whose jobs are treated by ``policy``."""
        check_task_name(name)
        owner = self._functions.get(name)
        if owner is not None and _is_other(fn, owner):
            where = inspect.getsourcefile(owner) if inspect.isfunction(owner) else None
            raise NameTaken(
                f"task name {name!r} belongs to {_home(owner)}{f' ({where})' if where else ''}; "
                f"{_home(fn)} cannot take it. Give one of them another with @app.task(name=...)"
            )
        self._functions[name] = fn
        self._policies[name] = policy
        self.crons.pop(name, None)

    def add_error_hook(self, hook: ErrorHook) -> None:
        """Have ``hook`` called after each failed attempt, in the order of registration."""
        self.error_hooks[_place(hook)] = hook

    def get(self, name: str) -> Function | None:
        """The function ``name`` stands for, None if nobody has registered it here."""
        return self._functions.get(name)

    def as_registered(self, spec: JobSpec) -> JobSpec:
        """``spec`` with what only this registry knows of a job that was sent by name alone.

        Its task may be a coroutine, and has options of its own; what the sender chose goes first.
        """
        fn = self._functions.get(spec.fn_name)
        if spec.function or fn is None:
            return spec
        usual, own = _USUAL, self._policies[spec.fn_name]
        chosen = {
            field.name: getattr(spec.policy, field.name)
            for field in fields(Policy)
            if getattr(spec.policy, field.name) != getattr(usual, field.name)
        }
        is_async = spec.is_async or inspect.iscoroutinefunction(fn)
        return replace(spec, is_async=is_async, policy=replace(own, **chosen), bound=spec.binding())

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)


#: In a worker's child process: the registry of the queue it serves. An app that arrives there with
#: a function by value is that queue's app, with the state that its lifespan has set up.
serving: dict[str, Registry] = {}
