"""Processes and all that they have started: who they are, what they hold, how they end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

__all__ = [
    "MARK", "adopt_orphans", "children", "descendants", "end_orphans", "kill_marked",
    "kill_tree", "memory_of",
]  # fmt: skip

#: the environment variable that tells which slot a process was started under
MARK = "QNB_SLOT"

#: seconds that processes are given to be gone once they have been killed
GONE = 2.0


def descendants(pid: int) -> list[int]:
    """The living processes below ``pid``, in whatever session or group they are."""
    found: list[int] = []
    todo = [pid]
    while todo:
        for child in children(todo.pop()):
            if child not in found:
                found.append(child)
                todo.append(child)
    return [pid for pid in found if _lives(pid)]


def children(pid: int) -> list[int]:
    """The processes whose parent is ``pid``."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        threads = [tasks / name / "children" for name in os.listdir(tasks)]  # noqa: PTH208 - 3 times as fast
        return [int(child) for thread in threads for child in thread.read_bytes().split()]
    except OSError:  # not Linux, or a kernel without these files
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
    return []


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def memory_of(pid: int) -> int:
    """Bytes of memory that ``pid`` and its descendants hold together."""
    total = 0
    for each in (pid, *descendants(pid)):
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(each).memory_info().rss
    return total


def kill_tree(pid: int) -> None:
    """End ``pid`` and all its descendants; returns when they are gone.

    It is stopped first, so that it starts nothing more. What its descendants start meanwhile
    becomes its own as their parents die, and is found in the next round.
    """
    try:
        root = psutil.Process(pid)
        root.suspend()
    except psutil.Error:
        return
    killed: set[int] = set()
    deadline = time.monotonic() + GONE
    while (below := descendants(pid)) and time.monotonic() < deadline:
        _each(below, "suspend")
        _each(below, "kill")
        killed.update(below)
        time.sleep(0.001)
    _each([pid], "kill")
    while any(map(_lives, (pid, *killed))) and time.monotonic() < deadline:
        time.sleep(0.001)


def kill_marked(mark: str) -> None:
    """End what a slot that is gone has left behind, all processes that carry its mark; returns when
    they are gone. What they start meanwhile carries it too, and is found in the next round.
    """
    deadline = time.monotonic() + GONE
    while (marked := _marked(mark)) and time.monotonic() < deadline:
        _each(marked, "kill")
        while any(map(_lives, marked)) and time.monotonic() < deadline:
            time.sleep(0.001)


def _marked(mark: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process.pid)
    return [pid for pid in found if _lives(pid)]


_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> bool:
    """Make this process the parent of all orphans below it; False where that is not known."""
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1) == 0  # type: ignore[no-any-return]


def end_orphans(pids: Iterable[int]) -> None:
    """Kill children of this process that nobody else waits for, with all below them."""
    for pid in pids:
        kill_tree(pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _each(pids: list[int], act: str) -> None:
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            getattr(psutil.Process(pid), act)()
