from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnb.errors import InvalidOption
from qnb.sweeps.designs import Design, grid, zipped

_names = st.text("abcdefgh", min_size=1, max_size=3)
_axes = st.dictionaries(_names, st.lists(st.integers(), max_size=5), max_size=4)


@given(_axes)
def test_a_grid_is_itertools_product_in_the_callers_order(axes: dict[str, list[int]]) -> None:
    expected = [dict(zip(axes, row, strict=True)) for row in itertools.product(*axes.values())]
    design = grid(**axes)
    assert list(design) == expected
    assert [list(point) for point in design] == [list(axes)] * len(expected)
    assert len(design) == len(expected)
    assert design.names == tuple(axes)


@given(st.booleans(), _names, st.data())
def test_indexing_slicing_columns_and_calls_agree_with_iteration(
    product: bool, name: str, data: st.DataObject
) -> None:
    design: Design
    if product:
        design = grid(**data.draw(_axes))
    else:
        rows = data.draw(st.lists(st.tuples(st.integers(), st.text()), max_size=8))
        design = zipped([a for a, _ in rows], **{name: [b for _, b in rows], "z": 1})
    points = list(design)
    size = len(design)
    start, stop = data.draw(st.integers(-9, 700)), data.draw(st.none() | st.integers(-9, 700))
    assert [design[i] for i in range(size)] == points
    assert [design[i - size] for i in range(size)] == points
    assert design[start:stop] == points[start:stop]
    part = points[start:stop]
    assert design.columns(start, stop) == {n: [p[n] for p in part] for n in design.names}
    by_place, by_name = design.names[: design.positional], design.names[design.positional :]
    assert design.calls(start, stop) == [
        (tuple(p[n] for n in by_place), {n: p[n] for n in by_name}) for p in part
    ]


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
    assert repr(design) == "<Grid of 1,000,000,000,000 points: a, b, c>"
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


def test_an_axis_without_values_makes_an_empty_design_that_knows_its_names() -> None:
    design = grid(a=[], b=[1, 2])
    assert (len(design), list(design)) == (0, [])
    assert design.columns() == {"a": [], "b": []}


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
