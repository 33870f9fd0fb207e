"""A queue at a glance: the text a person reads and the JSON a program reads."""

from __future__ import annotations

import json
from typing import Any

from qnb.status import as_json, as_line, as_text, is_stuck, summary

NOW = 1_700_000_000_000


def _overview(**changes: Any) -> dict[str, Any]:
    worker = {
        "host": "lab", "pid": 7, "slots": 8, "running": 3, "done": 12_345, "pool": False,
        "started": NOW - 7_200_000, "at": NOW - 4_000,
    }  # fmt: skip
    return {
        "queue": "q", "lanes": {"bulk": 1200, "urgent": 2}, "delayed": 1, "running": 3,
        "workers": {"lab:7:ab": worker}, **changes,
    }  # fmt: skip


def test_the_first_line_says_it_all() -> None:
    assert summary(_overview()) == (
        "queue 'q': 1,202 waiting, 1 delayed, 3 running; 1 worker with 8 slots"
    )
    assert as_text(_overview(), NOW).splitlines()[0] == summary(_overview())
    assert as_line(_overview(), NOW) == f"2023-11-14T22:13:20Z {summary(_overview())}"


def test_lanes_are_shown_in_the_order_in_which_they_are_drained() -> None:
    lines = as_text(_overview(), NOW).splitlines()
    assert lines[2:5] == ["lane    waiting", "urgent        2", "bulk      1,200"]


def test_a_worker_is_shown_with_what_it_said_and_no_more() -> None:
    heads, row = as_text(_overview(), NOW).splitlines()[-2:]
    assert heads.split() == ["worker", "slots", "running", "done", "up", "heard"]
    assert row.split() == ["lab:7:ab", "8", "3", "12,345", "2", "h", "4", "s", "ago"]
    says = _overview()["workers"]["lab:7:ab"] | {"load": 0.5, "memory": 1_234_000_000}
    heads, row = as_text(_overview(workers={"w": says}), NOW).splitlines()[-2:]
    assert {"load", "memory"} < set(heads.split())
    assert "0.50" in row
    assert "1.2 GB" in row


def test_jobs_that_wait_for_nobody_are_a_matter_of_alarm() -> None:
    alone = _overview(workers={})
    assert is_stuck(alone)
    assert summary(alone).endswith("no worker serves it: start one with qnb worker")
    idle = _overview(workers={}, lanes={"default": 0})
    assert not is_stuck(idle)
    assert summary(idle).endswith("0 waiting, 1 delayed, 3 running; no worker")
    assert not is_stuck(_overview())


def test_json_is_one_line_with_totals() -> None:
    said = as_json(_overview(), NOW)
    assert "\n" not in said
    assert json.loads(said) == {**_overview(), "at": NOW, "waiting": 1202, "stuck": False}


def test_nothing_that_a_stranger_has_written_reaches_the_terminal_as_it_is() -> None:
    evil = "\x1b]0;owned\x07\r\n\u202e\x9b2J"
    worker = {"slots": "x", "running": None, "started": evil, "at": [], "memory": evil}
    shown = as_text(_overview(queue=evil, lanes={evil: 1}, workers={evil: worker}), NOW)
    assert all(char.isprintable() for line in shown.split("\n") for char in line)
    assert len(shown.splitlines()) == 7
    assert r"\x1b]0;owned\x07\r\n\u202e\x9b2J" in shown
    assert "naïve ✓" in as_text(_overview(queue="naïve ✓"), NOW)
    assert as_json(_overview(workers={evil: worker, "b": {"env": b"\xff"}}), NOW).isprintable()
