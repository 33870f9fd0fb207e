"""What is kept of a sweep's errors."""

from __future__ import annotations

import random

from qnb.sweeps import grouping
from qnb.sweeps.grouping import Errors


def _errors(*ended: tuple[int, str]) -> Errors:
    errors = Errors()
    for place, text in ended:
        errors.add(place, text)
    return errors


def test_groups_are_the_same_in_whatever_order_the_jobs_ended() -> None:
    jobs = [(place, f"bad {place % (2 * grouping.KEPT)}") for place in range(5 * grouping.KEPT)]
    found = []
    for seed in range(3):
        random.Random(seed).shuffle(jobs)
        errors = _errors(*jobs)
        found.append((errors.counts(), errors.examples()))
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == grouping.KEPT
    assert found[0][0]["bad 0"] == 3
    assert found[0][1]["bad 0"] == [0, 2000, 4000]


def test_a_job_that_runs_again_is_in_no_group() -> None:
    errors = _errors((0, "a"), (1, "b"), (2, "a"))
    errors.drop({0, 1})
    assert errors.counts() == {"a": 1}
    errors.add(0, "b")
    assert errors.examples() == {"a": [2], "b": [0]}


def test_groups_follow_their_jobs_to_other_places() -> None:
    errors = _errors((0, "a"), (1, "b"), (2, "a"))
    errors.move({0: 9, 2: 4})
    assert errors.examples() == {"a": [4, 9]}
    assert errors.places("A") == [4, 9]
    assert errors.places("b") == []
