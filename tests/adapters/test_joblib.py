"""``app.joblib()``: scikit-learn and whatever else uses joblib runs on the queue, unmodified."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.naive_bayes import GaussianNB

import qnb

Wait = Callable[..., Any]


def double(x: int) -> int:
    return 2 * x


def test_scikit_learn_finds_on_the_queue_what_it_finds_here(crew: qnb.App) -> None:
    X, y = load_iris(return_X_y=True)

    def study() -> list[Any]:
        search = GridSearchCV(GaussianNB(), {"var_smoothing": [1e-9, 0.1, 1]}, cv=3)
        forest = RandomForestClassifier(6, random_state=1)
        return [
            search.fit(X, y).cv_results_["mean_test_score"],
            search.predict(X),
            forest.fit(X, y).predict_proba(X),
            cross_val_score(GaussianNB(), X, y, cv=3),
        ]

    here = study()
    with crew.joblib():
        there = study()
    assert all(map(np.array_equal, here, there))
    names = crew.jobs_frame()["fn_name"].value_counts()
    assert names["_fit_and_score"] > 3
    assert names["_parallel_build_trees"] > 1


def test_calls_inside_of_a_job_run_in_it_even_with_one_slot(app: qnb.App) -> None:
    def inner(n: int) -> list[int]:
        return Parallel(n_jobs=2)(delayed(double)(x) for x in range(n))

    def outright(n: int) -> list[int]:
        with app.joblib():
            return Parallel()(delayed(double)(x) for x in range(n))

    with app.start_workers(1, linger="60 s"), app.joblib():
        for fn in (inner, outright):
            assert Parallel()(delayed(fn)(n) for n in (1, 2, 3)) == [[0], [0, 2], [0, 2, 4]]
    assert set(app.jobs_frame()["fn_name"]) == {"inner", "outright"}


def test_registered_once_it_is_known_by_its_name(crew: qnb.App) -> None:
    from qnb.adapters.joblib import register_joblib

    register_joblib(crew)
    with joblib.parallel_config("qnb", priority="urgent"):
        assert Parallel()(delayed(double)(x) for x in range(9)) == list(range(0, 18, 2))
        assert joblib.effective_n_jobs() == 2
    assert Parallel(backend="qnb", n_jobs=2)(delayed(double)(x) for x in (1, 2)) == [2, 4]
    frame = crew.jobs_frame(task="double")
    assert set(frame["priority"].iloc[:-2]) == {"urgent"}
    with pytest.raises(qnb.InvalidOption, match="no option 'speed'"):
        joblib.parallel_config("qnb", speed=9)


def test_short_calls_are_put_together_and_results_come_as_they_are_asked_for(
    crew: qnb.App,
) -> None:
    calls = [delayed(double)(x) for x in range(2000)]
    before = len(crew.jobs_frame())
    with crew.joblib():
        assert Parallel()(calls) == list(range(0, 4000, 2))
        assert len(crew.jobs_frame()) - before < 400
        in_order = Parallel(return_as="generator")(calls[:40])
        assert next(in_order) == 0
        assert list(in_order) == list(range(2, 80, 2))
        assert set(Parallel(return_as="generator_unordered")(calls[:9])) == set(range(0, 18, 2))


def test_an_error_is_the_users_own_and_ends_what_still_runs(
    crew: qnb.App, wait_until: Wait
) -> None:
    class Unlucky(Exception):
        pass

    def work(number: object) -> object:
        if number == 0:
            raise Unlucky("at once")
        time.sleep(60)
        return number

    with crew.joblib(), pytest.raises(Unlucky, match="at once") as caught:
        Parallel()(delayed(work)(number) for number in range(9))
    with crew.joblib(), pytest.raises(qnb.ArgumentError, match="lock"):
        Parallel()(delayed(work)(threading.Lock()) for _ in range(9))
    assert 'raise Unlucky("at once")' in str(caught.value.__cause__)
    wait_until(lambda: not _left(crew, "work"), "the others are aborted")


def test_a_timeout_ends_the_jobs_that_ran_into_it(crew: qnb.App, wait_until: Wait) -> None:
    with crew.joblib(), pytest.raises(multiprocessing.TimeoutError):
        Parallel(timeout=0.3)(delayed(time.sleep)(60) for _ in range(3))
    wait_until(lambda: not _left(crew, "sleep"), "they are aborted")
    with crew.joblib():
        assert Parallel()([delayed(double)(1)]) == [2]


def _left(app: qnb.App, name: str) -> int:
    return int((app.jobs_frame(task=name)["status"] != "complete").sum())


def test_a_large_array_is_stored_once_and_may_be_larger_than_a_call(
    server_url: str, queue: str, tmp_path: Path
) -> None:
    app = qnb.App(server_url, queue, blob_store=str(tmp_path))
    X = np.random.default_rng(0).normal(size=(20_000, 125))  # 20 MB; a call has at most 16 MiB

    def look(X: np.ndarray, column: int) -> tuple[float, bool, int]:
        return float(X[:, column].sum()), X.flags.writeable, id(X)

    def write(X: np.ndarray) -> float:
        X[:] = 7
        return float(X.mean())

    with app.start_workers(2, linger="60 s"), app.joblib():
        found = Parallel(batch_size=1)(delayed(look)(X, column) for column in range(30))
        assert Parallel(mmap_mode=None)(delayed(write)(X) for _ in range(2)) == [7, 7]
        with pytest.raises(ValueError, match="read-only"):
            Parallel()(delayed(write)(X) for _ in range(2))
    assert [total for total, _, _ in found] == [X[:, column].sum() for column in range(30)]
    assert not any(writeable for _, writeable, _ in found)  # the next job gets the same memory
    assert [file.stat().st_size for file in tmp_path.iterdir()] == [X.nbytes]
    places = app.jobs_frame(task="look", values=True).groupby("worker", observed=True)["value"]
    assert all(len({place for [(*_, place)] in values}) == 1 for _, values in places)
    app.close()


def test_nothing_of_joblib_is_loaded_where_it_is_not_used(server_url: str, app: qnb.App) -> None:
    @app.task
    def loaded() -> bool:
        return "joblib" in sys.modules or "qnb.adapters" in sys.modules

    with app.start_workers(1, linger="60 s"):
        assert not loaded.submit().get(timeout=10)


def test_a_queue_that_nobody_serves_is_said_to_be_one(app: qnb.App) -> None:
    with (
        app.joblib(),
        pytest.warns(UserWarning, match=r"no worker serves queue.*start_workers"),
        pytest.raises(multiprocessing.TimeoutError),
    ):
        Parallel(timeout=0.1)(delayed(double)(x) for x in range(3))
