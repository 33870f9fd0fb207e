"""A sweep's frame by its parameters: cubes and pivots."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qnb.analysis.columns import MISSING
from qnb.analysis.cubes import pivot, to_xarray
from qnb.analysis.frames import sweep_frame
from qnb.errors import InvalidOption
from qnb.models import Ending, JobState
from qnb.storage.rows import Row


def _sweep(values: Sequence[object], **points: Sequence[object]) -> pd.DataFrame:
    rows = [
        Row(f"s.{number}", ending=Ending.DONE, status=JobState.COMPLETE, start=1, finish=1 + number)
        for number in range(len(values))
    ]
    return sweep_frame("s", points, rows, values)


#: x varies slowest, as in grid(x=[2, 1], y=["a", "b", "c"], k=5)
GRID: dict[str, Any] = {"x": [2, 2, 2, 1, 1, 1], "y": list("abcabc"), "k": [5] * 6}


def test_dims_are_the_parameters_that_vary_and_coords_their_values() -> None:
    values = [{"score": i / 2, "n": i, "ok": i > 2, "name": str(i)} for i in range(6)]
    cube = to_xarray(_sweep(values, **GRID))
    assert dict(cube.sizes) == {"x": 2, "y": 3}
    assert list(cube.data_vars) == ["score", "n", "ok", "name"]
    assert cube["x"].values.tolist() == [2, 1]
    assert cube["y"].values.tolist() == ["a", "b", "c"]
    assert cube["k"].item() == 5
    assert cube["n"].dtype == np.int64
    assert cube["ok"].dtype == np.bool_
    assert cube["score"].sel(x=1, y="b").item() == 2.0
    assert cube["name"].sel(x=2, y="c").item() == "2"
    assert cube.attrs == {"sweep": "s"}


def test_what_is_missing_is_nan_whether_it_has_no_result_or_no_point() -> None:
    frame = _sweep([0, 1, MISSING, 3, 4, 5], **GRID)
    cube = to_xarray(frame.iloc[:5])["value"]
    assert np.isnan(cube.sel(x=2, y="c"))
    assert np.isnan(cube.sel(x=1, y="c"))
    assert cube.sel(x=1, y="b") == 4


def test_arrays_of_one_shape_get_dims_of_their_own() -> None:
    values: list[object] = [np.full((2, 4), i, dtype=np.float32) for i in range(6)]
    values[4] = MISSING
    cube = to_xarray(_sweep(values, **GRID))["value"]
    assert dict(cube.sizes) == {"x": 2, "y": 3, "value_0": 2, "value_1": 4}
    assert cube.sel(x=1, y="a").values.tolist() == [[3.0] * 4] * 2
    assert np.isnan(cube.sel(x=1, y="b")).all()


def test_arrays_of_several_shapes_stay_objects() -> None:
    for odd in (np.zeros(1), [[1], [2, 3]]):
        cube = to_xarray(_sweep([odd, np.zeros(2)], a=[1, 2]))["value"]
        assert cube.dims == ("a",)
        assert cube.sel(a=2).item().shape == (2,)


def test_parameters_side_by_side_become_variables_along_the_axis_that_is_named() -> None:
    frame = _sweep([10, 20, 30], a=[1, 2, 3], b=[0.1, 0.2, 0.3])
    cube = to_xarray(frame, "a")
    assert cube["b"].dims == cube["value"].dims == ("a",)
    assert to_xarray(frame, "a", values="duration")["duration"].dtype.kind == "m"
    assert to_xarray(frame, "task_id")["value"].sel(task_id="s.1") == 20


def test_a_cube_that_would_be_nearly_empty_is_refused() -> None:
    numbers = list(range(1000))
    frame = _sweep(numbers, a=numbers, b=numbers)
    with pytest.raises(InvalidOption, match=r"1,000 points would fill 0\.001 of a cube over 'a'"):
        to_xarray(frame)
    assert to_xarray(frame, "a")["value"].shape == (1000,)


def test_two_rows_in_one_place_are_refused_by_cube_and_pivot() -> None:
    frame = _sweep([1, 2, 3], a=[1, 1, 2], b=[1, 2, 1])
    with pytest.raises(InvalidOption, match=r"more than one row has a=1: .*drop_duplicates"):
        to_xarray(frame, "a")
    frame = _sweep([1, 2], lr=[0.1, 0.1], depth=[3, 3], kind=["a", "b"])
    with pytest.raises(InvalidOption, match=r"has lr=0\.1, depth=3: .*'value', 'lr', 'depth'\)"):
        pivot(frame, "lr", "depth")
    assert frame.pivot_table("value", "lr", "depth").to_numpy() == [[1.5]]  # what it advises


def test_a_pivot_takes_two_columns() -> None:
    with pytest.raises(InvalidOption, match=r"not 'x' twice"):
        pivot(_sweep(range(6), **GRID), "x", "x")


def test_unknown_columns_are_refused_with_the_known_ones() -> None:
    frame = _sweep([1, 2], depth=[1, 2])
    with pytest.raises(InvalidOption, match=r"no column 'dept'\. Did you mean 'depth'\?"):
        to_xarray(frame, "dept")
    with pytest.raises(InvalidOption, match="does not say which columns are results"):
        to_xarray(pd.DataFrame({"a": [1]}), "a")
    with pytest.raises(InvalidOption, match="results are 'u', 'v': choose one with values="):
        pivot(_sweep([{"u": 1, "v": 2}], a=[1], b=[2]), "a", "b")


def test_an_unfinished_or_empty_sweep_has_its_cube() -> None:
    assert to_xarray(_sweep([MISSING, MISSING], a=[1, 2]))["value"].isnull().all()
    assert to_xarray(_sweep([7], a=[1]))["value"].item() == 7
    assert to_xarray(_sweep([], a=[]), "a")["value"].shape == (0,)


def test_without_xarray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(InvalidOption, match=r"pip install 'qnb\[xarray\]'"):
        to_xarray(_sweep([1], a=[1]))


def test_a_pivot_is_a_table_of_two_parameters() -> None:
    table = pivot(_sweep(range(6), **GRID), "y", "x")
    assert table.loc["b"].to_dict() == {1: 4, 2: 1}
    assert pivot(_sweep(range(6), **GRID), "x", "y", "tries").isna().all(axis=None)
