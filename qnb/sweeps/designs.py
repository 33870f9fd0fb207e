"""Where a sweep's points lie: designs that combine, made when asked for. Pure: no store, no code.

``a * b`` has every point of ``a`` with every point of ``b``, the last varying fastest; ``a + b``
has the points of one after those of the other. A design of a billion points takes no more memory
than the values of its axes.
"""

from __future__ import annotations

import copy
import math
import sys
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import accumulate
from numbers import Number
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, overload

from qnb.errors import InvalidOption
from qnb.sweeps.axes import Constant, Values, axis, check_names, short, values

if TYPE_CHECKING:
    from qnb.analysis.frames import DataFrame

__all__ = ["ABSENT", "Absent", "Columns", "Design", "Point", "Product", "Sum", "grid", "of_tree",
           "star", "zip_", "zipped"]  # fmt: skip

Point: TypeAlias = dict[str, Any]

_CHUNK: Final = 1024  # points made at a time when all are gone through


class Absent(Enum):
    """The type of :data:`ABSENT`."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return self.name


#: stands in a column for a parameter that a point does not have, where ``None`` may be a value
ABSENT: Final = Absent.ABSENT


class Design(Sequence[Point]):
    """A sequence of points, each a dict of the parameters by name; made when asked for."""

    __slots__ = ("_size", "labels", "names", "positional", "ragged")

    names: tuple[str, ...]  #: the parameters, in the caller's order
    positional: int  #: how many of them, from the first, are passed by position
    ragged: bool  #: may a point lack some of them?
    labels: Mapping[str, Values]  #: the index of the frame that gave the points, by level

    def __init__(
        self, names: Iterable[str], size: int, positional: int = 0, *, ragged: bool = False
    ) -> None:
        self.names = tuple(names)
        self.positional = positional
        self.ragged = ragged
        self.labels = {}
        self._size = size

    @abstractmethod
    def _column(self, place: int, start: int, stop: int) -> list[Any]:
        """The values of one parameter for the points ``start`` up to ``stop``."""

    def columns(
        self, start: int = 0, stop: int | None = None, *, absent: Any = ABSENT
    ) -> dict[str, list[Any]]:
        """The points from ``start`` up to ``stop``, a column a parameter; clips as a slice.

        Where a point lacks a parameter, its column has ``absent``.
        """
        start, stop, _ = slice(start, stop).indices(self._size)
        found = {name: self._column(at, start, stop) for at, name in enumerate(self.names)}
        if self.ragged and absent is not ABSENT:
            return {n: [absent if v is ABSENT else v for v in found[n]] for n in found}
        return found

    def calls(
        self, start: int = 0, stop: int | None = None
    ) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The points from ``start`` up to ``stop`` as ``(args, kwargs)``."""
        start, stop, _ = slice(start, stop).indices(self._size)
        rows, names, split = self._rows(start, stop), self.names, self.positional
        if not split:
            return [((), point) for point in self._named(rows)]
        if not self.ragged:
            return [
                (row[:split], dict(zip(names[split:], row[split:], strict=True))) for row in rows
            ]
        return [
            (
                tuple(v for v in row[:split] if v is not ABSENT),
                {n: v for n, v in zip(names[split:], row[split:], strict=True) if v is not ABSENT},
            )
            for row in rows
        ]

    @abstractmethod
    def tree(self) -> list[Any]:
        """The design as plain lists and the values of its axes, for :func:`of_tree`."""

    def preview(self, n: int = 5) -> list[Point]:
        """The first ``n`` points."""
        return self[: max(0, n)]

    def to_frame(self) -> DataFrame:
        """All points as a DataFrame, a row each; missing where a point lacks a parameter."""
        from qnb.analysis.columns import MISSING
        from qnb.analysis.frames import points_frame

        return points_frame(self.columns(absent=MISSING), len(self), self.labels)

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

    def _rows(self, start: int, stop: int) -> Iterable[tuple[Any, ...]]:
        columns = [self._column(at, start, stop) for at in range(len(self.names))]
        return zip(*columns, strict=True) if columns else [()] * max(0, stop - start)

    def _named(self, rows: Iterable[tuple[Any, ...]]) -> list[Point]:
        names = self.names
        if self.ragged:
            return [
                {n: v for n, v in zip(names, row, strict=True) if v is not ABSENT} for row in rows
            ]
        return [dict(zip(names, row, strict=True)) for row in rows]

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Point: ...
    @overload
    def __getitem__(self, index: slice) -> list[Point]: ...
    def __getitem__(self, index: int | slice) -> Point | list[Point]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._size)
            if step == 1:
                return self._named(self._rows(start, max(start, stop)))
            return [self[i] for i in range(start, stop, step)]
        try:
            at = range(self._size)[index]
        except IndexError:
            raise IndexError(f"point {index} of a design of {self._size:,}") from None
        return self._named(self._rows(at, at + 1))[0]

    def __iter__(self) -> Iterator[Point]:
        for start in range(0, self._size, _CHUNK):
            yield from self._named(self._rows(start, min(start + _CHUNK, self._size)))

    def __mul__(self, other: Design) -> Design:
        return Product(_combined(self, other, "*"))

    def __add__(self, other: Design) -> Design:
        return Sum(_combined(self, other, "+"))

    def __repr__(self) -> str:
        plural = "" if self._size == 1 else "s"
        return f"<Design of {self._size:,} point{plural}: {', '.join(self.names)}>"


def _combined(first: Design, second: Any, sign: str) -> list[Design]:
    if not isinstance(second, Design):
        raise InvalidOption(
            f"{first!r} {sign} {short(second)}: both sides must be designs. Make one of it with "
            "qnb.grid(...), qnb.zip(...) or qnb.points([...])"
        )
    for part in (first, second):
        if part.positional:
            raise InvalidOption(
                f"{part!r} passes values by position and cannot be combined: give them names"
            )
    return [first, second]


class Columns(Design):
    """Points side by side: the first of each column, the second of each, and so on."""

    __slots__ = ("_columns",)

    def __init__(
        self,
        names: Iterable[str],
        columns: Iterable[Values],
        size: int,
        positional: int = 0,
        *,
        ragged: bool = False,
    ) -> None:
        super().__init__(names, size, positional, ragged=ragged)
        self._columns = tuple(columns)

    def _column(self, place: int, start: int, stop: int) -> list[Any]:
        values = self._columns[place]
        if isinstance(values, Constant):
            return [values[0]] * (stop - start)
        return list(values[start:stop])

    def tree(self) -> list[Any]:
        columns, gaps = [], []
        for column in self._columns:
            kind = "one" if isinstance(column, Constant) else "many"
            if isinstance(column, range):
                columns.append(["range", [column.start, column.stop, column.step]])
                continue
            holes = [at for at, v in enumerate(column) if v is ABSENT] if self.ragged else []
            columns.append([kind, [None if v is ABSENT else v for v in column]])
            if holes:
                gaps.append([len(columns) - 1, holes])
        labels = [[level, list(column)] for level, column in self.labels.items()]
        return ["columns", list(self.names), columns, gaps, self._size, self.positional,
                self.ragged, labels]  # fmt: skip


class Product(Design):
    """Every combination of the factors' points, the last factor's varying fastest."""

    __slots__ = ("_places", "factors")

    def __init__(self, factors: Sequence[Design]) -> None:
        self.factors = tuple(factors)
        names = [name for factor in factors for name in factor.names]
        for name in names:
            if names.count(name) > 1:
                raise InvalidOption(
                    f"{name!r} is a parameter of both factors: a point has one value of it. "
                    "Leave it out of one of them"
                )
        size = math.prod(factor._size for factor in factors)
        if size > sys.maxsize:
            told = ", ".join(
                f"{' and '.join(factor.names)} {'has' if len(factor.names) == 1 else 'have'} "
                f"{len(factor):,}"
                for factor in factors
            )
            raise InvalidOption(
                f"a product with more points than a sequence can have ({told}): shorten an axis"
            )
        super().__init__(names, size, ragged=any(factor.ragged for factor in factors))
        strides = [math.prod(f._size for f in factors[at + 1 :]) for at in range(len(factors))]
        #: of each parameter: its factor, its place in it, and how many points share its value
        self._places = [
            (factor, place, stride)
            for factor, stride in zip(factors, strides, strict=True)
            for place in range(len(factor.names))
        ]

    def _column(self, place: int, start: int, stop: int) -> list[Any]:
        if stop <= start:
            return []
        factor, at, stride = self._places[place]
        first, last = start // stride, (stop - 1) // stride + 1
        values = _around(factor, at, first, last)
        if stride == 1:
            return values
        column = [values[0]] * (min(stop, (first + 1) * stride) - start)
        for value in values[1:-1]:
            column += [value] * stride
        if len(values) > 1:
            column += [values[-1]] * (stop - (last - 1) * stride)
        return column

    def tree(self) -> list[Any]:
        return ["product", [factor.tree() for factor in self.factors]]


def _around(factor: Design, place: int, first: int, last: int) -> list[Any]:
    """A parameter's values from ``first`` up to ``last``, as though the points came round again."""
    size = len(factor)
    low, count = first % size, last - first
    if low + count <= size:
        return factor._column(place, low, low + count)
    if count < size:
        return factor._column(place, low, size) + factor._column(place, 0, low + count - size)
    return (factor._column(place, 0, size) * (count // size + 2))[low : low + count]


class Sum(Design):
    """The points of one design after those of another; a parameter may be absent from some."""

    __slots__ = ("_ends", "_parts")

    _parts: list[Design]

    def __init__(self, given: Iterable[Design]) -> None:
        parts: list[Design] = []
        for part in given:
            parts += part._parts if isinstance(part, Sum) else [part]
        parts = [part for part in parts if part._size]
        names = tuple(dict.fromkeys(name for part in parts for name in part.names))
        self._parts = parts
        self._ends = list(accumulate(part._size for part in parts))
        ragged = any(part.ragged or len(part.names) < len(names) for part in parts)
        by_position = {part.positional for part in parts}
        positional = by_position.pop() if len(by_position) == 1 else 0
        super().__init__(names, self._ends[-1] if parts else 0, positional, ragged=ragged)

    def _column(self, place: int, start: int, stop: int) -> list[Any]:
        name, column = self.names[place], list[Any]()
        for at in range(bisect_right(self._ends, start), len(self._parts)):
            part = self._parts[at]
            before = self._ends[at] - part._size
            low, high = max(start - before, 0), min(stop - before, part._size)
            if low >= high:
                break
            if name in part.names:
                column += part._column(part.names.index(name), low, high)
            else:
                column += [ABSENT] * (high - low)
        return column

    def tree(self) -> list[Any]:
        return ["sum", [part.tree() for part in self._parts]]


def of_tree(tree: Sequence[Any]) -> Design:
    """The design that :meth:`Design.tree` has made plain."""
    kind, *parts = tree
    if kind != "columns":
        return {"product": Product, "sum": Sum}[kind]([of_tree(part) for part in parts[0]])
    names, given, gaps, size, positional, ragged, labels = parts
    columns: list[Values] = []
    for how, listed in given:
        many: Values = range(*listed) if how == "range" else tuple(listed)
        columns.append(Constant(many) if how == "one" else many)
    for at, holes in gaps:
        filled = list(columns[at])
        for hole in holes:
            filled[hole] = ABSENT
        columns[at] = filled
    design = Columns(names, columns, size, positional, ragged=ragged)
    design.labels = {level: tuple(listed) for level, listed in labels}
    return design


def grid(**axes: Any) -> Design:
    """Every combination, in the order of ``itertools.product``: the last axis varies fastest.

    A single value is a constant. An axis without values is refused; no axes at all make one point
    without parameters.
    """
    check_names(axes)
    found = {name: axis(name, given) for name, given in axes.items()}
    return Product([Columns([name], [values], len(values)) for name, values in found.items()])


def zip_(**columns: Any) -> Design:
    """One point for each place, as ``zip(..., strict=True)``: lengths that differ are refused.

    A single value goes to every point.
    """
    return zipped(**columns)


def zipped(*iterables: Any, **columns: Any) -> Design:
    """:func:`zip_`, with ``iterables`` passed to the function by position.

    They are called ``arg_0`` and on (see :meth:`Design.named`); a single value among them is
    refused, as ``map`` does.
    """
    if not iterables and not columns:
        raise InvalidOption("no values to map over: give at least one list or array")
    check_names(columns)
    names = [f"arg_{place}" for place in range(len(iterables))]
    many = [values(name, given) for name, given in zip(names, iterables, strict=True)]
    for place, found in enumerate(many):
        if isinstance(found, Constant):
            raise InvalidOption(
                f"iterable {place + 1} is {short(found[0])}, which has no values to map over: "
                "pass it by name to give it to every point, or put it in a list"
            )
    for name, given in columns.items():
        if name in names:
            raise InvalidOption(
                f"{name}={short(given)}: that is what the iterables are called: "
                "pass all values by name"
            )
        names.append(name)
        many.append(values(name, given))
    lengths = {n: len(v) for n, v in zip(names, many, strict=True) if not isinstance(v, Constant)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length:,}" for name, length in lengths.items())
        raise InvalidOption(
            f"the values do not pair up: {told}. Give them all the same length; one value for "
            "every point is passed by name and bare, not in a list"
        )
    return Columns(names, many, next(iter(lengths.values()), 1), len(iterables))


def star(center: Mapping[str, Any], /, **axes: Any) -> Design:
    """One factor at a time: the centre once, then each axis with the others at the centre.

    A value of an axis that equals the centre's is the centre, and not run again.
    """
    if not isinstance(center, Mapping):
        raise InvalidOption(
            f"center={short(center)}: expected a dict with a value for every parameter"
        )
    check_names(center)
    check_names(axes)
    if missing := [name for name in axes if name not in center]:
        raise InvalidOption(
            f"the centre has no {', '.join(map(repr, missing))}: give it a value there, which the "
            "points of the other axes take"
        )
    fixed = {name: Constant((value,)) for name, value in center.items()}
    parts: list[Design] = [Columns(fixed, fixed.values(), 1)]
    for name, given in axes.items():
        others = [v for v in axis(name, given) if not _same(v, center[name])]
        parts.append(Columns(fixed, (fixed | {name: others}).values(), len(others)))
    return Sum(parts)


def _same(one: Any, other: Any) -> bool:
    """Equal, and of one type or both numbers; what cannot say so is not."""
    if type(one) is not type(other) and not (_is_number(one) and _is_number(other)):
        return False
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - an array compares item by item; a broken __eq__ is theirs
        return False


def _is_number(value: object) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool)
