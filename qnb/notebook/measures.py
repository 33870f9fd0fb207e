"""The parameters and results of a sweep as columns of numbers, read as its jobs end.

Each result is read once. What is not a number, is large, or cannot be read here is unknown (NaN).
"""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Sequence
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

__all__ = ["Floats", "Measures", "Parameter"]

Floats = NDArray[np.float64]

BATCH = 2_000  #: jobs that are read at a time
INLINE = 16 * 1024  #: most bytes of a result that is looked into
FIELDS = 64  #: of a result, at most
BUDGET = 0.5  #: seconds of reading for one answer

_QUEUED, _RUNNING = 0, 1


class Parameter(NamedTuple):
    """What a parameter is at each place: an index into its distinct values, in their order."""

    kind: str  #: "number", "bool" or "text"
    codes: NDArray[np.int32]  #: -1 where the point has no such parameter
    values: Floats  #: the distinct values as numbers; for text 0, 1, 2 …
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


def _parameter(column: Sequence[object]) -> Parameter:
    found = [None if value is None else number(value) for value in column]
    given = [value for value in column if value is not None]
    if given and all(
        one is not None or value is None for one, value in zip(found, column, strict=True)
    ):
        floats = np.array([math.nan if one is None else one for one in found])
        known = ~np.isnan(floats)
        values, inverse = np.unique(floats[known], return_inverse=True)
        codes = np.full(len(floats), -1, np.int32)
        codes[known] = inverse
        flags = all(isinstance(value, (bool, np.bool_)) for value in given)
        labels = [str(bool(one)) if flags else f"{one:.6g}" for one in values]
        return Parameter("bool" if flags else "number", codes, values, labels)
    by_id: dict[int, str] = {}  # the values of an axis come again and again
    texts = []
    for value in column:
        if id(value) not in by_id:
            by_id[id(value)] = value[:80] if isinstance(value, str) else brief(value)
        texts.append(None if value is None else by_id[id(value)])
    labels = sorted({text for text in texts if text is not None})
    places = {text: at for at, text in enumerate(labels)}
    codes = np.array([-1 if text is None else places[text] for text in texts], np.int32)
    return Parameter("text", codes, np.arange(len(labels), dtype=float), labels)


class Measures:
    """What is known of the jobs of one sweep; used by one thread at a time."""

    def __init__(self, sweep: Sweep[Any]) -> None:
        self._sweep = sweep
        self._layout: Layout | None = None
        self.cells = np.zeros(0, np.uint8)
        self.duration: Floats = np.zeros(0)
        self.results: dict[str, Floats] = {}
        self.texts: set[str] = set()  #: fields of results that are no numbers
        self._read = np.zeros(0, bool)
        self._parameters: dict[str, Parameter] = {}

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters."""
        return self._layout.design.names if self._layout is not None else ()

    def look(self) -> None:
        """Know where each job is now."""
        feed = self._sweep._laid_out()
        layout, cells = feed.layout, np.frombuffer(bytes(feed.cells), np.uint8)
        size = min(len(layout), len(cells))
        if layout is not self._layout or size < len(self.cells):
            self._layout, self.results, self.texts = layout, {}, set()
            self._read, self.duration = np.zeros(size, bool), np.full(size, math.nan)
            self._parameters = {}
        elif size > len(self.cells):
            more = size - len(self.cells)
            self._read = np.concatenate([self._read, np.zeros(more, bool)])
            self.duration = _longer(self.duration, more)
            self.results = {name: _longer(found, more) for name, found in self.results.items()}
            self._parameters = {}
        self.cells = cells[:size]
        again = self._read & (self.cells <= _RUNNING)  # they are being run again
        if again.any():
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
        return dict(list(found.items())[:FIELDS])

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
            columns = self._layout.design.columns(0, len(self), absent=None)
            self._parameters[name] = _parameter(columns[name])
        return self._parameters[name]

    def point(self, place: int) -> dict[str, object]:
        """The parameters of the job at ``place``."""
        assert self._layout is not None
        columns = self._layout.design.columns(place, place + 1, absent=None)
        return {name: column[0] for name, column in columns.items()}

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
