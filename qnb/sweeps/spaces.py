"""Points as others write them down: frames, scikit-learn's grids, lists of dicts, generators."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import chain, islice
from typing import Any, TypeAlias

from qnb.errors import InvalidOption
from qnb.options import hint
from qnb.sweeps.axes import Values, check_names, column, is_many, listed, short, values
from qnb.sweeps.designs import ABSENT, Columns, Design, Product, Sum, grid

__all__ = ["Space", "Stream", "extended", "points", "rows", "space_of", "starmap"]


#: seconds after which points that have come are not kept waiting for others
SLOW = 0.5


class Stream:
    """Points from an iterable, taken as they are asked for; how many is known when it has ended.

    It can be gone through once, and is never held whole.
    """

    __slots__ = ("_points", "ended", "taken")

    taken: int  #: how many points have been given out
    ended: bool  #: has the last one been given out?

    def __init__(self, given: Iterable[Mapping[str, Any]]) -> None:
        self._points = iter(given)
        self.taken = 0
        self.ended = False

    def chunks(self, size: int) -> Iterator[Design]:
        """Designs of ``size`` points; of fewer where they come slowly, and of what is left."""
        if not size >= 1:
            raise InvalidOption(f"size={size!r}: expected how many points at a time, ≥ 1")
        while found := self._some(size):
            design = _side_by_side(found, self.taken)
            self.taken += len(design)
            yield design
        self.ended = True

    def _some(self, size: int) -> list[Any]:
        """The next points, copied: whoever gives them may use one dict for all."""
        found: list[Any] = []
        begun = time.monotonic()
        for row in self._points:
            found.append(dict(row) if isinstance(row, Mapping) else row)
            if len(found) == size or time.monotonic() - begun >= SLOW:
                break
        return found

    def preview(self, n: int = 5) -> list[dict[str, Any]]:
        """The next ``n`` points, which stay to be taken."""
        ahead = list(islice(self._points, max(0, n)))
        self._points = chain(ahead, self._points)
        return list(_side_by_side(ahead, self.taken))

    def __repr__(self) -> str:
        return f"<Stream of {self.taken:,} points{'' if self.ended else ' so far'}>"


def points(given: Iterable[Mapping[str, Any]], /) -> Design:
    """The points given, each a mapping of parameters to values, taken as they are.

    A parameter that one of them lacks is left to the function's default there.
    """
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InvalidOption(
            f"points={short(given)}: expected a list of dicts, one for each point; a dict of "
            "lists is qnb.grid(**lists) or qnb.zip(**lists)"
        )
    return _side_by_side(listed("points", given, "task.sweep(generator) takes them as they come"))


def _side_by_side(rows: Sequence[Any], first: int = 0) -> Design:
    """These mappings as a design; ``first`` is what errors call the first of them."""
    names: dict[str, None] = {}
    for place, row in enumerate(rows, first):
        if not isinstance(row, Mapping):
            raise InvalidOption(
                f"point {place} is {short(row)}: expected a dict of parameters by name; tuples of "
                "arguments go through task.starmap(rows), single values through task.map(values)"
            )
        if not names.keys() >= row.keys():
            check_names(row, f" (in point {place})")
            names.update(dict.fromkeys(row))
    columns = [[row.get(name, ABSENT) for row in rows] for name in names]
    return Columns(names, columns, len(rows), ragged=any(len(row) < len(names) for row in rows))


def starmap(rows: Iterable[Sequence[Any]], /) -> Design:
    """One point for each tuple of arguments, passed by position, as ``itertools.starmap``.

    They are called ``arg_0`` and on, see :meth:`Design.named`. A shorter tuple leaves the last
    arguments to the function's defaults.
    """
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise InvalidOption(f"rows={short(rows)}: expected a list of tuples of arguments")
    found: list[tuple[Any, ...]] = []
    for place, row in enumerate(
        listed("rows", rows, "task.sweep(generator of dicts) takes them as they come")
    ):
        array = hasattr(row, "tolist") and getattr(row, "ndim", 0) > 0
        if not array and (not isinstance(row, Sequence) or isinstance(row, str | bytes)):
            remedy = (
                "dicts of arguments go through task.sweep(points)"
                if isinstance(row, Mapping)
                else "for functions of one argument there is task.map(values)"
            )
            raise InvalidOption(
                f"row {place} is {short(row)}: expected a tuple of arguments; {remedy}"
            )
        found.append(tuple(values("row", row)) if array else tuple(row))
    width = max(map(len, found), default=0)
    columns = [[row[at] if at < len(row) else ABSENT for row in found] for at in range(width)]
    names = [f"arg_{at}" for at in range(width)]
    ragged = any(len(row) < width for row in found)
    return Columns(names, columns, len(found), width, ragged=ragged)


Space: TypeAlias = Design | Stream

_PLAIN = (int, float, complex, str, bytes, type(None))


def rows(frame: Any, columns: Sequence[str] | None = None) -> Design:
    """One point for each row of a pandas, polars or Arrow table, a parameter for each column.

    ``columns`` chooses some of them. The index of a pandas frame is kept in
    :attr:`~qnb.sweeps.designs.Design.labels`.
    """
    if not _is_frame(frame):
        raise InvalidOption(
            f"{short(frame)} is not a table with named columns: give a DataFrame; a dict of lists "
            "goes through qnb.zip(**lists), a list of dicts through qnb.points(dicts)"
        )
    names = list(getattr(frame, "column_names", frame.columns))
    chosen = names if columns is None else _chosen(columns, names)
    check_names(
        chosen, ". Rename the column, as in frame.rename(columns={...}), or choose others: columns="
    )
    if twice := [name for name in chosen if names.count(name) > 1 or chosen.count(name) > 1]:
        raise InvalidOption(f"column {twice[0]!r} is there twice: a parameter has one value")
    design = Columns(chosen, [column(frame[name]) for name in chosen], len(frame))
    design.labels = _labels(getattr(frame, "index", None))
    return design


def _is_frame(given: Any) -> bool:
    """Is it a table with named columns? Asked of its methods: no table library is loaded."""
    return not isinstance(given, type) and any(
        hasattr(given, columns) and hasattr(given, rows)
        for columns, rows in (("columns", "iterrows"), ("columns", "to_dicts"),
                              ("column_names", "to_pylist"))
    )  # fmt: skip


def _chosen(columns: Sequence[str], names: list[Any]) -> list[str]:
    if isinstance(columns, str) or not isinstance(columns, Sequence):
        raise InvalidOption(f"columns={short(columns)}: expected a list of column names")
    for name in columns:
        if name not in names:
            near = hint(name, map(str, names)) if isinstance(name, str) else ""
            raise InvalidOption(
                f"columns: the frame has no {name!r}.{near} It has {', '.join(map(str, names))}"
            )
    return list(columns)


def _labels(index: Any) -> Mapping[str, Values]:
    """A pandas index by level; an unnamed level takes the name that ``reset_index`` gives it."""
    if index is None:
        return {}
    if index.nlevels == 1:
        return {str(index.name or "index"): column(index)}
    return {
        str(f"level_{level}" if name is None else name): column(index.get_level_values(level))
        for level, name in enumerate(index.names)
    }


def space_of(given: Any) -> Space:
    """The points that ``given`` means.

    A design is itself, a dict of lists a grid, a frame its rows. A list of dicts is points, or
    where all their values are lists, grids one after the other (as in scikit-learn). Whatever has
    a length and gives dicts, such as a ``ParameterGrid`` or ``ParameterSampler``, is points; a
    generator or anything of unknown length is a :class:`Stream`.
    """
    if isinstance(given, Design | Stream):
        return given
    if isinstance(given, Mapping):
        check_names(given)
        return grid(**given)
    if _is_frame(given):
        return rows(given)
    if isinstance(given, str | bytes | type | set | frozenset) or not isinstance(given, Iterable):
        raise InvalidOption(
            f"{short(given)} describes no points: expected qnb.grid(...) or another design, a dict "
            "of lists, a list or generator of dicts, a DataFrame or a ParameterGrid"
        )
    if isinstance(given, Sequence):
        return _of_list(given)
    return points(given) if isinstance(given, Sized) else Stream(given)


def _of_list(given: Sequence[Any]) -> Design:
    if not all(isinstance(item, Mapping) for item in given):
        return points(given)  # which says what is wrong
    kinds: dict[bool, str] = {}  # many values, or one, and a parameter that has it
    for place, item in enumerate(given):
        for name, value in item.items():
            if (many := is_many(value)) not in kinds:
                kinds[many] = f"{name}={short(value)} in item {place}"
    if len(kinds) == 2:
        raise InvalidOption(
            f"points or grids? This list of dicts has lists of values ({kinds[True]}) and single "
            f"ones ({kinds[False]}). Points: qnb.points([...]), whose values are passed as they "
            "are. Grids, one after the other: qnb.grid(...) + qnb.grid(...)"
        )
    if True not in kinds:
        return points(given)
    for item in given:
        check_names(item)
    return Sum([grid(**item) for item in given])


def extended(design: Design, axes: Mapping[str, Any], what: str) -> Design:
    """A grid with more values on some of its axes; ``what`` it is of, for errors."""
    factors = design.factors if isinstance(design, Product) else ()
    if not axes:
        raise InvalidOption("extend() needs new values of an axis: sweep.extend(x=[...])")
    names = [name for factor in factors for name in factor.names]
    for name in axes:
        if name not in names:
            raise InvalidOption(
                f"{what} has no axis {name!r}: "
                + (f"it has {', '.join(names)}" if names else
                   "its points are no grid. Run its cell again with more points: those it has are "
                   "not run again")
            )  # fmt: skip
    grown = []
    for factor in factors:
        new = [name for name in factor.names if name in axes]
        if new and len(factor.names) > 1:
            raise InvalidOption(
                f"axis {new[0]!r} goes together with {', '.join(factor.names)}: run the cell of "
                f"{what} again with more points"
            )
        if new:
            had = factor.columns()[new[0]]
            known = set(map(_key, had))
            given = values(new[0], axes[new[0]])
            more = [v for v in given if _key(v) not in known and not _among(v, had)]
            factor = Columns(new, [tuple(had) + tuple(more)], len(had) + len(more))
        grown.append(factor)
    return Product(grown)


def _key(value: Any) -> object:
    """Equal for what is the same value; the value's own id where that cannot be told so."""
    if isinstance(value, _PLAIN):
        return type(value), repr(value)  # which tells -0.0 from 0.0, and finds a NaN
    return id(value)


def _among(value: Any, others: Sequence[Any]) -> bool:
    return not isinstance(value, _PLAIN) and any(
        type(value) is type(other) and bool(value == other)
        for other in others
        if not isinstance(other, _PLAIN)
    )
