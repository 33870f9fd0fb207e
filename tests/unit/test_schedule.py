"""Schedules: the same occurrences for every worker, and refused where they are written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qnb
from qnb.running.schedule import latest, parse, period_ms, upcoming

MINUTE = 60_000
DAY = 24 * 60 * MINUTE


def _ms(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp() * 1000)  # type: ignore[misc,arg-type]


def _field(least: int, most: int) -> st.SearchStrategy[str]:
    number = st.integers(least, most)
    return st.one_of(
        st.just("*"),
        number.map(str),
        st.integers(2, most).map("*/{}".format),
        st.tuples(number, number).map(lambda ends: "{}-{}".format(*sorted(ends))),
        st.lists(number, min_size=1, max_size=3).map(lambda items: ",".join(map(str, items))),
    )


#: days to 28, so that every one of them occurs
crons = st.tuples(
    _field(0, 59), _field(0, 23), _field(1, 28), _field(1, 12), _field(0, 6)
).map(lambda fields: parse(" ".join(fields)))  # fmt: skip
periods = st.integers(1000, 366 * DAY).map(lambda ms: parse(every=timedelta(milliseconds=ms)))
moments = st.integers(_ms(1999, 1, 1), _ms(2099, 1, 1))


@given(crons | periods, moments, st.floats(0, 1))
def test_all_who_ask_between_two_occurrences_mean_the_same_two(
    schedule: str, now: int, part: float
) -> None:
    before, after = latest(schedule, now), upcoming(schedule, now)
    assert before <= now < after
    other = before + int(part * (after - before - 1))
    assert (latest(schedule, other), upcoming(schedule, other)) == (before, after)
    assert period_ms(schedule, other) == after - before


@given(crons | periods, moments)
def test_one_occurrence_follows_another_without_a_gap(schedule: str, now: int) -> None:
    first = upcoming(schedule, now)
    second = upcoming(schedule, first)
    assert first < second
    assert latest(schedule, first) == first
    assert latest(schedule, second - 1) == first


@pytest.mark.parametrize(
    "expression, now, before, after",
    [
        ("0 3 * * *", (2026, 5, 1, 2, 59, 59), (2026, 4, 30, 3), (2026, 5, 1, 3)),
        ("0 3 * * *", (2026, 5, 1, 3), (2026, 5, 1, 3), (2026, 5, 2, 3)),
        ("0 0 29 2 *", (2097, 1, 1), (2096, 2, 29), (2104, 2, 29)),  # 2100 is no leap year
        ("0 12 L * *", (2024, 2, 10), (2024, 1, 31, 12), (2024, 2, 29, 12)),
        ("30 6 * jan mon", (2026, 1, 6), (2026, 1, 5, 6, 30), (2026, 1, 12, 6, 30)),
        ("*/15 * * * *", (2026, 12, 31, 23, 59), (2026, 12, 31, 23, 45), (2027, 1, 1)),
        ("0 2 * * *", (2026, 3, 29, 1, 30), (2026, 3, 28, 2), (2026, 3, 29, 2)),  # no summer time
    ],
)
def test_fields_mean_what_cron_says_in_utc(
    expression: str, now: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    schedule = parse(expression)
    assert latest(schedule, _ms(*now)) == _ms(*before)
    assert upcoming(schedule, _ms(*now)) == _ms(*after)


def test_a_period_is_counted_from_the_epoch_and_not_from_the_start_of_a_worker() -> None:
    schedule = parse(every=90)
    assert latest(schedule, 0) == 0
    assert upcoming(schedule, 89_999) == 90_000
    assert period_ms(parse(every=timedelta(hours=1)), _ms(2026, 1, 1)) == 60 * MINUTE


def test_what_is_kept_reads_the_same_however_it_was_written() -> None:
    assert parse("  0 3\t* jan  mon-fri ") == parse("0 3 * JAN MON-FRI") == "0 3 * JAN MON-FRI"
    assert parse(every=30) == parse(every=timedelta(seconds=30)) == "@every 30000"
    assert parse(every=1.5) == "@every 1500"


@pytest.mark.parametrize(
    "given, says",
    [
        ({}, "not neither"),
        ({"expression": "* * * * *", "every": 5}, r"not '\* \* \* \* \*' and every=5"),
        ({"expression": "* * * *"}, "4 of 5 fields; .*minute hour day-of-month"),
        ({"expression": "0 0 3 * * *"}, "6 of 5 fields"),
        ({"expression": "@daily"}, "'@daily': 1 of 5 fields; .*'0 3"),
        ({"expression": "@every 30000"}, "every=seconds"),
        ({"expression": "61 * * * *"}, "'61 .*bad minute.*'0 3"),
        ({"expression": "0 0 * * MOM"}, "bad day-of-week"),
        ({"expression": "0 0 30 2 *"}, "'0 0 30 2 .*bad day-of-month"),
        ({"expression": "0 0 31 2,4,6 *"}, "bad day-of-month"),
        ({"expression": "*/0 * * * *"}, "bad minute"),
        ({"expression": 30}, "expression 30: .*every=seconds"),
        ({"expression": print}, "built-in function print.*every=seconds"),
        ({"every": 0.5}, "every=0.5: .*1 s to 366 days"),
        ({"every": timedelta(days=367)}, r"every=datetime.timedelta\(days=367\)"),
        ({"every": float("nan")}, "every=nan"),
        ({"every": True}, "every=True"),
        ({"every": "30"}, "every='30'"),
    ],
)
def test_what_is_no_schedule_is_refused_with_an_example(given: dict[str, Any], says: str) -> None:
    with pytest.raises(qnb.InvalidOption, match=says):
        parse(**given)
