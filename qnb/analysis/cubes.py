"""A sweep's frame by its parameters: as a cube with named axes (xarray), or as a table of two."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from qnb.analysis.values import LazyValue
from qnb.errors import InvalidOption
from qnb.options import hint

if TYPE_CHECKING:
    import xarray as xr

    Dataset: TypeAlias = xr.Dataset  # for those who may not name xarray

__all__ = ["pivot", "to_xarray"]

#: a cube with so many times more cells than points is refused, if it is not small
SPARSEST = 20
SMALL = 100_000


def to_xarray(
    frame: pd.DataFrame, *axes: str, values: str | Sequence[str] | None = None
) -> Dataset:
    """The results of a sweep's frame as an ``xarray.Dataset``.

    Its dimensions are ``axes``: by default the parameters that vary, in their order, each with its
    values in the order of the points (``.sortby(...)`` sorts). Parameters that do not vary are
    scalar coordinates, other parameters variables beside the results. ``values`` names the columns
    to take; by default the results. Where a point is missing there is NaN. Arrays of one shape get
    dimensions of their own, ``<column>_0`` and on; large values are loaded.
    """
    try:
        import xarray as xr
    except ImportError:
        raise InvalidOption("to_xarray() needs xarray: pip install 'qnb[xarray]'") from None
    flat = _flat(frame)
    parameters = [name for name in frame.attrs.get("parameters", ()) if name in flat]
    varying = [name for name in parameters if _count(flat[name]) > 1]
    dims = _known(flat, axes) if axes else varying
    if not dims and len(flat) > 1:
        raise InvalidOption(
            "to_xarray() found no parameter that varies: name the columns that tell the points "
            "apart, as in to_xarray('x', 'y')"
        )
    codes, labels = _coordinates(flat, dims)
    shape = tuple(len(values) for values in labels)
    _check_cells(dims, shape, len(flat))
    where = _places(
        flat, dims, codes, shape,
        "name all parameters that vary, or keep one row of each, as in "
        f"frame.drop_duplicates({list(dims)!r})",
    )  # fmt: skip
    chosen = [values] if isinstance(values, str) else values
    beside = [name for name in varying if name not in dims]
    results = _known(flat, chosen) if chosen is not None else _results(frame, flat, parameters)
    variables = {
        name: _variable(name, flat[name], dims, where, shape)
        for name in [*results, *beside]
        if name not in dims
    }
    constants = {
        name: value for name in parameters if name not in (*varying, *dims)
        for value in flat[name].iloc[:1] if np.ndim(value) == 0
    }  # fmt: skip
    coords = {
        **{name: (name, found) for name, found in zip(dims, labels, strict=True)},
        **constants,
    }
    about = {key: frame.attrs[key] for key in ("sweep",) if key in frame.attrs}
    return xr.Dataset(variables, coords=coords, attrs=about)


def pivot(frame: pd.DataFrame, index: str, columns: str, values: str | None = None) -> pd.DataFrame:
    """A table of one column's ``values``: a row for each of ``index``, a column for each of
    ``columns``. By default of the only result.
    """
    flat = _flat(frame)
    _known(flat, [index, columns])
    if index == columns:
        raise InvalidOption(f"pivot() lays out two columns, not {index!r} twice: name another one")
    if values is None:
        results = [name for name in frame.attrs.get("results", ()) if name in flat]
        if len(results) != 1:
            raise InvalidOption(
                f"pivot() shows one column, and the results are {_listed(results)}: choose one "
                "with values="
            )
        [values] = results
    _known(flat, [values])
    codes, labels = _coordinates(flat, [index, columns])
    _places(
        flat, [index, columns], codes, tuple(map(len, labels)),
        "choose rows of which there is one each, or show their mean: "
        f"frame.pivot_table({values!r}, {index!r}, {columns!r})",
    )  # fmt: skip
    return flat.pivot(index=index, columns=columns, values=values)


# ---- which columns ----


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its index as a column, if that has a name of its own."""
    name = frame.index.name
    return frame.reset_index() if name is not None and name not in frame else frame


def _known(flat: pd.DataFrame, names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in flat:
            known = [str(column) for column in flat.columns]
            raise InvalidOption(
                f"the frame has no column {name!r}.{hint(str(name), known)} "
                f"Columns: {_listed(known)}"
            )
    return list(names)


def _results(frame: pd.DataFrame, flat: pd.DataFrame, parameters: Sequence[str]) -> list[str]:
    if "results" not in frame.attrs:
        raise InvalidOption(
            "this frame does not say which columns are results, as sweep.frame() does: name them "
            "with values="
        )
    return [name for name in frame.attrs["results"] if name in flat and name not in parameters]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


# ---- where each point lies ----


def _key(value: object) -> Hashable:
    """What tells a parameter's value from another one; arrays and lists by what they show."""
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return type(value).__name__, value


def _count(column: pd.Series[Any]) -> int:
    return len({_key(value) for value in column})


def _coordinates(
    flat: pd.DataFrame, dims: Sequence[str]
) -> tuple[list[np.ndarray[Any, Any]], list[Any]]:
    """Of each dimension: the place of every row in it, and its values."""
    codes, labels = [], []
    for name in dims:
        place: dict[Hashable, int] = {}
        rows = [place.setdefault(_key(value), len(place)) for value in flat[name]]
        firsts = pd.Series(rows).drop_duplicates().index
        codes.append(np.array(rows, dtype=np.intp))
        labels.append(_plain(flat[name].iloc[firsts]))
    return codes, labels


def _check_cells(dims: Sequence[str], shape: Sequence[int], points: int) -> None:
    cells = math.prod(shape)
    if cells > SMALL and cells > SPARSEST * points:
        raise InvalidOption(
            f"{points:,} points would fill {points / cells:.2g} of a cube over {_listed(dims)} "
            f"({' × '.join(f'{n:,}' for n in shape)} cells): name the axes that they lie on, as "
            f"in to_xarray({dims[0]!r}), or to_xarray('task_id') for points in no order"
        )


def _places(
    flat: pd.DataFrame, dims: Sequence[str], codes: Sequence[Any], shape: tuple[int, ...],
    remedy: str,
) -> np.ndarray[Any, Any]:  # fmt: skip
    """The cell of every row; two rows in one cell are refused, and ``remedy`` named."""
    where = np.zeros(len(flat), dtype=np.int64)
    for code, size in zip(codes, shape, strict=True):
        where = where * size + code
    order = np.sort(where)
    if (order[1:] == order[:-1]).any():
        [at] = np.flatnonzero(pd.Series(where).duplicated(keep="first"))[:1]
        [row] = flat[list(dims)].iloc[[at]].astype(object).to_dict("records")  # numbers as written
        point = ", ".join(f"{name}={value!r}" for name, value in row.items())
        raise InvalidOption(f"more than one row has {point}: {remedy}")
    return where


# ---- arrays ----


def _plain(column: pd.Series[Any]) -> np.ndarray[Any, Any]:
    """A column as an array that xarray takes as it is: NaN for NA, times in UTC."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return np.asarray(column.dt.tz_convert(None))
    if column.dtype.kind in "iuf":
        whole = column.dtype.kind != "f" and not column.hasnans
        return (
            column.to_numpy(dtype="int64") if whole else column.to_numpy("float64", na_value=np.nan)
        )
    if column.dtype.kind == "b" and not column.hasnans:
        return column.to_numpy(dtype="bool")
    if column.dtype.kind in "mMc":
        return np.asarray(column)
    return column.to_numpy(dtype=object, na_value=np.nan)


def _variable(
    name: str, column: pd.Series[Any], dims: Sequence[str], where: Any, shape: tuple[int, ...]
) -> tuple[list[str], np.ndarray[Any, Any]]:
    """The dimensions and the cells of one column."""
    if column.dtype == object:
        column = column.map(lambda v: v.get() if isinstance(v, LazyValue) else v)
        given = [None if _lacks(value) else _array(value) for value in column]
        shapes = {array.shape for array in given if array is not None}
        if len(shapes) == 1 and shapes != {()}:
            [inner] = shapes
            stacked = _stacked(given, inner)
            names = [f"{name}_{axis}" for axis in range(len(inner))]
            return [*dims, *names], _spread(stacked, where, shape)
    return list(dims), _spread(_plain(column), where, shape)


def _array(value: object) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(value)
    except ValueError:  # lists of several lengths
        return np.array(None)


def _lacks(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _stacked(given: Sequence[Any], inner: tuple[int, ...]) -> np.ndarray[Any, Any]:
    kind = np.result_type(*(array for array in given if array is not None))
    if any(array is None for array in given):
        kind = np.result_type(kind, np.float64) if kind.kind in "biuf" else kind
        gap = np.full(inner, _filler(kind), dtype=kind if kind.kind in "fcmM" else object)
        given = [gap if array is None else array for array in given]
    return np.stack(given)


def _filler(kind: Any) -> Any:
    return np.array("NaT", dtype=kind) if kind.kind in "mM" else np.nan


def _spread(
    cells: np.ndarray[Any, Any], where: Any, shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """Rows put into their cells; where none belongs, NaN."""
    total, kind = math.prod(shape), cells.dtype
    if total > len(cells) and kind.kind not in "fcmM":
        kind = np.dtype(np.float64 if kind.kind in "iu" else object)
    spread = np.empty((total, *cells.shape[1:]), dtype=kind)
    if total > len(cells):
        spread[...] = _filler(kind)
    spread[where] = cells
    return spread.reshape((*shape, *cells.shape[1:]))
