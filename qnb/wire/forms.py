"""How values are written where no pickle may be: msgpack, or a serializer of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgpack

from qnb.errors import EncodingError
from qnb.wire.bodies import PLAIN, Bodies, Parts
from qnb.wire.envelope import Buffer, Content

__all__ = ["Form", "Msgpack", "Own"]


class Form(Protocol):
    """Values as bodies, and back. Encoding may raise anything; decoding an EncodingError."""

    content: Content
    remedy: str  #: what a user does about an argument that cannot be sent
    result_remedy: str  #: and about a result

    def encode(self, value: Any) -> list[Buffer]: ...
    def decode(self, body: Buffer, what: str) -> Any: ...
    def encode_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Buffer]: ...
    def decode_call(self, body: Buffer, what: str) -> tuple[tuple[Any, ...], dict[str, Any]]: ...

    def parts(self, value: Any) -> bool:
        """Whether what is inside ``value`` can be tried by itself, to find what fails."""

    def size(self, value: Any) -> int:
        """Bytes that ``value`` takes by itself; raises what encoding it raises."""


def _text(parts: Parts) -> bytes:
    return b"".join(parts.text)


def _call(value: Any, what: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    match value:
        case [list() | tuple() as args, dict() as kwargs] if all(
            isinstance(name, str) for name in kwargs
        ):
            return tuple(args), kwargs
    raise EncodingError(
        f"{what} are malformed: expected a list of the positional ones and a dict of those by name"
    )


class Msgpack:
    """msgpack: None, bool, int of 64 bits, float, str, bytes, lists and dicts. A tuple comes back
    as a list, an instance of a subclass as its plain type."""

    content = Content.MSGPACK
    remedy = (
        "App(codec='msgpack') carries None, bool, int of 64 bits, float, str, bytes, lists, tuples "
        "(which come back as lists) and dicts of these, and nothing else"
    )
    result_remedy = remedy

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies

    def encode(self, value: Any) -> list[Buffer]:
        data: bytes = msgpack.packb(value)
        if len(data) <= self._bodies.limit:
            _check_back(value, data)
        if len(data) < self._bodies.threshold and len(data) <= self._bodies.limit:
            return [PLAIN, data]
        return self._bodies.write(Parts([data]))

    def decode(self, body: Buffer, what: str) -> Any:
        try:
            return msgpack.unpackb(_text(self._bodies.read(body, what)), strict_map_key=False)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise EncodingError(
                f"{what} could not be read as msgpack: {type(error).__name__}: {error}. Whoever "
                "sent it must write one msgpack value, with numbers, text or bytes as keys of dicts"
            ) from None

    def encode_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Buffer]:
        return self.encode((args, kwargs))

    def decode_call(self, body: Buffer, what: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return _call(self.decode(body, what), what)

    def parts(self, value: Any) -> bool:
        return isinstance(value, dict | list | tuple)

    def size(self, value: Any) -> int:
        data = msgpack.packb(value)
        _check_back(value, data)
        return len(data)


def _check_back(value: Any, data: bytes) -> None:
    """Refuse what was written and cannot be read: a key that comes back as a list, say."""
    try:
        msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        stray = [key for key in value if isinstance(key, tuple)] if isinstance(value, dict) else []
        why = f"its key {stray[0]!r} would be a list" if stray else f"it is not read: {error}"
        raise EncodingError(f"{why}, so that it could not come back") from None


class Own:
    """The user's pair: ``serializer(value) -> bytes`` and ``deserializer(bytes) -> value``.

    For a call the value is ``[list of positional arguments, dict of those by name]``, and the
    deserializer must return such a pair; for a result it is what the task returned.
    """

    content = Content.OWN

    def __init__(
        self,
        bodies: Bodies,
        serializer: Callable[[Any], bytes],
        deserializer: Callable[[bytes], Any],
    ) -> None:
        self._bodies = bodies
        self._serializer = serializer
        self._deserializer = deserializer
        self.remedy = self.result_remedy = (
            f"serializer={_name(serializer)} decides what can be sent"
        )

    def encode(self, value: Any) -> list[Buffer]:
        try:
            data = self._serializer(value)
        except Exception as error:
            raise EncodingError(
                f"serializer={_name(self._serializer)} raised {type(error).__name__}: {error}"
            ) from error
        if not isinstance(data, bytes | bytearray | memoryview):
            raise EncodingError(
                f"serializer={_name(self._serializer)} returned a {type(data).__name__}; it must "
                "return bytes"
            )
        return self._bodies.write(Parts([bytes(data)]))

    def decode(self, body: Buffer, what: str) -> Any:
        data = _text(self._bodies.read(body, what))
        try:
            return self._deserializer(data)
        except Exception as error:
            raise EncodingError(
                f"{what} could not be read: deserializer={_name(self._deserializer)} raised "
                f"{type(error).__name__}: {error}"
            ) from error

    def encode_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Buffer]:
        return self.encode([list(args), kwargs])

    def decode_call(self, body: Buffer, what: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return _call(self.decode(body, what), what)

    def parts(self, value: Any) -> bool:
        return False

    def size(self, value: Any) -> int:
        return sum(map(len, self.encode(value)))


def _name(fn: Callable[..., Any]) -> str:
    home, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    return f"{home}.{name}" if home and name else repr(fn)
