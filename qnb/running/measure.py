"""What one attempt took of this process: peak memory and CPU time."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from pathlib import Path

__all__ = ["Meter", "resident"]

_LINUX = sys.platform == "linux"
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")

#: nanoseconds: a body that takes less cannot have filled much memory, so the last figure stands
BRIEF = 2_000_000

_last_peak: int | None = None


class Meter:
    """Started when made. ``alone``: no other body runs in this process; ``thread``: it runs in a
    thread of its own."""

    __slots__ = ("_alone", "_begun", "_children", "_cpu", "_thread")

    def __init__(self, *, alone: bool = False, thread: bool = False) -> None:
        self._alone = alone
        self._thread = thread
        self._children = _children_cpu() if alone else 0.0
        self._begun = time.monotonic_ns()
        self._cpu = self._clock()

    def _clock(self) -> int:
        return time.thread_time_ns() if self._thread else time.process_time_ns()

    def cpu_us(self) -> int:
        """CPU time so far, microseconds; of the whole process where bodies share a thread."""
        used = (self._clock() - self._cpu) / 1000
        if self._alone:
            used += (_children_cpu() - self._children) * 1e6
        return round(used)

    def peak(self) -> int | None:
        """The most memory that this process has held since the last body that ran alone, bytes."""
        global _last_peak
        if _last_peak is None or time.monotonic_ns() - self._begun > BRIEF:
            _last_peak = _high_water()
            if self._alone and _LINUX:
                with contextlib.suppress(OSError):
                    _RESET.write_text("5")  # the mark is that of the next body
        return _last_peak


def resident() -> int:
    """Bytes of memory that this process holds now; 0 where that cannot be told."""
    return _field("VmRSS:") if _LINUX else 0


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _high_water() -> int:
    if _LINUX and (mark := _field("VmHWM:")):
        return mark
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)


def _field(name: str) -> int:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0
