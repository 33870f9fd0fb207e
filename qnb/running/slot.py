"""A worker's child process: runs one job at a time for the supervisor that started it.

``python -m qnb.running.slot FD`` speaks frames (4-byte length, msgpack) on the socket ``FD``. It
knows nothing of the store; it dies with its supervisor, or when that closes the socket.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import importlib
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import msgpack

from qnb.clock import ServerClock
from qnb.models import Ending, Failure, JobSpec, Outcome
from qnb.registry import Registry
from qnb.running.attempt import Attempt, Runner
from qnb.wire.codec import Codec
from qnb.wire.envelope import Keys

__all__ = ["SlotConfig", "frame", "from_frame", "outcome_of", "run_frame"]

HEADER = struct.Struct(">I")
_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True, slots=True)
class SlotConfig:
    """What a child is told first."""

    queue: str
    key_file: str | None
    max_payload: int
    app: str | None  #: ``module:attribute`` whose registry it serves
    path: list[str]  #: ``sys.path`` entries of the supervisor that are not the child's own


def frame(message: Any) -> bytes:
    data: bytes = msgpack.packb(message)
    return HEADER.pack(len(data)) + data


def run_frame(attempt: Attempt, server_ms: int) -> bytes:
    """What the supervisor sends to have ``attempt`` run; ``server_ms`` is now, by the server."""
    spec = dataclasses.astuple(attempt.spec)
    return frame([server_ms, spec, attempt.number, attempt.tries, attempt.call, attempt.code])


def from_frame(attempt: Attempt, outcome: Outcome) -> bytes:
    """What the child answers."""
    return frame([attempt.spec.task_id, attempt.number, *dataclasses.astuple(outcome)])


def outcome_of(attempt: Attempt, data: bytes) -> Outcome:
    """What the supervisor reads of it; ``ValueError`` if it does not answer ``attempt``."""
    task_id, number, *answer = msgpack.unpackb(data)
    if (task_id, number) != (attempt.spec.task_id, attempt.number):
        raise ValueError("the answer is to another attempt")
    ending, tries, start, finish, result, failure, *rest = answer
    return Outcome(
        Ending(ending), tries, start, finish, result, Failure(*failure) if failure else None, *rest
    )


def _read(link: socket.socket) -> bytes | None:
    def exactly(size: int) -> bytearray | None:
        data = bytearray(size)
        view, at = memoryview(data), 0
        while at < size:
            got = link.recv_into(view[at:])
            if not got:
                return None
            at += got
        return data

    header = exactly(HEADER.size)
    body = exactly(HEADER.unpack(header)[0]) if header else None
    return bytes(body) if body is not None else None


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _registry(app: str | None) -> Registry:
    if app is None:
        return Registry()
    module, _, attribute = app.partition(":")
    registry: Registry = getattr(importlib.import_module(module), attribute).registry
    return registry


def main(fd: int, parent: int) -> None:
    """Serve the supervisor ``parent`` on the socket ``fd`` until it closes."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides when to stop
    link = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    hello = _read(link)
    if hello is None:
        return
    config = SlotConfig(*msgpack.unpackb(hello))
    sys.path[:] = [*sys.path, *(entry for entry in config.path if entry not in sys.path)]
    codec = Codec(
        Keys.load(config.queue, config.key_file), config.queue, max_payload=config.max_payload
    )
    clock = ServerClock()
    runner = Runner(codec, _registry(config.app), clock, shipped_first=True)
    link.sendall(frame("ready"))
    this = os.getpid()
    with asyncio.Runner() as loop:
        while (data := _read(link)) is not None:
            server_ms, spec, number, tries, call, code = msgpack.unpackb(data)
            clock.set(server_ms)
            attempt = Attempt(JobSpec(*spec), number, tries, call, code)
            if attempt.spec.is_async:
                outcome = loop.run(runner.run_async(attempt))
            else:
                outcome = runner.run(attempt)
            if os.getpid() != this:  # the body forked, and this is its copy
                os._exit(0)
            link.sendall(from_frame(attempt, outcome))


if __name__ == "__main__":
    if sys.path and Path(sys.path[0]).resolve() == Path(__file__).parent:
        del sys.path[0]
    main(int(sys.argv[1]), int(sys.argv[2]))
