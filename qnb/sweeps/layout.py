"""Which job is at which place of a sweep: its points in parts, each with the numbers of its jobs.

A job has a number that stays; the place of its point may change as the sweep is given other points.
"""

from __future__ import annotations

import copy
import datetime
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from qnb.errors import EncodingError, PayloadTooLarge
from qnb.sweeps.axes import values
from qnb.sweeps.designs import Absent, Columns, Design, Sum, of_tree

__all__ = ["Layout", "Numbers", "digest_of", "frozen", "point_digests", "taken"]

Numbers = Sequence[int]

#: points of a part that is cut no further, and of one that is tried whole
LEAST, MOST = 1, 200_000

_SIZE = 16


def _columns(design: Design, start: int, stop: int) -> Columns:
    """A piece of a design, its points written out."""
    return Columns(
        design.names, design.columns(start, stop).values(), stop - start, design.positional,
        ragged=design.ragged,
    )  # fmt: skip


def _plain(numbers: Numbers) -> list[Any]:
    if isinstance(numbers, range):
        return [numbers.start, len(numbers)]
    return [array("I", numbers).tobytes()]


def _numbers(plain: list[Any]) -> Numbers:
    if len(plain) == 2:
        return range(plain[0], plain[0] + plain[1])
    found = array("I")
    found.frombytes(plain[0])
    return found


_FIXED = {int, float, complex, str, bytes, bool, type(None), datetime.date, datetime.datetime,
          datetime.timedelta, Absent}  # fmt: skip


def frozen(design: Design) -> Design:
    """The points as they are now, whatever the caller does to their values later."""
    for start in range(0, len(design), MOST):
        columns = design.columns(start, min(start + MOST, len(design)))
        if any(not _FIXED.issuperset(map(type, column)) for column in columns.values()):
            break
    else:
        return design
    try:
        return of_tree(copy.deepcopy(design.tree()))
    except Exception:  # noqa: BLE001 - a value that cannot be copied stays the caller's
        return design


def taken(axes: Mapping[str, Any]) -> dict[str, Any]:
    """Values of axes as they are now, likewise; an iterator is read to its end."""
    found = {name: values(name, given) for name, given in axes.items()}
    try:
        return copy.deepcopy(found)
    except Exception:  # noqa: BLE001 - as above
        return found


@dataclass(slots=True)
class _Part:
    design: Design
    numbers: Numbers
    first: int  #: the place of its first point


class Layout:
    """The points of a sweep in order, and the number of each one's job."""

    __slots__ = ("_design", "_parts", "_places", "_size")

    def __init__(self, parts: Iterable[tuple[Design, Numbers]] = ()) -> None:
        self._parts: list[_Part] = []
        self._size = 0
        self._design: Design | None = None
        self._places: array[int] | None = None  # by number; None while places are numbers
        for design, numbers in parts:
            self.append(design, numbers)

    def append(self, design: Design, numbers: Numbers) -> None:
        """Add points behind the others."""
        self._parts.append(_Part(design, numbers, self._size))
        is_plain = isinstance(numbers, range) and numbers.start == self._size
        if self._places is None and not is_plain:
            self._places = array("i", range(self._size))
        if self._places is not None:
            most = max(numbers, default=-1) + 1
            self._places.extend([-1] * (most - len(self._places)))
            for place, number in enumerate(numbers, self._size):
                self._places[number] = place
        self._size += len(design)
        self._design = None

    def __len__(self) -> int:
        return self._size

    @property
    def design(self) -> Design:
        """All points as one design."""
        if self._design is None:
            parts = [part.design for part in self._parts]
            self._design = parts[0] if len(parts) == 1 else Sum(parts)
        return self._design

    def number(self, place: int) -> int:
        """The number of the job at ``place``."""
        if self._places is None:
            return place
        part = self._part(place)
        return part.numbers[place - part.first]

    def place(self, number: int) -> int:
        """Where the job of that number is; -1 if none of the points is its."""
        if self._places is None:
            return number if number < self._size else -1
        return self._places[number] if number < len(self._places) else -1

    def places(self, numbers: Iterable[int]) -> list[int]:
        """Where the jobs of those numbers are that are of a point."""
        return [place for number in numbers if (place := self.place(number)) >= 0]

    def _part(self, place: int) -> _Part:
        low, high = 0, len(self._parts) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._parts[middle].first <= place:
                low = middle
            else:
                high = middle - 1
        return self._parts[low]

    def calls(self, places: Sequence[int]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The points at ``places`` as ``(args, kwargs)``."""
        return _runs(places, lambda start, stop: self._read(start, stop, Design.calls))

    def digests(self, places: Sequence[int]) -> list[bytes]:
        """What the points at ``places`` are, 16 bytes each."""
        return _runs(places, lambda start, stop: self._read(start, stop, point_digests))

    def _read(
        self, start: int, stop: int, read: Callable[[Design, int, int], list[Any]]
    ) -> list[Any]:
        """What ``read`` gives of consecutive points, part by part."""
        found: list[Any] = []
        while start < stop:
            part = self._part(start)
            end = min(stop - part.first, len(part.design))
            found += read(part.design, start - part.first, end)
            start = part.first + end
        return found

    # -- as it is stored -----------------------------------------------------------------------

    def packed(self, pack: Callable[[list[Any]], bytes]) -> list[bytes]:
        """Its parts, each packed by ``pack``; one that is too large is cut."""
        found: list[bytes] = []
        for part in self._parts:
            found += packed_part(part.design, part.numbers, pack)
        return found

    @classmethod
    def of(cls, trees: Iterable[list[Any]]) -> Layout:
        """The layout whose parts those are."""
        return cls((of_tree(tree), _numbers(numbers)) for numbers, tree in trees)


def packed_part(
    design: Design, numbers: Numbers, pack: Callable[[list[Any]], bytes]
) -> list[bytes]:
    """A design and its numbers, in as many parts as it takes."""
    size = len(design)
    try:
        return [pack([_plain(numbers), design.tree()])]
    except PayloadTooLarge:
        if size <= LEAST:
            raise
    step = max(LEAST, min(MOST, (size + 3) // 4))
    found: list[bytes] = []
    for start in range(0, size, step):
        stop = min(start + step, size)
        found += packed_part(_columns(design, start, stop), numbers[start:stop], pack)
    return found


def _runs(places: Sequence[int], read: Callable[[int, int], list[Any]]) -> list[Any]:
    """What ``read`` gives of consecutive places, for any places."""
    found: list[Any] = []
    at = 0
    while at < len(places):
        end = at + 1
        while end < len(places) and places[end] == places[end - 1] + 1:
            end += 1
        found += read(places[at], places[end - 1] + 1)
        at = end
    return found


def point_digests(design: Design, start: int, stop: int) -> list[bytes]:
    """16 bytes that say what each point is: its parameters by name, whatever their order.

    A value that cannot be compared is an EncodingError that names its parameter.
    """
    from qnb.content.walk import value_content

    rows: list[list[bytes]] = [[] for _ in range(stop - start)]
    absent = object()
    for name, column in sorted(design.columns(start, stop, absent=absent).items()):
        known: dict[int, bytes] = {}  # by id: the values of an axis come again and again
        word = name.encode()
        for row, value in zip(rows, column, strict=True):
            if value is absent:
                continue
            said = known.get(id(value))
            if said is None:
                try:
                    said = known[id(value)] = b"%d:%b=%b" % (len(word), word, value_content(value))
                except EncodingError as error:
                    raise EncodingError(f"parameter {name!r}: {error}") from None
            row.append(said)
    return [
        blake2b(b"".join(row), digest_size=_SIZE, person=b"qnb point 1").digest() for row in rows
    ]


def digest_of(design: Design) -> bytes:
    """16 bytes that say what a design is, of its axes alone; EncodingError as for its points."""
    from qnb.content.walk import value_content

    return value_content(design.tree())
