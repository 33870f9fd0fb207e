"""Columns of one dtype each, whatever the rows: of qnb's own figures, and of the user's values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd

__all__ = [
    "MISSING",
    "Column",
    "Missing",
    "booleans",
    "category",
    "encodable",
    "fractions",
    "instants",
    "integers",
    "natural",
    "objects",
    "spans",
    "strings",
    "text",
    "utc",
]

Column: TypeAlias = Any  # an array of one dtype: numpy's or an extension array


class Missing(Enum):
    """The type of :data:`MISSING`."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return self.name


#: stands for a value that does not exist (yet), where ``None`` may be a value
MISSING: Final = Missing.MISSING

_NAT: Final = np.iinfo(np.int64).min  # numpy's "not a time"


# ---- arrays of a given dtype; ``None`` is missing ----


def category(values: Sequence[str | None], order: Sequence[str] | None = None) -> Column:
    if not _encodable(values):
        values = [None if v is None else encodable(v) for v in values]
    names = sorted({v for v in values if v is not None}) if order is None else order
    code: dict[str | None, int] = {name: place for place, name in enumerate(names)}
    code[None] = -1
    dtype = pd.CategoricalDtype(pd.Index(names, dtype=str), ordered=order is not None)
    return pd.Categorical.from_codes([code[v] for v in values], dtype=dtype)


def _filled(values: Sequence[Any], dtype: type, filler: object) -> tuple[Column, Column]:
    """The values as an array with ``filler`` for ``None``, and the mask of those."""
    if None not in values:
        return np.array(values, dtype=dtype), np.zeros(len(values), dtype=np.bool_)
    missing = np.array([v is None for v in values], dtype=np.bool_)
    return np.array([filler if v is None else v for v in values], dtype=dtype), missing


def integers(values: Sequence[int | None]) -> Column:
    return pd.arrays.IntegerArray(*_filled(values, np.int64, 0))


def booleans(values: Sequence[bool | None]) -> Column:
    return pd.arrays.BooleanArray(*_filled(values, np.bool_, False))


def fractions(values: Sequence[float | None]) -> Column:
    return pd.arrays.FloatingArray(*_filled(values, np.float64, 0.0))


def strings(values: Sequence[str | None]) -> Column:
    if not _encodable(values):
        values = [None if v is None else encodable(v) for v in values]
    return pd.array(values, dtype="string")


def encodable(text: str) -> str:
    """``text`` with what UTF-8 cannot say, as in the name of a file that is not, spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _encodable(values: Iterable[str | None]) -> bool:
    try:
        "".join(v for v in values if v).encode()
    except UnicodeEncodeError:
        return False
    return True


def instants(ms: Sequence[int | None]) -> np.ndarray[Any, np.dtype[np.datetime64]]:
    """Epoch milliseconds as ``datetime64[us]``; 0 means never, as ``None`` does."""
    stamps = np.array([v or 0 for v in ms], dtype=np.int64)
    return np.where(stamps == 0, _NAT, stamps * 1000).view("datetime64[us]")


def utc(instants: np.ndarray[Any, np.dtype[np.datetime64]]) -> Column:
    return pd.DatetimeIndex(instants).tz_localize("UTC").array


def spans(us: Sequence[int | None]) -> Column:
    return np.array([_NAT if v is None else v for v in us], dtype=np.int64).view("timedelta64[us]")


def objects(values: Sequence[object]) -> Column:
    column = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):  # a slice assignment would unpack tuples and arrays
        column[row] = value
    return column


def text(values: Sequence[object]) -> Column:
    return strings([None if _is_missing(v) else _repr(v) for v in values])


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - one broken __repr__ must not cost the whole frame
        return f"<{type(value).__qualname__}>"


# ---- columns of the user's values ----

_KINDS: Final = {
    cls: kind
    for kind, classes in {
        "bool": (bool, np.bool_),
        "int": (int, *(np.dtype(code).type for code in "bhilqBHILQ")),
        "float": (float, np.float16, np.float32, np.float64),
        "complex": (complex, np.complex64, np.complex128),
        "str": (str, np.str_),
        "time": (datetime, pd.Timestamp, np.datetime64),
        "span": (timedelta, pd.Timedelta, np.timedelta64),
    }.items()
    for cls in classes
}


_MICROSECONDS: Final = (datetime, timedelta, type(None))  # Timestamps may be finer


def _is_missing(value: object) -> bool:
    return value is MISSING or value is None or value is pd.NA


def natural(values: Sequence[object], *, result: bool = False) -> Column:
    """The values in the narrowest dtype that tells them all, else as objects.

    ``None`` is a value of a parameter (``max_depth=None``), but no result.
    """
    if result:
        values = [v[()] if type(v) is np.ndarray and v.ndim == 0 else v for v in values]
    missing = [_is_missing(v) if result else v is MISSING for v in values]
    kinds = {_KINDS.get(type(v), "") for v, gone in zip(values, missing, strict=True) if not gone}
    if nullable := any(missing):
        values = [None if gone else v for v, gone in zip(values, missing, strict=True)]
    try:
        return _typed(values, kinds, nullable=nullable or result)
    except (OverflowError, ValueError):  # beyond 64 bits, or what a date can hold
        return objects(values)


def _typed(values: Sequence[Any], kinds: set[str], *, nullable: bool) -> Column:
    if kinds == {"bool"}:
        return booleans(values) if nullable else np.array(values, dtype=np.bool_)
    if kinds == {"int"}:
        whole = [None if v is None else int(v) for v in values]
        return integers(whole) if nullable else np.array(whole, dtype=np.int64)
    if kinds and kinds <= {"int", "float"}:
        return _filled(values, np.float64, np.nan)[0]
    if kinds and kinds <= {"int", "float", "complex"}:
        return _filled(values, np.complex128, np.nan)[0]
    if kinds == {"str"} and _encodable(values):
        return pd.Series(values, dtype="string" if nullable else str).array
    if kinds in ({"time"}, {"span"}):
        column = pd.Series(values)
        if column.dtype.kind in "mM" and all(type(v) in _MICROSECONDS for v in values):
            column = column.dt.as_unit("us")
        return column.array
    return objects(values)
