"""Stand-ins for a job and a sweep, played by a thread, imported in the kernel of a browser test."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

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

display.register("Job", "qnb.notebook.job_view:renderer")
display.register("Sweep", "qnb.notebook.sweep_view:renderer")

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
    ) -> None:
        super().__init__()
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
        steps = 50
        for step in range(1, steps + 1):
            time.sleep(seconds / steps)
            self._advance(step * self._total // steps)
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
