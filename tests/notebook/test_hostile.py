"""Text from users, their data and their errors is only ever text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import pytest

from qnb import App, status
from qnb.analysis.frames import jobs_frame, sweep_frame
from qnb.closeup import arguments, tail
from qnb.errors import QnbError
from qnb.models import (
    Ending,
    FailedJob,
    Failure,
    JobRecord,
    JobState,
    Outcome,
    PoolSnapshot,
    QueueSnapshot,
    Report,
    RunningJob,
    SweepInfo,
    SweepSnapshot,
    WorkerInfo,
)
from qnb.notebook import app_view, cell_view, html, job_view, pool_view, sweep_view
from qnb.storage.rows import Row
from tests.hostile import ARTFUL, CORPUS
from tests.notebook.markup import ATTRIBUTES, TAGS, UNSEEN, Markup


def _sweep(text: str) -> SweepSnapshot:
    cells = bytes([0, 1, 2, 3, 4])
    return SweepSnapshot(text, text, 5, cells, 3.0, 2.0, {text: 1, text + "!": 2}, note=text)


def _jobs(text: str) -> Iterator[JobRecord]:
    near = {"worker": text, "arguments": text, "log": tail(text)}
    said = Report(1, 2, text, {text: text})
    yield JobRecord(text, text, text, JobState.RUNNING, 0, report=said, **near)  # type: ignore[arg-type]
    failure = Failure(text, text, text, text)
    outcome = Outcome(Ending.FAILED, 1, 1_000, 2_000, failure=failure, worker=text)
    yield JobRecord(text, text, text, JobState.COMPLETE, 0, outcome=outcome, **near)  # type: ignore[arg-type]


def _worker(text: str) -> WorkerInfo:
    return WorkerInfo(
        id=text, host=text, pid=1, slots=2, running=1, done=3, started=0, at=9_000, load=0.5,
        memory=10**8, lanes=(text,), jobs=(RunningJob(text, text, 1_000),),
        failed=(FailedJob(text, text, 1_000, text),),
    )  # fmt: skip


def _pool(text: str) -> PoolSnapshot:
    return PoolSnapshot(text, text, 9_000, "serving", (_worker(text),), 2, note=text)


def _queue(text: str) -> QueueSnapshot:
    counts = {"queued": 1, "running": 0, "done": 2, "failed": 0, "aborted": 0}
    return QueueSnapshot(
        text, 9_000, {text: 3}, workers=(_worker(text),),
        sweeps=(SweepInfo(text, text, text, 0, 3, 3, counts),),
        failures=(FailedJob(text, text, 1_000, text),), rates=(1.0, None), note=text,
    )  # fmt: skip


def _drawn(text: str) -> Iterator[tuple[Any, Any]]:
    yield sweep_view.renderer, _sweep(text)
    for record in _jobs(text):
        yield job_view.renderer, record
    shown = ({"text/plain": text}, {"image/png": b"", "text/plain": text})
    cell = cell_view.CellRecord(text, "%%qnb", "x", JobState.COMPLETE, 0, shown=shown)
    yield cell_view.renderer, cell
    yield pool_view.renderer, _pool(text)
    yield app_view.renderer, _queue(text)


@pytest.mark.parametrize("text", CORPUS, ids=range(len(CORPUS)))
def test_hostile_text_is_only_ever_text(text: str) -> None:
    for renderer, snapshot in _drawn(text):
        card = renderer.card(snapshot)
        for markup in (card, html.beneath(card, "0a1b", 0), html.beneath(card, "0a1b", None)):
            found = Markup(markup)
            assert found.tags <= TAGS
            assert found.attributes <= ATTRIBUTES
            assert "}" not in found.rules.replace("{display:none}", "")
            assert not UNSEEN.search(found.text)
        line = renderer.text(snapshot)
        assert not UNSEEN.search(line)
        assert "\n" not in line or renderer is cell_view.renderer  # what the cell shows follows
        state = json.dumps(renderer.state(snapshot), ensure_ascii=False)  # what travels to the page
        assert not UNSEEN.search("".join(_texts(json.loads(state))))
        assert len(state) < 60_000, "a view stays small, whatever it is given"
        assert len(card) < 120_000


def _texts(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict):
        for key, value in found.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(found, list):
        for value in found:
            yield from _texts(value)


@pytest.mark.parametrize("text", CORPUS, ids=range(len(CORPUS)))
def test_a_terminal_is_told_no_more_than_text(text: str) -> None:
    says = {"slots": 1, "running": 0, "done": 0, "host": text, "lanes": [text]}
    overview = {
        "queue": text, "lanes": {text: 1}, "delayed": 0, "running": 0, "workers": {text: says},
    }  # fmt: skip
    for said in (
        status.summary(overview),
        status.as_text(overview, 0),
        status.as_line(overview, 0),
    ):
        assert not UNSEEN.search(said)
    json.loads(status.as_json(overview, 0))


def _named(text: str) -> Iterator[Callable[[], object]]:
    app = App(queue_name="hostile")
    task = app.task(len)
    yield lambda: App(queue_name=text)
    yield lambda: App(queue_name="hostile", priorities=[text])
    yield lambda: App(queue_name="hostile").task(len, name=text)
    yield lambda: task.options(name=text)
    yield lambda: task.options(priority=text)
    yield lambda: task.options(task_id=text)
    yield lambda: app.job(text)


@pytest.mark.parametrize("text", CORPUS, ids=range(len(CORPUS)))
def test_a_name_is_taken_or_refused_in_words_that_are_safe(text: str) -> None:
    for name in _named(text):
        try:
            said = repr(name())
        except QnbError as error:
            said = str(error)
        assert not UNSEEN.search(said)


@pytest.mark.parametrize("at", range(0, len(CORPUS), 8))
def test_a_frame_holds_any_text_and_shows_it_as_text(at: int) -> None:
    texts = CORPUS[at : at + 8]
    rows = [
        Row("id", text, text, 0, "x", JobState.COMPLETE, text, message=text,
            ending=Ending.FAILED, failure=Failure(text, text, text, text))
        for text in texts
    ]  # fmt: skip
    sweep = sweep_frame("s", {"x": texts}, rows, [{text: text} for text in texts])
    jobs = jobs_frame(rows, lambda row: ((row.fn_name,), {str(row.fn_name): 1}), params="columns")
    for frame in (sweep, jobs):
        found = Markup(frame._repr_html_())  # type: ignore[operator]
        assert found.tags <= {"div", "style", "table", "thead", "tbody", "tr", "th", "td", "p"}
        assert found.attributes <= {"border", "class", "scoped", "style"}


@pytest.mark.parametrize("name", ARTFUL)
def test_arguments_that_cannot_be_shown_say_so_in_a_line(name: str) -> None:
    shown = arguments((ARTFUL[name],), {"x": ARTFUL[name]})
    assert "\n" not in shown
    assert len(shown) < 1_000
    assert (
        Markup(
            job_view.renderer.card(JobRecord("j", "f", "", JobState.RUNNING, 0, arguments=shown))
        ).tags
        <= TAGS
    )


def test_the_end_of_an_output_is_what_a_terminal_would_show() -> None:
    assert tail("\x1b[32mgreen\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07") == "green link"
    assert tail(" 10 %\r 50 %\r100 %\nnext\r\n") == "100 %\nnext"
    assert len(tail("x" * 10**6)) < 5_000
    assert tail("\n" * 10**5) == ""


WRITES = (  # text into a page as anything but text
    r"(inner|outer)HTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser"
    r"|\beval\b|new Function|setAttribute\(\s*[\"'`](on|href|src|style)|\.(href|src|srcdoc)\s*="
)


def test_no_script_of_a_view_can_write_markup_or_addresses() -> None:
    scripts = [*files("qnb.notebook").joinpath("static").iterdir()]
    assert len(scripts) >= 8
    for script in scripts:
        assert not re.search(WRITES, script.read_text(encoding="utf-8")), script.name
