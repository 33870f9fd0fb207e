"""The one thread that publishes views: coalesces, takes turns, keeps to a rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

__all__ = ["MESSAGES_PER_SECOND", "Publisher", "Sent"]

VIEW_PERIOD = 0.25  #: seconds between two messages of one view, at least
MESSAGES_PER_SECOND = 50  #: of all views together
SETTLE = 1.0  #: seconds that the end of a cell waits for its finished views at most
BYTES_PER_SECOND = 40_000  #: of one view, so that a large one is sent less often


class Sent(NamedTuple):
    """What a publication cost."""

    messages: int
    nbytes: int = 0


class Published(Protocol):
    """What is published."""

    due: float  #: when the next message may be sent

    def publish(self) -> Sent:
        """Send what is new."""


class Publisher:
    """One daemon thread that publishes marked views, in turn, at a bounded rate."""

    def __init__(
        self, *, period: float = VIEW_PERIOD, messages_per_second: float = MESSAGES_PER_SECOND
    ) -> None:
        self._period = period
        self._pause = 1 / messages_per_second
        self._changed = threading.Condition()
        self._marked: dict[Published, None] = {}  # in the order of their marks: nobody starves
        self._busy: Published | None = None
        self._thread: threading.Thread | None = None

    def mark(self, view: Published, *, within: float = 0.0) -> None:
        """Publish ``view`` soon: at once if it has been quiet, else when its turn comes.

        ``within``: in so many seconds at the latest, as nobody waits for it.
        """
        with self._changed:
            if within:
                due = time.monotonic() + within
                view.due = min(view.due, due) if view in self._marked else max(view.due, due)
            self._marked.setdefault(view)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="qnb-views", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def hasten(self, view: Published) -> None:
        """Publish ``view`` as soon as its last message allows, whatever was agreed."""
        with self._changed:
            view.due = min(view.due, time.monotonic() + self._period)
        self.mark(view)

    def settle(self, views: Sequence[Published], timeout: float = SETTLE) -> bool:
        """Publish these now and wait for it; false if ``timeout`` seconds were not enough."""
        with self._changed:
            for view in views:
                view.due = 0.0
        for view in views:
            self.mark(view)
        with self._changed:
            return self._changed.wait_for(
                lambda: not any(view in self._marked or view is self._busy for view in views),
                timeout,
            )

    def _run(self) -> None:
        while True:
            view = self._take()
            sent = view.publish()
            with self._changed:
                self._busy = None
                view.due = time.monotonic() + max(self._period, sent.nbytes / BYTES_PER_SECOND)
                self._changed.notify_all()
            time.sleep(sent.messages * self._pause)  # the cap on all views together

    def _take(self) -> Published:
        with self._changed:
            while True:
                now = time.monotonic()
                for view in self._marked:
                    if view.due <= now:
                        del self._marked[view]
                        self._busy = view
                        return view
                next_due = min((view.due for view in self._marked), default=None)
                self._changed.wait(None if next_due is None else next_due - now)
