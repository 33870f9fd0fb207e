"""Where a sweep's points lie: grids and columns, indexed lazily. Pure: no store, no functions.

What is given for a parameter is either *many values* or *one for every point*:

- many: any sequence (list, tuple, ``range``, deque), an array or Series, or an iterator such as a
  generator, which is read to its end here. Numbers of an array reach the function as Python's own
  (``np.arange(3)`` gives ``int``), so that a point does not depend on how its axis was written;
  dates of an array, and the rows of one with several dimensions, stay what they are.
- one: text, bytes, numbers, ``None``, a dict, a function: whatever has no values of its own.

What could be meant either way is refused, and the error says how to write each.
"""

from __future__ import annotations

import copy
import math
import sys
from abc import abstractmethod
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from itertools import islice
from typing import Any, Final, Self, TypeAlias, overload

from qnb.errors import InvalidOption

__all__ = ["Design", "Point", "grid", "zipped"]

Point: TypeAlias = dict[str, Any]
Values: TypeAlias = Sequence[Any]

_MOST_READ: Final = 1_000_000  # values taken from an iterator, which might never end
_CHUNK: Final = 1024  # points made at a time when all are gone through


class Design(Sequence[Point]):
    """A sequence of points, each a dict of the parameters by name; made when asked for."""

    __slots__ = ("_size", "names", "positional")

    names: tuple[str, ...]  #: the parameters, in the caller's order
    positional: int  #: how many of them, from the first, are passed by position

    def __init__(self, names: Sequence[str], size: int, positional: int = 0) -> None:
        self.names = tuple(names)
        self.positional = positional
        self._size = size

    @abstractmethod
    def _column(self, place: int, start: int, stop: int) -> list[Any]:
        """The values of one parameter for the points ``start`` up to ``stop``."""

    def columns(self, start: int = 0, stop: int | None = None) -> dict[str, list[Any]]:
        """The points from ``start`` up to ``stop``, a column a parameter; clips as a slice."""
        start, stop, _ = slice(start, stop).indices(self._size)
        return {name: self._column(at, start, stop) for at, name in enumerate(self.names)}

    def calls(
        self, start: int = 0, stop: int | None = None
    ) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The points from ``start`` up to ``stop`` as ``(args, kwargs)``."""
        start, stop, _ = slice(start, stop).indices(self._size)
        columns = [self._column(at, start, stop) for at in range(len(self.names))]
        rows = zip(*columns, strict=True) if columns else [()] * max(0, stop - start)
        split, named = self.positional, self.names[self.positional :]
        return [(row[:split], dict(zip(named, row[split:], strict=True))) for row in rows]

    def named(self, *names: str) -> Self:
        """The same points, with these names for the parameters passed by position."""
        changed = copy.copy(self)
        given = tuple(names[: self.positional])
        changed.names = given + self.names[len(given) :]
        for name in given:
            if changed.names.count(name) > 1:
                raise InvalidOption(
                    f"{name!r} is given twice, by position and by name: leave out one of them"
                )
        return changed

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Point: ...
    @overload
    def __getitem__(self, index: slice) -> list[Point]: ...
    def __getitem__(self, index: int | slice) -> Point | list[Point]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        try:
            at = range(self._size)[index]
        except IndexError:
            raise IndexError(f"point {index} of a design of {self._size}") from None
        return {name: self._column(p, at, at + 1)[0] for p, name in enumerate(self.names)}

    def __iter__(self) -> Iterator[Point]:
        for start in range(0, self._size, _CHUNK):
            stop = min(start + _CHUNK, self._size)
            columns = [self._column(at, start, stop) for at in range(len(self.names))]
            for row in zip(*columns, strict=True) if columns else [()] * (stop - start):
                yield dict(zip(self.names, row, strict=True))

    def __repr__(self) -> str:
        plural = "" if self._size == 1 else "s"
        return f"<{type(self).__name__} of {self._size:,} point{plural}: {', '.join(self.names)}>"


class Grid(Design):
    """Every combination of the axes' values."""

    __slots__ = ("_axes",)

    def __init__(self, axes: dict[str, Values]) -> None:
        size = math.prod(len(values) for values in axes.values())
        if size > sys.maxsize:
            sizes = ", ".join(f"{name} has {len(values):,}" for name, values in axes.items())
            raise InvalidOption(
                f"a grid with more points than a sequence can have ({sizes}): shorten an axis"
            )
        super().__init__(tuple(axes), size)
        stride = 1
        rows: list[tuple[int, Values]] = []
        for values in reversed(axes.values()):
            rows.append((stride, values))
            stride *= len(values)
        self._axes = rows[::-1]  #: how many points share a value in a row, and the values

    def _column(self, place: int, start: int, stop: int) -> list[Any]:
        stride, values = self._axes[place]
        length = len(values)
        return [values[i // stride % length] for i in range(start, stop)]


class Columns(Design):
    """Points side by side: the first of each column, the second of each, and so on."""

    __slots__ = ("_columns",)

    def __init__(
        self, names: Sequence[str], columns: Sequence[Values], size: int, positional: int
    ) -> None:
        super().__init__(names, size, positional)
        self._columns = columns

    def _column(self, place: int, start: int, stop: int) -> list[Any]:
        values = self._columns[place]
        if isinstance(values, _Constant):
            return [values[0]] * (stop - start)
        return list(values[start:stop])


class _Constant(tuple[Any]):
    """The one value that every point has."""

    __slots__ = ()


def grid(**axes: Any) -> Design:
    """Every combination, in the order of ``itertools.product``: the last axis varies fastest.

    An axis without values makes an empty design, as in ``itertools.product``; no axes at all make
    one point without parameters.
    """
    return Grid({name: _values(name, given) for name, given in axes.items()})


def zipped(*iterables: Any, **columns: Any) -> Design:
    """One point for each place, as ``zip(..., strict=True)``: lengths that differ are refused.

    ``iterables`` are passed to the function by position (and called ``arg_0`` and on, see
    :meth:`Design.named`), ``columns`` by name. A single value among the columns goes to every
    point; among the iterables it is refused, as ``map`` does.
    """
    if not iterables and not columns:
        raise InvalidOption("no values to map over: give at least one list or array")
    names = [f"arg_{place}" for place in range(len(iterables))]
    many = [_values(name, given) for name, given in zip(names, iterables, strict=True)]
    for place, values in enumerate(many):
        if isinstance(values, _Constant):
            raise InvalidOption(
                f"iterable {place + 1} is {_short(values[0])}, which has no values to map over: "
                "pass it by name to give it to every point, or put it in a list"
            )
    for name, given in columns.items():
        if name in names:
            raise InvalidOption(
                f"{name}={_short(given)}: that is what the iterables are called: "
                "pass all values by name"
            )
        names.append(name)
        many.append(_values(name, given))
    lengths = {
        name: len(values)
        for name, values in zip(names, many, strict=True)
        if not isinstance(values, _Constant)
    }
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length:,}" for name, length in lengths.items())
        raise InvalidOption(
            f"the values do not pair up: {told}. Give them all the same length; one value for "
            "every point is passed by name and bare, not in a list"
        )
    size = next(iter(lengths.values()), 1)
    return Columns(names, many, size, len(iterables))


def _values(name: str, given: Any) -> Values:
    """The values given for a parameter: many, or a ``_Constant``."""
    if isinstance(given, range):
        return given
    if hasattr(given, "tolist") and hasattr(given, "ndim"):  # numpy, pandas and their like
        return _Constant((given,)) if given.ndim == 0 else _items(given)
    if isinstance(given, str | bytes | bytearray | memoryview | Mapping | type):
        return _Constant((given,))
    if isinstance(given, Sequence):
        return tuple(given)  # a copy: what happens to the list later does not change the points
    if isinstance(given, Iterator | KeysView | ValuesView | ItemsView):
        values = tuple(islice(given, _MOST_READ + 1))
        if len(values) > _MOST_READ:
            raise InvalidOption(
                f"{name}={_short(given)}: no end after {_MOST_READ:,} values. If it has one, "
                "pass list(...) of it; one value for every point is passed bare"
            )
        return values
    if isinstance(given, set | frozenset):
        raise InvalidOption(
            f"{name}={_short(given)}: a set has no order, so its points would be numbered "
            f"differently in every kernel. Pass {name}=sorted(...)"
        )
    if hasattr(given, "__iter__"):
        raise InvalidOption(
            f"{name}={_short(given)}: one value or many? Pass {name}=[value] to give a "
            f"{type(given).__name__} to every point, or {name}=list(value) for one point each"
        )
    return _Constant((given,))


def _items(array: Any) -> Values:
    """The items of an array: plain numbers and text where it holds them."""
    if array.ndim > 1 or getattr(array.dtype, "kind", "") in "mM":
        return tuple(array)  # whose tolist would take rows apart, and dates to bare integers
    return tuple(array.tolist())


def _short(value: object) -> str:
    """Its ``repr``, cut to what fits an error message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
