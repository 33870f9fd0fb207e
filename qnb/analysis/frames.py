"""Jobs and sweeps as pandas DataFrames.

Every bookkeeping column has one dtype, whatever the rows: an empty frame, a running sweep and a
finished one can be concatenated, compared and written to the same file. Times are the server's,
in microseconds, so that nothing depends on the version of pandas.

Names: a parameter keeps its own, always. What clashes with it gives way: a field of the result
takes the suffix ``_result``, a level of the index that the points had ``_index``, a bookkeeping
column (and the index) ``_job``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final, Literal, TypeAlias

import pandas as pd

from qnb.analysis.columns import (
    MISSING,
    Column,
    booleans,
    category,
    encodable,
    fractions,
    instants,
    integers,
    natural,
    objects,
    spans,
    strings,
    text,
    utc,
)
from qnb.analysis.values import Call
from qnb.errors import InvalidOption
from qnb.models import Ending, JobState
from qnb.storage.rows import Row

__all__ = [
    "DataFrame",
    "Params",
    "jobs_frame",
    "points_frame",
    "result_fields",
    "sweep_frame",
]

DataFrame: TypeAlias = pd.DataFrame

Params = Literal["objects", "columns", "text"]

#: the bookkeeping of :func:`sweep_frame`: what differs from job to job of one sweep
_OF_A_SWEEP: Final = (
    *("status", "success", "aborted", "cached", "tries", "wait", "duration", "start", "finish"),
    *("worker", "progress", "message", "error_type", "error", "peak_memory", "cpu_time"),
)


def jobs_frame(
    rows: Iterable[Row],
    calls: Callable[[Row], Call | None] | None = None,
    *,
    params: Params = "objects",
    values: Callable[[Row], object] | None = None,
) -> pd.DataFrame:
    """One row a job, sorted by enqueue time, indexed by ``task_id``.

    Every column is there with its dtype also when there are no rows. ``calls`` decodes a job's
    arguments (None where it cannot); without it they are missing. ``values`` decodes its value
    (or gives ``MISSING``) and adds the column ``value``.

    ``params="objects"`` has the columns ``args`` and ``kwargs`` as they were given; ``"text"``
    has their ``repr``, so that the frame can be written to a file; ``"columns"`` has one column
    for each parameter instead, ``arg_0`` … for those given by position.
    """
    if params not in ("objects", "columns", "text"):
        raise InvalidOption(f"params={params!r}: expected 'objects', 'columns' or 'text'")
    rows = sorted(rows, key=lambda row: (row.enqueue_time or 0, row.place or 0))
    given = [None if calls is None else calls(row) for row in rows]
    columns = _bookkeeping(rows)
    parameters: dict[str, Column] = {}
    if params == "columns":
        parameters = {name: natural(column) for name, column in _parameters(given).items()}
    else:
        make = text if params == "text" else objects
        for place, name in enumerate(("args", "kwargs")):
            columns[name] = make([call and call[place] for call in given])
    columns = {_free(name, parameters, "_job"): column for name, column in columns.items()}
    columns |= parameters
    if values is not None:
        found = [values(row) for row in rows]
        column = natural(found, result=True)
        if params == "text" and column.dtype == object:
            column = text(found)
        columns[_free("value", columns, "_result")] = column
    return _frame(columns, _ids(rows, parameters))


def sweep_frame(
    name: str,
    points: Mapping[str, Sequence[object]],
    rows: Sequence[Row],
    values: Sequence[object],
    *,
    labels: Mapping[str, Sequence[object]] | None = None,
) -> pd.DataFrame:
    """A sweep as a tidy frame: one row a point, in the sweep's order, indexed by ``task_id``.

    First the ``labels`` (the index of the frame that gave the points, by level), then the
    parameters (``points``, by name; ``MISSING`` where a point has no such parameter), then the
    results, then the bookkeeping. A dict, NamedTuple, dataclass or Series becomes one column for
    each of its fields, anything else the column ``value``; it is ``MISSING`` where there is none
    (yet). ``frame.attrs`` names the ``sweep``, and the columns that are its ``parameters`` and
    ``results``.

    Result columns are nullable (``Int64``, ``boolean``, ``string``, and ``float64``), finished or
    not, so that a dtype does not depend on how far the sweep has come.
    """
    _check_lengths(name, len(rows), [("values", values), *points.items()])
    parameters = {key: natural(column) for key, column in points.items()}
    fields_ = _transposed(map(result_fields, values), len(rows))
    results: dict[str, Column] = {}
    for key, column in (fields_ or {"value": [MISSING] * len(rows)}).items():
        # a renamed field must not take the name of a field that follows it
        label = key
        if key in points:
            label = _free(f"{key}_result", {*points, *fields_, *results}, "_result")
        results[label] = natural(column, result=True)
    theirs = {**parameters, **results}
    levels = {
        _free(level, theirs, "_index"): natural(column)
        for level, column in (labels or {}).items()
        if not _counts(level, column)
    }
    theirs = {**levels, **theirs}
    jobs = _bookkeeping(rows)
    columns = {**theirs, **{_free(key, theirs, "_job"): jobs[key] for key in _OF_A_SWEEP}}
    frame = _frame(columns, _ids(rows, theirs))
    frame.attrs = {"sweep": name, "parameters": list(parameters), "results": list(results)}
    return frame


def points_frame(
    points: Mapping[str, Sequence[object]],
    size: int,
    labels: Mapping[str, Sequence[object]] | None = None,
) -> pd.DataFrame:
    """The points of a space: a column a parameter, NA where a point has no such parameter.

    Its index is that of the frame that gave the points (``labels``), if one did.
    """
    index: pd.Index[Any] = pd.RangeIndex(size)
    if labels:
        levels = [pd.Index(_series(natural(column))) for column in labels.values()]
        index = pd.MultiIndex.from_arrays(levels, names=list(labels))
        if len(levels) == 1:
            [name] = labels
            index = levels[0].rename(None if name == "index" else name)
    return _frame({key: natural(column) for key, column in points.items()}, index)


# ---- columns of jobs ----


def _bookkeeping(rows: Sequence[Row]) -> dict[str, Column]:
    """The columns that every job has."""
    of = dict(zip(Row._fields, zip(*rows, strict=True), strict=True)) if rows else {}
    of = of or dict.fromkeys(Row._fields, ())
    endings, failures = of["ending"], of["failure"]
    enqueued, start, finish = map(instants, (of["enqueue_time"], of["start"], of["finish"]))
    return {
        **{name: category(of[name]) for name in ("fn_name", "sweep", "priority", "worker")},
        "status": category(of["status"], [state.value for state in JobState]),
        "success": booleans([None if e is None else e is Ending.DONE for e in endings]),
        "aborted": booleans([None if e is None else e is Ending.ABORTED for e in endings]),
        "cached": booleans(of["cached"]),
        "tries": integers(of["tries"]),
        "enqueue_time": utc(enqueued),
        "scheduled_at": utc(instants(of["scheduled_at"])),
        "start": utc(start),
        "finish": utc(finish),
        "wait": start - enqueued,
        "duration": finish - start,
        "total": finish - enqueued,
        "progress": fractions(of["progress"]),
        "message": strings(of["message"]),
        "error_type": category([None if f is None else f.type for f in failures]),
        "error": strings([None if f is None else f.message for f in failures]),
        "result_nbytes": integers(of["result_nbytes"]),
        "peak_memory": integers(of["peak_memory"]),
        "cpu_time": spans(of["cpu_time_us"]),
    }


def _frame(columns: Mapping[str, Column], index: pd.Index[Any]) -> pd.DataFrame:
    frame = pd.DataFrame(
        {name: _series(column) for name, column in columns.items()},
        index=pd.RangeIndex(len(index)),
    )
    frame.index = index
    return frame


def _series(column: Column) -> Column:
    # said again for objects, or pandas 3 makes text of them and NaN of their None
    return pd.Series(column, dtype=object) if column.dtype == object else column


def _ids(rows: Iterable[Row], taken: Iterable[str]) -> pd.Index[Any]:
    ids = [row.task_id or None for row in rows]
    return pd.Index(ids, dtype=str, name=_free("task_id", taken, "_job"))


def _free(name: str, taken: Iterable[str], suffix: str) -> str:
    """``name``, with as many suffixes as it takes to be free."""
    while name in taken:
        name += suffix
    return name


def _counts(level: str, labels: Sequence[object]) -> bool:
    """Is it the index that pandas gives a frame that has none? It tells nothing."""
    return level == "index" and list(labels) == list(range(len(labels)))


def _check_lengths(name: str, size: int, columns: Iterable[tuple[str, Sequence[object]]]) -> None:
    for what, column in columns:
        if len(column) != size:
            raise InvalidOption(
                f"sweep {name!r} has {size} jobs, but {what!r} has {len(column)} entries: give "
                "one for every point"
            )


# ---- what a user's values are made of ----


def _transposed(rows: Iterable[Mapping[Any, object]], count: int) -> dict[Any, list[object]]:
    """Rows turned into columns, as first seen; ``MISSING`` where a row has no such key."""
    columns: dict[Any, list[object]] = {}
    for place, row in enumerate(rows):
        for name, value in row.items():
            key = encodable(name) if isinstance(name, str) else name
            column = columns.get(key)
            if column is None:
                column = columns[key] = [MISSING] * count
            column[place] = value
    return columns


def _parameters(calls: Sequence[Call | None]) -> dict[str, list[object]]:
    """The arguments of calls as columns; the ones given by position are ``arg_0`` and on."""
    given = ({} if call is None else {**dict(enumerate(call[0])), **call[1]} for call in calls)
    columns = _transposed(given, len(calls))
    return {
        key if isinstance(key, str) else _free(f"arg_{key}", columns, "_"): column
        for key, column in columns.items()
    }


def result_fields(value: object) -> Mapping[str, object]:
    """A result by field; one without (named) fields is the field ``value``."""
    if value is MISSING:
        return {}
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return value
    if isinstance(value, pd.Series) and value.index.is_unique:
        entries: dict[Any, object] = value.to_dict()
        return entries if all(type(key) is str for key in entries) else {"value": value}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return {"value": value}
