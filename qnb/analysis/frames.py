"""Jobs and sweeps as pandas DataFrames: the only user of pandas.

Every bookkeeping column has one dtype, whatever the rows: an empty frame, a running sweep and a
finished one can be concatenated, compared and written to the same file. Times are the server's,
in microseconds, so that nothing depends on the version of pandas.

Names: a parameter keeps its own, always. What clashes with it gives way: a field of the result
takes the suffix ``_result``, a bookkeeping column (and the index) the suffix ``_job``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pandas as pd

from qnb.errors import InvalidOption
from qnb.models import Ending, JobRecord, JobState

__all__ = ["MISSING", "DataFrame", "Missing", "Params", "jobs_frame", "sweep_frame"]

DataFrame: TypeAlias = pd.DataFrame

Params = Literal["objects", "columns", "text"]
Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
_Column: TypeAlias = Any  # an array of one dtype: numpy's or an extension array


class Missing(Enum):
    """The type of :data:`MISSING`."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return self.name


#: stands for a value that does not exist (yet), where ``None`` may be a value
MISSING: Final = Missing.MISSING

_NAT: Final = np.iinfo(np.int64).min  # numpy's "not a time"
_LOST: Final = JobRecord("", "", "", JobState.NOT_FOUND, 0)

#: the bookkeeping of :func:`sweep_frame`: what differs from job to job of one sweep
_OF_A_SWEEP: Final = (
    *("status", "success", "aborted", "cached", "tries", "wait", "duration", "start", "finish"),
    *("worker", "progress", "message", "error_type", "error", "peak_memory", "cpu_time"),
)


def jobs_frame(
    records: Sequence[JobRecord],
    calls: Callable[[JobRecord], Call] | None = None,
    *,
    params: Params = "objects",
    values: Callable[[JobRecord], object] | None = None,
) -> pd.DataFrame:
    """One row a job, sorted by enqueue time, indexed by ``task_id``.

    Every column is there with its dtype also when there are no rows. ``calls`` decodes a record's
    arguments; without it they are missing. ``values`` decodes its value (or gives ``MISSING``)
    and adds the column ``value``.

    ``params="objects"`` has the columns ``args`` and ``kwargs`` as they were given; ``"text"``
    has their ``repr``, so that the frame can be written to a file; ``"columns"`` has one column
    for each parameter instead, ``arg_0`` … for those given by position.
    """
    if params not in ("objects", "columns", "text"):
        raise InvalidOption(f"params={params!r}: expected 'objects', 'columns' or 'text'")
    records = sorted(records, key=lambda r: (r.enqueue_time, r.index or 0))
    decoded = None if calls is None else [calls(record) for record in records]
    rows = range(len(records))
    columns = _bookkeeping(records)
    parameters: dict[str, _Column] = {}
    if params == "columns":
        given = _parameters(decoded or (), len(records))
        parameters = {name: _natural(column) for name, column in given.items()}
    else:
        make = _text if params == "text" else _objects
        for place, name in enumerate(("args", "kwargs")):
            columns[name] = make([None if decoded is None else decoded[row][place] for row in rows])
    columns = {_free(name, parameters, "_job"): column for name, column in columns.items()}
    columns |= parameters
    if values is not None:
        found = [values(record) for record in records]
        column = _natural(found, result=True)
        if params == "text" and column.dtype == object:
            column = _text(found)
        columns[_free("value", columns, "_result")] = column
    return _frame(columns, _ids([record.task_id for record in records], parameters))


def sweep_frame(
    name: str,
    points: Sequence[Mapping[str, object]] | Mapping[str, Sequence[object]],
    records: Sequence[JobRecord | None],
    values: Sequence[object],
    *,
    task_ids: Sequence[str | None] | None = None,
) -> pd.DataFrame:
    """A sweep as a tidy frame: one row a point, in the sweep's order, indexed by ``task_id``.

    First the parameters (``points``: a mapping for each point, or columns by name), then the
    results, then the bookkeeping. A dict, NamedTuple or dataclass becomes one column for each of
    its fields, anything else the column ``value``. A value is ``MISSING`` where there is none
    (yet), a record ``None`` where the store knows none: its status is ``not_found``.
    ``task_ids`` names the rows that have no record. ``frame.attrs["sweep"]`` is the name.

    Result columns are nullable (``Int64``, ``boolean``, ``string``, and ``float64``), finished or
    not, so that a dtype does not depend on how far the sweep has come.
    """
    rows = len(records)
    if isinstance(points, Mapping):
        given: Mapping[str, Sequence[object]] = points
        lengths = {len(column) for column in points.values()}
    else:
        given = _pivot(points, len(points))
        lengths = {len(points)}
    lengths |= {len(values), rows if task_ids is None else len(task_ids)}
    if lengths != {rows}:
        raise InvalidOption(
            f"sweep {name!r} has {rows} records, but points, values or ids for "
            f"{sorted(lengths - {rows})}: give one of each for every point"
        )
    columns: dict[str, _Column] = {key: _natural(column) for key, column in given.items()}
    results = _pivot(map(_result_fields, values), rows) or {"value": [MISSING] * rows}
    for key, column in results.items():
        # a renamed field must not take the name of a field that follows it
        label = key if key not in columns else _free(f"{key}_result", columns | results, "_result")
        columns[label] = _natural(column, result=True)
    theirs = tuple(columns)
    jobs = _bookkeeping([_LOST if record is None else record for record in records])
    columns |= {_free(key, theirs, "_job"): jobs[key] for key in _OF_A_SWEEP}
    ids = task_ids
    if ids is None:
        ids = [None if record is None else record.task_id for record in records]
    frame = _frame(columns, _ids(ids, theirs))
    frame.attrs["sweep"] = name
    return frame


# ---- columns of records ----


def _bookkeeping(records: Sequence[JobRecord]) -> dict[str, _Column]:
    """The columns that every job has, built a column at a time."""
    outcomes = [record.outcome for record in records]
    failures = [None if o is None else o.failure for o in outcomes]
    known = [record.status != JobState.NOT_FOUND for record in records]
    enqueued = _instants([r.enqueue_time for r in records])
    start = _instants(
        [r.start if o is None else o.start for r, o in zip(records, outcomes, strict=True)]
    )
    finish = _instants([None if o is None else o.finish for o in outcomes])
    return {
        "fn_name": _category([r.fn_name or None for r in records]),
        "sweep": _category([r.sweep for r in records]),
        "priority": _category([r.priority or None for r in records]),
        "worker": _category(
            [
                (None if o is None else o.worker) or r.worker or None
                for r, o in zip(records, outcomes, strict=True)
            ]
        ),
        "status": _category([str(r.status) for r in records], [state.value for state in JobState]),
        "success": _booleans([None if o is None else o.success for o in outcomes]),
        "aborted": _booleans([None if o is None else o.ending is Ending.ABORTED for o in outcomes]),
        "cached": _booleans([r.cached if k else None for r, k in zip(records, known, strict=True)]),
        "tries": _integers(
            [
                o.tries if o is not None else r.tries if k else None
                for r, o, k in zip(records, outcomes, known, strict=True)
            ]
        ),
        "enqueue_time": _utc(enqueued),
        "scheduled_at": _utc(_instants([r.scheduled_at for r in records])),
        "start": _utc(start),
        "finish": _utc(finish),
        "wait": start - enqueued,
        "duration": finish - start,
        "total": finish - enqueued,
        "progress": _fractions([r.progress for r in records]),
        "message": _strings([r.message for r in records]),
        "error_type": _category([None if f is None else f.type for f in failures]),
        "error": _strings([None if f is None else f.message for f in failures]),
        "result_nbytes": _integers([None if o is None else o.result_nbytes for o in outcomes]),
        "peak_memory": _integers([None if o is None else o.peak_memory for o in outcomes]),
        "cpu_time": _spans([None if o is None else o.cpu_time_us for o in outcomes]),
    }


def _frame(columns: Mapping[str, _Column], index: pd.Index[Any]) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            # said again for objects, or pandas 3 makes text of them and NaN of their None
            name: pd.Series(column, dtype=object) if column.dtype == object else column
            for name, column in columns.items()
        },
        index=pd.RangeIndex(len(index)),
    )
    frame.index = index
    return frame


def _ids(ids: Sequence[str | None], taken: Iterable[str]) -> pd.Index[Any]:
    return pd.Index(ids, dtype=str, name=_free("task_id", taken, "_job"))


def _free(name: str, taken: Iterable[str], suffix: str) -> str:
    """``name``, with as many suffixes as it takes to be free."""
    while name in taken:
        name += suffix
    return name


# ---- arrays of a given dtype; ``None`` is missing ----


def _category(values: Sequence[str | None], order: Sequence[str] | None = None) -> _Column:
    names = sorted({v for v in values if v is not None}) if order is None else order
    code: dict[str | None, int] = {name: place for place, name in enumerate(names)}
    code[None] = -1
    dtype = pd.CategoricalDtype(pd.Index(names, dtype=str), ordered=order is not None)
    return pd.Categorical.from_codes([code[v] for v in values], dtype=dtype)


def _filled(values: Sequence[Any], dtype: type, filler: object) -> tuple[_Column, _Column]:
    """The values as an array with ``filler`` for ``None``, and the mask of those."""
    if None not in values:
        return np.array(values, dtype=dtype), np.zeros(len(values), dtype=np.bool_)
    missing = np.array([v is None for v in values], dtype=np.bool_)
    return np.array([filler if v is None else v for v in values], dtype=dtype), missing


def _integers(values: Sequence[int | None]) -> _Column:
    return pd.arrays.IntegerArray(*_filled(values, np.int64, 0))


def _booleans(values: Sequence[bool | None]) -> _Column:
    return pd.arrays.BooleanArray(*_filled(values, np.bool_, False))


def _fractions(values: Sequence[float | None]) -> _Column:
    return pd.arrays.FloatingArray(*_filled(values, np.float64, 0.0))


def _strings(values: Sequence[str | None]) -> _Column:
    if not _encodable(values):  # a lone surrogate, as in the name of a file that is not UTF-8
        encoded = [None if v is None else v.encode("utf-8", "backslashreplace") for v in values]
        values = [None if v is None else v.decode() for v in encoded]
    return pd.array(values, dtype="string")


def _encodable(values: Iterable[str | None]) -> bool:
    try:
        "".join(v for v in values if v).encode()
    except UnicodeEncodeError:
        return False
    return True


def _instants(ms: Sequence[int | None]) -> np.ndarray[Any, np.dtype[np.datetime64]]:
    """Epoch milliseconds as ``datetime64[us]``; 0 means never, as ``None`` does."""
    stamps = np.array([v or 0 for v in ms], dtype=np.int64)
    return np.where(stamps == 0, _NAT, stamps * 1000).view("datetime64[us]")


def _utc(instants: np.ndarray[Any, np.dtype[np.datetime64]]) -> _Column:
    return pd.DatetimeIndex(instants).tz_localize("UTC").array


def _spans(us: Sequence[int | None]) -> _Column:
    return np.array([_NAT if v is None else v for v in us], dtype=np.int64).view("timedelta64[us]")


def _objects(values: Sequence[object]) -> _Column:
    column = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):  # a slice assignment would unpack tuples and arrays
        column[row] = value
    return column


def _text(values: Sequence[object]) -> _Column:
    return _strings([None if _is_missing(v) else _repr(v) for v in values])


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


def _natural(values: Sequence[object], *, result: bool = False) -> _Column:
    """The values in the narrowest dtype that tells them all, else as objects.

    ``None`` is a value of a parameter (``max_depth=None``), but no result.
    """
    missing = [_is_missing(v) if result else v is MISSING for v in values]
    kinds = {_KINDS.get(type(v), "") for v, gone in zip(values, missing, strict=True) if not gone}
    if nullable := any(missing):
        values = [None if gone else v for v, gone in zip(values, missing, strict=True)]
    try:
        return _typed(values, kinds, nullable=nullable or result)
    except (OverflowError, ValueError):  # beyond 64 bits, or what a date can hold
        return _objects(values)


def _typed(values: Sequence[Any], kinds: set[str], *, nullable: bool) -> _Column:
    if kinds == {"bool"}:
        return _booleans(values) if nullable else np.array(values, dtype=np.bool_)
    if kinds == {"int"}:
        whole = [None if v is None else int(v) for v in values]
        return _integers(whole) if nullable else np.array(whole, dtype=np.int64)
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
    return _objects(values)


def _pivot(rows: Iterable[Mapping[Any, object]], count: int) -> dict[Any, list[object]]:
    """Rows turned into columns, as first seen; ``MISSING`` where a row has no such key."""
    columns: dict[Any, list[object]] = {}
    for place, row in enumerate(rows):
        for key, value in row.items():
            column = columns.get(key)
            if column is None:
                column = columns[key] = [MISSING] * count
            column[place] = value
    return columns


def _parameters(calls: Iterable[Call], count: int) -> dict[str, list[object]]:
    """The arguments of calls as columns; the ones given by position are ``arg_0`` and on."""
    columns = _pivot(({**dict(enumerate(args)), **kwargs} for args, kwargs in calls), count)
    return {
        key if isinstance(key, str) else _free(f"arg_{key}", columns, "_"): column
        for key, column in columns.items()
    }


def _result_fields(value: object) -> Mapping[str, object]:
    """A result by field; one without (named) fields is the field ``value``."""
    if value is MISSING:
        return {}
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return {"value": value}
