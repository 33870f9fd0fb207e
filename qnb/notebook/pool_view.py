"""What a pool looks like in a notebook."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ClassVar

from qnb.errors import InvalidOption
from qnb.models import PoolSnapshot
from qnb.notebook import html, live
from qnb.notebook.live import LiveRenderer
from qnb.notebook.pool_card import (
    SIGNS,
    WORKERS,
    pool_busy,
    pool_card,
    pool_facts,
    pool_load,
    pool_text,
    pool_word,
    worker_rows,
)
from qnb.pool import Pool, most_slots

if TYPE_CHECKING:
    from qnb.notebook.widgets import PoolWidget

__all__ = ["FIRST", "PoolRenderer", "renderer"]

FIRST = 0.5  #: seconds that a cell waits for a first look


class PoolRenderer(LiveRenderer[PoolSnapshot]):
    """A pool: how busy it is, its workers and what they run; made larger or smaller, or stopped."""

    costly = True
    passing: ClassVar[frozenset[str]] = frozenset({"now"})

    def widget(self) -> type[PoolWidget]:
        from qnb.notebook.widgets import PoolWidget

        return PoolWidget

    def state(self, snapshot: PoolSnapshot) -> dict[str, Any]:
        word = pool_word(snapshot)
        return {
            "word": word,
            "glyph": SIGNS[word][0],
            "tone": SIGNS[word][1],
            "name": html.clip(snapshot.queue, 120),
            "id": "pool",
            "known": snapshot.at > 0,
            "busy": pool_busy(snapshot),
            "load": pool_load(snapshot),
            "slots": snapshot.slots,
            "wanted": snapshot.wanted,
            "most": snapshot.most,
            "facts": pool_facts(snapshot),
            "note": html.clip("" if snapshot.note == word else snapshot.note, html.ERROR_CHARS),
            "workers": worker_rows(snapshot.workers),
            "more": max(0, len(snapshot.workers) - WORKERS),
            "ticking": bool(snapshot.workers),
            "now": snapshot.at,
        }

    def actions(self, snapshot: PoolSnapshot) -> list[tuple[str, str]]:
        staying = any(not worker.leaving for worker in snapshot.workers)
        return [("scale", "Scale"), *([("stop", "Stop")] if staying else [])]

    def act(self, thing: Any, name: str, value: Any) -> Any:
        pool: Pool = thing
        done: Future[None] = Future()
        if name == "scale":
            most = most_slots()
            if type(value) is not int or not 1 <= value <= most:
                raise InvalidOption(
                    f"{html.clip(repr(value), 40)} slots: expected a whole number from 1 to "
                    f"{most}, four for each core; pool.scale(n) takes any"
                )
            pool.scale(value)
        else:
            pool.stop()
        done.set_result(None)
        return done

    def key(self, thing: Any) -> str:
        pool: Pool = thing
        return pool.snapshot().queue

    def finished(self, snapshot: PoolSnapshot) -> bool:
        return False

    def card(self, snapshot: PoolSnapshot) -> str:
        return pool_card(snapshot)

    def text(self, snapshot: PoolSnapshot) -> str:
        return pool_text(snapshot)

    def show(self, thing: Any) -> bool:
        if live.in_kernel():
            thing._lookout.look(FIRST, whole=False)
        return super().show(thing)


renderer = PoolRenderer()
