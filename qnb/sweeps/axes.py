"""What is given for one parameter: many values, or one for every point.

- many: any sequence (list, tuple, ``range``, deque), an array or Series, or an iterator such as a
  generator, which is read to its end here. Numbers of an array reach the function as Python's own
  (``np.arange(3)`` gives ``int``), so that a point does not depend on how its axis was written;
  dates of an array, and the rows of one with several dimensions, stay what they are.
- one: text, bytes, numbers, ``None``, a dict, a function: whatever has no values of its own.

What could be meant either way is refused, and the error says how to write each.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from itertools import islice
from typing import Any, Final, TypeAlias

from qnb.errors import InvalidOption

__all__ = [
    "Constant",
    "Values",
    "axis",
    "check_names",
    "column",
    "is_many",
    "listed",
    "short",
    "values",
]

Values: TypeAlias = Sequence[Any]

_MOST_READ: Final = 1_000_000  # taken from an iterator, which might never end
_ONE: Final = (str, int, float, bytes, bytearray, memoryview, Mapping, type)
_MANY: Final = (Sequence, Iterator, KeysView, ValuesView, ItemsView)


class Constant(tuple[Any]):
    """The one value that every point has."""

    __slots__ = ()


def values(name: str, given: Any) -> Values:
    """The values given for parameter ``name``: many, or a :class:`Constant`."""
    if is_many(given):
        if isinstance(given, range):
            return given
        if isinstance(given, Iterator):
            return listed(name, given)
        return column(given)  # a copy: what happens to a list later does not change the points
    if isinstance(given, _ONE) or _is_array(given):
        return Constant((given,))
    if isinstance(given, set | frozenset):
        raise InvalidOption(
            f"{name}={short(given)}: a set has no order, so its points would be numbered "
            f"differently in every kernel. Pass {name}=sorted(...)"
        )
    if hasattr(given, "__iter__"):
        raise InvalidOption(
            f"{name}={short(given)}: one value or many? Pass {name}=[value] to give a "
            f"{type(given).__name__} to every point, or {name}=list(value) for one point each"
        )
    return Constant((given,))


def axis(name: str, given: Any) -> Values:
    """The values of an axis that others are combined with: at least one."""
    found = values(name, given)
    if not len(found):
        raise InvalidOption(
            f"{name}={short(given)}: an axis without values leaves no points at all. Give it at "
            "least one value, or leave it out"
        )
    return found


def is_many(given: Any) -> bool:
    """Has it values of its own, beyond doubt?"""
    if isinstance(given, _ONE):
        return False
    if _is_array(given):
        return bool(given.ndim)
    return isinstance(given, _MANY) or (hasattr(given, "to_list") and hasattr(given, "dtype"))


def _is_array(given: Any) -> bool:
    return hasattr(given, "tolist") and hasattr(given, "ndim")  # numpy, pandas and their like


def column(given: Any) -> Values:
    """All values of a list, array or Series: plain numbers and text where an array holds them."""
    if _is_array(given):
        if given.ndim > 1 or getattr(given.dtype, "kind", "") in "mM":
            return tuple(given)  # whose tolist would take rows apart, and dates to bare integers
        return tuple(given.tolist())
    for listing in ("to_list", "to_pylist"):  # of a polars Series, of an Arrow array
        if hasattr(given, listing):
            return tuple(getattr(given, listing)())
    return tuple(given)


def listed(
    name: str, given: Iterable[Any], remedy: str = "one value for every point is passed bare"
) -> tuple[Any, ...]:
    """All that ``given`` has; refused if it does not end."""
    if not isinstance(given, Iterator):
        return tuple(given)
    found = tuple(islice(given, _MOST_READ + 1))
    if len(found) > _MOST_READ:
        raise InvalidOption(
            f"{name}={short(given)}: no end after {_MOST_READ:,} values. If it has one, "
            f"pass list(...) of it; {remedy}"
        )
    return found


def check_names(names: Iterable[Any], remedy: str = "") -> None:
    """Refuse what cannot be the name of a function's argument."""
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise InvalidOption(
                f"{name!r} cannot name a parameter: use letters, digits and '_', not starting "
                f"with a digit{remedy}"
            )


def short(value: object) -> str:
    """Its ``repr``, cut to what fits an error message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
