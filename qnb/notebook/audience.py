"""Who looks at a view, by what the pages say."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["Audience", "Cells"]

SILENT = 90.0  #: seconds after which a page that says nothing has gone; pages speak every 30 s


class Cells:
    """Whether a cell runs. While one does, no word of a page may get through to the kernel."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = clock()  # the first view is made by a cell
        self._ended = clock()

    def began(self, *_: object) -> None:
        self._since = self._clock()

    def ended(self, *_: object) -> None:
        self._since, self._ended = None, self._clock()

    @property
    def busy(self) -> float:
        """Seconds that a cell has been running; 0 if none does."""
        since = self._since
        return 0.0 if since is None else self._clock() - since

    @property
    def idle(self) -> float:
        """Seconds in which pages could have been heard, up to now."""
        return self._clock() - self._ended if self._since is None else 0.0


class Audience:
    """The places in pages that show one view: which of them are in sight.

    Until the first word nobody knows, and the view counts as seen: what executes a notebook to save
    it has no page. A page that is reloaded cannot say goodbye, so that a new page takes the place
    of those before it; one that is still there speaks again within half a minute.
    """

    def __init__(self, cells: Cells, clock: Callable[[], float] = time.monotonic) -> None:
        self.heard = False  #: is there a page at all?
        self._cells = cells
        self._clock = clock
        self._page = ""
        self._places: dict[str, bool] = {}  # what each said last: is it in sight?
        self._last = 0.0

    def hear(self, said: dict[str, Any]) -> bool:
        """What a page says: ``see`` its place, ``page`` its own name, ``is`` true in sight, false
        out of it, None gone. True if the page is a new one."""
        page, place, seen = str(said.get("page", "")), str(said.get("see", "")), said.get("is")
        new = page != self._page and seen is not None
        if new:
            self._page = page
            self._places.clear()
        self.heard, self._last = True, self._clock()
        if seen is None:
            self._places.pop(place, None)
        else:
            self._places[place] = bool(seen)
        return new

    @property
    def seen(self) -> bool:
        """Is the view in sight anywhere?"""
        if not self.heard:
            return True
        silent = self._clock() - self._last > SILENT and self._cells.idle > SILENT
        return not silent and any(self._places.values())

    @property
    def gone(self) -> bool:
        """Was it shown by pages, and is not any more?"""
        return self.heard and not self._places
