from __future__ import annotations

import itertools
import pickle
from collections import deque
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnb.errors import InvalidOption
from qnb.sweeps.designs import ABSENT, Design, Point, grid, star, zip_, zipped
from qnb.sweeps.spaces import points

_names = st.text("abcdefgh", min_size=1, max_size=3)
_axes = st.dictionaries(_names, st.lists(st.integers(), min_size=1, max_size=5), max_size=4)


def _leaf(axes: dict[str, list[int]], side_by_side: bool) -> tuple[Design, list[Point]]:
    """A grid or columns, and all its points, listed the obvious way."""
    if not side_by_side or not axes:
        rows = itertools.product(*axes.values())
        return grid(**axes), [dict(zip(axes, row, strict=True)) for row in rows]
    shortest = min(map(len, axes.values()))
    axes = {name: values[:shortest] for name, values in axes.items()}
    listed = [dict(zip(axes, row, strict=True)) for row in zip(*axes.values(), strict=True)]
    return zip_(**axes), listed


def _joined(
    one: tuple[Design, list[Point]], other: tuple[Design, list[Point]], crossed: bool
) -> tuple[Design, list[Point]]:
    if crossed and not set(one[0].names) & set(other[0].names):
        return one[0] * other[0], [a | b for a in one[1] for b in other[1]]
    return one[0] + other[0], one[1] + other[1]


_ragged = st.lists(st.dictionaries(_names, st.integers(), max_size=3), max_size=5)
_composed = st.recursive(
    st.builds(_leaf, _axes, st.booleans()) | _ragged.map(lambda given: (points(given), given)),
    lambda spaces: st.builds(_joined, spaces, spaces, st.booleans()),
    max_leaves=5,
).filter(lambda made: len(made[1]) < 5000)


@given(_axes)
def test_a_grid_is_itertools_product_in_the_callers_order(axes: dict[str, list[int]]) -> None:
    expected = [dict(zip(axes, row, strict=True)) for row in itertools.product(*axes.values())]
    design = grid(**axes)
    assert list(design) == expected
    assert [list(point) for point in design] == [list(axes)] * len(expected)
    assert len(design) == len(expected)
    assert design.names == tuple(axes)


@given(_composed, st.integers(-9, 700), st.none() | st.integers(-9, 700))
def test_any_composition_has_the_points_that_listing_them_all_would_give(
    made: tuple[Design, list[Point]], start: int, stop: int | None
) -> None:
    design, expected = made
    size = len(design)
    assert size == len(expected)
    assert list(design) == expected
    some = range(0, size, max(1, size // 50))
    assert [design[i] for i in some] == [expected[i] for i in some]
    assert [design[i - size] for i in some] == [expected[i] for i in some]
    part = expected[start:stop]
    assert design[start:stop] == part
    assert design.calls(start, stop) == [((), point) for point in part]
    columns = design.columns(start, stop, absent="gone")
    assert columns == {n: [p.get(n, "gone") for p in part] for n in design.names}
    assert pickle.loads(pickle.dumps(design)).calls(start, stop) == design.calls(start, stop)


@given(_axes, _axes)
def test_the_product_of_grids_is_the_grid_of_all_their_axes(
    one: dict[str, list[int]], other: dict[str, list[int]]
) -> None:
    other = {name: values for name, values in other.items() if name not in one}
    assert list(grid(**one) * grid(**other)) == list(grid(**one, **other))


def test_iteration_goes_on_past_its_chunks() -> None:
    assert [p["a"] for p in grid(a=range(3000))] == list(range(3000))
    assert len(list(grid())) == 1


def test_a_point_outside_the_design_is_an_index_error() -> None:
    design = grid(a=[1, 2])
    for index in (2, -3):
        with pytest.raises(IndexError, match="of a design of 2"):
            design[index]


def test_a_vast_grid_costs_nothing_until_it_is_asked() -> None:
    million = range(1_000_000)
    design = grid(a=million, b=million, c="x")
    assert len(design) == 10**12
    assert design[10**12 - 1] == {"a": 999_999, "b": 999_999, "c": "x"}
    assert repr(design) == "<Design of 1,000,000,000,000 points: a, b, c>"
    with pytest.raises(InvalidOption, match="shorten an axis"):
        grid(a=million, b=million, c=million, d=million)


@pytest.mark.parametrize(
    "constant",
    ["text", b"bytes", 3, 2.5, None, {"depth": 2}, print, int, np.float64(0.5), np.array(7)],
    ids=repr,
)
def test_what_has_no_values_of_its_own_goes_to_every_point(constant: object) -> None:
    points = list(grid(a=[1, 2], fixed=constant))
    assert [p["a"] for p in points] == [1, 2]
    assert all(p["fixed"] is constant for p in points)
    assert list(zipped(a=[1, 2], fixed=constant)) == points


@pytest.mark.parametrize(
    "axis, values",
    [
        ((1, 2), [1, 2]),
        (range(2), [0, 1]),
        (deque([1, 2]), [1, 2]),
        ((n * n for n in range(3)), [0, 1, 4]),
        ({"x": 1, "y": 2}.values(), [1, 2]),
        (np.arange(2), [0, 1]),
        (np.linspace(0, 1, 3), [0.0, 0.5, 1.0]),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array([True, False]), [True, False]),
        (pd.Index([1, 2]), [1, 2]),
        (pd.Series([1.5, 2.5], index=[7, 8]), [1.5, 2.5]),
        (pd.Categorical(["u", "v"]), ["u", "v"]),
        (pd.date_range("2026-01-01", periods=2), list(pd.date_range("2026-01-01", periods=2))),
        (np.array(["2026-01-01"], "datetime64[ns]"), [np.datetime64("2026-01-01", "ns")]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_axis_may_be_any_sequence_array_or_iterator(axis: Any, values: list[Any]) -> None:
    got = grid(a=axis).columns()["a"]
    assert got == values
    assert [type(v) for v in got] == [type(v) for v in values]  # Python's own numbers


def test_the_rows_of_a_matrix_stay_arrays() -> None:
    rows = grid(w=np.eye(2)).columns()["w"]
    assert [row.shape for row in rows] == [(2,), (2,)]


def test_a_list_changed_later_does_not_change_the_points() -> None:
    axis = [1, 2]
    design = grid(a=axis)
    axis.append(3)
    assert len(design) == 2


def test_a_product_reads_only_what_is_asked_for_however_far_in() -> None:
    far = (grid(a=range(1000)) * zip_(b=range(1000), c=range(1000)) * grid(d=range(10))) + grid(e=1)
    assert len(far) == 10_000_001
    assert far[9_999_999] == {"a": 999, "b": 999, "c": 999, "d": 9}
    assert far[-1] == {"e": 1}
    assert far.columns(9_999_998)["d"] == [8, 9, ABSENT]
    assert far.preview(2) == [{"a": 0, "b": 0, "c": 0, "d": 0}, {"a": 0, "b": 0, "c": 0, "d": 1}]


@pytest.mark.parametrize("make", [grid, lambda **axes: star({"b": 0}, **axes)])
def test_an_axis_without_values_is_refused_by_name(make: Any) -> None:
    with pytest.raises(InvalidOption, match=r"b=\[\]: an axis without values"):
        make(b=[])


def test_columns_without_values_make_an_empty_design_that_knows_its_names() -> None:
    for design in (zip_(a=[], b="x"), zipped([]).named("a")):
        assert (len(design), list(design)) == (0, [])
    assert zip_(a=[], b="x").columns() == {"a": [], "b": []}


@pytest.mark.parametrize(
    "axis, remedy",
    [
        ({3, 1}, r"a=\{1, 3\}: a set has no order.*Pass a=sorted"),
        (frozenset("x"), "sorted"),
        (pd.DataFrame({"u": [1]}), r"a=\[value\] to give a DataFrame to every point"),
        (itertools.count(), "no end after 1,000,000 values"),
    ],
    ids=["set", "frozenset", "frame", "endless"],
)
def test_an_axis_that_could_mean_two_things_is_refused_with_the_remedy(
    axis: object, remedy: str
) -> None:
    for make in (grid, zipped):
        with pytest.raises(InvalidOption, match=f"(?s){remedy}"):
            make(a=axis)


def test_zipped_pairs_values_by_position_and_by_name() -> None:
    design = zipped([1, 2], ["AB", "AB"], scale=np.array([0.5, 1.0]), unit="m")
    assert design.calls() == [
        ((1, "AB"), {"scale": 0.5, "unit": "m"}),
        ((2, "AB"), {"scale": 1.0, "unit": "m"}),
    ]
    assert design.named("x", "label").names == ("x", "label", "scale", "unit")
    assert design.names == ("arg_0", "arg_1", "scale", "unit")
    assert design.named("x").calls() == design.calls()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: zipped(), "at least one list"),
        (lambda: zipped([1, 2], b=[1]), "do not pair up: arg_0 has 2, b has 1"),
        (lambda: zipped([1], "text"), "iterable 2 is 'text'.*pass it by name"),
        (lambda: zipped(3), "iterable 1 is 3"),
        (lambda: zipped([1], arg_0=2), "what the iterables are called"),
        (lambda: zipped([1], x=2).named("x"), "'x' is given twice"),
    ],
    ids=["nothing", "lengths", "text", "number", "taken", "twice"],
)
def test_columns_that_do_not_pair_up_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        make()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: grid(a=1) * grid(b=1, a=2), "'a' is a parameter of both factors"),
        (lambda: grid(a=1) * [1], "both sides must be designs.*qnb.points"),
        (lambda: grid(a=1) + {"a": [1]}, "both sides must be designs"),
        (lambda: zipped([1]) * grid(b=1), "passes values by position"),
        (lambda: grid(b=1) + zipped([1]), "passes values by position"),
        (lambda: grid(**{"learning rate": [1]}), "'learning rate' cannot name a parameter"),
        (lambda: zip_(**{"2d": [1]}), "'2d' cannot name a parameter"),
    ],
)
def test_what_cannot_be_combined_or_named_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        make()


def test_a_star_is_the_centre_once_and_then_one_axis_at_a_time() -> None:
    design = star({"x": 1, "y": "b", "z": None}, y=["a", "b", "c"], x=np.linspace(0, 2, 3))
    assert list(design) == [
        {"x": 1, "y": "b", "z": None},
        {"x": 1, "y": "a", "z": None},
        {"x": 1, "y": "c", "z": None},
        {"x": 0.0, "y": "b", "z": None},
        {"x": 2.0, "y": "b", "z": None},
    ]
    assert design.names == ("x", "y", "z")


@given(
    st.dictionaries(_names, st.tuples(st.integers(0, 9), st.sets(st.integers(0, 9), min_size=1)))
)
def test_a_star_has_a_point_for_each_value_that_is_not_the_centres(
    axes: dict[str, tuple[int, set[int]]],
) -> None:
    center = {name: at for name, (at, _) in axes.items()}
    design = star(center, **{name: sorted(values) for name, (_, values) in axes.items()})
    assert len(design) == 1 + sum(len(values - {at}) for at, values in axes.values())
    assert all(sum(p[n] != center[n] for n in center) == 1 for p in design[1:])


def test_a_star_tells_values_apart_that_a_function_may() -> None:
    assert len(star({"flag": 1}, flag=[True, 1, 1.0])) == 2
    weights = np.ones(2)
    assert len(star({"w": weights}, w=[weights, weights])) == 3  # arrays do not say


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: star({"a": 1}, b=[1], c=[2]), "the centre has no 'b', 'c'"),
        (lambda: star([1], a=[1]), r"center=\[1\]: expected a dict"),
        (lambda: star({"a b": 1}), "'a b' cannot name"),
    ],
)
def test_a_star_without_a_whole_centre_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        make()


def test_a_design_is_shown_as_a_frame() -> None:
    frame = (grid(x=[1, 2], y=["a"]) + points([{"x": 3}])).to_frame()
    assert frame["x"].tolist() == [1, 2, 3]
    assert frame["y"].isna().tolist() == [False, False, True]
