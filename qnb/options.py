"""Every option, once: the decorators, the command line and the docs read them from here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

from qnb.errors import InvalidName, InvalidOption, UnknownLane

__all__ = ["AppOptions", "TaskOptions", "check_name", "check_task_id", "hint"]

CODECS = ("signed",)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def check_name(kind: str, name: object) -> str:
    """``name``, if it may name a queue or a lane (it becomes part of the store's keys)."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidName(
            f"{kind} name {name!r} is not allowed: use 1 to 64 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit"
        )
    return name


def check_task_id(task_id: object) -> str:
    """``task_id``, if it may name a job: any text of 1 to 256 bytes."""
    if not isinstance(task_id, str) or not 0 < len(task_id.encode("utf-8", "replace")) <= 256:
        raise InvalidName(f"task_id={task_id!r}: expected text of 1 to 256 bytes in UTF-8")
    try:
        task_id.encode()
    except UnicodeEncodeError:
        raise InvalidName(f"task_id={task_id!r}: is not text that UTF-8 can carry") from None
    return task_id


def hint(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` where something known is near, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _refuse_unknown(options: dict[str, Any], cls: type, what: str) -> None:
    known = [f.name for f in fields(cls)]
    for word in options:
        if word not in known:
            raise InvalidOption(
                f"{what} has no option {word!r}.{hint(word, known)} Known: {', '.join(known)}"
            )


def _number(name: str, value: object, *, least: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not value >= least:
        raise InvalidOption(f"{name}={value!r}: expected a whole number ≥ {least}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """How a task's jobs are treated. ``task.options(...)`` changes them for one call."""

    priority: str | None = None  #: the lane; ``None`` is the app's default lane
    task_id: str | None = None  #: the job's id, any text up to 256 bytes; ``None`` makes one
    name: str | None = None  #: of a sweep; ``None`` makes a readable one

    def __post_init__(self) -> None:
        if self.task_id is not None:
            check_task_id(self.task_id)
        if self.name is not None and (
            not isinstance(self.name, str) or not 0 < len(self.name) <= 128
        ):
            raise InvalidName(f"name={self.name!r}: expected a sweep name of 1 to 128 characters")

    def merge(self, **changes: Any) -> Self:
        """These options with ``changes``; an unknown word is refused with a hint."""
        _refuse_unknown(changes, type(self), "a task")
        return replace(self, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions:
    """How an app reaches its queue and runs its jobs."""

    queue_name: str = "default"
    priorities: Sequence[str] = ("default",)  #: lanes, lowest first
    default_priority: str | None = None  #: the middle lane, rounding up
    concurrency: int = 16  #: jobs at once in an in-process worker
    result_ttl_ms: int = 7 * 24 * 3600 * 1000  #: how long an outcome is kept
    lease_ms: int = 15_000  #: how long a silent worker keeps its jobs
    codec: Literal["signed"] = "signed"
    key_file: str | None = None  #: the signing key; ``None`` is one per queue and user
    insecure: bool = False  #: allow a server on another host without TLS
    allow_volatile: bool = False  #: allow a server that loses jobs when it restarts
    max_payload: int = 16 * 1024 * 1024  #: bytes of one encoded argument list or result

    def __post_init__(self) -> None:
        check_name("queue", self.queue_name)
        if isinstance(self.priorities, str) or not self.priorities:
            raise InvalidOption(
                f"priorities={self.priorities!r}: expected a list of lane names, lowest first"
            )
        for lane in self.priorities:
            check_name("lane", lane)
        if len(set(self.priorities)) != len(self.priorities):
            raise InvalidOption(f"priorities={self.priorities!r}: a lane is named twice")
        if self.default_priority is not None:
            self.lane(self.default_priority)
        _number("concurrency", self.concurrency, least=1)
        _number("result_ttl_ms", self.result_ttl_ms, least=1)
        _number("lease_ms", self.lease_ms, least=100)
        _number("max_payload", self.max_payload, least=1)
        if self.codec not in CODECS:
            raise InvalidOption(f"codec={self.codec!r}: expected one of {', '.join(CODECS)}")

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Options from keywords; an unknown word is refused with a hint."""
        _refuse_unknown(options, cls, "App")
        return cls(**options)

    @property
    def default_lane(self) -> str:
        return self.default_priority or self.priorities[len(self.priorities) // 2]

    def lane(self, priority: str | None) -> str:
        """The lane for ``priority``; one that no worker of this app reads is refused."""
        if priority is None:
            return self.default_lane
        if priority not in self.priorities:
            raise UnknownLane(
                f"priority={priority!r}: no worker of queue {self.queue_name!r} reads that lane."
                f"{hint(str(priority), self.priorities)} Lanes, lowest first: "
                f"{', '.join(self.priorities)}. Add it with App(priorities=[...])"
            )
        return priority
