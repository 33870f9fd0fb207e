"""Waiting, and the clocks behind it."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from qnb.clock import backoff, jittered, seconds
from qnb.errors import InvalidOption


def test_jitter_leaves_a_users_seeded_random_numbers_alone() -> None:
    random.seed(7)
    before = random.getstate()
    waits = [backoff(attempt) for attempt in range(8)] + [jittered(3)]
    assert random.getstate() == before
    assert 0.025 <= waits[0] <= 0.05
    assert max(waits[:8]) <= 2
    assert 2.4 <= waits[8] <= 3


def test_a_wait_is_seconds_or_a_timedelta() -> None:
    assert seconds(timedelta(milliseconds=1500)) == 1.5
    assert seconds(None) is None
    for wrong in (-1, True, "3", float("nan")):
        with pytest.raises(InvalidOption, match="expected seconds"):
            seconds(wrong)  # type: ignore[arg-type]
