from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats
from sklearn.model_selection import ParameterGrid, ParameterSampler

from qnb.errors import InvalidOption
from qnb.sweeps.designs import Design, grid
from qnb.sweeps.spaces import Stream, points, rows, space_of, starmap


def test_points_are_taken_as_they_are_and_may_lack_a_parameter() -> None:
    given = [{"a": 1, "layers": [64, 32]}, {"a": 2, "b": None}]
    design = points(given)
    assert list(design) == given
    assert design.names == ("a", "layers", "b")
    assert design.calls(1) == [((), {"a": 2, "b": None})]
    given[0]["a"] = 9
    assert design[0]["a"] == 1
    assert (len(points([])), points([]).columns()) == (0, {})


def test_starmap_passes_tuples_by_position_and_leaves_short_ones_to_defaults() -> None:
    design = starmap(pair for pair in [(1, "ab"), (2,)])
    assert design.calls() == [((1, "ab"), {}), ((2,), {})]
    assert list(design.named("x", "label")) == [{"x": 1, "label": "ab"}, {"x": 2}]
    arrays = starmap(np.array([[1, 2], [3, 4]])).calls()
    assert arrays == [((1, 2), {}), ((3, 4), {})]
    assert {type(value) for args, _ in arrays for value in args} == {int}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: points({"a": [1, 2]}), r"qnb.grid\(\*\*lists\)"),
        (lambda: points([{"a": 1}, (2,)]), r"point 1 is \(2,\): expected a dict.*starmap"),
        (lambda: points([{"a": 1}, {"a b": 1}]), r"'a b' cannot name a parameter.*in point 1"),
        (lambda: points(itertools.repeat({"a": 1})), "no end after 1,000,000.*task.sweep"),
        (lambda: starmap([1, 2]), r"row 0 is 1: expected a tuple.*task.map"),
        (lambda: starmap([(1,), "ab"]), "row 1 is 'ab'"),
        (lambda: starmap([{"a": 1}]), r"task.sweep\(points\)"),
        (lambda: starmap("ab"), "rows='ab'"),
    ],
)
def test_points_and_rows_of_the_wrong_kind_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        make()


# ---- frames ----


def test_the_rows_of_a_frame_keep_their_index_and_give_plain_values() -> None:
    frame = pd.DataFrame(
        {
            "n": [1, 2, 3],
            "x": [0.5, float("inf"), 1.5],
            "kind": pd.Categorical(["u", "v", "u"]),
            "day": pd.date_range("2026-01-01", periods=3),
            "shape": [(1, 2), [3], None],
        },
        index=pd.Index(["r1", "r2", "r3"], name="run"),
    )
    design = rows(frame[frame.n != 2])
    assert design[1] == {
        "n": 3, "x": 1.5, "kind": "u", "day": pd.Timestamp("2026-01-03"), "shape": None
    }  # fmt: skip
    assert {type(point["n"]) for point in design} == {int}
    assert design.labels == {"run": ("r1", "r3")}
    assert rows(frame, ["x", "n"]).names == ("x", "n")
    assert rows(frame.reset_index(drop=True)).labels == {"index": (0, 1, 2)}
    assert rows(frame.set_index(["n", "x"], drop=False)[["n"]]).labels["n"] == (1, 2, 3)


def test_an_empty_frame_is_a_design_without_points() -> None:
    design = rows(pd.DataFrame({"a": [1]}).iloc[:0])
    assert (len(design), design.names) == (0, ("a",))


def test_the_rows_of_an_arrow_table_are_points() -> None:
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    expected = [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    assert list(rows(table)) == list(space_of(table)) == expected


def test_polars_frames_and_series_serve() -> None:
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    assert list(rows(frame)) == list(space_of(frame)) == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    assert list(grid(a=frame["a"])) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: rows([{"a": 1}]), r"not a table.*qnb.points\(dicts\)"),
        (lambda: rows({"a": [1]}), r"not a table.*qnb.zip\(\*\*lists\)"),
        (lambda: rows(pd.DataFrame({"a b": [1]})), "'a b' cannot name.*Rename the column"),
        (lambda: rows(pd.DataFrame([[1, 2]])), "0 cannot name a parameter"),
        (lambda: rows(pd.DataFrame([[1, 2]], columns=["a", "a"])), "column 'a' is there twice"),
        (lambda: rows(pd.DataFrame({"beta": [1]}), ["bta"]), "no 'bta'. Did you mean 'beta'"),
        (lambda: rows(pd.DataFrame({"a": [1]}), "a"), "columns='a': expected a list"),
    ],
)
def test_a_frame_whose_columns_cannot_be_arguments_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        make()


# ---- whatever describes points ----


def test_scikit_learns_grids_and_samplers_are_points() -> None:
    searched = {"C": [1, 10], "hidden": [(50,), (50, 50)], "kernel": ["rbf"]}
    assert list(space_of(ParameterGrid(searched))) == list(ParameterGrid(searched))
    union = ParameterGrid([searched, {"C": [0.1]}])
    assert list(space_of(union)) == list(union)
    sampler = ParameterSampler({"C": stats.uniform(0, 1), "k": [1, 2]}, n_iter=5, random_state=0)
    assert list(space_of(sampler)) == list(sampler)


@pytest.mark.parametrize(
    "given, expected",
    [
        (grid(a=[1, 2]), [{"a": 1}, {"a": 2}]),
        ({"a": [1, 2], "b": "x"}, [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]),
        ([{"a": 1}, {"b": "text"}], [{"a": 1}, {"b": "text"}]),
        ([{"a": [1, 2]}, {"b": (3,), "c": range(1)}], [{"a": 1}, {"a": 2}, {"b": 3, "c": 0}]),
        ({"x": {"a": 1}, "y": {"a": 2}}.values(), [{"a": 1}, {"a": 2}]),
        (pd.DataFrame({"a": [1, 2]}), [{"a": 1}, {"a": 2}]),
        ([], []),
    ],
    ids=["design", "dict of lists", "dicts", "dicts of lists", "view", "frame", "nothing"],
)
def test_what_describes_points_is_understood(given: Any, expected: list[Any]) -> None:
    space = space_of(given)
    assert isinstance(space, Design)
    assert list(space) == expected


@pytest.mark.parametrize(
    "given, message",
    [
        ([{"lr": 0.1, "layers": [64]}], r"points or grids\?.*layers=\[64\] in item 0.*qnb.points"),
        ([{"a": [1]}, {"a": 1}], r"a=1 in item 1"),
        ([{"a": [1]}, {"b c": [1]}], "'b c' cannot name"),
        ({"a b": [1]}, "'a b' cannot name"),
        ([(1, 2)], r"point 0 is \(1, 2\).*task.starmap"),
        (np.arange(3), "point 0 is.*task.map"),
        (7, "7 describes no points: expected qnb.grid"),
        ("abc", "'abc' describes no points"),
        (grid, "describes no points"),
    ],
    ids=str,
)
def test_what_describes_no_points_is_refused_with_the_ways_to_say_it(
    given: Any, message: str
) -> None:
    with pytest.raises(InvalidOption, match=message):
        space_of(given)


# ---- streams ----


def test_a_generator_is_streamed_a_chunk_at_a_time_and_never_listed() -> None:
    asked = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal asked
        for asked in itertools.count(1):
            yield {"n": asked}

    stream = space_of(endless())
    assert isinstance(stream, Stream)
    assert stream.preview(2) == [{"n": 1}, {"n": 2}]
    assert stream.preview(1) == [{"n": 1}]
    chunks = stream.chunks(3)
    assert [list(next(chunks)) for _ in range(2)] == [
        [{"n": 1}, {"n": 2}, {"n": 3}],
        [{"n": 4}, {"n": 5}, {"n": 6}],
    ]
    assert (asked, stream.taken, stream.ended) == (6, 6, False)
    assert repr(stream) == "<Stream of 6 points so far>"


def test_a_stream_knows_its_length_at_its_end_and_can_be_gone_on_with() -> None:
    stream = Stream({"n": n} for n in range(5))
    assert len(next(stream.chunks(2))) == 2
    assert [len(chunk) for chunk in stream.chunks(2)] == [2, 1]
    assert (stream.taken, stream.ended) == (5, True)
    assert list(stream.chunks(2)) == []


def test_a_bad_point_of_a_stream_is_named_by_its_place_in_the_whole() -> None:
    stream = Stream(iter([{"n": 1}, {"n": 2}, 3]))  # type: ignore[list-item]
    chunks = stream.chunks(2)
    next(chunks)
    with pytest.raises(InvalidOption, match="point 2 is 3: expected a dict"):
        next(chunks)
    with pytest.raises(InvalidOption, match="size=0"):
        next(stream.chunks(0))
