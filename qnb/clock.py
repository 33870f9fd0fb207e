"""Wall time and waiting: the only module that reads this machine's clock.

Due times and leases are judged by the *server's* clock, inside its scripts. What a worker
stamps on a job (start, finish) is that clock too: :class:`ServerClock` carries it forward
between two readings, so that neither a laptop's drift nor its sleep ever shows in a frame.
"""

from __future__ import annotations

import random
import time
from datetime import timedelta

from qnb.errors import InvalidOption

__all__ = ["ServerClock", "backoff", "jittered", "now_ms", "seconds", "stamp"]

#: of our own: qnb's threads must not draw from the numbers that a user has seeded
_random = random.Random()  # noqa: S311 - jitter, not a secret


#: seconds; longer than anybody waits
LONGEST = 1e10

#: after so long the server's clock is read anew: it may have been set, or this machine was paused
OLD_MS = 10_000

#: goes on while this machine sleeps, as the server's does (on macOS, CLOCK_MONOTONIC is that clock)
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _steady_ms() -> float:
    return time.clock_gettime_ns(_STEADY) / 1e6


def now_ms() -> int:
    """Milliseconds since the epoch by this machine's clock (for humans, never for leases)."""
    return time.time_ns() // 1_000_000


def stamp() -> str:
    """The day and minute by this machine's clock, for names: ``"25nov-0937"``."""
    return time.strftime("%d%b-%H%M").lower()


class ServerClock:
    """The server's time, carried forward by this machine's clock that never jumps."""

    __slots__ = ("_offset_ms", "_read_at_ms")

    def __init__(self) -> None:
        self._offset_ms = time.time_ns() / 1e6 - _steady_ms()
        self._read_at_ms = float("-inf")

    def set(self, server_ms: float) -> None:
        """Take a reading of the server's clock that has just been made."""
        self._read_at_ms = _steady_ms()
        self._offset_ms = server_ms - self._read_at_ms

    def told(self, time: tuple[int, int]) -> None:
        """Take what the server's ``TIME`` has just answered: seconds, microseconds."""
        self.set(time[0] * 1000 + time[1] / 1000)

    def now_ms(self) -> int:
        """Milliseconds since the epoch by the server's clock."""
        return int(_steady_ms() + self._offset_ms)

    @property
    def is_old(self) -> bool:
        """Is the last reading so long ago that another one should be made?"""
        return _steady_ms() - self._read_at_ms > OLD_MS


def seconds(timeout: float | timedelta | None, name: str = "timeout") -> float | None:
    """A wait in seconds from a number or a ``timedelta``; ``None`` stays "for ever".

    >>> seconds(timedelta(milliseconds=1500))
    1.5
    """
    if timeout is None:
        return None
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, int | float)
        or not 0 <= timeout <= LONGEST
    ):
        raise InvalidOption(
            f"{name}={timeout!r}: expected seconds as a number ≥ 0 and ≤ 1e10, a timedelta, or None"
        )
    return float(timeout)


def backoff(attempt: int, *, first: float = 0.05, most: float = 2.0) -> float:
    """Seconds to wait before attempt number ``attempt`` (from 0) to reconnect; with jitter."""
    ceiling = min(most, first * 2 ** min(attempt, 16))
    return _random.uniform(ceiling / 2, ceiling)


def jittered(interval: float) -> float:
    """``interval`` or up to a fifth less, so that many workers do not act as one."""
    return _random.uniform(0.8 * interval, interval)
