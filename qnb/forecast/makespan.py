"""When the last of many jobs ends, laid out in their order over slots. Pure.

All arrays have a row a path, a way that things may go.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["LAST", "makespan", "stride"]

Floats: TypeAlias = NDArray[np.float64]

LAST: Final = 40  # rounds of jobs whose order matters: those at the end


def stride(slots: int) -> int:
    """How many jobs are laid out at once, for the sake of speed."""
    return max(1, slots // 4)


def makespan(free: Floats, early: Floats, work: Floats, late: Floats) -> Floats:
    """When all is done: the slots are ``free`` at these times; jobs take so long, in this order.

    The ``early`` ones fill up the slots as water would. They may be a sample: all together take
    ``work``. The ``late`` ones go, each, to the slot that is free first.
    """
    paths, slots = free.shape
    rows = np.arange(paths)[:, None]
    longest = np.zeros(paths)
    if early.shape[1]:
        free = np.sort(free, axis=1)
        filled = np.cumsum(free, axis=1)
        levels = (filled + work[:, None]) / np.arange(1, slots + 1)
        # the slots above the water are still busy with what they run
        below = levels.argmin(axis=1)[:, None]
        level = levels[rows, below]
        done = np.cumsum(early, axis=1)
        begin = ((done - early) / done[:, -1:] * work[:, None] + filled[rows, below]) / (below + 1)
        longest = (begin + early).max(axis=1)
        free = _waves(free, level, early.mean(axis=1)[:, None])
    at_once = stride(slots)
    for start in range(0, late.shape[1], at_once):
        jobs = late[:, start : start + at_once]
        count = jobs.shape[1]
        if count == 1:
            first = free.argmin(axis=1)[:, None]
        else:
            first = np.argpartition(free, count - 1, axis=1)[:, :count]
        free[rows, first] += jobs
    found: Floats = np.maximum(longest, free.max(axis=1))
    return found


def _waves(free: Floats, level: Floats, job: Floats) -> Floats:
    """The slots below the ``level``, filled up to it with whole jobs.

    Slots in step stay in step: five jobs alike on four slots take as long as eight.
    """
    low = level - job
    filled = np.where(free <= level, low + (free - low) % job, np.inf)
    inside = np.isfinite(filled)
    missing = np.where(inside, level - filled, 0.0).sum(axis=1)[:, None] / job
    rank = filled.argsort(axis=1).argsort(axis=1)
    found: Floats = np.where(inside, filled + job * (rank < np.round(missing)), free)
    return found
