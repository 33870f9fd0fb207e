"""When a sweep will have ended: its rate, and the time left with an interval. Pure.

:class:`Forecast` is told what starts and ends, which costs next to nothing, and asked now and then.
Only then is numpy loaded: a worker, which imports this, does without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qnb.display import duration
from qnb.forecast.history import History

if TYPE_CHECKING:
    from qnb.forecast.outlook import Columns, Outlook

__all__ = ["Estimate", "Forecast", "Progress"]

_FLOOR: Final = 0.01  # of the time left; nothing is known better


@dataclass(frozen=True, slots=True)
class Estimate:
    """What lies ahead; times in seconds, ``None`` where it cannot be told (yet)."""

    rate: float | None = None  #: jobs a second, of late
    eta: float | None = None  #: until all has ended; as likely more as less
    low: float | None = None  #: in eight of ten cases it is between this
    high: float | None = None  #: and this


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sweep has come. Its text is one line.

    ``rate`` and what follows are None where they cannot be told: before the first job has ended,
    or while no worker serves the sweep.
    """

    total: int
    done: int  #: ended well, ``cached`` included
    failed: int
    aborted: int
    running: int
    queued: int
    cached: int  #: of the done, those whose result was there already
    rate: float | None = None  #: jobs a second, of late; without the cached
    eta: float | None = None  #: seconds until all has ended; as likely more as less
    eta_low: float | None = None  #: in eight of ten cases it is between this
    eta_high: float | None = None  #: and this
    state: str = "running"

    def __str__(self) -> str:
        return " · ".join(self._facts())

    __repr__ = __str__  # as the last line of a cell

    def _facts(self) -> Iterator[str]:
        facts = [f"{self.done:,} of {self.total:,} done"]
        for count, word in (
            (self.cached, "of them reused"), (self.failed, "failed"), (self.aborted, "aborted")
        ):  # fmt: skip
            if count:
                facts.append(f"{count:,} {word}")
        yield ", ".join(facts)
        if self.state != "running":
            yield self.state
        if self.running:
            yield f"{self.running:,} running"
        if not self.running + self.queued or self.state != "running":
            return
        if self.rate:
            yield _pace(self.rate)
        if self.eta is not None:
            left = f"{duration(self.eta)} left"
            if self.eta_low is not None and self.eta_high is not None:
                low, high = duration(self.eta_low), duration(self.eta_high)
                left += f" ({low} – {high})" if low != high else ""
            yield left


def _pace(rate: float) -> str:
    for each, unit in ((1.0, "s"), (60.0, "min"), (3600.0, "h")):
        if rate * each >= 1 or unit == "h":
            break
    amount = rate * each
    return f"{amount:,.0f} jobs/{unit}" if amount >= 9.95 else f"{amount:.1f} jobs/{unit}"


class Forecast:
    """Learns how long the jobs of one sweep take, and says when the rest will have ended.

    ``columns(start, stop)`` gives the parameters of the points from one number up to another, a
    column each; it is asked for a few of them at a time. Without it every job is like every other.
    All times are seconds by one clock. Belongs to one thread.
    """

    def __init__(self, total: int, columns: Columns | None = None) -> None:
        self._history = History(total)
        self._columns = columns
        self._outlook: Outlook | None = None

    def grow(self, total: int) -> None:
        """There are ``total`` points, more than was known."""
        self._history.grow(total)

    def started(self, index: int, at: float) -> None:
        """The body of job ``index`` runs since ``at``."""
        self._history.started(index, at)

    def ended(
        self, index: int, start: float | None, finish: float, *, cached: bool = False
    ) -> None:
        """It has ended, well or badly. One that is ``cached`` or has no ``start`` (None or 0) took
        no time.
        """
        self._history.ended(index, None if cached else start, finish)

    def again(self, index: int) -> None:
        """It waits again, for another attempt."""
        self._history.again(index)

    def estimate(self, now: float, slots: int) -> Estimate:
        """What lies ahead if ``slots`` jobs can run at a time, as of now; 0 if none can."""
        history = self._history
        rate = self._rate(now, slots)
        if not history.running and not history.queued:
            return Estimate(rate, 0.0, 0.0, 0.0)
        if rate is None or not (slots or history.running):
            return Estimate(rate)
        if self._outlook is None:
            from qnb.forecast.outlook import Outlook

            self._outlook = Outlook(history, self._columns)
        low, eta, high = self._outlook.quantiles(now, slots, (0.1, 0.5, 0.9))
        return Estimate(rate, eta, min(low, (1 - _FLOOR) * eta), max(high, (1 + _FLOOR) * eta))

    def _rate(self, now: float, slots: int) -> float | None:
        """Over the last few rounds; with none ending, it sinks."""
        history = self._history
        if not history.recent:
            return None
        last = sorted(finish for _, finish in history.recent)[-max(4 * slots, 32) - 1 :]
        if len(last) < history.ends:
            count, since = len(last) - 1, last[0]
        else:
            count, since = len(last), min(start for start, _ in history.recent)
        return count / max(now - since, last[-1] - since, 1e-6)
