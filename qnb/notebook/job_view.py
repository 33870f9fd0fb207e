"""What a job looks like in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qnb.clock import now_ms
from qnb.models import FINAL, JobRecord, JobState
from qnb.notebook import html
from qnb.notebook.job_card import (
    ARGUMENTS_CHARS,
    frames,
    job_card,
    job_said,
    job_text,
    job_word,
    job_words,
    reproduce,
)
from qnb.notebook.live import LiveRenderer, in_kernel

if TYPE_CHECKING:
    from qnb.notebook.widgets import JobWidget

__all__ = ["JobRenderer", "renderer"]


class JobRenderer(LiveRenderer[JobRecord]):
    """A job: its state, its task, how long it has taken, what it ended with."""

    def widget(self) -> type[JobWidget]:
        from qnb.notebook.widgets import JobWidget

        return JobWidget

    def state(self, snapshot: JobRecord) -> dict[str, Any]:
        failure = snapshot.outcome.failure if snapshot.outcome else snapshot.failure
        word = job_word(snapshot)
        return {
            "word": word.replace("_", " "),
            "glyph": html.GLYPHS.get(word, "•"),
            "tone": html.tone(word),
            "name": html.clip(snapshot.fn_name, 120),
            "id": html.clip(snapshot.task_id, 120),
            "facts": job_words(snapshot),
            "progress": snapshot.progress if snapshot.outcome is None else None,
            "message": job_said(snapshot),
            "arguments": html.clip(snapshot.arguments or "", ARGUMENTS_CHARS),
            "log": html.tidy(snapshot.log),
            "reproduce": reproduce(snapshot),
            "error": html.clip(f"{failure.type}: {failure.message}", 1_000) if failure else "",
            "traceback": frames(failure.traceback) if failure else "",
            "ticking": snapshot.status is JobState.RUNNING,
            "elapsed": _elapsed(snapshot),
            "eta": _eta(snapshot),
        }

    def actions(self, snapshot: JobRecord) -> list[tuple[str, str]]:
        if snapshot.status not in FINAL:
            return [("abort", "Abort")]
        return [("retry", "Retry")] if self.lasting(snapshot) else []

    def key(self, thing: Any) -> str:
        return str(thing.snapshot().task_id)

    def finished(self, snapshot: JobRecord) -> bool:
        return snapshot.status in FINAL

    def lasting(self, snapshot: JobRecord) -> bool:
        return snapshot.outcome is not None and not snapshot.outcome.success

    def show(self, thing: Any) -> bool:
        if in_kernel():
            thing.look()
        return super().show(thing)

    def card(self, snapshot: JobRecord) -> str:
        return job_card(snapshot, _elapsed(snapshot))

    def text(self, snapshot: JobRecord) -> str:
        return job_text(snapshot)


def _elapsed(record: JobRecord) -> float | None:
    if record.outcome:
        return (record.outcome.finish - record.outcome.start) / 1000
    if record.status is JobState.RUNNING and record.start is not None:
        return max(0, now_ms() - record.start) / 1000
    return None


def _eta(record: JobRecord) -> float | None:
    """Seconds left, if it goes on as it went so far."""
    done, elapsed = record.progress, _elapsed(record)
    if record.status is not JobState.RUNNING or not done or done >= 1 or elapsed is None:
        return None
    return elapsed * (1 - done) / done


renderer = JobRenderer()
