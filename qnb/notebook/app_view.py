"""What an app looks like in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from qnb.models import QueueSnapshot
from qnb.notebook import html, live
from qnb.notebook.app_card import (
    LANES,
    app_card,
    app_text,
    app_word,
    failure_rows,
    rate_text,
    sweep_rows,
)
from qnb.notebook.live import LiveRenderer
from qnb.notebook.pool_card import SIGNS, WORKERS, worker_rows
from qnb.notebook.pool_view import FIRST

if TYPE_CHECKING:
    from qnb.notebook.widgets import AppWidget

__all__ = ["AppRenderer", "renderer"]


class AppRenderer(LiveRenderer[QueueSnapshot]):
    """A queue: what waits and runs, how fast, sweeps, what has failed of late, who works."""

    costly = True
    passing: ClassVar[frozenset[str]] = frozenset({"now", "rate"})

    def widget(self) -> type[AppWidget]:
        from qnb.notebook.widgets import AppWidget

        return AppWidget

    def state(self, snapshot: QueueSnapshot) -> dict[str, Any]:
        word = app_word(snapshot)
        return {
            "word": word,
            "glyph": SIGNS[word][0],
            "tone": SIGNS[word][1],
            "name": html.clip(snapshot.queue, 120),
            "id": "app",
            "known": snapshot.at > 0,
            "rate": rate_text(snapshot.rate),
            "running": snapshot.running,
            "slots": snapshot.slots,
            "waiting": snapshot.waiting,
            "delayed": snapshot.delayed,
            "lanes": [[html.clip(lane, 60), n] for lane, n in snapshot.lanes.items()][:LANES],
            "more_lanes": max(0, len(snapshot.lanes) - LANES),
            "rates": [None if rate is None else float(f"{rate:.3g}") for rate in snapshot.rates],
            "step": snapshot.step,
            "since": snapshot.since,
            "sweeps": sweep_rows(snapshot.sweeps),
            "more_sweeps": snapshot.more_sweeps,
            "failures": failure_rows(snapshot.failures),
            "workers": worker_rows(snapshot.workers, host=True, jobs=0),
            "more": max(0, len(snapshot.workers) - WORKERS) + snapshot.more_workers,
            "note": html.clip("" if snapshot.note == word else snapshot.note, html.ERROR_CHARS),
            "ticking": bool(snapshot.workers or snapshot.failures),
            "now": snapshot.at,
        }

    def key(self, thing: Any) -> str:
        found: QueueSnapshot = thing.snapshot()
        return found.queue

    def finished(self, snapshot: QueueSnapshot) -> bool:
        return False

    def card(self, snapshot: QueueSnapshot) -> str:
        return app_card(snapshot)

    def text(self, snapshot: QueueSnapshot) -> str:
        return app_text(snapshot)

    def show(self, thing: Any) -> bool:
        if live.in_kernel():
            thing._lookout.look(FIRST)
        return super().show(thing)


renderer = AppRenderer()
