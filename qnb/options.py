"""Every option, once: the decorators, the command line and the docs read them from here."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, Self

from qnb.clock import seconds
from qnb.errors import LONGEST_MS, InvalidName, InvalidOption, UnknownLane
from qnb.models import JobState, Policy

__all__ = [
    "AppOptions", "FrameOptions", "TaskOptions", "byte_size", "check_name", "check_takes",
    "check_task_id", "hint",
]  # fmt: skip

CODECS = ("signed", "msgpack")
ISOLATIONS = ("loop", "thread", "process")
PARAMS = ("objects", "columns", "text")
ON_ERROR = ("continue", "stop")
ON_CODE_CHANGE = ("warn", "rerun", "keep")
Isolation = Literal["loop", "thread", "process"]
OnError = Literal["continue", "stop"]
OnCodeChange = Literal["warn", "rerun", "keep"]

LATEST_MS = 7_258_118_400_000  #: the year 2200
MOST = 1_000_000  #: of anything that is counted
MOST_BYTES = 2**53 - 1  #: above it the store's numbers are not exact

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


def check_takes(where: str, hook: Callable[..., Any], *given: str) -> None:
    """Refuse a ``hook`` that cannot be called with just what is ``given``, in words."""
    try:
        inspect.signature(hook).bind(*given)
    except TypeError as error:
        raise InvalidOption(
            f"{where} calls {hook!r} with {' and '.join(given) or 'no arguments'}, which it does "
            f"not take: {error}"
        ) from None
    except ValueError:  # a builtin that does not tell
        return


def hint(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` where something known is near, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _refuse_unknown(options: Iterable[str], known: Sequence[str], what: str) -> None:
    for word in options:
        if word not in known:
            raise InvalidOption(
                f"{what} has no option {word!r}.{hint(word, known)} Known: {', '.join(known)}"
            )


def _names(cls: type) -> list[str]:
    return [field.name for field in fields(cls)]


def _number(name: str, value: object, least: int, most: int, *, others: str = "") -> None:
    if type(value) is not int or not least <= value <= most:
        raise InvalidOption(
            f"{name}={value!r}: expected a whole number ≥ {least} and ≤ {most:,}{others}"
        )


def _bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidOption(f"{name}={value!r}: expected True or False")


def _text(name: str, value: object, what: str) -> None:
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise InvalidOption(f"{name}={value!r}: expected {what}, or None")


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
    found: float = 0
    if type(size) is int:
        found = size
    elif isinstance(size, str) and (match := _SIZE.match(size)):
        unit = match[2] or "B"
        found = float(match[1]) * _SIZES[unit if unit == "B" else unit[:-1]]
    if not 1 <= found <= MOST_BYTES:
        raise InvalidOption(
            f"{name}={size!r}: expected bytes > 0 and < 2**53, as a number or text like '2 GB'"
        )
    return int(found)


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
    cache: bool = False  #: a call whose content has been computed before is served from there
    task_id: str | None = None  #: the job's id, any text up to 256 bytes; ``None`` makes one
    delay_ms: int = 0  #: wait so long before it may run
    schedule_ms: int = 0  #: not before this time (epoch milliseconds); in the past: at once
    expire_ms: int = 0  #: it ends as expired if it has not been started within so long
    name: str | None = None  #: of a sweep; ``None`` makes a readable one
    on_error: OnError = "continue"  #: of a sweep; 'stop': its first failed job ends it
    on_code_change: OnCodeChange = "warn"  #: of a sweep with older code's results: 'rerun', 'keep'
    max_running: int | None = None  #: of a sweep: how many of its jobs may run at once
    shuffle: bool = False  #: of a sweep: its jobs run in no order, so that early results spread
    dry_run: bool = False  #: of a sweep: say what would run, and store nothing

    #: those that belong to one call and not to a task
    OF_A_CALL: ClassVar[tuple[str, ...]] = (
        "task_id", "delay_ms", "schedule_ms", "expire_ms", "name", "on_error", "on_code_change",
        "max_running", "shuffle", "dry_run",
    )  # fmt: skip

    def __post_init__(self) -> None:
        _number("max_retries", self.max_retries, 0, MOST)
        for word in ("backoff_ms", "delay_ms", "expire_ms"):
            _number(word, getattr(self, word), 0, LONGEST_MS)
        _number("schedule_ms", self.schedule_ms, 0, LATEST_MS)
        self._check_timeout()
        if self.max_memory is not None:
            byte_size("max_memory", self.max_memory)
        _isolation(self.isolation)
        for word in ("unique", "cache", "shuffle", "dry_run"):
            _bool(word, getattr(self, word))
        for word, known in (("on_error", ON_ERROR), ("on_code_change", ON_CODE_CHANGE)):
            if getattr(self, word) not in known:
                raise InvalidOption(
                    f"{word}={getattr(self, word)!r}: expected one of {', '.join(known)}"
                )
        if self.max_running is not None:
            _number("max_running", self.max_running, 1, MOST, others=", or None for no limit")
        self._agree()
        if self.task_id is not None:
            check_task_id(self.task_id)
        if self.name is not None and (
            not isinstance(self.name, str) or not self.name.strip() or len(self.name) > 128
        ):
            raise InvalidName(
                f"name={self.name!r}: expected a sweep name of 1 to 128 characters, not all blank"
            )

    def _check_timeout(self) -> None:
        try:
            limit = seconds(self.timeout)
        except OverflowError:
            limit = float("inf")
        if limit is not None and not 0 < limit <= LONGEST_MS / 1000:
            raise InvalidOption(
                f"timeout={self.timeout!r}: expected seconds > 0 and ≤ {LONGEST_MS // 1000:,}, a "
                "timedelta, or None for no limit"
            )

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
            gated=self.max_running is not None or self.on_error == "stop",
            stops=self.on_error == "stop",
        )

    def check_single(self) -> None:
        """Refuse what only a sweep has."""
        if self.name is not None:
            raise InvalidOption(f"name={self.name!r} names a sweep; a single job has a task_id=")
        for word in ("on_error", "on_code_change", "max_running", "shuffle", "dry_run"):
            if (value := getattr(self, word)) != getattr(_USUAL, word):
                raise InvalidOption(
                    f"{word}={value!r} is of a sweep, and this is a single job: leave it out, or "
                    "fan out with map, grid, ..."
                )

    def merge(self, **changes: Any) -> Self:
        """These options with ``changes``; an unknown word is refused with a hint."""
        _refuse_unknown(changes, _names(type(self)), "a task")
        return replace(self, **changes)

    @classmethod
    def of_a_task(cls, where: str, options: dict[str, Any]) -> Self:
        """What all calls of a task have; what belongs to a single one is refused."""
        for word in options:
            if word in cls.OF_A_CALL:
                raise InvalidOption(
                    f"{word}= belongs to one call and not to {where}(): task.options({word}=...)"
                )
        known = ["name", *(word for word in _names(cls) if word not in cls.OF_A_CALL)]
        _refuse_unknown(options, known, f"{where}()")
        return cls(**options)


_USUAL = TaskOptions()


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
        self._check_lanes()
        _number("concurrency", self.concurrency, 1, MOST)
        _number("result_ttl_ms", self.result_ttl_ms, 1, LONGEST_MS)
        _number("lease_ms", self.lease_ms, 100, LONGEST_MS)
        _number("max_payload", self.max_payload, 1, MOST_BYTES)
        _number("blob_threshold", self.blob_threshold, 1024, MOST_BYTES)
        if self.prefetch != "auto":
            _number("prefetch", self.prefetch, 0, MOST, others=", or 'auto'")
        if self.idle_timeout_ms is not None:
            _number("idle_timeout_ms", self.idle_timeout_ms, 1, LONGEST_MS, others=", or None")
        _isolation(self.isolation)
        if self.codec not in CODECS:
            raise InvalidOption(f"codec={self.codec!r}: expected one of {', '.join(CODECS)}")
        self._check_serializer()
        _text("key_file", self.key_file, "the path of a file")
        _bool("insecure", self.insecure)
        _bool("allow_volatile", self.allow_volatile)
        _text("blob_store", self.blob_store, "an fsspec URL or the path of a folder, as text")
        if self.blob_store is not None:
            _check_protocol(self.blob_store)

    def _check_lanes(self) -> None:
        if not isinstance(self.priorities, list | tuple) or not self.priorities:
            raise InvalidOption(
                f"priorities={self.priorities!r}: expected a list of lane names, lowest first"
            )
        for lane in self.priorities:
            check_name("lane", lane)
        if len(set(self.priorities)) != len(self.priorities):
            raise InvalidOption(f"priorities={self.priorities!r}: a lane is named twice")
        if self.default_priority is not None and self.default_priority not in self.priorities:
            raise UnknownLane(
                f"default_priority={self.default_priority!r} is none of the lanes."
                f"{hint(str(self.default_priority), self.priorities)} Lanes, lowest first: "
                f"{', '.join(self.priorities)}. Add it with priorities=[...]"
            )

    def _check_serializer(self) -> None:
        for word in ("serializer", "deserializer"):
            if getattr(self, word) is not None and not callable(getattr(self, word)):
                raise InvalidOption(f"{word}={getattr(self, word)!r}: expected a function")
        if (self.serializer is None) != (self.deserializer is None):
            raise InvalidOption("serializer= and deserializer= belong together: give both")

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Options from keywords; an unknown word is refused with a hint."""
        _refuse_unknown(options, _names(cls), "App")
        if isinstance(options.get("key_file"), os.PathLike):
            options["key_file"] = os.fspath(options["key_file"])
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


def _check_protocol(url: str) -> None:
    """Refuse an fsspec URL, chained or not, of a kind that fsspec does not know."""
    if "://" not in url and "::" not in url:
        return
    import fsspec

    known = {*fsspec.available_protocols(), *fsspec.registry}
    for link in url.split("::"):
        protocol, separator, _ = link.partition("://")
        if (separator or re.fullmatch("[a-z]+", link)) and protocol not in known:
            raise InvalidOption(
                f"blob_store={url!r}: fsspec knows no protocol {protocol!r}."
                f"{hint(protocol, known)} Give a folder, or a URL such as 's3://bucket/folder'"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameOptions:
    """Which jobs a frame shows, and how."""

    task: str | None = None
    sweep: str | None = None
    status: str | None = None
    since: datetime | None = None
    limit: int | None = None
    params: Literal["objects", "columns", "text"] = "objects"
    values: bool = False

    def __post_init__(self) -> None:
        _text("task", self.task, "a task or its name")
        _text("sweep", self.sweep, "the name of a sweep")
        if self.status is not None and self.status not in tuple(JobState):
            raise InvalidOption(f"status={self.status!r}: expected one of {', '.join(JobState)}")
        if self.since is not None and not (
            isinstance(self.since, datetime) and self.since.tzinfo is not None
        ):
            raise InvalidOption(
                f"since={self.since!r}: expected a datetime with a time zone, such as "
                "datetime.now(timezone.utc) - timedelta(days=1), or None"
            )
        if self.limit is not None:
            _number("limit", self.limit, 1, MOST_BYTES, others=", or None for all")
        if self.params not in PARAMS:
            raise InvalidOption(f"params={self.params!r}: expected one of {', '.join(PARAMS)}")
        _bool("values", self.values)
