from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qnb.analysis.columns import MISSING
from qnb.analysis.frames import jobs_frame, points_frame, sweep_frame
from qnb.errors import InvalidOption
from qnb.models import Ending, Failure, JobState
from qnb.storage.rows import Row

BOOKKEEPING = {
    "fn_name": "category",
    "sweep": "category",
    "priority": "category",
    "worker": "category",
    "status": "category",
    "success": "boolean",
    "aborted": "boolean",
    "cached": "boolean",
    "tries": "Int64",
    "enqueue_time": "datetime64[us, UTC]",
    "scheduled_at": "datetime64[us, UTC]",
    "start": "datetime64[us, UTC]",
    "finish": "datetime64[us, UTC]",
    "wait": "timedelta64[us]",
    "duration": "timedelta64[us]",
    "total": "timedelta64[us]",
    "progress": "Float64",
    "message": "string",
    "error_type": "category",
    "error": "string",
    "result_nbytes": "Int64",
    "peak_memory": "Int64",
    "cpu_time": "timedelta64[us]",
}
NOW = 1_790_000_000_000

QUEUED = Row("q", "f", None, None, "default", JobState.QUEUED, None, 0, NOW + 2, cached=False)
RUNNING = QUEUED._replace(
    task_id="r",
    status=JobState.RUNNING,
    enqueue_time=NOW + 1,
    start=NOW + 11,
    tries=1,
    worker="host:7",
    progress=0.5,
    message="half",
)
DONE = QUEUED._replace(
    task_id="d",
    status=JobState.COMPLETE,
    enqueue_time=NOW,
    sweep="scan",
    ending=Ending.DONE,
    tries=2,
    start=NOW + 1000,
    finish=NOW + 3500,
    worker="host:8",
    result_nbytes=10,
    peak_memory=2**33,
    cpu_time_us=1_234_567,
)
FAILED = DONE._replace(
    task_id="x",
    enqueue_time=NOW + 3,
    ending=Ending.FAILED,
    start=NOW + 4,
    finish=NOW + 5,
    failure=Failure("ValueError", "no root", "ValueError('no root')"),
)
EXPIRED = DONE._replace(
    task_id="e", enqueue_time=NOW + 4, ending=Ending.EXPIRED, tries=0, start=0, finish=NOW + 5
)
SOME = [QUEUED, RUNNING, DONE, FAILED, EXPIRED]


def _calls(row: Row) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (1, "a"), {"depth": None, "rate": 0.5}


def _dtypes(frame: pd.DataFrame) -> dict[str, str]:
    return {name: str(dtype) for name, dtype in frame.dtypes.items()}


@pytest.mark.parametrize("rows", [[], SOME], ids=["empty", "some"])
def test_every_column_is_there_with_its_dtype(rows: list[Row]) -> None:
    frame = jobs_frame(rows, _calls)
    assert _dtypes(frame) == {**BOOKKEEPING, "args": "object", "kwargs": "object"}
    assert frame.index.name == "task_id"
    assert list(frame["status"].cat.categories) == [state.value for state in JobState]
    assert frame["status"].cat.ordered
    assert _dtypes(jobs_frame(rows)) == _dtypes(frame)
    assert frame.index.dtype == pd.Index(["a"], dtype=str).dtype


def test_rows_are_sorted_by_enqueue_time() -> None:
    assert list(jobs_frame(SOME, None).index) == ["d", "r", "q", "x", "e"]


def test_a_finished_jobs_row_tells_its_outcome() -> None:
    row = jobs_frame(SOME, _calls).loc["d"]
    assert (row["success"], row["aborted"], row["tries"]) == (True, False, 2)
    assert row["start"] == pd.Timestamp(NOW + 1000, unit="ms", tz="UTC")
    assert (row["wait"], row["duration"], row["total"]) == (
        timedelta(seconds=1),
        timedelta(seconds=2.5),
        timedelta(seconds=3.5),
    )
    assert row["worker"] == "host:8"
    assert row["cpu_time"] == timedelta(microseconds=1_234_567)
    assert row["peak_memory"] == 2**33
    assert (row["args"], row["kwargs"]) == ((1, "a"), {"depth": None, "rate": 0.5})


def test_what_a_job_does_not_have_is_missing() -> None:
    frame = jobs_frame(SOME, None)
    unknown = ["success", "finish", "duration", "error", "error_type", "result_nbytes", "args"]
    assert frame.loc["r", unknown].isna().all()
    assert frame.loc["r", "wait"] == timedelta(milliseconds=10)
    assert frame.loc["x", ["error_type", "error"]].to_list() == ["ValueError", "no root"]
    assert frame.loc["e", ["start", "wait", "duration"]].isna().all()  # it never started
    assert frame.loc["e", "total"] == timedelta(milliseconds=1)


def test_unfinished_statuses_come_before_finished_ones() -> None:
    frame = jobs_frame(SOME, None)
    assert list(frame.index[frame["status"] < "complete"]) == ["r", "q"]


def test_parameters_become_columns_and_never_lose_their_name() -> None:
    clashing = [((5,), {"priority": "mine", "value": 1, "task_id": 9}), ((6,), {"arg_0": 0})]
    frame = jobs_frame(
        [DONE, QUEUED],
        lambda row: clashing[row is QUEUED],
        params="columns",
        values=lambda row: 2.5 if row is DONE else MISSING,
    )
    parameters = ["arg_0_", "priority", "value", "task_id", "arg_0"]
    assert list(frame.columns)[-6:] == [*parameters, "value_result"]
    assert frame["priority"].to_list()[0] == "mine"
    assert str(frame["priority_job"].dtype) == "category"
    assert frame.index.name == "task_id_job"
    assert frame["arg_0_"].to_list() == [5, 6]
    assert frame["arg_0"].dtype == "Int64"
    assert frame["arg_0"].isna().to_list() == [True, False]
    assert frame["value_result"].dtype == "float64"


def test_an_unknown_form_of_the_parameters_is_refused() -> None:
    with pytest.raises(InvalidOption, match="params='dict': expected 'objects', 'columns' or"):
        jobs_frame([], None, params="dict")  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [[], [QUEUED], SOME], ids=["empty", "one", "some"])
def test_the_text_form_goes_through_parquet_and_back(rows: list[Row], tmp_path: Path) -> None:
    frame = jobs_frame(rows, _calls, params="text", values=lambda row: object())
    frame.to_parquet(tmp_path / "jobs.parquet")
    back = pd.read_parquet(tmp_path / "jobs.parquet")
    if rows is SOME or pd.__version__ >= "3":
        # of a category without a value parquet does not keep what its values would have been
        pd.testing.assert_frame_equal(back, frame, check_categorical=rows is SOME)
        assert _dtypes(back) == _dtypes(frame)
    else:  # and pandas 2 reads it back as objects
        assert list(back.columns) == list(frame.columns)
    assert _dtypes(frame)["kwargs"] == "string"
    if rows:
        assert frame["kwargs"].iloc[0] == "{'depth': None, 'rate': 0.5}"


def test_text_that_is_not_unicode_or_cannot_be_shown_costs_no_frame() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    frame = jobs_frame(
        [QUEUED._replace(message="caf\udce9")],
        lambda _: ((Broken(),), {}),
        params="text",
    )
    assert frame["message"].to_list() == ["caf\\udce9"]
    assert frame["args"].to_list() == ["<tuple>"]


# ---- sweeps ----

POINTS = {"lr": [0.1, 0.2, 0.3], "depth": [1, 2, 3], "kind": ["a", "b", "c"]}
ROWS = [DONE, RUNNING, Row("none")]
NONE = [Row(f"s.{number}") for number in range(3)]
OF_A_SWEEP = [
    *("status", "success", "aborted", "cached", "tries", "wait", "duration", "start", "finish"),
    *("worker", "progress", "message", "error_type", "error", "peak_memory", "cpu_time"),
]


def test_a_sweep_is_tidy_parameters_then_results_then_bookkeeping() -> None:
    frame = sweep_frame("scan", POINTS, ROWS, [0.9, MISSING, MISSING])
    assert list(frame.columns) == ["lr", "depth", "kind", "value", *OF_A_SWEEP]
    assert {name: str(frame[name].dtype) for name in OF_A_SWEEP} == {
        name: BOOKKEEPING[name] for name in OF_A_SWEEP
    }
    assert _dtypes(frame)["lr"] == "float64"
    assert _dtypes(frame)["depth"] == "int64"
    assert frame["kind"].dtype == pd.Series(["a"], dtype=str).dtype
    assert frame["status"].to_list() == ["complete", "running", "not_found"]
    assert frame.index.to_list() == ["d", "r", "none"]
    assert frame.attrs == {
        "sweep": "scan",
        "parameters": ["lr", "depth", "kind"],
        "results": ["value"],
    }


def test_points_that_the_store_does_not_know_have_their_row() -> None:
    frame = sweep_frame("s", POINTS, NONE, [MISSING] * 3)
    assert frame.index.to_list() == ["s.0", "s.1", "s.2"]
    assert frame[["success", "cached", "tries", "wait", "start"]].isna().all(axis=None)


def test_an_empty_sweep_has_its_columns() -> None:
    frame = sweep_frame("none", {"a": [], "b": []}, [], [])
    assert list(frame.columns) == ["a", "b", "value", *OF_A_SWEEP]
    assert len(frame) == 0
    assert frame["duration"].dtype == "timedelta64[us]"
    assert frame["status"].dtype == sweep_frame("s", POINTS, ROWS, [1] * 3)["status"].dtype


@dataclass
class _Score:
    mean: float
    folds: list[int]


_Pair = namedtuple("_Pair", "low high")


def test_dicts_named_tuples_dataclasses_and_series_become_columns() -> None:
    row = pd.Series({"low": 5, "mean": np.float32(2)}, dtype=object)
    values = [_Score(0.5, [1, 2]), _Pair(1, 2), {"low": 3, "text": "t"}, 7, {1: "no name"}, row]
    frame = sweep_frame("s", {"a": range(6)}, [*NONE, *NONE], values)
    results = frame.loc[:, "mean":"value"]  # type: ignore[misc]
    assert _dtypes(results) == {
        "mean": "float64",
        "folds": "object",
        "low": "Int64",
        "high": "Int64",
        "text": "string",
        "value": "object",
    }
    assert frame["low"].dropna().to_list() == [1, 3, 5]
    assert frame["mean"].dropna().to_list() == [0.5, 2]
    assert frame["value"].to_list()[3:5] == [7, {1: "no name"}]
    numbered = pd.Series([1, 2])
    assert sweep_frame("s", {"a": [0]}, NONE[:1], [numbered])["value"].iloc[0] is numbered


def test_on_a_clash_the_parameter_keeps_its_name() -> None:
    points = {"worker": [4], "x": [1], "task_id": [0]}
    frame = sweep_frame("s", points, [DONE], [{"x": 2, "x_result": 3, "error": 0.1}])
    assert list(frame.columns)[:6] == [
        *("worker", "x", "task_id"),
        *("x_result_result", "x_result", "error"),
    ]
    assert frame.iloc[0, :6].to_list() == [4, 1, 0, 2, 3, 0.1]
    assert {"worker_job", "error_job"} < set(frame.columns)
    assert frame.index.name == "task_id_job"
    assert frame.columns.is_unique


@pytest.mark.parametrize(
    "values, dtype",
    [
        ([1, np.int32(2)], "Int64"),
        ([1, 2.5], "float64"),
        ([np.float32(1), np.array(2.0)], "float64"),
        ([True, np.False_], "boolean"),
        (["a", np.str_("b")], "string"),
        ([1j, 2], "complex128"),
        ([True, 1], "object"),
        ([1, "a"], "object"),
        ([2**70, 1], "object"),
        (["\udce9", "a"], "object"),
        ([[1, 2], [3, 4]], "object"),
        ([np.zeros(2), np.ones(2)], "object"),
        ([np.datetime64(0, "s"), pd.Timestamp(1)], None),
        ([datetime(1, 1, 1, tzinfo=UTC)] * 2, None),
        ([datetime(2026, 1, 1, tzinfo=UTC)] * 2, "datetime64[us, UTC]"),
        ([timedelta(seconds=1)] * 2, "timedelta64[us]"),
    ],
    ids=repr,
)
def test_a_results_dtype_does_not_depend_on_how_far_the_sweep_is(
    values: list[object], dtype: str | None
) -> None:
    points = {"a": [1, 2, 3]}
    full = sweep_frame("s", points, NONE, [*values, values[0]])["value"]
    part = sweep_frame("s", points, NONE, [*values, MISSING])["value"]
    none = sweep_frame("s", points, NONE, [*values, None])["value"]
    assert full.dtype == part.dtype == none.dtype
    if dtype is not None:
        assert str(full.dtype) == dtype
    assert part.isna().to_list() == none.isna().to_list() == [False, False, True]
    for got, given in zip(full, values, strict=False):
        assert np.all(got == given)


def test_none_is_a_value_of_a_parameter() -> None:
    points = {"max_depth": [None, 3], "max_features": [None, "sqrt"]}
    frame = sweep_frame("s", points, NONE[:2], [1, 2])
    assert frame["max_depth"].to_list() == [None, 3]
    assert type(frame["max_depth"].iloc[1]) is int
    assert frame["max_features"].to_list() == [None, "sqrt"]


def test_our_column_names_work_in_query_and_itertuples() -> None:
    frame = sweep_frame("scan", POINTS, ROWS, [1, MISSING, MISSING])
    assert len(frame.query("status == 'complete' and duration > '1s' and lr < 0.5")) == 1
    first = next(frame.itertuples())
    assert first._fields == ("Index", *frame.columns)


def test_columns_of_differing_lengths_are_refused() -> None:
    with pytest.raises(InvalidOption, match="'s' has 1 jobs, but 'lr' has 3 entries"):
        sweep_frame("s", POINTS, NONE[:1], [1])


def test_the_index_of_the_frame_that_gave_the_points_comes_first() -> None:
    labels = {"city": ["Bern", "Oslo", "Rome"], "depth": [7, 8, 9], "index": [0, 1, 2]}
    frame = sweep_frame("scan", POINTS, ROWS, [0.9, MISSING, MISSING], labels=labels)
    assert list(frame.columns[:6]) == ["city", "depth_index", "lr", "depth", "kind", "value"]
    assert frame["depth_index"].to_list() == [7, 8, 9]


@pytest.mark.parametrize("far", [0, 1, 3], ids=["unstarted", "partial", "finished"])
def test_a_sweeps_frame_goes_through_parquet_and_back(far: int, tmp_path: Path) -> None:
    done = [{"score": 0.5, "n": 2, "ok": True, "best": "x"}] * far
    labels = {"day": [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3)]}
    rows = [DONE._replace(task_id=f"s.{number}") for number in range(far)] + NONE[far:]
    frame = sweep_frame("s", POINTS, rows, [*done, *[MISSING] * (3 - far)], labels=labels)
    frame.to_parquet(tmp_path / "sweep.parquet")
    back = pd.read_parquet(tmp_path / "sweep.parquet")
    assert back.attrs == frame.attrs
    assert back["status"].cat.ordered
    if pd.__version__ >= "3":
        assert _dtypes(back) == _dtypes(frame)
    else:  # there a category without a value is read back as objects
        told = frame.columns[frame.notna().any()]
        assert _dtypes(back[told]) == _dtypes(frame[told])


def test_the_points_of_a_space_are_a_frame_with_the_index_they_came_with() -> None:
    points = {"a": [1, MISSING], "b": [None, "x"]}
    frame = points_frame(points, 2)
    assert _dtypes(frame) == {"a": "Int64", "b": "object"}
    assert frame["a"].isna().to_list() == [False, True]
    assert frame["b"].to_list() == [None, "x"]
    assert frame.index.equals(pd.RangeIndex(2))
    assert points_frame({}, 3).shape == (3, 0)
    for index in (
        pd.Index(["u", "v"], name="who"),
        pd.Index(["u", "v"]),
        pd.MultiIndex.from_arrays([["u", "v"], [1, 2]], names=["who", "n"]),
    ):
        labels = {str(n or "index"): index.get_level_values(i) for i, n in enumerate(index.names)}
        back = points_frame(points, 2, {name: list(level) for name, level in labels.items()})
        pd.testing.assert_index_equal(back.index, index)
