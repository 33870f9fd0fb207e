"""Every option, once: the decorators, the command line and the docs read them from here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, ClassVar, Literal, Self

from qnb.clock import seconds
from qnb.errors import InvalidName, InvalidOption, UnknownLane
from qnb.models import Policy

__all__ = ["AppOptions", "TaskOptions", "byte_size", "check_name", "check_task_id", "hint"]

CODECS = ("signed", "msgpack")
ISOLATIONS = ("loop", "thread", "process")
Isolation = Literal["loop", "thread", "process"]

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


def _isolation(value: object) -> None:
    if value not in (None, *ISOLATIONS):
        raise InvalidOption(
            f"isolation={value!r}: expected one of {', '.join(ISOLATIONS)}, or None"
        )


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]i?B|B)?\s*\Z")
_SIZES = {"B": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4,
          "ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}  # fmt: skip


def byte_size(name: str, size: object) -> int:
    """Bytes from a number or from text like ``"2 GB"`` or ``"512 MiB"``.

    >>> byte_size("max_memory", "1.5 kB")
    1500
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    if isinstance(size, str) and (match := _SIZE.match(size)):
        unit = match[2] or "B"
        if found := int(float(match[1]) * _SIZES[unit if unit == "B" else unit[:-1]]):
            return found
    raise InvalidOption(f"{name}={size!r}: expected bytes > 0 as a number, or text like '2 GB'")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """How a task's jobs are treated. ``task.options(...)`` changes them for one call."""

    priority: str | None = None  #: the lane; ``None`` is the app's default lane
    max_retries: int = 0  #: how many more attempts a failed one is given
    backoff_ms: int = 0  #: before the second attempt; twice as long before each further one
    timeout: float | timedelta | None = None  #: seconds that one attempt may take
    max_memory: int | str | None = None  #: bytes that one attempt may hold, or text like '2 GB'
    isolation: Isolation | None = None  #: 'loop', 'thread' or 'process'; ``None``: the worker's way
    unique: bool = False  #: the same call, waiting or running, is the same job
    task_id: str | None = None  #: the job's id, any text up to 256 bytes; ``None`` makes one
    delay_ms: int = 0  #: wait so long before it may run
    schedule_ms: int = 0  #: not before this time (epoch milliseconds); in the past: at once
    expire_ms: int = 0  #: it ends as expired if it has not been started within so long
    name: str | None = None  #: of a sweep; ``None`` makes a readable one

    #: those that belong to one call and not to a task
    OF_A_CALL: ClassVar[tuple[str, ...]] = (
        "task_id", "delay_ms", "schedule_ms", "expire_ms", "name",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for word in ("max_retries", "backoff_ms", "delay_ms", "schedule_ms", "expire_ms"):
            _number(word, getattr(self, word))
        if seconds(self.timeout) == 0:
            raise InvalidOption(f"timeout={self.timeout!r}: expected seconds > 0, or None")
        if self.max_memory is not None:
            byte_size("max_memory", self.max_memory)
        _isolation(self.isolation)
        if not isinstance(self.unique, bool):
            raise InvalidOption(f"unique={self.unique!r}: expected True or False")
        self._agree()
        if self.task_id is not None:
            check_task_id(self.task_id)
        if self.name is not None and (
            not isinstance(self.name, str) or not 0 < len(self.name) <= 128
        ):
            raise InvalidName(f"name={self.name!r}: expected a sweep name of 1 to 128 characters")

    def _agree(self) -> None:
        """Refuse options that contradict each other."""
        if self.unique and self.task_id is not None:
            raise InvalidOption(
                f"unique=True makes the job's id from its arguments, and task_id={self.task_id!r} "
                "is another: leave one of them out"
            )
        if self.delay_ms and self.schedule_ms:
            raise InvalidOption(
                f"delay_ms={self.delay_ms} and schedule_ms={self.schedule_ms}: give one of them"
            )
        if self.expire_ms and self.delay_ms >= self.expire_ms:
            raise InvalidOption(
                f"expire_ms={self.expire_ms} is over before delay_ms={self.delay_ms}: the job "
                "would never run; expire_ms counts from now on"
            )

    @property
    def policy(self) -> Policy:
        """The part of them that a worker acts on."""
        limit = seconds(self.timeout)
        return Policy(
            self.max_retries,
            self.backoff_ms,
            None if limit is None else max(1, round(limit * 1000)),
            None if self.max_memory is None else byte_size("max_memory", self.max_memory),
            self.isolation,
        )

    def merge(self, **changes: Any) -> Self:
        """These options with ``changes``; an unknown word is refused with a hint."""
        _refuse_unknown(changes, type(self), "a task")
        return replace(self, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions:
    """How an app reaches its queue and runs its jobs."""

    queue_name: str = "default"  #: the queue on that server
    priorities: Sequence[str] = ("default",)  #: lanes, lowest first
    default_priority: str | None = None  #: the middle lane, rounding up
    concurrency: int = 16  #: async jobs at once on one loop; jobs at once in an in-process worker
    prefetch: int | Literal["auto"] = "auto"  #: jobs claimed ahead; 'auto': while they are short
    idle_timeout_ms: int | None = None  #: a worker without a job for so long leaves; None: never
    isolation: Isolation | None = None  #: of tasks that name none
    result_ttl_ms: int = 7 * 24 * 3600 * 1000  #: how long an outcome is kept
    lease_ms: int = 15_000  #: how long a silent worker keeps its jobs
    codec: Literal["signed", "msgpack"] = "signed"  #: 'msgpack': no pickle code can be reached
    serializer: Callable[[Any], bytes] | None = None  #: writes values, in place of the codec
    deserializer: Callable[[bytes], Any] | None = None  #: reads what ``serializer`` wrote
    key_file: str | None = None  #: the signing key; ``None`` is one per queue and user
    insecure: bool = False  #: allow a server on another host without TLS
    allow_volatile: bool = False  #: allow a server that loses jobs when it restarts
    max_payload: int = 16 * 1024 * 1024  #: bytes of one encoded argument list or result
    blob_threshold: int = 1024 * 1024  #: parts of values above it are stored once, by content
    blob_store: str | None = None  #: where: an fsspec URL; None: a folder, if the server is local

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
        _number("blob_threshold", self.blob_threshold, least=1024)
        if self.prefetch != "auto":
            _number("prefetch", self.prefetch)
        if self.idle_timeout_ms is not None:
            _number("idle_timeout_ms", self.idle_timeout_ms, least=1)
        _isolation(self.isolation)
        if self.codec not in CODECS:
            raise InvalidOption(f"codec={self.codec!r}: expected one of {', '.join(CODECS)}")
        self._check_serializer()

    def _check_serializer(self) -> None:
        if (self.serializer is None) != (self.deserializer is None):
            raise InvalidOption("serializer= and deserializer= belong together: give both")
        for word in ("serializer", "deserializer"):
            if getattr(self, word) is not None and not callable(getattr(self, word)):
                raise InvalidOption(f"{word}={getattr(self, word)!r}: expected a function")

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
