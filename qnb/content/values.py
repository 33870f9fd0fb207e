"""What a value *is*: a digest that any kernel, on any machine, makes of the same content.

Neither pickles nor ``hash()`` will do: they differ from kernel to kernel. Everything is written
with its type before it, so that ``1``, ``1.0`` and ``True`` differ, as do ``0.0`` and ``-0.0``,
a list and a tuple, and dicts in another order. What has no content to compare is refused.
"""

from __future__ import annotations

import copyreg
import dataclasses
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from hashlib import blake2b
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType
from typing import Any

from qnb.errors import EncodingError
from qnb.wire.blame import type_name
from qnb.wire.envelope import Buffer
from qnb.wire.origins import installed, reference

__all__ = ["MADE_BY_CLASS", "Node", "Unknown", "Writer", "call_digest", "value_digest"]


def _nothing(_: Any) -> None:
    """Nothing is known of a value."""


def value_digest(value: Any, look: Callable[[Any], Node | None] = _nothing) -> bytes:
    """16 bytes that say what ``value`` is; a part that cannot be compared is an EncodingError.

    ``look`` is that of :class:`Writer`.
    """
    return _digest(value, "value", look)


def call_digest(
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    look: Callable[[Any], Node | None] = _nothing,
) -> str:
    """Hex digits that the same call of task ``name`` always has, however its keywords are ordered.

    ``f(1)`` and ``f(x=1)`` are two calls. ``look`` is that of :class:`Writer`.
    """
    parts = [
        _scalar(b"s", name.encode("utf-8", "surrogatepass")),
        *(_scalar(b"a", _digest(value, f"args[{at}]", look)) for at, value in enumerate(args)),
        *(
            _scalar(b"k", word.encode("utf-8", "surrogatepass"))
            + _digest(kwargs[word], f"kwargs[{word!r}]", look)
            for word in sorted(kwargs)
        ),
    ]
    return blake2b(b"".join(parts), digest_size=16, person=b"qnb call 1").hexdigest()


def _digest(value: Any, path: str, look: Callable[[Any], Node | None]) -> bytes:
    try:
        written = Writer(look).write(value)
    except Unknown as unknown:
        raise EncodingError(
            f"{path}{unknown.path} {unknown.what}. It cannot be told whether two of them are the "
            "same: pass plain values, arrays, frames or instances of installed classes, or name "
            "the job yourself with options(task_id=...)"
        ) from None
    except RecursionError:
        raise EncodingError(f"{path} is nested too deeply to be compared") from None
    return blake2b(written, digest_size=16, person=b"qnb value 1").digest()


class Unknown(Exception):
    """A part without content to compare: ``what`` says why, ``path`` leads to it."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.path = ""


# --- scalars -----------------------------------------------------------------------------------

_LENGTH = struct.Struct(">Q").pack
_DOUBLE = struct.Struct(">d").pack
_NAN = _DOUBLE(float("nan"))


def _scalar(tag: bytes, content: bytes) -> bytes:
    return tag + _LENGTH(len(content)) + content


def _float(value: float) -> bytes:
    return _DOUBLE(value) if value == value else _NAN


#: How the plain types are written. No writing begins like another, so that two in a row are clear.
_SCALARS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N",
    bool: lambda value: b"T" if value else b"F",
    type(...): lambda _: b"E",
    int: lambda value: _scalar(
        b"i", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)
    ),
    float: lambda value: b"f" + _float(value),
    complex: lambda value: b"j" + _float(value.real) + _float(value.imag),
    str: lambda value: _scalar(b"s", value.encode("utf-8", "surrogatepass")),
    bytes: lambda value: _scalar(b"b", value),
}


# --- everything else ---------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Node:
    """A value taken apart: what it is, and the values that make up its content."""

    kind: str
    parts: Sequence[Any] = ()
    where: Callable[[int], str] = "[{}]".format  #: how one would write the way to a part
    raw: Buffer = b""
    ordered: bool = True


class Writer:
    """Writes values with their types. A container is written as the digest of its parts.

    ``look`` is asked first what a value is, and says None for those that it does not know.
    """

    def __init__(self, look: Callable[[Any], Node | None] = _nothing) -> None:
        self._look = look
        # The values are kept with what was written, so that their ids stay their own.
        self._written: dict[int, tuple[Any, bytes]] = {}
        self._open: set[int] = set()  # what we are inside of
        self._rings: dict[int, int] = {}  # what a value inside of it led back to, numbered

    def write(self, value: Any) -> bytes:
        """What ``value`` is, as bytes; :class:`Unknown` where that cannot be told."""
        scalar = _SCALARS.get(type(value))
        if scalar is not None:
            return scalar(value)
        this = id(value)
        if this in self._written:
            return self._written[this][1]
        if this in self._open:
            return b"r" + _LENGTH(self._rings.setdefault(this, len(self._rings)))
        self._open.add(this)
        written = self._node(_take_apart(value, self._look))
        self._open.remove(this)
        if this in self._rings:  # says which one it is, so that it may stand in several places
            written = b"R" + _LENGTH(self._rings[this]) + written
        self._written[this] = value, written
        return written

    def _node(self, node: Node) -> bytes:
        parts = []
        for at, part in enumerate(node.parts):
            try:
                parts.append(self.write(part))
            except Unknown as unknown:
                with suppress(Exception):  # a key's own repr may be what fails
                    unknown.path = node.where(at) + unknown.path
                raise
        digest = blake2b(_scalar(b"t", node.kind.encode()), digest_size=16)
        digest.update(_LENGTH(len(parts)))
        for written in parts if node.ordered else sorted(parts):
            digest.update(written)
        digest.update(node.raw)
        return b"c" + digest.digest()


def _take_apart(value: Any, look: Callable[[Any], Node | None]) -> Node:
    try:
        node = look(value) or _of_builtin(value) or _of_package(value) or _of_class(value)
        return node if node is not None else _reduced(value)
    except (Unknown, RecursionError):
        raise
    except Exception as error:  # noqa: BLE001 - a user's class, or a package's, may raise anything
        raise Unknown(f"is of type {type_name(value)}: {type(error).__name__}: {error}") from None


def _of_builtin(value: Any) -> Node | None:
    kind = type(value)
    if kind in (list, tuple):
        return Node(kind.__name__, value)
    if kind is dict:
        flat = _flat(value)
        return Node("dict", flat, lambda at: f"[{flat[at - at % 2]!r}]")
    if kind in (set, frozenset):
        return Node(kind.__name__, list(value), lambda _: "", ordered=False)
    if kind is bytearray:
        return Node("bytearray", raw=value)
    if isinstance(value, type | FunctionType | BuiltinFunctionType) and (found := reference(value)):
        return Node("name", (found,))
    if isinstance(value, type | FunctionType):
        name = f"{value.__module__}.{value.__qualname__}"
        what = "class" if isinstance(value, type) else "function"
        raise Unknown(f"has the {what} {name!r}, which no installed package has")
    return None


def _of_package(value: Any) -> Node | None:
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    if package == "numpy" and "numpy" in sys.modules:
        return _of_numpy(value, sys.modules["numpy"])
    if package == "pandas":
        return _of_pandas(value)
    if package == "pathlib" and isinstance(value, PurePath):
        return Node("path", (kind.__name__, str(value)))
    if package == "random" and value is getattr(sys.modules.get("random"), "_inst", None):
        return Node("random")
    return None


def _of_class(value: Any) -> Node | None:
    kind = type(value)
    if isinstance(value, Enum):
        return Node("enum", (kind, value.name, value.value), lambda _: "")
    if isinstance(value, tuple) and hasattr(kind, "_fields") and not getattr(value, "__dict__", 0):
        return Node(
            "namedtuple",
            (kind, kind._fields, *value),
            lambda at: f".{kind._fields[at - 2]}" if at > 1 else "",
        )
    if dataclasses.is_dataclass(value) and _is_all_fields(kind):
        state = {field.name: getattr(value, field.name, ...) for field in dataclasses.fields(value)}
        flat = [kind, *_flat(state | getattr(value, "__dict__", {}))]
        return Node("dataclass", flat, lambda at: f".{flat[at - 1]}" if at else "")
    return None


def _is_all_fields(kind: type) -> bool:
    """Whether an instance of this dataclass holds its fields and attributes, and nothing else."""
    known = {"__dict__", "__weakref__", *(field.name for field in dataclasses.fields(kind))}
    for base in kind.__mro__[:-1]:
        own = vars(base).get("__reduce__")
        if not base.__flags__ & MADE_BY_CLASS or isinstance(own, MethodDescriptorType):
            return False  # a list, an exception, a deque, ...: content that no field shows
        slots = vars(base).get("__slots__", ())
        if not known.issuperset([slots] if isinstance(slots, str) else slots):
            return False
    return True


#: the flag of types that a class statement has made
MADE_BY_CLASS = 1 << 9


def _reduced(value: Any) -> Node:
    """What a pickle would hold of ``value``."""
    kind = type(value)
    try:
        reducer = copyreg.dispatch_table.get(kind)
        reduced: Any = reducer(value) if reducer else value.__reduce_ex__(5)
    except Exception as error:  # noqa: BLE001 - a user's __reduce__ may raise anything
        if kind.__name__ == "PickleBuffer":
            return Node("bytes", raw=memoryview(value).cast("B"))
        why = str(error) or type(error).__name__
        raise Unknown(f"is of type {type_name(value)}: {why}") from None
    if isinstance(reduced, str):
        module = getattr(value, "__module__", None) or kind.__module__
        if not installed(module) or getattr(sys.modules.get(module), reduced, None) is not value:
            raise Unknown(f"is of type {type_name(value)}, and its name leads nowhere")
        return Node("name", (f"{module}:{reduced}",))
    made, args, state, items, pairs = [*reduced, None, None, None][:5]
    if isinstance(value, set | frozenset) and [type(arg) for arg in args] == [list]:
        args = (frozenset(args[0]),)  # it lists them in no order
    head = [made, *args, list(items or ()), list(pairs or ())]
    if type(state) is not dict:
        return Node(f"object of {len(args)}", (*head, state), lambda _: "")
    return Node(
        f"object of {len(args)} with attributes",
        (*head, *(flat := _flat(state))),
        lambda at: f".{flat[at - len(head) - 1]}" if at >= len(head) else "",
    )


def _flat(pairs: Mapping[Any, Any]) -> list[Any]:
    return [part for pair in pairs.items() for part in pair]


# --- arrays and frames, without importing what makes them --------------------------------------


def _of_numpy(value: Any, numpy: Any) -> Node | None:
    if value is getattr(sys.modules.get("numpy.random.mtrand"), "_rand", None):
        return Node("numpy.random")  # which no kernel seeds alike, and each distribution holds
    if isinstance(value, numpy.generic):
        dtype = value.dtype
        if dtype.kind == "O":
            return None
        if dtype.names is not None:
            return _of_numpy(numpy.asarray(value), numpy)
        return Node("numpy scalar", (_dtype(dtype),), raw=_scalar_bytes(value))
    if type(value) not in (numpy.ndarray, numpy.recarray):
        return None
    dtype = value.dtype
    about = (_dtype(dtype), value.shape)
    if dtype.names is not None:  # field by field: there may be padding between them
        kind = f"structured {type(value).__name__}"
        fields = [numpy.asarray(value[name]) for name in dtype.names]
        return Node(kind, (*about, *fields), lambda at: f"[{dtype.names[at - 2]!r}]")
    if dtype.hasobject or dtype.kind == "T":
        return Node("array", (*about, value.ravel().tolist()))
    if dtype.char in _PADDED:
        return Node("array", (*about, [repr(number) for number in value.ravel()]))
    flat = numpy.ascontiguousarray(value).reshape(-1)
    raw = memoryview(flat.view(numpy.uint8)) if flat.nbytes else b""
    return Node("array", about, raw=raw)


#: types whose numbers have bytes that mean nothing: longdouble and its complex
_PADDED = "gG"


def _scalar_bytes(value: Any) -> bytes:
    if value.dtype.kind == "f" and value != value:
        return b"nan"
    if value.dtype.char in _PADDED:
        return repr(value).encode()
    return bytes(value.tobytes())


def _dtype(dtype: Any) -> str:
    if dtype.names is None:
        return str(dtype.str)
    fields = [(name, *_field(*dtype.fields[name])) for name in dtype.names]
    return repr((fields, dtype.itemsize))


def _field(dtype: Any, offset: int, *title: Any) -> tuple[Any, ...]:
    base, shape = dtype.subdtype or (dtype, ())
    return (_dtype(base), shape, offset, *title)


def _of_pandas(value: Any) -> Node | None:
    kind = type(value).__name__
    if kind == "DataFrame":
        columns = [_column(value.iloc[:, at].array) for at in range(value.shape[1])]
        return Node(
            "frame",
            (value.index, value.columns, value.attrs, *columns),
            lambda at: f"[{value.columns[at - 3]!r}]" if at > 2 else (".index", ".columns", "")[at],
        )
    if kind == "Series":
        return Node("series", (value.index, value.name, value.attrs, _column(value.array)))
    if kind == "MultiIndex":
        levels = [_column(value.get_level_values(at).array) for at in range(value.nlevels)]
        return Node("index", (kind, list(value.names), *levels))
    if kind.endswith("Index"):
        about = (kind, list(value.names), getattr(value, "freqstr", None))
        return Node("index", (*about, _column(value.array)))
    if kind.endswith("Array") or kind == "Categorical":
        return Node("column", _column(value))
    return None


def _column(array: Any) -> tuple[Any, ...]:
    """The content of a pandas array, however it keeps it."""
    dtype = str(array.dtype)
    if hasattr(array, "codes"):  # a categorical
        return dtype, array.codes, array.categories, array.ordered
    if hasattr(array, "asi8"):  # times, whose type names unit and zone
        return dtype, array.asi8
    is_plain = type(array).__name__ == "NumpyExtensionArray"  # as of any index
    return (dtype, array.to_numpy()) if is_plain else (dtype, array.tolist())
