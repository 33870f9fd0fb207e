"""Views as the channel sees them: few messages, the last state always, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from qnb.errors import BrokerError
from qnb.models import CELLS, Ending, JobRecord, JobState, Outcome, SweepSnapshot
from qnb.notebook import job_view, live, sweep_view
from qnb.notebook.answers import Answers
from qnb.notebook.audience import Audience, Cells
from qnb.notebook.publisher import MESSAGES_PER_SECOND

DONE = CELLS.index("done")


def _wait_until(predicate: Callable[[], object], description: str) -> None:
    deadline = time.monotonic() + 10
    while not predicate():
        assert time.monotonic() < deadline, f"in 10 s not seen: {description}"
        time.sleep(0.005)


@dataclass
class _Thing:
    """Shows what it is told to, and counts who watches."""

    state: Any
    callback: Callable[[], None] | None = None

    def snapshot(self) -> Any:
        if isinstance(self.state, Exception):
            raise self.state
        return self.state

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        self.callback = callback
        return lambda: None

    def look(self) -> None:
        """All is known of it."""

    def become(self, state: Any) -> None:
        self.state = state
        assert self.callback is not None
        self.callback()


def _sweep(done: int, total: int = 1_000, **more: Any) -> SweepSnapshot:
    cells = bytes([DONE] * done) + bytes(total - done)
    return SweepSnapshot("scan", "simulate", total, cells, **more)


def _job(status: JobState = JobState.RUNNING, **more: Any) -> JobRecord:
    return JobRecord("abc", "simulate", "default", status, 1_000, start=1_000, **more)


def _last_done(channel: Any) -> int | None:
    return channel.updates[-1]["state"]["counts"][DONE][2] if channel.updates else None


def test_a_burst_of_changes_is_few_messages_and_ends_with_the_last_state(channel: Any) -> None:
    sweep = _Thing(_sweep(0))
    assert sweep_view.renderer.show(sweep)
    started = time.monotonic()
    for done in range(1, 901):
        sweep.become(_sweep(done))
        time.sleep(0.0005)
    _wait_until(lambda: _last_done(channel) == 900, "the last state")
    seconds = time.monotonic() - started
    assert len(channel.updates) <= 4 * seconds + 2


def test_one_message_carries_all_that_changed(channel: Any) -> None:
    sweep = _Thing(_sweep(0))
    sweep_view.renderer.show(sweep)
    sweep.become(_sweep(5))
    _wait_until(lambda: channel.updates, "an update")
    assert [set(update) for update in channel.updates] == [{"state", "cells"}]


def test_time_that_passes_is_no_message(channel: Any) -> None:
    job, sweep = _Thing(_job()), _Thing(_sweep(3, elapsed=1.0, eta=9.0))
    job_view.renderer.show(job)
    sweep_view.renderer.show(sweep)
    before = channel.messages
    for second in range(5):
        job.become(_job())
        sweep.become(_sweep(3, elapsed=1.0 + second, eta=9.0 - second))
    assert live._publisher.settle(list(live._views.values()))
    assert channel.messages == before


def test_many_views_together_stay_under_the_cap_and_all_are_served(channel: Any) -> None:
    sweeps = [_Thing(_sweep(0)) for _ in range(20)]
    for sweep in sweeps:
        sweep_view.renderer.show(sweep)
    before, started = channel.messages, time.monotonic()
    for done in range(1, 101):
        for place, sweep in enumerate(sweeps):
            sweep.become(replace(_sweep(done), name=f"scan-{place}"))
        time.sleep(0.01)
    _wait_until(
        lambda: (
            {u["state"]["name"] for u in channel.updates if u["state"]["counts"][DONE][2] == 100}
            == {f"scan-{place}" for place in range(20)}
        ),
        "the last state of every view",
    )
    seconds = time.monotonic() - started
    assert channel.messages - before <= MESSAGES_PER_SECOND * seconds + 5


def test_a_thing_shown_often_is_one_widget(channel: Any) -> None:
    sweep = _Thing(_sweep(1))
    for _ in range(3):
        sweep_view.renderer.show(sweep)
    widgets = [data for ident, data, _ in channel.outputs if "-live-" in ident]
    assert len(widgets) == 3
    assert all(data == widgets[0] for data in widgets)
    assert len(live._views) == 1


def test_what_has_ended_is_left_as_text_and_html(channel: Any) -> None:
    job = _Thing(_job())
    job_view.renderer.show(job)
    assert "Last known state" in channel.output("card")["text/html"]
    job.become(_job(JobState.COMPLETE, outcome=Outcome(Ending.DONE, 1, 1_000, 3_500)))
    _wait_until(lambda: channel.output("live") == {}, "the emptied live output")
    assert set(channel.output("card")) == {"text/plain", "text/html"}
    assert "2.5 s" in channel.output("card")["text/html"]
    assert "Last known state" not in channel.output("card")["text/html"]


def test_a_cell_is_not_over_before_its_finished_views_are_saved(channel: Any) -> None:
    sweep = _Thing(_sweep(1))
    sweep_view.renderer.show(sweep)
    sweep.state = _sweep(1_000)  # nobody has marked the view yet
    _end_of_cell(channel)
    assert channel.output("live") == {}
    assert "1,000 of 1,000 finished" in channel.output("card")["text/html"]


def test_a_thing_that_is_taken_up_again_is_live_again(channel: Any) -> None:
    sweep = _Thing(_sweep(999))
    sweep_view.renderer.show(sweep)
    sweep.become(_sweep(1_000))
    _wait_until(lambda: channel.output("live") == {}, "the emptied live output")
    sweep.become(_sweep(990))
    _wait_until(lambda: channel.output("live") != {}, "the live output")
    _wait_until(lambda: "Last known" in channel.output("card")["text/html"], "the live card")


def test_a_view_that_fails_says_so_itself_and_the_others_go_on(channel: Any) -> None:
    bad, good = _Thing(_sweep(0)), _Thing(_sweep(0))
    sweep_view.renderer.show(bad)
    sweep_view.renderer.show(good)
    bad.become(ZeroDivisionError("by \x1b[31mzero"))
    good.become(_sweep(7))
    _wait_until(
        lambda: any("ZeroDivisionError" in u["state"].get("problem", "") for u in channel.updates),
        "the error in its view",
    )
    assert not any("\x1b" in u["state"].get("problem", "") for u in channel.updates)
    _wait_until(
        lambda: any(u["state"]["counts"][DONE][2] == 7 for u in channel.updates), "the other view"
    )
    bad.become(_sweep(8))
    _wait_until(
        lambda: _last_done(channel) == 8 and "problem" not in channel.updates[-1]["state"],
        "the view that recovered",
    )


def test_a_lost_channel_does_not_end_the_publisher(channel: Any) -> None:
    sweep = _Thing(_sweep(0))
    sweep_view.renderer.show(sweep)
    channel.broken = True
    sweep.become(_sweep(1))
    assert live._publisher.settle(list(live._views.values()))
    channel.broken = False
    sweep.become(_sweep(2))
    _wait_until(lambda: channel.updates, "an update after the channel came back")


def test_marks_from_many_threads_lose_nothing(channel: Any) -> None:
    sweep = _Thing(_sweep(0))
    sweep_view.renderer.show(sweep)
    threads = [
        threading.Thread(target=lambda: [sweep.become(_sweep(5)) for _ in range(200)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _wait_until(lambda: _last_done(channel) == 5, "the last state")


def test_what_has_ended_and_offers_nothing_more_is_drawn_without_a_widget(channel: Any) -> None:
    assert not job_view.renderer.show(_Thing(_job(JobState.NOT_FOUND)))
    assert channel.messages == 0


def test_a_finished_sweep_stays_to_be_explored_where_a_page_is(channel: Any) -> None:
    sweep = _Thing(_sweep(1_000))
    assert sweep_view.renderer.show(sweep)
    view = next(iter(live._views.values()))
    view._widget._handle_custom_msg({"see": "a", "page": "p", "is": True}, [])
    _end_of_cell(channel)
    assert channel.output("live") != {}
    assert "Last known state" not in channel.output("card")["text/html"]


def test_without_a_page_a_finished_sweep_is_left_as_text_and_html(channel: Any) -> None:
    assert sweep_view.renderer.show(_Thing(_sweep(1_000)))
    _end_of_cell(channel)
    assert channel.output("live") == {}
    assert "qnb-card-" not in channel.output("card")["text/html"]


def _end_of_cell(channel: Any) -> None:
    for hook in channel.after_cell:
        hook(None)


def _out_of_sight(channel: Any) -> tuple[_Thing, live.View[Any]]:
    """A sweep that has just begun, and its view, which a page has shown and shows no more."""
    sweep = _Thing(_sweep(0))
    sweep_view.renderer.show(sweep)
    view = next(iter(live._views.values()))
    _end_of_cell(channel)
    for seen in (True, False):
        view._widget._handle_custom_msg({"see": "a", "page": "p", "is": seen}, [])
    assert live._publisher.settle([view])
    return sweep, view


def test_a_view_that_nobody_sees_is_not_sent_and_catches_up_when_seen(channel: Any) -> None:
    sweep, view = _out_of_sight(channel)
    before = len(channel.updates)
    for done in range(1, 50):
        sweep.become(_sweep(done))
    assert live._publisher.settle([view])
    assert len(channel.updates) == before
    view._widget._handle_custom_msg({"see": "a", "page": "p", "is": True}, [])
    _wait_until(lambda: _last_done(channel) == 49, "what it has missed")


def test_while_a_cell_runs_what_nobody_sees_is_sent_too_as_no_page_can_say_that_it_is_seen(
    channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "BUSY_PERIOD", 0.2)
    sweep, _ = _out_of_sight(channel)
    sweep.become(_sweep(5))  # it can wait for half a minute
    live._cell_began()
    _wait_until(lambda: _last_done(channel) == 5, "the newest state")


def test_what_has_ended_and_is_shown_nowhere_any_more_is_let_go(channel: Any) -> None:
    sweep = _Thing(_sweep(1_000))
    sweep_view.renderer.show(sweep)
    view = next(iter(live._views.values()))
    view._widget._handle_custom_msg({"see": "a", "page": "p", "is": True}, [])
    _end_of_cell(channel)
    assert list(live._views.values()) == [view]
    view._widget._handle_custom_msg({"see": "a", "page": "p", "is": None}, [])
    assert live._views == {}


def test_a_new_page_takes_the_place_of_one_that_never_said_goodbye() -> None:
    now = [0.0]
    cells = Cells(lambda: now[0])
    cells.ended()
    audience = Audience(cells, lambda: now[0])
    assert audience.seen, "nobody has spoken yet"
    assert audience.hear({"see": "a", "page": "one", "is": True})
    assert audience.hear({"see": "b", "page": "two", "is": False})
    assert not audience.seen
    audience.hear({"see": "b", "page": "two", "is": True})
    now[0] = 100.0
    assert not audience.seen, "a page speaks every half minute while the kernel can hear it"
    cells.began()
    assert audience.seen, "while a cell runs it may not be heard"
    audience.hear({"see": "b", "page": "two", "is": None})
    assert audience.gone


def test_a_question_is_answered_again_when_the_thing_changes_until_it_is_dropped() -> None:
    asked: list[dict[str, Any]] = []
    sent: list[dict[str, Any]] = []

    def answer(question: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        asked.append(question)
        if question["ask"] == "nonsense":
            raise ValueError("no such question")
        return {"n": len(asked)}, []

    answers = Answers(answer, lambda words, _: sent.append(words))
    answers.ask({"ask": "rows", "id": "1", "page": "p", "offset": 3})
    _wait_until(lambda: sent == [{"n": 1, "answer": "1"}], "one answer")
    assert asked == [{"ask": "rows", "offset": 3}]
    answers.ask({"ask": "nonsense", "id": "2", "page": "p"})
    _wait_until(lambda: sent[-1] == {"error": "no such question", "answer": "2"}, "the error")
    answers.ask({"ask": "heat", "id": "3", "page": "p", "follow": True})
    _wait_until(lambda: sent[-1]["answer"] == "3", "the first answer")
    first = time.monotonic()
    answers.refresh()
    _wait_until(lambda: len(asked) == 4, "the next")
    assert time.monotonic() - first > 1.5
    answers.only("another page")
    answers.refresh()
    assert not answers._questions


def test_answers_that_take_long_take_a_tenth_of_the_time_however_much_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qnb.notebook.answers.PERIOD", 0.0)
    began: list[float] = []

    def answer(_: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        began.append(time.monotonic())
        answers.refresh()
        _wait_until(lambda: time.monotonic() - began[-1] > 0.03, "it takes a while")
        return {}, []

    answers = Answers(answer, lambda *_: None)
    answers.ask({"ask": "heat", "id": "", "page": "p", "follow": True})
    _wait_until(lambda: len(began) == 3, "the third answer")
    answers.drop("")
    assert began[2] - began[1] > 0.3


def test_a_question_stands_while_the_server_is_away_and_is_not_asked_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qnb.notebook.answers.PERIOD", 0.01)
    sent: list[dict[str, Any]] = []

    def answer(_: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        if len(sent) < 2:
            raise BrokerError("no server")
        return {"n": len(sent)}, []

    answers = Answers(answer, lambda words, _: sent.append(words))
    for _ in range(3):
        answers.ask({"ask": "rows", "id": "1", "page": "p", "follow": True})
    _wait_until(lambda: sent[-1:] == [{"n": 2, "answer": "1"}], "the answer when it is back")
    assert sent[:2] == [{"error": "no server", "answer": "1"}] * 2
    answers.ask({"ask": "rows", "id": "1", "page": "p", "follow": True})
    answers.ask({"ask": "rows", "id": "2", "page": "p"})
    _wait_until(lambda: sent[-1]["answer"] == "2", "the other answer")
    assert len(sent) == 4
    answers.drop("1")


def test_without_a_kernel_nothing_is_loaded_and_the_plain_form_is_used() -> None:
    program = (
        "import sys\n"
        "from qnb.models import SweepSnapshot\n"
        "from qnb.notebook.sweep_view import renderer\n"
        "class Thing:\n"
        "    def snapshot(self): return SweepSnapshot('scan', 'f', 1, b'\\0')\n"
        "assert not renderer.show(Thing())\n"
        "assert 'scan' in renderer.html(Thing())\n"
        "print(sorted({'anywidget', 'ipywidgets', 'IPython', 'pandas'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@dataclass
class _Pressed(_Thing):
    """A thing with commands, one of which fails."""

    asked: list[str] = field(default_factory=list)

    def _command(self, name: str) -> Any:
        self.asked.append(name)
        if name == "cancel":
            raise RuntimeError("no server answers")
        answer: Future[bool] = Future()
        answer.set_result(True)
        return answer

    def pause(self) -> Any:
        return self._command("pause")

    def cancel(self) -> Any:
        return self._command("cancel")


def _said(channel: Any) -> str | None:
    return channel.updates[-1]["state"].get("said") if channel.updates else None


def test_a_pressed_button_is_answered_at_once_and_says_what_became_of_it(channel: Any) -> None:
    thing = _Pressed(_sweep(3))
    sweep_view.renderer.show(thing)
    view = next(iter(live._views.values()))
    assert [name for name, _ in view._widget.state["actions"]] == ["pause", "cancel"]
    view._widget._handle_custom_msg({"press": "pause"}, [])
    _wait_until(lambda: _said(channel) == "Pause: done", "its answer")
    view._widget._handle_custom_msg({"press": "cancel"}, [])
    _wait_until(lambda: "RuntimeError: no server answers" in (_said(channel) or ""), "the error")
    for nonsense in ({"press": "forget"}, {"press": ["pause"]}, "pause", None):
        view._widget._handle_custom_msg(nonsense, [])
    assert thing.asked == ["pause", "cancel"]


def test_a_paused_sweep_says_so_and_offers_to_go_on() -> None:
    paused = _sweep(3, state="paused")
    assert sweep_view.renderer.state(paused)["word"] == "paused"
    assert [label for _, label in sweep_view.renderer.actions(paused)] == ["Resume", "Cancel"]
    assert sweep_view.renderer.actions(_sweep(1_000)) == []
