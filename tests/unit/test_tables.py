"""Errors by their place, sweeps and workers at a glance."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pandas as pd
import pytest

from qnb.analysis.tables import errors_frame, sweeps_frame, workers_frame
from qnb.models import Ending, Failure, Frame, JobState, SweepInfo
from qnb.storage.rows import Row

NOW = 1_790_000_000_000
CELL = Frame("Cell In[3]", 6, "step", "return 1 / x")
OUTER = Frame("Cell In[4]", 1, "<module>", "step(0)")


def _failed(number: int, type_: str, message: str, *frames: Frame, **more: Any) -> Row:
    failure = Failure(type_, message, f"{type_}({message!r})", frames=frames)
    return Row(f"s.{number}", ending=Ending.FAILED, failure=failure, finish=NOW + number)._replace(
        status=JobState.COMPLETE, **more
    )


def _dtypes(frame: pd.DataFrame) -> dict[str, str]:
    return {name: str(dtype) for name, dtype in frame.dtypes.items()}


ROWS = [
    _failed(5, "ZeroDivisionError", "later", OUTER, CELL),
    _failed(2, "ZeroDivisionError", "first", OUTER, CELL),
    _failed(1, "ZeroDivisionError", "elsewhere", OUTER),
    _failed(3, "ValueError", "no root", OUTER, CELL),
    _failed(4, "WorkerCrashed", "gone", ending=Ending.CRASHED),
    Row("s.6", ending=Ending.EXPIRED, status=JobState.COMPLETE, finish=NOW),
    Row("s.7", ending=Ending.DONE, status=JobState.COMPLETE),
    Row("s.8", status=JobState.RUNNING),
]


def test_errors_are_grouped_by_type_and_innermost_line_the_commonest_first() -> None:
    frame = errors_frame(ROWS)
    assert len(frame) == 5
    first = frame.iloc[0]
    assert first.drop(["first", "last"]).to_dict() == {
        "error_type": "ZeroDivisionError",
        "where": "Cell In[3], line 6",
        "line": "return 1 / x",
        "count": 2,
        "message": "first",
        "example": "s.2",
        "task_ids": ["s.2", "s.5"],
    }
    assert first["last"] - first["first"] == timedelta(milliseconds=3)
    assert frame["count"].sum() == 6


def test_an_error_without_a_line_of_the_users_has_its_row() -> None:
    frame = errors_frame(ROWS).set_index("error_type")
    assert frame.loc["WorkerCrashed", ["where", "line"]].isna().all()
    assert frame.loc["WorkerCrashed", "message"] == "gone"
    assert frame.loc["expired", "example"] == "s.6"


TABLES = {
    "errors": (
        errors_frame,
        [],
        ROWS,
        "category string string int64 string string datetime64[us, UTC] datetime64[us, UTC] object",
    ),
    "sweeps": (
        sweeps_frame,
        [],
        [SweepInfo("scan", "f", "default", NOW, 4, 3, {"done": 1, "failed": 1, "queued": 1})],
        "category category category " + "Int64 " * 8 + "Float64 datetime64[us, UTC] "
        "datetime64[us, UTC]",
    ),
    "workers": (
        workers_frame,
        {},
        {"w": {"host": "h", "pid": 7, "slots": 2, "load": 1, "at": NOW, "lanes": ["a", "b"]}},
        "category Int64 Int64 Int64 Int64 Float64 Int64 string boolean datetime64[us, UTC] "
        "datetime64[us, UTC]",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_its_dtypes_also_when_it_is_empty(name: str) -> None:
    make, nothing, some, dtypes = TABLES[name]
    empty, full = make(nothing), make(some)  # type: ignore[operator]
    assert " ".join(_dtypes(full).values()) == dtypes
    assert _dtypes(empty) == _dtypes(full)
    assert (len(empty), list(empty.columns)) == (0, list(full.columns))
    assert empty.index.dtype == full.index.dtype


def test_a_sweeps_row_tells_how_far_it_is() -> None:
    [info] = TABLES["sweeps"][2]  # type: ignore[misc]
    row = sweeps_frame([info]).loc["scan"]
    assert row[["total", "stored", "done", "failed", "aborted"]].to_list() == [4, 3, 1, 1, 0]
    assert (row["progress"], row["state"]) == (0.5, "running")
    assert row["created"] == pd.Timestamp(NOW, unit="ms", tz="UTC")
    assert pd.isna(row["finish"])


def test_a_worker_is_known_by_host_and_pid_whatever_it_says_of_itself() -> None:
    said = TABLES["workers"][2]
    assert isinstance(said, dict)
    frame = workers_frame({**said, "x": {"host": 3, "pid": "?", "load": "high", "at": 2**70}})
    assert frame.index.to_list() == ["h:7", "3:?"]
    assert frame.loc["h:7", ["slots", "load", "lanes"]].to_list() == [2, 1.0, "a, b"]
    assert frame.loc["h:7", ["running", "memory", "leaving", "started"]].isna().all()
    assert frame.loc["3:?"].isna().all()
