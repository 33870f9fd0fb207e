"""The parameters and results of a sweep as columns of numbers, read as its jobs end.

Each result is read once. What is not a number, is large, or cannot be read here is unknown (NaN).
"""

from __future__ import annotations

import math
import numbers
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qnb import bridge
from qnb.analysis.columns import MISSING
from qnb.analysis.frames import result_fields
from qnb.analysis.values import Values
from qnb.closeup import brief
from qnb.storage import rows as stored
from qnb.storage.rows import Row
from qnb.sweeps.layout import Layout
from qnb.sweeps.sweep import Sweep

__all__ = ["OWN", "Floats", "Measures", "Parameter"]

Floats = NDArray[np.float64]

BATCH = 2_000  #: jobs that are read at a time
INLINE = 16 * 1024  #: most bytes of a result that is looked into
FIELDS = 64  #: of a result, at most
BUDGET = 0.5  #: seconds of reading for one answer

#: the view's own columns: what else is called so takes a suffix
OWN = ("place", "state", "duration", "error")

_RUNNING = 1


class Parameter(NamedTuple):
    """What a parameter is at each place: an index into its distinct values, in their order."""

    kind: str  #: "number", "bool" or "text"
    codes: NDArray[np.int32]  #: -1 where the point has no such parameter
    values: Floats  #: the distinct values as numbers, NaN for None; for text 0, 1, 2 …
    labels: list[str]

    def floats(self) -> Floats:
        """A number for each place, NaN where it has none."""
        return np.append(self.values, math.nan)[self.codes]


def number(value: object) -> float | None:
    """``value`` if it is a real number."""
    if isinstance(value, (bool, np.bool_)):
        return float(value)
    if isinstance(value, numbers.Real):
        try:
            return float(value)
        except (OverflowError, ValueError):
            return None
    return None


def _figures(values: Floats) -> list[str]:
    """Numbers in as few digits as tell them apart."""
    for digits in (6, 9):
        labels = [f"{value:.{digits}g}" for value in values]
        if len(set(labels)) == len(labels):
            return labels
    return [repr(float(value)) for value in values]


def _free(name: str, taken: Iterable[str], suffix: str) -> str:
    """``name``, with as many suffixes as it takes not to be one of ``taken``."""
    while name in taken:
        name += suffix
    return name


def _parameter(column: Sequence[object]) -> Parameter:
    found = [number(value) for value in column]
    given = [value for value in column if value is not None and value is not MISSING]
    if given and all(
        one is not None or value is None or value is MISSING
        for one, value in zip(found, column, strict=True)
    ):
        floats = np.array([math.nan if one is None else one for one in found])
        known = ~np.isnan(floats)
        values, inverse = np.unique(floats[known], return_inverse=True)
        codes = np.full(len(floats), -1, np.int32)
        codes[known] = inverse
        flags = all(isinstance(value, (bool, np.bool_)) for value in given)
        labels = [str(bool(one)) for one in values] if flags else _figures(values)
        if len(given) < len(column) and any(value is None for value in column):
            codes[[value is None for value in column]] = len(values)
            values, labels = np.append(values, math.nan), [*labels, "None"]
        return Parameter("bool" if flags else "number", codes, values, labels)
    by_id: dict[int, str] = {}  # the values of an axis come again and again
    texts = []
    for value in column:
        if id(value) not in by_id:
            by_id[id(value)] = value[:80] if isinstance(value, str) else brief(value)
        texts.append(None if value is MISSING else by_id[id(value)])
    labels = sorted({text for text in texts if text is not None})
    places = {text: at for at, text in enumerate(labels)}
    codes = np.array([-1 if text is None else places[text] for text in texts], np.int32)
    return Parameter("text", codes, np.arange(len(labels), dtype=float), labels)


class Measures:
    """What is known of the jobs of one sweep; used by one thread at a time."""

    def __init__(self, sweep: Sweep[Any]) -> None:
        self._sweep: Sweep[Any] = weakref.proxy(sweep)  # measures must not keep it alive
        self._layout: Layout | None = None
        self.cells = np.zeros(0, np.uint8)
        self.duration: Floats = np.zeros(0)
        self.results: dict[str, Floats] = {}
        self.texts: set[str] = set()  #: fields of results that are no numbers
        self._read = np.zeros(0, bool)
        self._reopened = 0  # how many jobs had been run again at the last look
        self._own_names: dict[str, str] = {}  # what each parameter is called in its design
        self._parameters: dict[str, Parameter] = {}

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters."""
        return tuple(self._own_names)

    def look(self) -> None:
        """Know where each job is now."""
        feed = self._sweep._laid_out()
        known = len(feed.reopened)  # before the cells: what comes between is seen the next time
        reopened, self._reopened = feed.reopened[self._reopened : known], known
        layout, cells = feed.layout, np.frombuffer(bytes(feed.cells), np.uint8)
        size = min(len(layout), len(cells))
        if layout is not self._layout or size < len(self.cells):
            self._layout, self.results, self.texts = layout, {}, set()
            self._read, self.duration = np.zeros(size, bool), np.full(size, math.nan)
            self._parameters, self._own_names = {}, {}
            for name in layout.design.names:
                self._own_names[_free(name, (*OWN, *self._own_names), "_parameter")] = name
        elif size > len(self.cells):
            more = size - len(self.cells)
            self._read = np.concatenate([self._read, np.zeros(more, bool)])
            self.duration = _longer(self.duration, more)
            self.results = {name: _longer(found, more) for name, found in self.results.items()}
            self._parameters = {}
        self.cells = cells[:size]
        again = np.array([place for place in set(reopened) if place < size], np.intp)
        if len(again):  # they may have ended once more by now
            self._read[again] = False
            for column in (self.duration, *self.results.values()):
                column[again] = math.nan

    def read(self) -> bool:
        """Read results that have come, for a while; true if there are more."""
        until = time.monotonic() + BUDGET
        fresh = np.flatnonzero((self.cells > _RUNNING) & ~self._read)
        for start in range(0, len(fresh), BATCH):
            if time.monotonic() > until:
                return True
            self._take(fresh[start : start + BATCH])
        return False

    def rows(self, places: Sequence[int]) -> list[Row]:
        """What the store knows of the jobs at ``places``, small results included."""
        client = self._sweep._client
        ids = [self._sweep._id(place) for place in places]

        async def look() -> list[Row]:
            return await stored.look((await client.link()).store, ids, INLINE)

        return bridge.run(look())

    def fields(self, row: Row) -> dict[str, object]:
        """The result of a job by field; empty where there is none, or it is not looked into."""
        if not row.result or (row.result_nbytes or 0) > INLINE:
            return {}
        try:
            value = Values(self._sweep._client).value(row)
            found = {} if value is MISSING else dict(result_fields(value))
        except Exception:  # noqa: BLE001 - reading it runs the user's own code
            return {}
        fields: dict[str, object] = {}
        for name, inner in list(found.items())[:FIELDS]:
            fields[_free(name, (*OWN, *self.names, *fields), "_result")] = inner
        return fields

    def _take(self, places: NDArray[np.intp]) -> None:
        for place, row in zip(places.tolist(), self.rows(places.tolist()), strict=True):
            self._read[place] = True
            if row.start and row.finish:
                self.duration[place] = (row.finish - row.start) / 1000
            for name, value in self.fields(row).items():
                self._put(place, name, value)

    def _put(self, place: int, name: str, value: object) -> None:
        found = number(value)
        column = self.results.get(name)
        if column is None:
            if found is None:
                if len(self.texts) < FIELDS:
                    self.texts.add(name)
                return
            if len(self.results) >= FIELDS:
                return
            column = self.results[name] = np.full(len(self), math.nan)
        column[place] = math.nan if found is None else found

    def parameter(self, name: str) -> Parameter:
        """A parameter by its name."""
        assert self._layout is not None
        if name not in self._parameters:
            columns = self._layout.design.columns(0, len(self), absent=MISSING)
            for shown, own in self._own_names.items():
                self._parameters[shown] = _parameter(columns[own])
        return self._parameters[name]

    def point(self, place: int) -> dict[str, object]:
        """The parameters of the job at ``place``, those that it has."""
        assert self._layout is not None
        columns = self._layout.design.columns(place, place + 1, absent=MISSING)
        found = {shown: columns[own][0] for shown, own in self._own_names.items()}
        return {name: value for name, value in found.items() if value is not MISSING}

    def column(self, name: str) -> Floats:
        """A parameter, a result or the ``duration`` as numbers."""
        if name in self.names:
            return self.parameter(name).floats()
        if name in self.results:
            return self.results[name]
        if name == "duration":
            return self.duration
        known = ", ".join([*self.names, *self.results, "duration"])
        raise ValueError(f"{name!r} is no column of numbers; there are: {known}")


def _longer(column: Floats, more: int) -> Floats:
    return np.concatenate([column, np.full(more, math.nan)])
