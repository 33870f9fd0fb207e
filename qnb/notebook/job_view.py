"""What a job looks like in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qnb.clock import now_ms
from qnb.models import FINAL, JobRecord, JobState
from qnb.notebook import html
from qnb.notebook.job_card import frames, job_card, job_text, job_word, job_words
from qnb.notebook.live import LiveRenderer

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
            "message": html.clip(snapshot.message or "", html.ERROR_CHARS),
            "error": html.clip(f"{failure.type}: {failure.message}", 1_000) if failure else "",
            "traceback": frames(failure.traceback) if failure else "",
            "ticking": snapshot.status is JobState.RUNNING,
            "elapsed": _elapsed(snapshot),
        }

    def actions(self, snapshot: JobRecord) -> list[tuple[str, str]]:
        return [] if self.finished(snapshot) else [("abort", "Abort")]

    def finished(self, snapshot: JobRecord) -> bool:
        return snapshot.status in FINAL

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


renderer = JobRenderer()
