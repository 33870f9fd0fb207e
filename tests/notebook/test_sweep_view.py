"""What the view of a sweep answers to those who look closer, of real sweeps."""

from __future__ import annotations

import gc
import json
import math
import struct
import weakref
import zlib
from collections.abc import Callable
from typing import Any

import pytest

import qnb
from qnb.notebook.sweep_view import renderer

Wait = Callable[..., Any]


def _ask(sweep: Any, kind: str, **asked: Any) -> dict[str, Any]:
    """The answer, as a page gets it: nothing in it that JSON does not have."""
    words, buffers = renderer.answer(sweep, {"ask": kind, **asked})
    json.dumps(words, allow_nan=False)
    return {**words, "buffers": buffers}


def _rows(sweep: Any, **asked: Any) -> list[int]:
    return [row["place"] for row in _ask(sweep, "rows", **asked)["rows"]]


def _row(sweep: Any, place: int) -> dict[str, str]:
    answer = _ask(sweep, "rows", offset=place, limit=1)
    names = [column["name"] for column in answer["head"]]
    assert len(names) == len(set(names)), "two columns of one name"
    return dict(zip(names, answer["rows"][0]["cells"], strict=True))


def _heat(sweep: Any, **asked: Any) -> tuple[dict[str, Any], list[float | None]]:
    answer = _ask(sweep, "heat", **asked)
    values = struct.unpack(f"<{answer['of']}f", answer["buffers"][0])
    return answer, [None if math.isnan(value) else round(value, 4) for value in values]


@pytest.fixture
def fitted(serving: qnb.App) -> Any:
    """3 × 2 jobs that have ended; the one in the middle of ``b=20`` has failed."""

    @serving.task
    def fit(a: int, b: int) -> dict[str, Any]:
        if (a, b) == (2, 20):
            raise ValueError("no luck")
        return {"loss": a + b / 100, "kind": "good" if a > 1 else "poor"}

    return fit.grid(a=[1, 2, 3], b=[10, 20]).wait(10)


def test_the_columns_are_the_parameters_and_what_the_results_hold(fitted: Any) -> None:
    answer = _ask(fitted, "columns")
    assert answer["parameters"] == [
        {"name": "a", "kind": "number", "distinct": 3},
        {"name": "b", "kind": "number", "distinct": 2},
    ]
    assert answer["results"] == [
        {"name": "kind", "kind": "text"}, {"name": "loss", "kind": "number"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "filters, places",
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"a": ">1", "b": "10"}, [2, 4]),
        ({"a": "1..2"}, [0, 1, 2, 3]),
        ({"loss": "<=2.1"}, [0, 1, 2]),
        ({"state": "fail"}, [3]),
        ({"error": "LUCK"}, [3]),
        ({"a": ">3"}, []),
    ],
)
def test_filters_keep_the_jobs_that_match(
    fitted: Any, filters: dict[str, str], places: list[int]
) -> None:
    assert _rows(fitted, filters=filters) == places


def test_a_table_is_sorted_with_what_is_unknown_last_and_turned_by_pages(fitted: Any) -> None:
    assert _rows(fitted, sort="loss") == [0, 1, 2, 4, 5, 3]
    assert _rows(fitted, sort="loss", descending=True) == [5, 4, 2, 1, 0, 3]
    assert _rows(fitted, sort="loss", offset=2, limit=2) == [2, 4]
    assert _rows(fitted, offset=99) == []


def test_a_heat_map_has_a_value_for_each_pair_and_gaps_where_none_is(fitted: Any) -> None:
    answer, values = _heat(fitted, x="a", y="b", value="loss")
    assert (answer["x"], answer["y"], answer["filled"]) == (["1", "2", "3"], ["10", "20"], 5)
    assert values == [1.1, 2.1, 3.1, 1.2, None, 3.2]
    answer, values = _heat(fitted, x="b", y=None, value="loss")
    assert values == [2.1, 2.2]
    assert answer["mean_of"] == 3


def test_colours_span_the_values_and_leave_out_what_is_unknown(fitted: Any) -> None:
    answer = _ask(fitted, "colour", column="loss")
    levels = zlib.decompress(answer["buffers"][0])
    assert (answer["low"], answer["high"], answer["known"]) == (1.1, 3.2, 5)
    assert (levels[0], levels[3], levels[5]) == (1, 0, 255)


def test_a_job_is_told_with_its_values_and_where_it_failed(fitted: Any) -> None:
    job = _ask(fitted, "job", place=3)
    assert (job["word"], job["parameters"]) == ("failed", [["a", "2"], ["b", "20"]])
    assert job["error"] == "ValueError('no luck')"
    assert 'raise ValueError("no luck")' in job["frames"]
    assert _ask(fitted, "job", place=0, brief=True)["value"] == "loss=1.1, kind=poor"


@pytest.mark.parametrize(
    "asked",
    [
        {"ask": "secrets"},
        {"ask": ["rows"]},
        {"ask": "job", "place": 6},
        {"ask": "job", "place": True},
        {"ask": "rows", "limit": 10**9},
        {"ask": "rows", "filters": {"a": "__import__('os')"}},
        {"ask": "rows", "sort": "__class__"},
        {"ask": "colour", "column": "nothing"},
        {"ask": "heat", "x": "loss", "y": "a", "value": "loss"},
    ],
    ids=str,
)
def test_what_a_page_must_not_ask_is_refused(fitted: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"there are|expected|no question"):
        renderer.answer(fitted, asked)


def test_what_runs_again_is_read_again_though_nobody_looked_meanwhile(serving: qnb.App) -> None:
    runs: list[int] = []

    @serving.task
    def f(x: int) -> int:
        runs.append(x)
        if x == 1 and runs.count(1) == 1:
            raise ValueError("the first time")
        return 10 * runs.count(x) + x

    sweep = f.map(range(3)).wait(10)
    assert _heat(sweep, x="x", value="value")[1] == [10, None, 12]
    assert sweep.retry([sweep[0].id, sweep[1].id]).result(10) == 2
    sweep.wait(10)
    assert _heat(sweep, x="x", value="value")[1] == [20, 21, 12]
    assert _row(sweep, 1)["error"] == ""


def test_points_that_are_added_have_their_place_at_once(fitted: Any) -> None:
    _heat(fitted, x="a", y="b", value="loss")
    assert fitted.extend(b=[5]).result(10) == 3
    fitted.wait(10)
    answer, values = _heat(fitted, x="a", y="b", value="loss")
    assert answer["y"] == ["5", "10", "20"]
    assert values == [1.05, 2.05, 3.05, 1.1, 2.1, 3.1, 1.2, None, 3.2]


def test_names_that_clash_stay_apart(serving: qnb.App) -> None:
    @serving.task
    def f(x: int, state: str) -> dict[str, Any]:
        return {"x": 7.0, "error": 0.25, "place": 3, "duration": 99}

    sweep = f.grid(x=[1, 2], state=["a", "b"]).wait(10)
    names = {column["name"] for column in _ask(sweep, "columns")["results"]}
    assert names == {"x_result", "error_result", "place_result", "duration_result"}
    row = _row(sweep, 3)
    assert (row["x"], row["x_result"], row["error_result"], row["error"]) == ("2", "7", "0.25", "")
    assert (row["place"], row["state"], row["state_parameter"]) == ("3", "done", "b")
    assert _rows(sweep, filters={"state_parameter": "b", "state": "done"}) == [1, 3]


def test_none_is_a_value_like_others(serving: qnb.App) -> None:
    @serving.task
    def f(depth: int | None, penalty: str | None) -> int:
        return depth or 0

    sweep = f.grid(depth=[None, 2, 3], penalty=[None, "l1"]).wait(10)
    answer, values = _heat(sweep, x="depth", y="penalty", value="value")
    assert (answer["x"], answer["y"]) == (["2", "3", "None"], ["None", "l1"])
    assert values == [2, 3, 0, 2, 3, 0]
    assert _ask(sweep, "job", place=0)["parameters"] == [["depth", "None"], ["penalty", "None"]]
    assert _rows(sweep, filters={"penalty": "none"}) == [0, 2, 4]


ODD: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, 1e308, -1e308, 10**400, 10**5000, 1 + 2j, None, b"\0", "<b>",
    {"value": {"deep": [1]}}, {1: 2}, {}, [[]],
)  # fmt: skip


def test_values_of_any_kind_are_words_or_numbers_that_json_has(serving: qnb.App) -> None:
    @serving.task
    def f(n: int) -> Any:
        return ODD[n]

    sweep = f.map(range(len(ODD))).wait(10)
    assert sweep.snapshot().counts["done"] == len(ODD)
    assert [_row(sweep, place)["value"] for place in (0, 1, 7, 10)] == [
        "nan",
        "inf",
        "(1+2j)",
        "<b>",
    ]
    assert len(_row(sweep, 6)["value"]) < 120
    assert _ask(sweep, "colour", column="value")["known"] == 2
    assert _heat(sweep, x="n", value="value")[0]["filled"] == 2
    for place in range(len(ODD)):
        assert _ask(sweep, "job", place=place)["word"] == "done"


def test_parameters_of_any_kind_are_axes(serving: qnb.App) -> None:
    @serving.task
    def f(x: Any, y: Any) -> int:
        return 1

    xs = [*range(1_000_000, 1_000_201), math.inf, math.nan, None]
    sweep = f.zip(x=xs, y=["a"] * len(xs)).wait(20)
    assert len(_heat(sweep, x="x", value="duration")[0]["x"]) == 200
    few = f.grid(x=[1_000_001, 1_000_002, math.inf], y=[10**400, 1j, None, True]).wait(10)
    answer, _ = _heat(few, x="x", y="y", value="value")
    assert answer["x"] == ["1000001", "1000002", "inf"]
    assert answer["filled"] == 12


def test_a_sweep_that_nobody_holds_is_let_go_though_it_was_asked_about(serving: qnb.App) -> None:
    @serving.task
    def f(x: int) -> int:
        return x

    sweep = f.map(range(2)).wait(10)
    _ask(sweep, "columns")
    gone = weakref.ref(sweep)
    del sweep
    gc.collect()
    assert gone() is None


def test_a_finished_sweep_leaves_the_same_card_in_every_kernel(
    serving: qnb.App, server_url: str, queue: str
) -> None:
    @serving.task
    def f(x: int) -> int:
        if x % 3:
            raise ValueError(f"no luck with {x}")
        return x

    sweep = f.map(reversed(range(120))).wait(10)
    cards = [renderer.card(sweep.snapshot())]  # of the kernel that ran its cell
    for _ in range(2):
        app = qnb.App(server_url, queue)
        cards.append(renderer.card(app.sweep(sweep.name).wait(10).snapshot()))
        app.close()
    assert cards[1:] == cards[:1] * 2
    assert "120 of 120 finished" in cards[0]
    assert "and 75 more kinds of error" in cards[0]
