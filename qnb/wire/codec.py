"""Calls, results, errors and functions as signed bytes, and back.

A body is pickle protocol 5, its large buffers (arrays) beside it::

    code u8 | count u32 | count x length u64 | pickle | buffers

``code`` is 0, or the minor version of the Python whose compiled functions the pickle holds: no
other can run them. Little-endian. Nothing is unpickled before its envelope has been verified.
"""

from __future__ import annotations

import pickle
import struct
import sys
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, NamedTuple

from qnb.errors import EncodingError, PayloadTooLarge, ResultError, SignatureError
from qnb.wire.blame import argument_error, blame, type_name
from qnb.wire.byvalue import Watch, dump
from qnb.wire.envelope import Buffer, Content, Keys, open_, seal, too_large
from qnb.wire.origins import here, reference, resolve

__all__ = ["Codec"]

_HEAD = struct.Struct("<BI")
_PLAIN_HEAD = _HEAD.pack(0, 0)
_KEPT_FUNCTIONS = 64  #: functions whose bytes are kept for the next submit
_PLAIN_ITEMS = 64  #: more would cost more to look through than a general pickler does


class _Packed(NamedTuple):
    fn: Callable[..., Any]  #: kept, so that its id stays its own
    watch: Watch
    digest: bytes
    blob: bytes


class Codec:
    """Packs and unpacks for one queue."""

    __slots__ = ("_functions", "_keys", "_limit", "_queue")

    #: ``"module:qualname"`` of a function that workers can import; None of one to ship by value.
    reference = staticmethod(reference)
    #: The function that such a reference names.
    resolve = staticmethod(resolve)

    def __init__(self, keys: Keys, queue: str, *, max_payload: int) -> None:
        self._keys = keys
        self._queue = queue
        self._limit = max_payload
        self._functions: dict[int, _Packed] = {}

    # -- calls ----------------------------------------------------------------------------------

    def pack_call(
        self, job_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, binding: bytes = b""
    ) -> bytes:
        """The arguments of a job, signed for it and for ``binding`` (what it will call)."""
        try:
            body = _encode((args, kwargs), self._limit)
        except Exception as error:  # noqa: BLE001 - a user's __reduce__ may raise anything
            raise argument_error(args, kwargs, error, self._limit) from None
        return seal(
            self._keys, "call", self._queue, job_id, Content.PICKLE, body,
            binding=binding, limit=self._limit,
        )  # fmt: skip

    def unpack_call(
        self, job_id: str, data: bytes, *, binding: bytes | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of ``job_id``; with a ``binding``, only if they were signed for it."""
        opened = open_(self._keys, "call", self._queue, job_id, data, limit=self._limit)
        if binding is not None and opened.binding != binding:
            raise SignatureError(
                f"job {job_id!r} was refused unread: its arguments were signed for another task "
                "or another version of its function; submit it again"
            )
        if opened.content is not Content.PICKLE:
            raise _wrong_content(f"job {job_id!r}")
        args, kwargs = _decode(opened.body, f"the arguments of job {job_id!r}")
        return args, kwargs

    # -- results --------------------------------------------------------------------------------

    def pack_result(self, job_id: str, attempt: int, value: Any) -> bytes:
        """What an attempt returned."""
        try:
            body = _encode(value, self._limit)
        except PayloadTooLarge as error:
            raise PayloadTooLarge(
                f"the result, of type {type_name(value)}, is too large: {error}"
            ) from None
        except Exception as error:  # noqa: BLE001 - a user's __reduce__ may raise anything
            path, culprit, cause = blame(value, "result", error, self._limit)
            raise ResultError(
                f"the task returned a value that cannot be sent back: {path} is of type "
                f"{type_name(culprit)}: {cause}. Return plain values, arrays or frames instead"
            ) from None
        return self._seal_result(job_id, attempt, Content.PICKLE, body)

    def unpack_result(self, job_id: str, data: bytes, attempt: int | None = None) -> Any:
        """What a job returned; with ``attempt``, only what that attempt did."""
        body = self._open_result(job_id, data, attempt, Content.PICKLE)
        return _decode(body, f"the result of job {job_id!r}")

    def pack_error(self, job_id: str, attempt: int, exc: BaseException) -> bytes:
        """``exc`` without its traceback and causes, or nothing where it cannot be rebuilt."""
        for reduced in (exc, _Raw(exc)):
            try:
                body = _encode(reduced, self._limit)
                back = _decode(b"".join(body), "an exception")
                if type(back) is type(exc) and str(back) == str(exc):
                    return self._seal_result(job_id, attempt, Content.ERROR, body)
            except Exception:  # noqa: BLE001, S112 - a user's exception may do anything
                continue
        return b""

    def unpack_error(
        self, job_id: str, data: bytes, attempt: int | None = None
    ) -> BaseException | None:
        """The exception a job ended with, or None where it cannot be rebuilt here."""
        if not data:
            return None
        body = self._open_result(job_id, data, attempt, Content.ERROR)
        try:
            error = _decode(body, f"the error of job {job_id!r}")
        except EncodingError:
            return None
        return error if isinstance(error, BaseException) else None

    def _seal_result(
        self, job_id: str, attempt: int, content: Content, body: list[Buffer]
    ) -> bytes:
        return seal(
            self._keys, "result", self._queue, job_id, content, body,
            attempt=attempt, limit=self._limit,
        )  # fmt: skip

    def _open_result(
        self, job_id: str, data: bytes, attempt: int | None, content: Content
    ) -> Buffer:
        opened = open_(self._keys, "result", self._queue, job_id, data, limit=self._limit)
        if attempt is not None and opened.attempt != attempt:
            raise SignatureError(
                f"the result of job {job_id!r} was refused unread: it was signed for attempt "
                f"{opened.attempt}, and this is attempt {attempt}"
            )
        if opened.content is not content:
            raise _wrong_content(f"the result of job {job_id!r}")
        return opened.body

    # -- functions ------------------------------------------------------------------------------

    def pack_function(self, fn: Callable[..., Any]) -> tuple[bytes, bytes]:
        """``fn`` by value with the local code it reaches, and the digest it is stored under.

        Cheap for a function packed before of which nothing has changed since: neither its code
        nor a helper or global it reaches.
        """
        known = self._functions.get(id(fn))
        if known is not None and known.watch.unchanged():
            return known.digest, known.blob
        try:
            pickled = dump(fn, self._limit)
        except PayloadTooLarge as error:
            raise PayloadTooLarge(
                f"function {_name(fn)!r} is too large with the globals it uses: {error}"
            ) from None
        except Exception as error:  # noqa: BLE001 - a user's __reduce__ may raise anything
            path, culprit, cause = blame(fn, "it", error, self._limit)
            raise EncodingError(
                f"function {_name(fn)!r} cannot be sent to a worker: {path} is of type "
                f"{type_name(culprit)}: {cause}. Make it inside the function, or pass what it is "
                "made from as an argument"
            ) from None
        body = _frame(pickled.pickle, pickled.buffers, has_code=pickled.has_code)
        digest = _digest(body)
        if known is not None and known.digest == digest:
            blob = known.blob
        else:
            blob = seal(
                self._keys, "func", self._queue, digest.hex(), Content.PICKLE, body,
                limit=self._limit,
            )  # fmt: skip
        self._functions.pop(id(fn), None)
        if pickled.watch.complete:
            while len(self._functions) >= _KEPT_FUNCTIONS:
                self._functions.pop(next(iter(self._functions)), None)
            self._functions[id(fn)] = _Packed(fn, pickled.watch, digest, blob)
        return digest, blob

    def unpack_function(
        self, digest: bytes, blob: bytes, *, task: str | None = None
    ) -> Callable[..., Any]:
        """The function stored under ``digest``; ``task`` names it in errors."""
        opened = open_(self._keys, "func", self._queue, digest.hex(), blob, limit=self._limit)
        what = f"task {task!r}" if task else f"function {digest.hex()!r}"
        if opened.content is not Content.PICKLE:
            raise _wrong_content(what)
        if _digest([opened.body]) != digest:
            raise SignatureError(f"{what} was refused unread: it is not what its digest names")
        fn = _decode(opened.body, what)
        if not callable(fn):
            raise EncodingError(f"{what} is no function but a {type_name(fn)}; submit it again")
        return fn  # type: ignore[no-any-return]


def _wrong_content(what: str) -> SignatureError:
    return SignatureError(f"{what} was refused unread: it was signed for another use")


def _digest(parts: list[Buffer]) -> bytes:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


# --- bodies ------------------------------------------------------------------------------------


def _encode(value: Any, limit: int) -> list[Buffer]:
    """``value`` as the pieces of a body."""
    if _is_plain(value):
        data = pickle.dumps(value, 5)
        if len(data) > limit:
            raise too_large(f"it takes {len(data):,} bytes", limit)
        return [_PLAIN_HEAD, data]
    pickled = dump(value, limit)
    return _frame(pickled.pickle, pickled.buffers, has_code=pickled.has_code)


def _frame(pieces: list[bytes], buffers: list[memoryview], *, has_code: bool) -> list[Buffer]:
    lengths = [buffer.nbytes for buffer in buffers]
    head = _HEAD.pack(sys.version_info[1] if has_code else 0, len(lengths))
    return [head, struct.pack(f"<{len(lengths)}Q", *lengths), *pieces, *buffers]


def _decode(body: Buffer, what: str) -> Any:
    """The value of a verified body. Arrays are writable, in memory of their own."""
    code, count = _HEAD.unpack_from(body)
    if code and code != sys.version_info[1]:
        raise EncodingError(
            f"{what} carries functions compiled by Python {sys.version_info[0]}.{code}, which "
            f"cannot run here ({here()}): start the workers with the client's Python version, or "
            "import the function from an installed package"
        )
    view = memoryview(body)[_HEAD.size + 8 * count :]
    buffers: list[bytearray] = []
    if count:
        lengths = struct.unpack_from(f"<{count}Q", body, _HEAD.size)
        at = start = len(view) - sum(lengths)
        for length in lengths:
            buffers.append(bytearray(view[at : at + length]))
            at += length
        view = view[:start]
    try:
        return _unpickle(view, buffers)
    except ModuleNotFoundError as error:
        missing = str(error.name or error).partition(".")[0]
        raise EncodingError(
            f"{what} needs the module {missing!r}, which is not installed here ({here()}). "
            f"Install it for the workers; if {missing!r} is a file beside your script, import it "
            "at the top of the script, so that it travels along"
        ) from None
    except Exception as error:
        raise EncodingError(
            f"{what} could not be rebuilt here ({here()}): {type(error).__name__}: {error}. Use "
            "the same versions of the packages it needs in workers and clients"
        ) from error


def _unpickle(view: memoryview, buffers: list[bytearray]) -> Any:
    """The one place where anything is unpickled."""
    return pickle.loads(view, buffers=buffers)


_PLAIN = frozenset({type(None), bool, int, float, str, bytes, complex})
_PLAIN_NESTS = frozenset({tuple, list, set, frozenset})


def _is_plain(value: Any) -> bool:
    """Whether ``value`` is small and built of builtin types only, so that any pickler will do."""
    left = _PLAIN_ITEMS
    todo = [value]
    while todo:
        item = todo.pop()
        kind = type(item)
        if kind in _PLAIN:
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
        return _rebuild, (type(self._exc), self._exc.args, self._exc.__dict__)


def _rebuild(cls: type[BaseException], args: Any, attributes: dict[str, Any]) -> BaseException:
    exc = cls.__new__(cls, *args)
    exc.__dict__.update(attributes)
    return exc


def _name(fn: Callable[..., Any]) -> str:
    return str(getattr(fn, "__qualname__", None) or type(fn).__qualname__)
