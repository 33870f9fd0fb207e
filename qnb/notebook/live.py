"""Keeps what a cell shows up to date: subscribe, coalesce, publish, stop.

A thing's ``watch`` callback marks its view, from any thread; one daemon thread publishes what is
marked. The newest state wins, a view is sent at most ten times a second and always once after its
last mark, and all views together stay far below the rate at which a Jupyter server drops messages.

A display is two outputs. The first holds nothing but the live widget; the second is a static card,
renewed every few seconds, that the widget hides. So a file saved at any moment says something true
without a kernel. When the thing has ended, the first is emptied and the second is left for good.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from qnb.clock import now_ms
from qnb.notebook import html

__all__ = ["LiveRenderer", "Publisher", "View", "Watched"]

VIEW_PERIOD = 0.1  #: seconds between two messages of one view, at least
MESSAGES_PER_SECOND = 50  #: of all views together
BYTES_PER_SECOND = 400_000  #: of one view, so that a large one is sent less often
CARD_PERIOD = 5.0  #: seconds between two renewals of a static card
SETTLE = 1.0  #: seconds that the end of a cell waits for its finished views at most

ANSWER = 60.0  #: seconds that the answer to a pressed button is waited for

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)


class Watched(Protocol[S_co]):
    """What can be shown live."""

    def snapshot(self) -> S_co:
        """The last known state. No I/O."""

    def watch(self, callback: Callable[[], None], /) -> Callable[[], None]:
        """Call ``callback`` whenever the snapshot may have changed; returns what ends that."""


class LiveRenderer(ABC, Generic[S]):
    """Draws one kind of thing (a :class:`qnb.display.Renderer`); one for each ``*_view.py``."""

    @abstractmethod
    def widget(self) -> type[Any]:
        """The class of the live view, a ``ViewWidget``; imported in here: when it is needed."""

    @abstractmethod
    def state(self, snapshot: S) -> dict[str, Any]:
        """The words and numbers to show, tidy. A change of times alone (``elapsed``, ``eta``) is no
        news: the browser counts on by itself."""

    def actions(self, snapshot: S) -> list[tuple[str, str]]:
        """The buttons: what each does, by the name of the thing's command, and its label."""
        return []

    def cells(self, snapshot: S) -> bytes | None:
        """A byte a job, for a view that has them."""
        return None

    @abstractmethod
    def finished(self, snapshot: S) -> bool:
        """True if nothing will change any more."""

    @abstractmethod
    def card(self, snapshot: S) -> str:
        """Static HTML that says the same."""

    @abstractmethod
    def text(self, snapshot: S) -> str:
        """One line that says the same."""

    def html(self, thing: Watched[S]) -> str:
        """The last known state of ``thing`` as static, escaped HTML."""
        return self.card(thing.snapshot())

    def show(self, thing: Watched[S]) -> bool:
        """Display ``thing`` live; false where it has ended or there is no front end to show it."""
        if not _in_kernel() or self.finished(thing.snapshot()):
            return False
        _view_of(self, thing).display()
        return True


class Sent(NamedTuple):
    """What a publication cost."""

    messages: int
    nbytes: int = 0


class View(Generic[S]):
    """All displays of one thing: one widget model and one pair of display ids, however many."""

    def __init__(self, renderer: LiveRenderer[S], thing: Watched[S], publisher: Publisher) -> None:
        self.due = 0.0  # when the publisher may send the next message
        self._renderer = renderer
        self._thing = thing
        self._publisher = publisher
        self._ident = uuid.uuid4().hex[:12]
        self._lock = threading.Lock()
        self._last: tuple[object, ...] = ()
        self._card_last: tuple[object, ...] = ()
        self._card_due = 0.0
        self._frozen = False
        self._said = ""  # what became of the button that was pressed last
        traits, self._last = self._traits(thing.snapshot())
        self._widget = renderer.widget()(card=self._ident, **traits)
        self._widget.on_msg(self._pressed)
        self._unwatch = thing.watch(self.mark)

    @property
    def settled(self) -> bool:
        """False while the thing has ended and its displays do not say so yet."""
        return self._frozen or not self._renderer.finished(self._thing.snapshot())

    def mark(self) -> None:
        """Have the newest state published soon. From any thread, as often as wanted."""
        self._publisher.mark(self)

    def display(self) -> None:
        """Add the outputs to the cell that runs."""
        with self._lock:
            snapshot = self._thing.snapshot()
            self._output("live", self._live_bundle(), update=False)
            self._output("card", self._card_bundle(snapshot), update=False)
            self._frozen = False
        self.mark()

    def publish(self) -> Sent:
        """Bring every display up to date; a failure is shown in the view. For the publisher."""
        with self._lock:
            try:
                return self._publish(self._thing.snapshot())
            except Exception as error:  # noqa: BLE001 - whatever it is belongs into this view
                return self._show_problem(error)

    def _publish(self, snapshot: S) -> Sent:
        finished = self._renderer.finished(snapshot)
        if finished and self._frozen:
            return Sent(0)
        sent = self._send(snapshot)
        if finished:
            self._output("card", self._card_bundle(snapshot, final=True))
            self._output("live", {})
            self._frozen = True
            return Sent(sent.messages + 2, sent.nbytes)
        if self._frozen:  # it has been taken up again
            self._frozen = False
            self._output("live", self._live_bundle())
            self._card_due = 0.0
            sent = Sent(sent.messages + 1, sent.nbytes)
        if time.monotonic() >= self._card_due and self._card_last != self._last:
            self._output("card", self._card_bundle(snapshot))
            sent = Sent(sent.messages + 1, sent.nbytes)
        return sent

    def _traits(self, snapshot: S) -> tuple[dict[str, Any], tuple[object, ...]]:
        """What the widget is to hold, and what of it is news when it changes."""
        state, cells = self._renderer.state(snapshot), self._renderer.cells(snapshot)
        passing = ("elapsed", "eta", "eta_low", "eta_high", "rate")
        news = {key: value for key, value in state.items() if key not in passing}
        actions = self._renderer.actions(snapshot)
        extra = {"actions": [list(action) for action in actions], "said": self._said}
        news |= extra
        traits: dict[str, Any] = {"state": {**state, **extra, "at": now_ms()}}
        if cells is not None:
            traits["cells"] = cells
        return traits, (news, cells)

    # Front ends differ in the thread that a press arrives on; none of them may be kept waiting.

    def _pressed(self, _widget: Any, content: Any, _buffers: Any) -> None:
        asked = content.get("press") if isinstance(content, dict) else None
        for name, label in self._renderer.actions(self._thing.snapshot()):
            if name == asked:
                self._say(f"{label}: sent")
                thread = threading.Thread(
                    target=self._act, args=(name, label), name="qnb-press", daemon=True
                )
                thread.start()

    def _act(self, name: str, label: str) -> None:
        try:
            getattr(self._thing, name)().result(ANSWER)
        except Exception as error:  # noqa: BLE001 - nobody else would show it
            self._say(html.clip(f"{label}: {type(error).__name__}: {error}", html.ERROR_CHARS))
        else:
            self._say(f"{label}: done")

    def _say(self, said: str) -> None:
        self._said = said
        self.mark()

    def _send(self, snapshot: S) -> Sent:
        traits, news = self._traits(snapshot)
        if news == self._last:
            return Sent(0)
        with self._widget.hold_sync():  # one message for all traits
            for name, value in traits.items():
                setattr(self._widget, name, value)
        self._last = news
        return Sent(1, len(traits.get("cells", b"")))

    def _show_problem(self, error: Exception) -> Sent:
        problem = html.clip(f"This view cannot be drawn: {type(error).__name__}: {error}", 500)
        if self._last == (problem,):
            return Sent(0)
        self._last = (problem,)
        try:
            self._widget.state = {**self._widget.state, "problem": problem}
        except Exception:  # noqa: BLE001 - the channel itself is gone; nobody is left to tell
            return Sent(0)
        return Sent(1)

    def _live_bundle(self) -> dict[str, Any]:
        mime = "application/vnd.jupyter.widget-view+json"
        return {
            mime: {"version_major": 2, "version_minor": 0, "model_id": self._widget.model_id},
        }

    def _card_bundle(self, snapshot: S, *, final: bool = False) -> dict[str, Any]:
        card = self._renderer.card(snapshot)
        self._card_last, self._card_due = self._last, time.monotonic() + CARD_PERIOD
        return {
            "text/plain": self._renderer.text(snapshot),
            "text/html": card if final else html.provisional(card, self._ident, now_ms()),
        }

    def _output(self, part: str, bundle: dict[str, Any], *, update: bool = True) -> None:
        from IPython.display import publish_display_data

        transient = {"display_id": f"qnb-{part}-{self._ident}"}
        publish_display_data(bundle, {}, transient=transient, update=update)  # type: ignore[no-untyped-call]


class Publisher:
    """One daemon thread that publishes marked views, in turn, at a bounded rate."""

    def __init__(
        self, *, period: float = VIEW_PERIOD, messages_per_second: float = MESSAGES_PER_SECOND
    ) -> None:
        self._period = period
        self._pause = 1 / messages_per_second
        self._changed = threading.Condition()
        self._marked: dict[View[Any], None] = {}  # in the order of their marks: nobody starves
        self._busy: View[Any] | None = None
        self._thread: threading.Thread | None = None

    def mark(self, view: View[Any]) -> None:
        """Publish ``view`` soon: at once if it has been quiet, else when its turn comes."""
        with self._changed:
            self._marked.setdefault(view)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="qnb-views", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def settle(self, views: list[View[Any]], timeout: float = SETTLE) -> bool:
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

    def _take(self) -> View[Any]:
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


# -- this process's views ----------------------------------------------------------------------

_publisher = Publisher()
_views: dict[int, View[Any]] = {}  # by id(thing), which the view keeps alive
_views_lock = threading.Lock()


def _view_of(renderer: LiveRenderer[S], thing: Watched[S]) -> View[S]:
    with _views_lock:
        if id(thing) not in _views:
            if not _views:
                _settle_after_each_cell()
            _views[id(thing)] = View(renderer, thing, _publisher)
        return _views[id(thing)]


def _in_kernel() -> bool:
    """True in a Jupyter kernel; a terminal's IPython has nothing that could show a view."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def _settle_after_each_cell() -> None:
    """Let what has ended be shown as such before the cell is reported as done.

    Whoever executes a notebook to save it stops to listen when its last cell is done.
    """
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None:
        shell.events.register("post_run_cell", _settle)


def _settle(*_: object) -> None:
    with _views_lock:
        late = [view for view in _views.values() if not view.settled]
    if late:
        _publisher.settle(late)
