"""Values as pickles of protocol 5, large buffers beside them. The home of unpickling.

Nothing comes here that has not been verified, and nothing at all with ``codec="msgpack"``.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

from qnb.errors import EncodingError, RemoteError
from qnb.wire.bodies import PLAIN, Bodies, Parts
from qnb.wire.byvalue import Pickled, dump
from qnb.wire.envelope import Buffer, Content, too_large
from qnb.wire.origins import here

__all__ = ["Apart", "Pickles"]

_PLAIN_END = len(PLAIN)
_PLAIN_ITEMS = 64  #: more would cost more to look through than a general pickler does
_PLAIN_TEXT = 1 << 16  #: a pickler hands longer text over uncopied


class Pickles:
    """The form of values with ``codec="signed"``."""

    content = Content.PICKLE
    remedy = "Pass what it is made from (a path, a URL, plain values) and make it inside the task"
    result_remedy = "Return plain values, arrays or frames instead"

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies

    def encode(self, value: Any) -> list[Buffer]:
        return self._plain(value) or self.body(dump(value, self._bodies.limit))

    def encode_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Buffer]:
        """A large argument is pickled apart, so that other calls share its blob."""
        if plain := self._plain((args, kwargs)):
            return plain
        pickled = dump((args, kwargs), self._bodies.limit)
        if not self.is_heavy(pickled):
            return self.body(pickled)
        parts: dict[int, Any] = {}
        for value in (*args, *kwargs.values()):
            if id(value) not in parts:
                parts[id(value)] = self.apart(value)
        return self.body(
            dump(
                (
                    tuple(parts[id(value)] for value in args),
                    {name: parts[id(value)] for name, value in kwargs.items()},
                ),
                self._bodies.limit,
            ),
            has_code=pickled.has_code,
        )

    def decode_call(self, body: Buffer, what: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = self.decode(body, what)
        return args, kwargs

    def _plain(self, value: Any) -> list[Buffer] | None:
        """The body of a small value of builtin types: no need to look for code in it."""
        if not _is_plain(value):
            return None
        data = pickle.dumps(value, 5)
        if len(data) >= self._bodies.threshold:
            return None
        if len(data) > self._bodies.limit:
            raise too_large(f"it takes {len(data):,} bytes", self._bodies.limit)
        return [PLAIN, data]

    def is_heavy(self, pickled: Pickled) -> bool:
        """Whether what would be left beside the blobs is large itself."""
        bodies = self._bodies
        rest = sum(len(piece) for piece in pickled.pickle if not bodies.is_large(piece))
        return bodies.blobs is not None and rest >= bodies.threshold

    def apart(self, value: Any) -> Any:
        """``value``, or if it is large what becomes an equal one at the other end."""
        if _is_plain(value):
            return value
        pickled = dump(value, self._bodies.limit)
        return Apart(pickled) if self.is_heavy(pickled) else value

    def body(self, pickled: Pickled, *, has_code: bool = False) -> list[Buffer]:
        """The pieces of a body that :meth:`decode` reads."""
        code = sys.version_info[1] if has_code or pickled.has_code else 0
        return self._bodies.write(Parts(pickled.pickle, pickled.buffers, code))

    def decode(self, body: Buffer, what: str) -> Any:
        """The value of a verified body. Arrays are writable, in memory of their own."""
        text: Sequence[Buffer]
        buffers: Sequence[Buffer]
        if body[:_PLAIN_END] == PLAIN:
            text, buffers = (memoryview(body)[_PLAIN_END:],), ()
        else:
            text, buffers, code = self._bodies.read(body, what)
            _check_code(code, what)
        try:
            return _unpickle(text, buffers)
        except ModuleNotFoundError as error:
            missing = str(error.name or error).partition(".")[0]
            raise EncodingError(
                f"{what} needs the module {missing!r}, which is not installed here ({here()}). "
                f"Install it for the workers; if {missing!r} is a file beside your script, import "
                "it at the top of the script, so that it travels along"
            ) from None
        except Exception as error:
            raise EncodingError(
                f"{what} could not be rebuilt here ({here()}): {type(error).__name__}: {error}. "
                "Use the same versions of the packages it needs in workers and clients"
            ) from error

    def parts(self, value: Any) -> bool:
        return True

    def size(self, value: Any) -> int:
        return dump(value, self._bodies.limit).nbytes

    def encode_error(self, exc: BaseException) -> list[Buffer] | None:
        """``exc`` without its traceback and causes, or None where it cannot be rebuilt."""
        raw = self._raw_group(exc) if isinstance(exc, BaseExceptionGroup) else _Raw(exc)
        for reduced in (exc, raw):
            try:
                body = self.encode(reduced)
                back = self.decode(b"".join(body), "an exception")
                if type(back) is type(exc) and str(back) == str(exc):
                    return body
            except Exception:  # noqa: BLE001, S112 - a user's exception may do anything
                continue
        return None

    def _raw_group(self, group: BaseExceptionGroup[Any]) -> _RawGroup:
        """``group`` with each member as it can be sent; one that cannot be is said in words."""
        members: list[object] = []
        for member in group.exceptions:
            if isinstance(member, BaseExceptionGroup):
                members.append(self._raw_group(member))
            elif self.encode_error(member) is None:
                said = f"{type(member).__name__}, an exception that cannot be sent"
                members.append(RemoteError(said))
            else:
                members.append(_Raw(member))
        return _RawGroup(group, members)


def _check_code(code: int, what: str) -> None:
    if code and code != sys.version_info[1]:
        raise EncodingError(
            f"{what} carries functions compiled by Python {sys.version_info[0]}.{code}, which "
            f"cannot run here ({here()}): start the workers with the client's Python version, or "
            "import the function from an installed package"
        )


def _unpickle(text: Sequence[Buffer], buffers: Sequence[Buffer]) -> Any:
    """The one place where anything is unpickled."""
    if len(text) == 1:
        return pickle.loads(text[0], buffers=buffers)
    return pickle.load(io.BufferedReader(_Text(text)), buffers=buffers)


class _Text(io.RawIOBase):
    """Pieces of a pickle, read one after another."""

    def __init__(self, pieces: Sequence[Buffer]) -> None:
        self._pieces = [memoryview(piece) for piece in reversed(pieces)]

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while self._pieces and not self._pieces[-1]:
            self._pieces.pop()
        if not self._pieces:
            return 0
        room = memoryview(target).cast("B")
        piece = self._pieces[-1][: len(room)]
        room[: len(piece)] = piece
        self._pieces[-1] = self._pieces[-1][len(piece) :]
        return len(piece)


class Apart:
    """Stands for a value that has been pickled by itself; becomes, at the other end, that value."""

    __slots__ = ("_buffers", "_text")

    def __init__(self, pickled: Pickled) -> None:
        self._text = b"".join(pickled.pickle)
        self._buffers = pickled.buffers

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        buffers: list[Buffer] = [self._text, *self._buffers]
        return _rebuild_apart, tuple(pickle.PickleBuffer(buffer) for buffer in buffers)


def _rebuild_apart(text: Buffer, *buffers: Buffer) -> Any:
    return _unpickle((text,), buffers)


_PLAIN = frozenset({type(None), bool, int, float, complex})
_PLAIN_TEXTS = frozenset({str, bytes})
_PLAIN_NESTS = frozenset({tuple, list, set, frozenset})


def _is_plain(value: Any) -> bool:
    """Whether ``value`` is small and built of builtin types only, so that any pickler will do."""
    left = _PLAIN_ITEMS
    todo = [value]
    while todo:
        item = todo.pop()
        kind = type(item)
        if kind in _PLAIN or (kind in _PLAIN_TEXTS and len(item) < _PLAIN_TEXT):
            continue
        left -= 1
        if kind is dict:
            todo += item.keys()
            todo += item.values()
        elif kind in _PLAIN_NESTS:
            todo += item
        else:
            return False
        if left < 0 or len(todo) > _PLAIN_ITEMS:
            return False
    return True


class _Raw:
    """An exception as class, arguments and attributes, for one whose ``__init__`` takes others."""

    def __init__(self, exc: BaseException) -> None:
        self._exc = exc

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_error, (type(self._exc), self._exc.args, self._exc.__dict__)


class _RawGroup:
    """An exception group as class, message and members."""

    def __init__(self, group: BaseExceptionGroup[Any], members: list[object]) -> None:
        self._group = group
        self._members = members

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_group, (type(self._group), self._group.message, self._members)


def _rebuild_group(cls: type[BaseExceptionGroup[Any]], message: str, members: Any) -> Any:
    return cls(message, members)


def _rebuild_error(cls: type[BaseException], args: Any, attributes: dict[str, Any]) -> Any:
    exc = cls.__new__(cls, *args)
    exc.__dict__.update(attributes)
    return exc
