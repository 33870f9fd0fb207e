"""Stand-ins for a job and a sweep, played by a thread, imported in the kernel of a browser test."""

from __future__ import annotations

import random
import struct
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

from qnb import display
from qnb.models import (
    CELLS,
    Ending,
    Failure,
    JobRecord,
    JobState,
    Outcome,
    Report,
    SweepSnapshot,
)
from qnb.notebook import html
from qnb.notebook.live import Answer
from qnb.notebook.sweep_view import SweepRenderer

display.register("Job", "qnb.notebook.job_view:renderer")
display.register("Sweep", "fakes:renderer")

ERRORS = {
    "ValueError('the step is too large: 1e-1')": 5,
    "LinAlgError('SVD did not converge')": 3,
    "TimeoutError('no answer in 30 s')": 1,
}


class _Played(display.Displayed):
    def __init__(self) -> None:
        self._callbacks: list[Callable[[], None]] = []

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def changed(self) -> None:
        for callback in tuple(self._callbacks):
            callback()

    def look(self, timeout: float = 1.0) -> None:
        """All is known of it."""

    def wait(self) -> None:
        self._thread.join()

    def _play(self, run: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()


class Sweep(_Played):
    """``total`` jobs that end in ``seconds``, or stand at ``share`` of them if that is given."""

    def __init__(
        self,
        total: int,
        seconds: float = 0,
        *,
        share: float = 0,
        name: str = "scan",
        note: str = "",
        parameters: int = 3,
        steps: int = 50,
    ) -> None:
        super().__init__()
        self._steps = steps  # in which its jobs end
        self.asked: list[str] = []  # the kinds of question, as they came
        self._parameters = parameters  # how many it says it has
        self._note, self._total = note, total
        self._cells = bytearray(total)
        self._order = random.Random(7).sample(range(total), total)
        self._done = 0
        self._since = time.monotonic()
        self._elapsed: float | None = None
        self._advance(int(share * total))
        if share:
            self._since -= 83.4 * share
        if share == 1:
            self._elapsed = 83.4
        if seconds:
            self._play(lambda: self._run(seconds))

    def _advance(self, to: int) -> None:
        ended = self._order[self._done : to]
        running = self._order[to : to + 4] if to > 0 else []
        for place in ended:
            self._cells[place] = CELLS.index("failed" if place % 37 == 36 else "done")
        for place in running:
            self._cells[place] = CELLS.index("running")
        self._done = to

    def _run(self, seconds: float) -> None:
        for step in range(1, self._steps + 1):
            time.sleep(seconds / self._steps)
            self._advance(step * self._total // self._steps)
            self.changed()
        self._elapsed = time.monotonic() - self._since
        self.changed()

    def snapshot(self) -> SweepSnapshot:
        elapsed = self._elapsed or time.monotonic() - self._since
        failed = self._cells.count(CELLS.index("failed"))
        errors = {text: failed * part // 9 for text, part in ERRORS.items()}
        left = self._total - self._done
        return SweepSnapshot(
            name="scan",
            fn_name="simulate",
            total=self._total,
            cells=bytes(self._cells),
            elapsed=elapsed if self._done else 0,
            eta=elapsed * left / self._done if self._done and left else None,
            errors={text: count for text, count in errors.items() if count},
            note=self._note,
        )

    # -- what its view asks: the same words as a real sweep, of made up results ----------------

    def answer(self, asked: dict[str, Any]) -> Answer:
        kind = asked.pop("ask")
        self.asked.append(kind)
        return getattr(self, f"_{kind}")(**asked)

    def _given(self, place: int) -> dict[str, Any]:
        model = ("linear", "forest", "perceptron")[place // 200 % 3]
        return {"rate": (place // 10 % 20 + 1) / 20, "depth": place % 10 + 1, "model": model}

    def _loss(self, place: int) -> float | None:
        given = self._given(place)
        if CELLS[self._cells[place]] != "done":
            return None
        return float((given["rate"] - 0.4) ** 2 + (given["depth"] - 6) ** 2 / 100 + 0.05)

    def _columns(self) -> Answer:
        kinds = {"rate": ("number", 20), "depth": ("number", 10), "model": ("text", 3)}
        parameters = [
            {"name": name, "kind": kind, "distinct": distinct}
            for name, (kind, distinct) in kinds.items()
        ]
        return {
            "parameters": parameters[: self._parameters],
            "results": [{"name": "loss", "kind": "number"}],
            "results_known": self._done,
        }, []

    def _row(self, place: int) -> dict[str, Any]:
        word, loss = CELLS[self._cells[place]], self._loss(place)
        error = "ValueError('the step is too large')" if word == "failed" else ""
        return {"place": place, "state": word, **self._given(place), "loss": loss, "error": error}

    def _rows(
        self, offset: int, limit: int, sort: str | None, descending: bool, filters: dict[str, str]
    ) -> Answer:
        found = [self._row(place) for place in range(self._total)]
        for name, text in filters.items():
            if text.startswith(">"):
                found = [row for row in found if float(row[name] or -1) > float(text[1:])]
            elif name in ("rate", "depth", "loss"):
                found = [row for row in found if row[name] == float(text)]
            else:
                found = [row for row in found if text in str(row[name])]
        if sort:
            known = sorted(
                (row for row in found if row[sort] is not None),
                key=lambda row: row[sort],
                reverse=descending,
            )
            found = known + [row for row in found if row[sort] is None]
        head = [
            {
                "name": name,
                "label": name,
                "kind": "number" if name in ("place", "rate", "depth", "loss") else "text",
                "sortable": True,
                "filterable": name != "place",
            }
            for name in self._row(0)
        ]
        rows = [
            {
                "place": row["place"],
                **self._words(row["state"]),
                "cells": ["" if cell is None else f"{cell:.4g}" if isinstance(cell, float)
                          else str(cell) for cell in row.values()],
            }
            for row in found[offset : offset + limit]
        ]  # fmt: skip
        return {"matching": len(found), "total": self._total, "head": head, "rows": rows}, []

    def _words(self, word: str) -> dict[str, str]:
        return {"word": word, "glyph": html.GLYPHS[word], "tone": html.tone(word)}

    def _job(self, place: int, brief: bool) -> Answer:
        row = self._row(place)
        loss, failed = row["loss"], row["state"] == "failed"
        return {
            "place": place,
            "id": f"01K{place}",
            **self._words(row["state"]),
            "parameters": [[name, str(value)] for name, value in self._given(place).items()],
            "facts": ["tried 1×", "on node3:4711", "took 4.2 s"],
            "value": "" if loss is None else f"{{'loss': {loss:.4f}}}",
            "error": row["error"],
            "frames": '  File "<cell 3>", line 12, in simulate\n' if failed and not brief else "",
            "log": "" if brief else "epoch 1\nepoch 2\n",
        }, []

    def _colour(self, column: str) -> Answer:
        values = [
            self._loss(place) if column == "loss" else self._given(place)[column]
            for place in range(self._total)
        ]
        known = sorted({value for value in values if value is not None})
        levels = bytearray(self._total)
        labels = [str(value) for value in known] if column == "model" else []
        low, high = (known[0], known[-1]) if known else (0, 0)
        for place, value in enumerate(values):
            if value is not None and labels:
                levels[place] = 1 + known.index(value)
            elif value is not None:
                levels[place] = 1 + round(254 * (value - low) / ((high - low) or 1))
        return {
            "kind": "category" if labels else "number",
            "low": None if labels else low,
            "high": None if labels else high,
            "labels": labels,
            "known": sum(map(bool, levels)),
        }, [zlib.compress(levels, 1)]

    def _heat(self, x: str, y: str | None, value: str) -> Answer:
        found: dict[tuple[Any, Any], list[float]] = {}
        across, down = set(), set()
        for place in range(self._total):
            given, loss = self._given(place), self._loss(place)
            at = given[x], given[y] if y else ""
            across.add(at[0])
            down.add(at[1])
            if loss is not None:
                found.setdefault(at, []).append(loss)
        xs, ys = sorted(across), sorted(down)
        means = {at: sum(values) / len(values) for at, values in found.items()}
        flat = [means.get((one, other), float("nan")) for other in ys for one in xs]
        return {
            "x": list(map(str, xs)),
            "y": list(map(str, ys)),
            "low": min(means.values(), default=0.0),
            "high": max(means.values(), default=0.0),
            "filled": len(means),
            "of": len(flat),
            "mean_of": max(map(len, found.values()), default=0),
        }, [struct.pack(f"{len(flat)}f", *flat)]


class _Renderer(SweepRenderer):
    """The real view, of played answers."""

    def state(self, snapshot: SweepSnapshot) -> dict[str, Any]:
        state = super().state(snapshot)
        errors = [[*group[:2], [36, 73]] for group in state["errors"]]
        busy = "" if snapshot.finished else "3 of 4 slots busy"
        return {**state, "errors": errors, "workers": busy}

    def answer(self, thing: Sweep, asked: dict[str, Any]) -> Answer:
        return thing.answer(asked)


renderer = _Renderer()


class Job(_Played):
    """A job that stands at ``word``; with ``seconds`` it runs and then ends so."""

    def __init__(self, word: str, seconds: float = 0, *, progress: float | None = None) -> None:
        super().__init__()
        self._word = "running" if seconds else word
        self._progress = progress
        self._start = time.time_ns() // 1_000_000 - (0 if seconds else 4_200)
        if seconds:
            self._play(lambda: self._run(word, seconds))

    def _run(self, word: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(0.5, left))
            self.changed()
        self._word = word
        self.changed()

    def snapshot(self) -> JobRecord:
        started = self._word not in ("queued", "scheduled")
        unfinished = self._word in ("queued", "scheduled", "running")
        return JobRecord(
            task_id="01K0QW6E7Z4M",
            fn_name="simulate",
            priority="default",
            status=JobState(self._word) if unfinished else JobState.COMPLETE,
            enqueue_time=self._start,
            tries=1 if started else 0,
            start=self._start if started else None,
            worker="node3:4711" if started else None,
            report=Report(self._progress, 1, "epoch 31 of 50") if self._progress else None,
            outcome=None if unfinished else self._outcome(),
        )

    def _outcome(self) -> Outcome:
        failure = Failure(
            "ValueError",
            "the step is too large: 0.1",
            "ValueError('the step is too large: 0.1')",
            '  File "<cell 3>", line 12, in simulate\n    check(step)\n'
            '  File "<cell 3>", line 4, in check\n'
            '    raise ValueError(f"the step is too large: {step}")\n',
        )
        return Outcome(
            Ending(self._word),
            tries=1,
            start=self._start,
            finish=self._start + 4_200,
            worker="node3:4711",
            failure=None if self._word == "done" else failure,
            result_nbytes=1_234 if self._word == "done" else None,
        )
