"""A job as its view and its saved output say it, and as those who watch it hear of it."""

from __future__ import annotations

import pathlib
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

import qnb
from qnb import bridge
from qnb.closeup import CHARS, INLINE, LARGE, LINES, arguments, tail
from qnb.errors import BrokerError
from qnb.models import Ending, Failure, JobRecord, JobState, Outcome, Report
from qnb.notebook.cell_view import CellJob
from qnb.notebook.job_card import job_card
from qnb.notebook.job_view import JobRenderer, renderer

Wait = Callable[..., Any]

JOB = JobRecord(
    "01K0", "simulate", "default", JobState.RUNNING, 1_000, tries=2, start=1_000, worker="n3:7",
    report=Report(3, 10, "epoch", {"loss": 0.123456}), arguments="3, tol=0.001", log="go\n10 %",
)  # fmt: skip
FAILURE = Failure("ValueError", "too large", "ValueError('too large')", "in simulate: check()")


def _ended(ending: Ending) -> JobRecord:
    failure = None if ending is Ending.DONE else FAILURE
    outcome = Outcome(ending, tries=1, start=1_000, finish=5_200, worker="n3:7", failure=failure)
    return replace(JOB, status=JobState.COMPLETE, outcome=outcome)


def _rerunnable(snapshot: JobRecord) -> tuple[list[str], bool]:
    return [name for name, _ in renderer.actions(snapshot)], renderer.lasting(snapshot)


# -- what is said ------------------------------------------------------------------------------


@pytest.mark.parametrize("job", [JOB, _ended(Ending.FAILED), replace(JOB, note="reconnecting")])
def test_the_card_says_all_that_the_view_says(job: JobRecord) -> None:
    state, card = renderer.state(job), job_card(job)
    said = ("word", "name", "id", "arguments", "message", "log", "error", "traceback")
    for words in (*(state[part] for part in said), *state["facts"]):
        assert words in card
    assert "loss 0.1235" in card or job.outcome


def test_what_has_failed_can_be_run_again_and_what_went_well_not() -> None:
    assert _rerunnable(JOB) == (["abort"], False)
    assert _rerunnable(_ended(Ending.DONE)) == ([], False)
    for ending in (Ending.FAILED, Ending.ABORTED, Ending.EXPIRED, Ending.CRASHED):
        assert _rerunnable(_ended(ending)) == (["retry"], True)


def test_the_time_left_is_told_by_the_progress_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnb.notebook.job_view.now_ms", lambda: 7_000)
    assert renderer.state(JOB)["eta"] == pytest.approx(14)  # 3 of 10 took 6 s
    for unknown in (Report(0, 10), Report(3), Report(10, 10)):
        assert renderer.state(replace(JOB, report=unknown))["eta"] is None


def test_output_reads_as_a_terminal_would_show_its_end() -> None:
    assert tail("\x1b[1;32mok\x1b[0m\r\n\x1b]0;title\x07 1 %\r 2 %\r\n") == "ok\n 2 %"
    assert tail("line\n" * 1_000).count("line") == LINES
    assert len(tail("x" * 100_000)) == CHARS + 1


class _Shy:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_arguments_are_short_whatever_they_are() -> None:
    assert arguments((_Shy(), "a\nb"), {"n": 1}).startswith("<_Shy")
    assert len(arguments((list(range(10**5)), "x" * 10**6, {"a": {"b": [[[1]]]}}), {})) < 300


# -- what is heard -----------------------------------------------------------------------------


def test_a_job_is_told_of_with_arguments_and_output_to_its_end(
    serving: qnb.App, wait_until: Wait, tmp_path: pathlib.Path
) -> None:
    go = tmp_path / "go"

    @serving.task
    def fit(path: str, *, step: float) -> None:
        print("begun")
        while not pathlib.Path(path).exists():
            time.sleep(0.01)
        print("ended")

    job = fit.submit(str(go), step=0.5)
    seen: list[JobRecord] = []
    end = job.watch(lambda: seen.append(job.snapshot()))
    wait_until(lambda: job.snapshot().log == "begun", "its output while it runs")
    assert job.snapshot().status is JobState.RUNNING
    assert (job.snapshot().arguments or "").endswith("step=0.5")
    go.touch()
    wait_until(lambda: seen and seen[-1].outcome, "its end")
    assert seen[-1].log == "begun\nended"
    end()


def test_watching_may_end_and_begin_again_in_any_thread_and_leaves_nothing(
    app: qnb.App, wait_until: Wait
) -> None:
    @app.task
    def later() -> None: ...

    job = later.submit()
    bridge.run(app._client.link())
    heard: list[int] = []

    def look(turn: int) -> None:
        job.watch(lambda: heard.append(turn))()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, range(200)))
    assert job._watchers == []
    link = bridge.run(app._client.link())
    wait_until(lambda: job.id not in link._listeners, "nobody listens")
    heard.clear()
    end = job.watch(lambda: heard.append(-1))
    wait_until(lambda: -1 in heard, "one that begins anew is told")
    assert len(link._listeners[job.id]) == 1
    end()
    wait_until(lambda: job.id not in link._listeners, "nobody listens again")
    assert set(heard) == {-1}
    job.abort().result(5)


def test_who_watches_sees_a_job_that_is_run_again(
    serving: qnb.App, wait_until: Wait, tmp_path: pathlib.Path
) -> None:
    flag = tmp_path / "flag"

    @serving.task
    def second_time(path: str) -> str:
        if not pathlib.Path(path).exists():
            pathlib.Path(path).touch()
            print("it will not do")
            raise ValueError("the first time")
        print("it does")
        return "well"

    job = second_time.submit(str(flag))
    ends: list[tuple[Ending, str]] = []

    def told() -> None:
        seen = job.snapshot()
        if seen.outcome:
            ends.append((seen.outcome.ending, seen.log))

    end = job.watch(told)
    wait_until(lambda: ends, "the failure")
    assert renderer.act(job, "retry", None).result(5)
    wait_until(lambda: ends[-1][0] is Ending.DONE, "the second run's end")
    assert ends[0] == (Ending.FAILED, "it will not do")
    assert ends[-1] == (Ending.DONE, "it does")
    end()


def test_while_the_server_is_away_it_says_so_and_catches_up(
    app: qnb.App, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task
    def later() -> None: ...

    job = later.submit()
    glance, notes = app._client.glance, []
    away = iter([True])

    async def broken(task_id: str) -> JobRecord | None:
        if next(away, False):
            raise BrokerError("away")
        return await glance(task_id)

    monkeypatch.setattr(type(app._client), "glance", lambda _, task_id: broken(task_id))
    end = job.watch(lambda: notes.append(job.snapshot().note))
    wait_until(lambda: len(notes) > 1, "it is there again")
    assert notes[:2] == ["reconnecting", ""]
    end()
    job.abort().result(5)


@pytest.mark.parametrize(
    "data",
    [random.Random(5).randbytes(2 * INLINE), b"x" * 2 * INLINE, random.Random(5).randbytes(2**21)],
    ids=["as it is", "deflated", "in the blob store"],
)
def test_a_huge_argument_is_not_fetched_to_be_shown(app: qnb.App, data: bytes) -> None:
    @app.task
    def weigh(data: bytes) -> None: ...

    job = weigh.submit(data)
    job.look(5)
    assert job.snapshot().arguments == LARGE
    job.abort().result(5)


def test_a_cell_in_the_background_is_followed_while_it_runs(
    serving: qnb.App, wait_until: Wait, tmp_path: pathlib.Path
) -> None:
    go = tmp_path / "go"

    @serving.task
    def cell(path: str) -> None:
        print("begun")
        while not pathlib.Path(path).exists():
            time.sleep(0.01)

    job = CellJob(cell.submit(str(go)))
    end = job.watch(lambda: None)
    wait_until(lambda: "begun" in JobRenderer().state(job.snapshot())["log"], "its output")
    assert job.snapshot().shown is None
    go.touch()
    wait_until(lambda: job.snapshot().shown is not None, "its end")
    end()
