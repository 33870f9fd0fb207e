"""What a supervisor and its child processes say to each other: msgpack arrays on a socket pair.

====================================  =========================================================
supervisor → child
====================================  =========================================================
SlotConfig                            first of all
RUN seq place now attempt             run this, at its :class:`Place`
STOP seq                              cancel this body, which shares the child with others
PING number                           does your loop turn?
HOOKS seq now attempt error again     tell the error hooks of a failure found outside
====================================  =========================================================

====================================  =========================================================
child → supervisor
====================================  =========================================================
READY                                 the app is imported, its lifespan has begun
FAILED text                           … or not, and why
BEGUN seq output                      a body that was NEXT has begun; output of the one before it
                                      that was not read from outside yet
ENDED seq state outcome               a body has ended; how the child is (:class:`State`); no
                                      outcome: because it was told to
REPORT seq report                     progress
TEXT seq text                         output of a body that shares the child
HOOKED seq state                      the hooks have been told
PONG number                           it does, and bodies sent before have begun
====================================  =========================================================
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable
from enum import IntEnum
from operator import attrgetter
from typing import Any, Self

import msgpack

from qnb.errors import InvalidOption
from qnb.models import Ending, Failure, Frame, JobSpec, Outcome, Policy, Report
from qnb.options import AppOptions
from qnb.running.attempt import Attempt
from qnb.wire.origins import reference, resolve

__all__ = [
    "TOKEN", "Place", "Said", "SlotConfig", "State", "Told", "attempt_of", "attempt_to",
    "outcome_of", "outcome_to", "reader", "report_of", "report_to",
]  # fmt: skip


class Told(IntEnum):
    """From supervisor to child."""

    RUN = 0
    STOP = 1
    HOOKS = 2
    PING = 3


class Said(IntEnum):
    """From child to supervisor."""

    READY = 0
    FAILED = 1
    ENDED = 2
    REPORT = 3
    TEXT = 4
    HOOKED = 5
    PONG = 6
    BEGUN = 7


class Place(IntEnum):
    """Where in a child a body runs."""

    SHARED = 0  #: beside others
    ALONE = 1
    NEXT = 2  #: alone, after those before it, if its token is still in the pipe of tokens then


#: in that pipe, for each body that is NEXT: its number
TOKEN = struct.Struct(">Q")


class State(IntEnum):
    """How a child is after a body."""

    FINE = 0
    WORN = 1  #: it holds too much memory: to be replaced when convenient
    LEFT = 2  #: processes or threads of the body go on: to be ended now


def reader() -> Any:
    """A streaming decoder of messages. It begins small, as there is one at each end of a pipe."""
    return msgpack.Unpacker(max_buffer_size=2**31 - 1, read_size=64 * 1024, strict_map_key=False)


@dataclasses.dataclass(frozen=True, slots=True)
class SlotConfig:
    """What a child process needs to run the jobs of a queue."""

    options: AppOptions
    url: str | None = None  #: of the store: what an ``App()`` made in a task finds
    app: str | None = None  #: ``module:attribute`` of the app whose tasks it serves
    path: tuple[str, ...] = ()  #: ``sys.path`` entries of the supervisor, added to the child's own
    setup: bytes | None = None  #: (lifespan, hooks) as the call "setup", of an app in a notebook
    max_memory: int | None = None  #: bytes above which a child is replaced after a job

    @classmethod
    def of(
        cls,
        options: AppOptions,
        *,
        app: str | None = None,
        path: Iterable[str] = (),
        setup: bytes | None = None,
    ) -> Self:
        """For an app, or the queue of ``options``; the executor adds where the store is."""
        return cls(options, None, app, tuple(path), setup)

    def packed(self) -> bytes:
        """As bytes, for a child."""
        options = {
            field.name: getattr(self.options, field.name)
            for field in dataclasses.fields(self.options)
        }
        for word in ("serializer", "deserializer"):
            fn = options[word]
            if fn is None:
                continue
            options[word] = reference(fn)
            if options[word] is None and self.app is None:
                raise InvalidOption(
                    f"{word}={fn!r} is defined in a notebook or script, where worker processes "
                    "cannot import it: move it into an installed module, or start them with the "
                    "app: qnb worker module:app"
                )
        rest = [self.url, self.app, self.path, self.setup, self.max_memory]
        data: bytes = msgpack.packb([options, *rest])
        return data

    @classmethod
    def unpacked(cls, message: list[Any]) -> Self:
        """What :meth:`packed` packed, as a message."""
        options, url, app, path, setup, max_memory = message
        for word in ("serializer", "deserializer"):
            options[word] = options[word] and resolve(options[word])
        if (options["serializer"] is None) != (options["deserializer"] is None):
            options["serializer"] = options["deserializer"] = None  # the app brings its own
        return cls(
            AppOptions(**{**options, "priorities": tuple(options["priorities"])}),
            url, app, tuple(path), setup, max_memory,
        )  # fmt: skip


_SPEC = [field.name for field in dataclasses.fields(JobSpec)]
_spec = attrgetter(*_SPEC[:-2])
_policy = attrgetter(*(field.name for field in dataclasses.fields(Policy)))
_outcome = attrgetter(*(field.name for field in dataclasses.fields(Outcome)))
_PLAIN = Policy()
assert _SPEC[-2:] == ["policy", "bound"]


def attempt_to(attempt: Attempt, *, code: bool = True) -> list[Any]:
    """An attempt as a message; without its code where the child has that already."""
    spec = attempt.spec
    policy = None if spec.policy == _PLAIN else _policy(spec.policy)
    return [
        _spec(spec), policy, spec.bound, attempt.number, attempt.tries, attempt.call,
        attempt.code if code else None, attempt.lost,
    ]  # fmt: skip


def attempt_of(message: list[Any]) -> Attempt:
    spec, policy, bound, *rest = message
    return Attempt(JobSpec(*[*spec, Policy(*policy) if policy else _PLAIN, bound]), *rest)


def outcome_to(outcome: Outcome) -> list[Any]:
    """An outcome as a message."""
    fields = list(_outcome(outcome))
    if outcome.failure is not None:
        fields[5] = dataclasses.astuple(outcome.failure)
    return fields


def outcome_of(message: list[Any]) -> Outcome:
    ending, tries, start, finish, result, failure, *rest = message
    return Outcome(
        Ending(ending), tries, start, finish, result, _failure(failure) if failure else None, *rest
    )


def _failure(fields: list[Any]) -> Failure:
    *text, frames, causes = fields
    told = (tuple(Frame(*frame) for frame in frames), tuple(map(_failure, causes)))
    return Failure(*[*text, *told])


def report_to(report: Report) -> list[Any]:
    """A report as a message."""
    return [report.done, report.total, report.message, dict(report.metrics)]


def report_of(message: list[Any]) -> Report:
    return Report(*message)
