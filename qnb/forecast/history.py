"""What has been heard of a sweep's jobs: which wait, which run, how long the others took. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["History"]

_KEPT: Final = 1024  # durations kept; of more, evenly many
_RECENT: Final = 512
_QUEUED, _RUNNING, _ENDED = range(3)


class History:
    """Written on every notice, so that costs next to nothing. Times are seconds by one clock."""

    def __init__(self, total: int) -> None:
        self._states = bytearray(total)
        self.running: dict[int, float] = {}  #: when their bodies were started
        self.recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)  #: start, finish
        self.seen: list[tuple[int, float]] = []  #: some jobs and their durations
        self.each = 1  #: of so many ends one is in ``seen``
        self.ends = 0  #: bodies that have run to their end

    @property
    def total(self) -> int:
        return len(self._states)

    @property
    def queued(self) -> int:
        return self._states.count(_QUEUED)

    def waiting(self) -> bytearray:
        """A byte a job: 1 if it waits to be started."""
        return self._states.translate(_WAITS)

    def grow(self, total: int) -> None:
        """There are more jobs than was known."""
        self._states.extend(bytes(max(0, total - len(self._states))))

    def started(self, index: int, at: float) -> None:
        if self._states[index] != _ENDED:
            self._states[index] = _RUNNING
            self.running[index] = at

    def ended(self, index: int, start: float | None, finish: float) -> None:
        """Without a ``start`` its body did not run."""
        if self._states[index] == _ENDED:
            return
        self._states[index] = _ENDED
        self.running.pop(index, None)
        if not start or finish < start:
            return
        self.recent.append((start, finish))
        self.ends += 1
        if self.ends % self.each == 0:
            self.seen.append((index, finish - start))
            if len(self.seen) == 2 * _KEPT:
                self.seen = self.seen[1::2]
                self.each *= 2

    def again(self, index: int) -> None:
        """It waits again."""
        self._states[index] = _QUEUED
        self.running.pop(index, None)


_WAITS: Final = bytes(state == _QUEUED for state in range(256))
