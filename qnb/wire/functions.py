"""Functions by value: code, what it reaches, and the source text it was made from.

The body of a function's envelope is ``length u32 | sources | body``: the sources a msgpack map of
file name → [label, text], the body as any value's. Its digest is that of the inner body alone, so
that neither a cell's number nor a comment further down in the file makes another function of it.
"""

from __future__ import annotations

import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from hashlib import blake2b
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple

import msgpack

from qnb.errors import EncodingError, PayloadTooLarge, SignatureError
from qnb.wire.blame import blame, type_name
from qnb.wire.bodies import Bodies
from qnb.wire.byvalue import Pickled, Watch, dump
from qnb.wire.envelope import Buffer
from qnb.wire.origins import is_handle
from qnb.wire.pickles import Apart, Pickles
from qnb.wire.sources import ROOM, collect, prime

__all__ = ["Functions"]

_KEPT = 64  #: functions whose bytes are kept for the next submit …
_KEPT_BYTES = 1 << 20  #: … unless they are many
_LARGE = 1 << 20  #: bytes of a global that a user is told of
_LENGTH = struct.Struct("<I")
_CODE = (FunctionType, BuiltinFunctionType, ModuleType, type)


class _Kept(NamedTuple):
    fn: Callable[..., Any]  #: kept, so that its id stays its own
    watch: Watch
    digest: bytes
    blob: bytes


class Functions:
    """Writes and reads functions by value, and remembers those that it wrote."""

    def __init__(self, pickles: Pickles, bodies: Bodies) -> None:
        self._pickles = pickles
        self._limit = bodies.limit
        self._threshold = bodies.threshold
        self._kept: dict[int, _Kept] = {}
        self._told: set[tuple[str, str]] = set()  # function and variable

    def pack(
        self, fn: Callable[..., Any], seal: Callable[[bytes, list[Buffer]], bytes]
    ) -> tuple[bytes, bytes]:
        """The digest of ``fn``, and the envelope that ``seal(digest, body)`` makes of it.

        Cheap for a function packed before of which nothing has changed since: neither its code
        nor a helper or global it reaches.
        """
        known = self._kept.get(id(fn))
        if known is not None and known.watch.unchanged():
            return known.digest, known.blob
        pickled = self._dump(fn)
        body = self._pickles.body(pickled)
        if (
            pickled.nbytes >= self._threshold
        ):  # its blobs are stored anew each time, or would be swept
            pickled.watch.complete = False
        digest = _digest(body)
        if known is not None and known.digest == digest:
            blob = known.blob
        else:
            blob = seal(digest, [*_sources(pickled.watch), *body])
        self._kept.pop(id(fn), None)
        if len(blob) <= _KEPT_BYTES:
            while len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[id(fn)] = _Kept(fn, pickled.watch, digest, blob)
        return digest, blob

    def unpack(self, digest: bytes, body: Buffer, what: str) -> Callable[..., Any]:
        """The function of a verified body, which ``what`` names in errors."""
        view = memoryview(body)
        try:
            (length,) = _LENGTH.unpack_from(view)
            inner = view[_LENGTH.size + length :]
        except struct.error:
            inner = view
        if _digest([inner]) != digest:
            raise SignatureError(f"{what} was refused unread: it is not what its digest names")
        packed = view[_LENGTH.size : _LENGTH.size + length]
        prime(msgpack.unpackb(packed, unicode_errors="surrogatepass"))
        fn = self._pickles.decode(inner, what)
        if not callable(fn):
            raise EncodingError(f"{what} is no function but a {type_name(fn)}; submit it again")
        return fn  # type: ignore[no-any-return]

    def _dump(self, fn: Callable[..., Any]) -> Pickled:
        try:
            pickled = dump(fn, self._limit)
            apart = dict(self._large(_name(fn), pickled))
            return dump(fn, self._limit, apart) if apart else pickled
        except PayloadTooLarge as error:
            raise PayloadTooLarge(
                f"function {_name(fn)!r} is too large with the globals it uses: {error}"
            ) from None
        except UserWarning:  # the user has made an error of it
            raise
        except Exception as error:  # noqa: BLE001 - a user's __reduce__ may raise anything
            path, culprit, cause = blame(fn, "it", error, self._pickles)
            raise EncodingError(
                f"function {_name(fn)!r} cannot be sent to a worker: {path} is of type "
                f"{type_name(culprit)}: {cause}. Make it inside the function, or pass what it is "
                "made from as an argument"
            ) from None

    def _large(self, name: str, pickled: Pickled) -> Iterator[tuple[int, Apart]]:
        """Globals that are pickled apart, by id, so that the next version shares their blobs.

        The user is told of each large one, once.
        """
        if pickled.nbytes < _LARGE:
            return
        heavy = self._pickles.is_heavy(pickled)
        for variable, value in pickled.watch.values():
            told = (name, variable) in self._told
            if isinstance(value, _CODE) or is_handle(value) or (told and not heavy):
                continue
            own = dump(value, self._limit)
            if own.nbytes >= _LARGE and not told:
                self._told.add((name, variable))
                advice = _advice(name, variable, value, own.nbytes)
                warnings.warn(advice, UserWarning, stacklevel=_users_level())
            if heavy and self._pickles.is_heavy(own):
                yield id(value), Apart(own)


def _advice(name: str, variable: str, value: object, size: int) -> str:
    return (
        f"function {name!r} takes the {variable} along, a {type_name(value)} of {size:,} bytes: "
        "each worker loads it with the function, whenever either changes. Pass it as an argument, "
        "or load it inside the function"
    )


def _users_level() -> int:
    """How far above the caller the first frame is that is not qnb's: the user's line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] == "qnb":
        level, frame = level + 1, frame.f_back
    return level


def _sources(watch: Watch) -> list[Buffer]:
    packed: bytes = msgpack.packb(collect(watch.files()), unicode_errors="surrogatepass")
    if len(packed) > ROOM:
        packed = msgpack.packb({})
    return [_LENGTH.pack(len(packed)), packed]


def _digest(parts: list[Buffer]) -> bytes:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _name(fn: Callable[..., Any]) -> str:
    return str(getattr(fn, "__qualname__", None) or type(fn).__qualname__)
