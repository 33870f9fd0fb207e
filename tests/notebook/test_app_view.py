"""A queue as the channel and a saved file see it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgpack
import pytest

import qnb
from qnb import bridge
from qnb.models import CELLS, FailedJob, QueueSnapshot, SweepInfo, SweepSnapshot, WorkerInfo
from qnb.notebook import app_view, live, sweep_view
from qnb.notebook.app_card import app_card, app_text, app_word, spark, sweep_rows

Wait = Callable[..., Any]

NOW = 1_800_000_000_000
SWEEP = SweepInfo(
    "scan", "simulate", "bulk", NOW, 100_000, 100_000,
    {"queued": 50_000, "running": 4, "done": 49_000, "failed": 996, "aborted": 0}, estimated=True,
)  # fmt: skip
QUEUE = QueueSnapshot(
    "shop", NOW, {"bulk": 12, "urgent": 0}, 3,
    (WorkerInfo("vm:7:ab", "vm", 7, 2, 1, 41, NOW, NOW, memory=10**8),),
    sweeps=(SWEEP,), more_sweeps=12,
    failures=(FailedJob("scan.7", "simulate", NOW - 1_000, "ValueError('no luck')"),),
    rates=(1.0, None, 4.0, 2.0), since=NOW - 20_000, rate=2.25,
)  # fmt: skip


def test_state_card_and_text_say_the_same() -> None:
    state, card = app_view.renderer.state(QUEUE), app_card(QUEUE)
    assert state["lanes"] == [["bulk", 12], ["urgent", 0]]
    assert state["sweeps"][0]["ended"] == 49_996
    for said in (
        "busy", "bulk: 12, urgent: 0", "3 delayed", "about 49,996 of 100,000", "and 12 more",
        "simulate scan.7: ValueError(&#x27;no luck&#x27;)", "vm:7", "100 MB", "2.2 jobs/s", "▃ █▅",
    ):  # fmt: skip
        assert said in card
    assert app_text(QUEUE).startswith("queue 'shop': 12 waiting, 3 delayed, 1 running; 1 worker")


def test_a_queue_that_waits_for_a_worker_says_so() -> None:
    assert app_word(replace(QUEUE, workers=())) == "unserved"
    assert app_word(replace(QUEUE, workers=(), lanes={"bulk": 0})) == "idle"
    assert app_word(QueueSnapshot("shop")) == "looking"
    assert app_word(replace(QUEUE, note="reconnecting")) == "reconnecting"


@pytest.mark.parametrize("ends", [{"done": 3}, {"done": 2, "failed": 1}, {"aborted": 3}], ids=str)
def test_an_ended_sweep_is_called_what_its_own_view_calls_it(ends: dict[str, int]) -> None:
    counts = dict.fromkeys(CELLS, 0) | ends
    cells = b"".join(bytes([code]) * counts[word] for code, word in enumerate(CELLS))
    own = sweep_view.renderer.state(SweepSnapshot("scan", "simulate", 3, cells))
    [row] = sweep_rows([replace(SWEEP, total=3, counts=counts, state="finished")])
    assert [row[part] for part in ("word", "glyph", "tone")] == [
        own[part] for part in ("word", "glyph", "tone")
    ]


def test_a_line_of_blocks_shows_the_last_figures_and_gaps() -> None:
    assert spark([None, 0.0, 1.0, 7.0]) == " ▁▂█"
    assert spark([]) == ""
    assert len(spark([1.0] * 500)) == 40


def test_whatever_is_in_the_store_is_a_small_message() -> None:
    evil = "<img src=x onerror=alert(1)>\x1b[2J" * 1_000
    sweep = replace(SWEEP, name=evil, fn_name=evil, counts={evil: 1})
    queue = replace(
        QUEUE, queue=evil, lanes=dict.fromkeys([f"{evil}{n}" for n in range(500)], 1),
        sweeps=(sweep,) * 10, failures=(FailedJob(evil, evil, 0, evil),) * 5, note=evil,
        rates=(1 / 3,) * 120,
    )  # fmt: skip
    assert len(json.dumps(app_view.renderer.state(queue), allow_nan=False)) < 50_000
    for shown in (app_card(queue), app_text(queue)):
        assert "<img" not in shown.replace(app_text(queue), "")
        assert "\x1b" not in shown
        assert len(shown) < 60_000


# -- what is looked at ---------------------------------------------------------------------------


@pytest.fixture
def watched(app: qnb.App) -> Iterator[qnb.App]:
    end = app.watch(lambda: None)
    yield app
    end()


def test_a_large_sweep_is_counted_by_a_sample_that_says_so(
    watched: qnb.App, wait_until: Wait
) -> None:
    @watched.task
    def one(x: int) -> int:
        return x

    sweep = one.options(name="large", priority="default").map(range(2_000))
    wait_until(lambda: any(s.stored == 2_000 for s in watched.snapshot().sweeps), "it is stored")
    wait_until(lambda: watched.snapshot().waiting == 2_000, "its jobs wait")
    [info] = watched.snapshot().sweeps
    assert info.estimated
    assert info.counts == {**dict.fromkeys(CELLS, 0), "queued": 2_000}
    sweep.cancel().result(20)
    wait_until(lambda: watched.snapshot().sweeps[0].counts["aborted"] == 2_000, "it is cancelled")


def test_failures_are_found_in_the_store_and_heard_from_workers(
    serving: qnb.App, wait_until: Wait
) -> None:
    @serving.task
    def fail(x: int) -> None:
        raise ValueError(f"no luck with {x}")

    for x in range(7):
        fail.submit(x).wait(10)
    end = serving.watch(lambda: None)
    wait_until(lambda: len(serving.snapshot().failures) == 5, "the last five")
    assert [job.text for job in serving.snapshot().failures] == [
        f"ValueError('no luck with {x}')" for x in (6, 5, 4, 3, 2)
    ]
    fail.submit(8).wait(10)
    wait_until(
        lambda: "8" in serving.snapshot().failures[0].text, "what its worker says", timeout=5
    )
    assert [job.fn_name for worker in serving.snapshot().workers for job in worker.failed]
    end()


def test_what_somebody_aborted_has_not_failed(serving: qnb.App, wait_until: Wait) -> None:
    @serving.task
    async def sleep() -> None:
        await asyncio.sleep(600)

    @serving.task
    def fail() -> None:
        raise ValueError("no luck")

    asleep = [sleep.submit() for _ in range(6)]
    failed = fail.submit().wait(10)
    for job in asleep:
        job.abort().result(10)
        job.wait(10)
    end = serving.watch(lambda: None)
    wait_until(lambda: any(w.failed for w in serving.snapshot().workers), "what its worker says")
    assert [job.task_id for w in serving.snapshot().workers for job in w.failed] == [failed.id]
    wait_until(lambda: serving.snapshot().failures, "what the store says")
    assert [job.task_id for job in serving.snapshot().failures] == [failed.id]
    end()


def test_workers_that_cannot_be_read_hide_no_others(app: qnb.App, wait_until: Wait) -> None:
    store = bridge.run(app._client.link()).store
    says = msgpack.packb({"slots": 1, "at": store.clock.now_ms()})
    for number in range(300):
        said = says if number % 10 else b"\xc1"
        bridge.run(store.server.call("ZADD", store.keys.workers, number, f"w{number}"))
        bridge.run(store.server.call("SET", store.keys.worker(f"w{number}"), said, "PX", 30_000))
    end = app.watch(lambda: None)
    wait_until(lambda: app.snapshot().workers, "those that can be read")
    end()
    assert 200 < len(app.snapshot().workers) < 256
    assert app.snapshot().more_workers == 44


def test_many_watchers_are_one_task_without_a_thread_and_none_is_left(
    app: qnb.App, wait_until: Wait
) -> None:
    wait_until(lambda: not bridge.run(_tasks()), "nobody watches any more")
    threads = threading.active_count()
    ends = [app.watch(lambda: None) for _ in range(20)]
    ends += [app.pool().watch(lambda: None) for _ in range(20)]
    assert bridge.run(_tasks()) <= 2  # itself, and the look that it takes
    for end in ends:
        end()
    wait_until(lambda: not bridge.run(_tasks()), "none is left")
    assert threading.active_count() <= threads + 1  # one that hands work to threads


async def _tasks() -> int:
    return sum("Lookout" in repr(task) for task in asyncio.all_tasks())


def test_it_is_looked_at_on_a_fresh_io_thread_too(
    app: qnb.App, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "OWED", 0.1)  # what other tests have left is not waited for
    end = app.watch(lambda: None)
    wait_until(lambda: app.snapshot().at, "a first look")
    old = bridge.loop()
    bridge._close()
    assert bridge.loop() is not old
    at = app.snapshot().at
    wait_until(lambda: app.snapshot().at > at, "a look on the other thread")
    end()


def test_shown_live_it_is_a_widget_and_a_card_that_knows_the_queue(
    app: qnb.App, channel: Any
) -> None:
    assert app_view.renderer.show(app)
    assert "application/vnd.jupyter.widget-view+json" in channel.output("live")
    assert "looking" not in channel.output("card")["text/html"]
    assert "0 running on 0 slots" in channel.output("card")["text/html"]
    for view in list(live._views.values()):
        view.watch(False)


def test_a_view_out_of_sight_looks_at_nothing(app: qnb.App, channel: Any) -> None:
    app_view.renderer.show(app)
    [view] = live._views.values()
    live._cell_ended()
    for is_seen, watchers in ((True, 1), (False, 0), (True, 1), (None, 0)):
        view._hear(None, {"see": "page/1", "page": "page", "is": is_seen}, [])
        assert len(app._lookout._watchers) == watchers


def test_a_closed_app_says_so_and_is_looked_at_no_more(app: qnb.App, wait_until: Wait) -> None:
    end = app.watch(lambda: None)
    wait_until(lambda: app.snapshot().at, "a first look")
    app.close()
    wait_until(lambda: app.snapshot().note == "the app has been closed", "it says so")
    wait_until(lambda: not bridge.run(_tasks()), "nobody looks")
    end()
