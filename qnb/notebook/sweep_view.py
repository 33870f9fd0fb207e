"""What a sweep looks like in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from qnb.models import CELLS, SweepSnapshot
from qnb.notebook import html
from qnb.notebook.live import Answer, LiveRenderer
from qnb.notebook.sweep_card import sweep_card, sweep_errors, sweep_text, sweep_word

if TYPE_CHECKING:
    from qnb.notebook.measures import Measures
    from qnb.notebook.widgets import SweepWidget

__all__ = ["SweepRenderer", "renderer"]


class SweepRenderer(LiveRenderer[SweepSnapshot]):
    """A sweep: how far it is, a cell of colour for each job, what went wrong how often."""

    def __init__(self) -> None:
        # Only for those that were asked about. By identity: equal sweeps are not one.
        self._measures: WeakKeyDictionary[Any, Measures] = WeakKeyDictionary()

    def widget(self) -> type[SweepWidget]:
        from qnb.notebook.widgets import SweepWidget

        return SweepWidget

    def state(self, snapshot: SweepSnapshot) -> dict[str, Any]:
        word = sweep_word(snapshot)
        errors, left_out = sweep_errors(snapshot)
        counts = snapshot.counts
        return {
            "word": word,
            "glyph": html.GLYPHS[word],
            "tone": html.tone(word),
            "name": html.clip(snapshot.name, 120),
            "id": html.clip(snapshot.fn_name, 120),
            "total": snapshot.total,
            "counts": [[name, html.GLYPHS[name], counts[name]] for name in CELLS],
            "errors": [[text, n, places] for text, n, places in errors],
            "workers": _busy(snapshot),
            "left_out": left_out,
            "note": "" if snapshot.note == word else html.clip(snapshot.note, html.ERROR_CHARS),
            "ticking": not snapshot.finished,
            "elapsed": snapshot.elapsed,
            "eta": snapshot.eta,
            "eta_low": snapshot.eta_low,
            "eta_high": snapshot.eta_high,
            "rate": snapshot.rate,
        }

    def actions(self, snapshot: SweepSnapshot) -> list[tuple[str, str]]:
        if snapshot.finished:
            return [("retry", "Retry failed")] if snapshot.counts["failed"] else []
        paused = snapshot.state == "paused"
        found = [("resume", "Resume") if paused else ("pause", "Pause"), ("cancel", "Cancel")]
        return [*found, ("retry", "Retry failed")] if snapshot.counts["failed"] else found

    def cells(self, snapshot: SweepSnapshot) -> bytes:
        return snapshot.cells

    def finished(self, snapshot: SweepSnapshot) -> bool:
        return snapshot.finished

    def lasting(self, snapshot: SweepSnapshot) -> bool:
        return bool(snapshot.cells)  # its jobs are looked through when they have ended

    def key(self, thing: Any) -> str:
        return str(thing.snapshot().name)

    def answer(self, thing: Any, asked: dict[str, Any]) -> Answer:
        from qnb.notebook import sweep_answers
        from qnb.notebook.measures import Measures

        if thing not in self._measures:
            self._measures[thing] = Measures(thing)
        return sweep_answers.answer(thing, self._measures[thing], asked)

    def card(self, snapshot: SweepSnapshot) -> str:
        return sweep_card(snapshot)

    def text(self, snapshot: SweepSnapshot) -> str:
        return sweep_text(snapshot)


def _busy(snapshot: SweepSnapshot) -> str:
    if snapshot.finished or not snapshot.slots:
        return ""
    return f"{snapshot.counts['running']:,} of {snapshot.slots:,} slots busy"


renderer = SweepRenderer()
