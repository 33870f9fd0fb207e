"""When a task runs by itself: five cron fields in UTC, or every so many seconds.

A schedule is kept as text, ``"0 3 * * *"`` or ``"@every 30000"`` (milliseconds). Its occurrences
depend on that text alone and never on who asks or when, so that all workers mean the same ones.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

from qnb.clock import seconds
from qnb.errors import InvalidOption

__all__ = ["latest", "parse", "period_ms", "upcoming"]

_EVERY = "@every "
_DAY = 24 * 3600
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HELP = (
    "expected five fields in UTC (minute hour day-of-month month day-of-week), such as "
    "'0 3 * * *' for each day at 03:00 or '*/15 * * * MON-FRI', or every=seconds"
)


def parse(expression: str | None = None, every: float | timedelta | None = None) -> str:
    """The text of a schedule, from exactly one of a cron expression and a period in seconds.

    >>> parse("0  3 * * mon"), parse(every=30)
    ('0 3 * * MON', '@every 30000')
    """
    if (expression is None) == (every is None):
        given = "neither" if every is None else f"{expression!r} and every={every!r}"
        raise InvalidOption(f"a schedule is an expression or every=, not {given}: {_HELP}")
    if every is not None:
        period = seconds(every, "every")
        if period is None or not 1 <= period <= 366 * _DAY:
            raise InvalidOption(
                f"every={every!r}: expected seconds, or a timedelta, from 1 s to 366 days, such as "
                "every=30"
            )
        return f"{_EVERY}{round(period * 1000)}"
    if not isinstance(expression, str):
        raise InvalidOption(f"cron expression {expression!r}: {_HELP}")
    fields = expression.upper().split()
    if len(fields) != 5:
        raise InvalidOption(f"cron expression {expression!r}: {len(fields)} of 5 fields; {_HELP}")
    schedule = " ".join(fields)
    try:
        upcoming(schedule, 0)
    except (CronSimError, StopIteration) as error:
        why = str(error).lower() or "it never occurs"
        raise InvalidOption(f"cron expression {expression!r}: {why}; {_HELP}") from None
    return schedule


def latest(schedule: str, now_ms: int) -> int:
    """The newest occurrence that is not after ``now_ms``; both are epoch milliseconds."""
    if period := _period(schedule):
        return now_ms - now_ms % period
    # It steps back a second before it looks, and the current second counts.
    start = _EPOCH + timedelta(seconds=now_ms // 1000 + 1)
    return _milliseconds(next(CronSim(schedule, start, reverse=True)))


def upcoming(schedule: str, now_ms: int) -> int:
    """The first occurrence after ``now_ms``; both are epoch milliseconds."""
    if period := _period(schedule):
        return now_ms - now_ms % period + period
    return _milliseconds(next(CronSim(schedule, _EPOCH + timedelta(seconds=now_ms // 1000))))


def period_ms(schedule: str, at_ms: int) -> int:
    """Milliseconds between the two occurrences around ``at_ms``."""
    return upcoming(schedule, at_ms) - latest(schedule, at_ms)


def _period(schedule: str) -> int | None:
    return int(schedule.removeprefix(_EVERY)) if schedule.startswith(_EVERY) else None


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)
