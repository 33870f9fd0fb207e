"""How many jobs end in a second, of late, from counters that are read now and then. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

__all__ = ["STEP", "Rates"]

STEP = 5.0  #: seconds of one figure
KEPT = 120  #: figures: ten minutes
LATE = 10.0  #: seconds over which the present rate is the mean
GAP = 20.0  #: seconds without a look, of which nothing can be told

#: jobs a second that no worker ends: a counter that has leapt so has not counted
MOST = 1e5


class Rates:
    """Counters are those of workers, by their ids, each from 0 on. Times are in seconds."""

    def __init__(self) -> None:
        self._steps: dict[int, float] = {}  # jobs ended, by the number of the step
        self._looks: deque[tuple[float, float]] = deque()  # when, and jobs ended since the last
        self._counts: dict[str, int] = {}
        self._began: int | None = None  # the first whole step that somebody has looked at

    def look(self, now: float, counts: Mapping[str, tuple[int, float]]) -> None:
        """What each worker has counted by ``now``, and when it was started."""
        last = self._looks[-1][0] if self._looks else None
        if last is None or not 0 <= now - last <= GAP:
            self._looks.clear()
            self._looks.append((now, 0.0))
            if last is None or now < last or self._began is None:
                self._began, self._steps = int(now // STEP) + 1, {}
        elif now > last:
            ended = sum(
                self._gained(id_, count, started >= last, now - last)
                for id_, (count, started) in counts.items()
            )
            self._looks.append((now, ended))
            self._share(last, now, ended)
            while len(self._looks) > 2 and self._looks[1][0] <= now - LATE:
                self._looks.popleft()
        self._counts = {id_: count for id_, (count, _) in counts.items()}

    def _gained(self, id_: str, count: int, is_new: bool, passed: float) -> int:
        before = self._counts.get(id_, 0 if is_new else count)
        gained = count - before
        return gained if 0 < gained <= MOST * passed else 0

    def _share(self, last: float, now: float, ended: float) -> None:
        """Give each step its part of what has ended since ``last``."""
        at = last
        while at < now:
            step = int(at // STEP)
            until = min(now, (step + 1) * STEP)
            self._steps[step] = self._steps.get(step, 0.0) + ended * (until - at) / (now - last)
            at = until
        for step in [step for step in self._steps if step < now // STEP - KEPT]:
            del self._steps[step]

    @property
    def now(self) -> float | None:
        """Jobs that end in a second, None if that is not known yet."""
        passed = self._looks[-1][0] - self._looks[0][0] if self._looks else 0.0
        if passed < 1.5:
            return None
        return sum(ended for _, ended in list(self._looks)[1:]) / passed

    def steps(self) -> tuple[float, tuple[float | None, ...]]:
        """When the first step began, and the jobs ended per second in each, up to the last whole
        one; None for those that nobody has looked at."""
        if not self._looks or self._began is None:
            return 0.0, ()
        end = int(self._looks[-1][0] // STEP)
        begin = max(self._began, end - KEPT)
        found = tuple(
            self._steps[step] / STEP if step in self._steps else None for step in range(begin, end)
        )
        return begin * STEP, found
