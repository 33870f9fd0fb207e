"""Keeps what a cell shows up to date: subscribe, coalesce, publish, stop.

A thing's ``watch`` callback marks its view, from any thread; one daemon thread publishes what is
marked. The newest state wins, a view is sent at most four times a second and always once after its
last mark, and all views together stay far below the rate at which a Jupyter server drops messages.
A view that nobody sees is not sent, but while a cell runs, when no page can say what is seen.

A display is two outputs. The first holds nothing but the live widget; the second is a static card,
renewed every few seconds, that the widget hides. So a file saved at any moment says something true
without a kernel. When the thing has ended, the second says so for good, and the first is emptied
unless a page is there to which the view still has something to offer.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from qnb.clock import now_ms
from qnb.notebook import html
from qnb.notebook.answers import Answer, Answers
from qnb.notebook.audience import Audience, Cells
from qnb.notebook.publisher import Publisher, Sent

__all__ = ["Answer", "LiveRenderer", "View", "Watched", "in_kernel"]

CARD_PERIOD = 5.0  #: seconds between two renewals of a static card
UNSEEN_PERIOD = 30.0  #: the same of a view that nobody sees
BUSY_PERIOD = 2.0  #: seconds between two messages of such a view while a cell runs
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

    #: what of the state passes with time: no news, as the browser counts on by itself
    passing: ClassVar[frozenset[str]] = frozenset({"elapsed", "eta", "eta_low", "eta_high", "rate"})
    #: watching costs even when nothing happens: it ends when nobody sees the view
    costly: ClassVar[bool] = False

    @abstractmethod
    def widget(self) -> type[Any]:
        """The class of the live view, a ``ViewWidget``; imported in here: when it is needed."""

    @abstractmethod
    def state(self, snapshot: S) -> dict[str, Any]:
        """The words and numbers to show, tidy."""

    def actions(self, snapshot: S) -> list[tuple[str, str]]:
        """The buttons: what each does, by the name of the thing's command, and its label."""
        return []

    def act(self, thing: Any, name: str, value: Any) -> Any:
        """Do what the button ``name`` says; the answer has a ``result(timeout)``.

        ``value`` is what the page sent along. On a thread of its own.
        """
        return getattr(thing, name)()

    def answer(self, thing: Any, asked: dict[str, Any]) -> Answer:
        """What a page asked: ``asked["ask"]`` says what for. On the thread that answers."""
        raise ValueError(f"{asked.get('ask')!r}: this view answers no questions")

    def cells(self, snapshot: S) -> bytes | None:
        """A byte a job, for a view that has them."""
        return None

    def key(self, thing: Any) -> str:
        """The name of the thing, the same in every kernel."""
        return f"{id(thing):x}"

    @abstractmethod
    def finished(self, snapshot: S) -> bool:
        """True if nothing will change any more by itself."""

    def lasting(self, snapshot: S) -> bool:
        """True if the view has something to offer although the thing has ended."""
        return False

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
        if not in_kernel():
            return False
        snapshot = thing.snapshot()
        if self.finished(snapshot) and not self.lasting(snapshot):
            return False
        _view_of(self, thing).display()
        return True


class View(Generic[S]):
    """All displays of one thing: one widget model and one pair of display ids, however many."""

    def __init__(
        self, renderer: LiveRenderer[S], thing: Watched[S], publisher: Publisher, ident: str
    ) -> None:
        self.due = 0.0  # when the publisher may send the next message
        self.audience = Audience(_cells)
        self._renderer = renderer
        self._thing = thing
        self._publisher = publisher
        self._ident = ident
        self._lock = threading.Lock()
        self._last: tuple[object, ...] = ()
        self._cells_sent: bytes | None = None
        self._drawn_last: tuple[S, str, tuple[dict[str, Any], tuple[object, ...]]] | None = None
        self._card_last: tuple[object, ...] | None = None
        self._card_due = 0.0
        self._shows: tuple[bool, bool] | None = None  # is the widget there, has the thing ended
        self._by_page = False  # was it displayed by a cell that a page ran?
        self._said = ""  # what became of the button that was pressed last
        traits, self._last = self._traits(thing.snapshot())
        self._widget = renderer.widget()(model_id=ident, card=ident[:12], **traits)
        self._widget.on_msg(self._hear)
        self._answers = Answers(self._answer, self._widget.send)
        self._unwatch: Callable[[], None] | None = None
        self._watching = threading.Lock()
        self.watch(True)

    # -- when it is published ------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """False while the thing has ended and its displays do not say so yet."""
        snapshot = self._thing.snapshot()
        if not self._renderer.finished(snapshot):
            return True
        shows = self._stays(snapshot, finished=True), True
        return self._shows == shows and self._card_last == self._news(snapshot)

    @property
    def over(self) -> bool:
        """True if the thing has ended and no page shows it any more."""
        return self.audience.gone and self.settled and bool(self._shows and self._shows[1])

    @property
    def _counts(self) -> bool:
        """Is what changes worth a message: is it seen, or can no page say whether it is?"""
        return self.audience.seen or _cells.busy >= BUSY_PERIOD

    def mark(self) -> None:
        """Have the newest state published soon. From any thread, as often as wanted."""
        if self.audience.seen:
            self._publisher.mark(self)
        else:
            self._publisher.mark(self, within=BUSY_PERIOD if _cells.busy else UNSEEN_PERIOD)
        self._answers.refresh()

    def watch(self, wanted: bool) -> None:
        """Follow the thing, or leave it alone."""
        with self._watching:
            if wanted and self._unwatch is None:
                self._unwatch = self._thing.watch(self.mark)
            elif not wanted and self._unwatch is not None:
                self._unwatch()
                self._unwatch = None

    def cell_began(self) -> None:
        """A page may come to see it and not be heard, should this cell take long."""
        if not self.audience.seen:
            self._publisher.mark(self, within=BUSY_PERIOD)

    def cell_ended(self) -> None:
        """From now on pages are heard."""
        if self._renderer.costly:
            self.watch(self.audience.seen)

    # -- what is published ---------------------------------------------------------------------

    def display(self) -> None:
        """Add the outputs to the cell that runs."""
        with self._lock:
            snapshot = self._thing.snapshot()
            finished = self._renderer.finished(snapshot)
            self._output("live", self._live_bundle(), update=False)
            self._output("card", self._card_bundle(snapshot, finished, bare=False), update=False)
            self._shows = (True, finished)
            self._by_page = self._by_page or _run_by_page()
        self.watch(True)
        self.mark()

    def publish(self) -> Sent:
        """Bring every display up to date; a failure is shown in the view. For the publisher."""
        with self._lock:
            try:
                if _cells.busy >= BUSY_PERIOD:
                    self.watch(True)
                return self._publish(self._thing.snapshot())
            except Exception as error:  # noqa: BLE001 - whatever it is belongs into this view
                return self._show_problem(error)

    def _stays(self, snapshot: S, *, finished: bool) -> bool:
        """Is the widget to be there? Not for what only executes a notebook to save it."""
        has_page = self.audience.heard or self._by_page
        return not finished or (has_page and self._renderer.lasting(snapshot))

    def _publish(self, snapshot: S) -> Sent:
        finished = self._renderer.finished(snapshot)
        stays = self._stays(snapshot, finished=finished)
        messages = nbytes = 0
        if self._counts or finished:
            messages, nbytes = self._send(snapshot)
        shows, before = (stays, finished), self._shows or (True, False)
        if shows != before:
            self._output("card", self._card_bundle(snapshot, finished, bare=not stays))
            messages += 1
            if stays != before[0]:
                self._output("live", self._live_bundle() if stays else {})
                messages += 1
            self._shows = shows
        elif self._card_last != self._news(snapshot) and (
            finished or time.monotonic() >= self._card_due
        ):
            bundle = self._card_bundle(snapshot, finished, bare=not stays)
            self._output("card", bundle)
            messages, nbytes = messages + 1, nbytes + len(bundle["text/html"])
        return Sent(messages, nbytes)

    def _drawn(self, snapshot: S) -> tuple[dict[str, Any], tuple[object, ...]]:
        """The state of a snapshot, and what of it is news when it changes; worked out once."""
        said, known = self._said, self._drawn_last  # one value: other threads ask too
        if known is not None and known[0] is snapshot and known[1] == said:
            return known[2]
        actions = [list(action) for action in self._renderer.actions(snapshot)]
        state = {**self._renderer.state(snapshot), "actions": actions, "said": said}
        passing = self._renderer.passing
        news = {name: value for name, value in state.items() if name not in passing}
        drawn = {**state, "at": now_ms()}, (news, self._renderer.cells(snapshot))
        self._drawn_last = snapshot, said, drawn
        return drawn

    def _news(self, snapshot: S) -> tuple[object, ...]:
        return self._drawn(snapshot)[1]

    def _traits(self, snapshot: S) -> tuple[dict[str, Any], tuple[object, ...]]:
        """What the widget is to hold, and what of it is news."""
        state, news = self._drawn(snapshot)
        traits: dict[str, Any] = {"state": state}
        cells = news[1]
        if isinstance(cells, bytes) and cells != self._cells_sent:
            traits["cells"], self._cells_sent = zlib.compress(cells, 1), cells
        return traits, news

    def _send(self, snapshot: S) -> Sent:
        if self._news(snapshot) == self._last:
            return Sent(0)
        traits, news = self._traits(snapshot)
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

    def _card_bundle(self, snapshot: S, finished: bool, *, bare: bool) -> dict[str, Any]:
        card = self._renderer.card(snapshot)
        period = CARD_PERIOD if self.audience.seen else UNSEEN_PERIOD
        self._card_last, self._card_due = self._news(snapshot), time.monotonic() + period
        if not bare:
            card = html.beneath(card, self._ident[:12], None if finished else now_ms())
        return {"text/plain": self._renderer.text(snapshot), "text/html": card}

    def _output(self, part: str, bundle: dict[str, Any], *, update: bool = True) -> None:
        from IPython.display import publish_display_data

        transient = {"display_id": f"qnb-{part}-{self._ident}"}
        publish_display_data(bundle, {}, transient=transient, update=update)  # type: ignore[no-untyped-call]

    # -- what pages say ------------------------------------------------------------------------
    # Front ends differ in the thread that this arrives on; none of them may be kept waiting.

    def _hear(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if not isinstance(content, dict):
            return
        if "see" in content:
            self._see(content)
        elif "press" in content:
            self._press(content)
        elif "ask" in content:
            self._answers.ask(content)
        elif "drop" in content:
            self._answers.drop(str(content["drop"]))

    def _see(self, content: dict[str, Any]) -> None:
        before, heard = self.audience.seen, self.audience.heard
        if self.audience.hear(content):
            self._answers.only(str(content.get("page", "")))
        seen = self.audience.seen
        self._answers.rest(not seen)
        if seen and not before:
            self.watch(True)
        elif not seen and self._renderer.costly and not _cells.busy:
            self.watch(False)
        if seen and (not before or not heard):
            self._publisher.hasten(self)
        if self.over:
            _forget(self)

    def _press(self, content: dict[str, Any]) -> None:
        for name, label in self._renderer.actions(self._thing.snapshot()):
            if name == content["press"]:
                self._say(f"{label}: sent")
                arguments = name, label, content.get("value")
                thread = threading.Thread(
                    target=self._act, args=arguments, name="qnb-press", daemon=True
                )
                thread.start()

    def _act(self, name: str, label: str, value: Any) -> None:
        try:
            self._renderer.act(self._thing, name, value).result(ANSWER)
        except Exception as error:  # noqa: BLE001 - nobody else would show it
            self._say(html.clip(f"{label}: {type(error).__name__}: {error}", html.ERROR_CHARS))
        else:
            self._say(f"{label}: done")

    def _say(self, said: str) -> None:
        self._said = said
        self.mark()

    def _answer(self, asked: dict[str, Any]) -> Answer:
        return self._renderer.answer(self._thing, asked)


# -- this process's views ----------------------------------------------------------------------

_publisher = Publisher()
_cells = Cells()
_views: dict[int, View[Any]] = {}  # by id(thing), which the view keeps alive
_numbers: dict[str, int] = {}  # how many views a thing has had, by its key
_views_lock = threading.Lock()
_shells: dict[str, Any] = {}  # the shell whose cells are heard of


def _view_of(renderer: LiveRenderer[S], thing: Watched[S]) -> View[S]:
    with _views_lock:
        if id(thing) not in _views:
            _hear_of_cells()
            key = f"{type(renderer).__name__} {renderer.key(thing)}"
            _numbers[key] = number = _numbers.get(key, 0) + 1
            # The same in the next kernel, so that a notebook that is run again is the same file.
            ident = hashlib.blake2b(f"{key} {number}".encode(), digest_size=16).hexdigest()
            _views[id(thing)] = View(renderer, thing, _publisher, ident)
        return _views[id(thing)]


def _forget(view: View[Any]) -> None:
    """Its cell was run again or deleted, and the thing has ended."""
    with _views_lock:
        for at, known in list(_views.items()):
            if known is view:
                del _views[at]
    view.watch(False)


def in_kernel() -> bool:
    """True in a Jupyter kernel; a terminal's IPython has nothing that could show a view."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def _run_by_page() -> bool:
    """Was the cell that runs sent by a page? Only pages say which of their cells it is."""
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    try:
        return "cellId" in kernel.get_parent()["metadata"]  # type: ignore[union-attr]
    except (AttributeError, KeyError, TypeError):
        return False


def _hear_of_cells() -> None:
    """Know when cells run, and show what has ended before a cell is reported as done.

    Whoever executes a notebook to save it stops to listen when its last cell is done.
    """
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None and _shells.get("heard") is not shell:
        _shells["heard"] = shell
        shell.events.register("pre_run_cell", _cell_began)
        shell.events.register("post_run_cell", _cell_ended)


def _all() -> list[View[Any]]:
    with _views_lock:
        return list(_views.values())


def _cell_began(*_: object) -> None:
    _cells.began()
    for view in _all():
        view.cell_began()


def _cell_ended(*_: object) -> None:
    _cells.ended()
    views = _all()
    for view in views:
        view.cell_ended()
    if late := [view for view in views if not view.settled]:
        _publisher.settle(late)
