"""Jobs that end in a second, from counters that are read now and then."""

from __future__ import annotations

from qnb.rates import STEP, Rates


def _watched(
    rate: float, seconds: int, begin: float = 1_000.0, rates: Rates | None = None
) -> Rates:
    rates = rates or Rates()
    for second in range(seconds + 1):
        rates.look(begin + second, {"w": (int(rate * second), 0.0)})
    return rates


def test_a_steady_rate_is_what_is_shown_in_each_step_and_now() -> None:
    rates = _watched(7, 60)
    since, steps = rates.steps()
    assert since == 1_005.0
    assert len(steps) == 11
    assert {round(rate or 0, 6) for rate in steps} == {7}
    assert rates.now == 7


def test_nothing_is_told_before_anything_is_known() -> None:
    rates = Rates()
    assert rates.now is None
    assert rates.steps() == (0.0, ())
    rates.look(1_000.0, {"w": (500, 0.0)})
    assert rates.now is None


def test_workers_that_were_there_before_bring_no_past_and_new_ones_all_of_theirs() -> None:
    rates = Rates()
    rates.look(1_000.0, {})
    rates.look(1_002.0, {"old": (5_000, 10.0), "new": (8, 1_001.0)})
    assert rates.now == 4


def test_a_counter_that_restarts_or_leaps_makes_no_rate() -> None:
    rates = Rates()
    for at, count in enumerate((50, 60, 0, 10, 10**15, 10**15 + 10)):
        rates.look(1_000.0 + at, {"w": (count, 0.0)})
    assert rates.now == 6  # 10 + 0 + 10 + 0 + 10 in 5 s
    assert all((rate or 0) <= 12 for rate in rates.steps()[1])


def test_while_nobody_looked_nothing_is_told() -> None:
    rates = _watched(2, 20)
    _watched(3, 20, begin=1_100.0, rates=rates)
    since, steps = rates.steps()
    places = {since + STEP * at: rate for at, rate in enumerate(steps)}
    assert places[1_010.0] == 2
    assert places[1_060.0] is None
    assert round(places[1_110.0] or 0, 6) == 3


def test_ten_minutes_are_kept() -> None:
    rates = _watched(1, 1_000)
    since, steps = rates.steps()
    assert len(steps) * STEP == 600
    assert since + 600 == 2_000.0
