"""A pool as the channel and a saved file see it; what others may have written there is harmless."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import qnb
from qnb.errors import InvalidOption
from qnb.lookout import worker_info
from qnb.models import PoolSnapshot, RunningJob, WorkerInfo
from qnb.notebook import pool_view
from qnb.notebook.pool_card import SIGNS, pool_card, pool_text, worker_rows
from qnb.pool import most_slots

NOW = 1_800_000_000_000
WORKER = WorkerInfo(
    "vm:7:ab", "vm", 7, slots=2, running=1, done=41, started=NOW - 60_000, at=NOW, load=1.24,
    memory=123_456_789, lanes=("default",), pool=True,
    jobs=(RunningJob("scan.12", "simulate", NOW - 3_200),),
)  # fmt: skip
POOL = PoolSnapshot("shop", "vm", NOW, "serving", (WORKER,), slots=2, most=8)


def test_state_card_and_text_say_the_same() -> None:
    state, card = pool_view.renderer.state(POOL), pool_card(POOL)
    assert pool_text(POOL) == "pool of queue shop: serving, 1 of 2 slots busy"
    assert "1 of 2 slots busy" in card
    assert [state["busy"], state["slots"], state["word"]] == [1, 2, "serving"]
    assert state["workers"][0]["jobs"] == [["simulate", "scan.12", NOW - 3_200]]
    for said in ("serving", "shop", "123 MB", "simulate scan.12 · 3.2 s", "41 jobs ended"):
        assert said in card


def test_every_word_has_a_sign_of_its_own() -> None:
    words = [*PoolSnapshot.__annotations__["state"].split('"')[1::2], "reconnecting", "silent"]
    assert set(words) <= set(SIGNS)
    looks = {SIGNS[word][0] for word in words}
    assert len(looks) == len(words)


def test_time_that_passes_is_no_news_but_work_is() -> None:
    renderer = pool_view.renderer

    def news(pool: PoolSnapshot) -> dict[str, Any]:
        return {k: v for k, v in renderer.state(pool).items() if k not in renderer.passing}

    later = replace(WORKER, at=NOW + 1_000)
    assert news(POOL) == news(replace(POOL, at=NOW + 1_000, workers=(later,)))
    assert news(POOL) != news(replace(POOL, workers=(replace(WORKER, done=42),)))


def test_a_large_pool_is_a_small_message() -> None:
    job = RunningJob("x" * 500, "ﷺ" * 500, NOW)
    workers = tuple(
        replace(WORKER, id=f"w{n}", running=16, slots=16, jobs=(job,) * 16) for n in range(1_000)
    )
    state = pool_view.renderer.state(replace(POOL, workers=workers))
    assert len(json.dumps(state, ensure_ascii=False).encode()) < 50_000
    assert state["more"] == 1_000 - len(state["workers"])
    assert len(pool_card(replace(POOL, workers=workers))) < 50_000


HOSTILE: list[Any] = [
    None, True, -1, 2**70, 1e308, float("nan"), float("inf"), "<script>alert(1)</script>" * 99,
    "\x1b[2J\u202e", b"\xff", [], [[]], [[1, 2]], [["a", "b", "c"]], [["a", "b", 2**80, None]],
    {"a": [1]}, [None] * 10_000, [[["deep"] * 9] * 3] * 9,
]  # fmt: skip


@pytest.mark.parametrize("said", HOSTILE, ids=lambda said: str(said)[:20])
def test_whatever_a_worker_says_is_shown_or_missing(said: Any) -> None:
    words = ("host", "pid", "slots", "running", "done", "started", "at", "load", "memory", "lanes",
             "pool", "leaving", "jobs", "failed")  # fmt: skip
    worker = worker_info(str(said), dict.fromkeys(words, said))
    pool = replace(POOL, workers=(worker,))
    assert json.dumps(worker_rows([worker]), allow_nan=False)
    for shown in (pool_card(pool), pool_text(pool)):
        assert "<script" not in shown.replace("pool of queue", "")
        assert "\x1b" not in shown
        assert "\u202e" not in shown


@pytest.mark.parametrize("value", [None, 0, -1, True, "2", 1.5, 10**9, [1], {"n": 1}])
def test_a_page_cannot_ask_for_what_is_no_number_of_slots(app: qnb.App, value: Any) -> None:
    with pytest.raises(InvalidOption, match=f"from 1 to {most_slots()}"):
        pool_view.renderer.act(app.pool(), "scale", value)


def test_it_is_watched_while_it_is_seen_and_says_what_runs(app: qnb.App, wait_until: Any) -> None:
    @app.task
    def wait_for(path: str) -> None:
        import pathlib
        import time

        while not pathlib.Path(path).exists():
            time.sleep(0.01)

    pool = app.pool()
    assert pool.snapshot().state == "looking"
    with app.start_workers(1, linger=30):
        looks: list[int] = []
        ends = [pool.watch(lambda: looks.append(1)) for _ in range(3)]
        job = wait_for.submit("/nowhere/at/all")
        wait_until(lambda: pool.snapshot().state == "serving", "the pool is seen to serve")
        [worker] = pool.snapshot().workers
        assert worker.memory
        assert worker.memory > 10_000_000
        wait_until(lambda: pool.snapshot().workers[0].jobs, "what it runs is told")
        assert [run.task_id for run in pool.snapshot().workers[0].jobs] == [job.id]
        job.abort().result(10)
        wait_until(lambda: pool.snapshot().state == "idle", "the pool is seen to be idle")
        for end in ends:
            end()
            end()  # as often as wanted
        seen = len(looks)
        again = pool.watch(lambda: looks.append(1))
        wait_until(lambda: len(looks) > seen, "it is watched again")
        again()
    assert pool.snapshot().state == "stopped"  # at once, though nobody watches
