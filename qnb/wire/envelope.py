"""Signed envelopes: the only form in which values and functions enter or leave the store.

::

    b"QNB1" | content u8 | key id 8 B | tag 32 B | header length u16 | header | body

    header   msgpack [created_ms, clear_length, binding, attempt]
    content  a member of Content; its top bit says that the body is deflated
    key id   the first 8 bytes of SHA-256("qnb1 id" | key)
    tag      HMAC-SHA256 over  "qnb1" | kind | queue | job id | content u8 |
                               header length u16 | header | body
             where each of the first four has its length (u16) before it, with a key derived
             for the kind: HMAC-SHA256(key, "qnb1 " | kind)

Kind, queue and job id are not in the bytes: the reader says what it expects, so that a genuine
envelope copied to another job, queue or use does not verify. Integers are big-endian.

Bytes in, bytes out: nothing here decodes a body, and no body is handed out, not even inflated,
before its tag has been checked.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from functools import lru_cache
from hmac import compare_digest
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, TypeAlias, get_args

import msgpack

from qnb.clock import now_ms
from qnb.errors import KeyFileError, PayloadTooLarge, SignatureError
from qnb.options import check_name

__all__ = ["Buffer", "Content", "Keys", "Kind", "Opened", "open_", "seal", "too_large"]

Kind = Literal["call", "func", "result", "event", "sweep"]
Buffer: TypeAlias = bytes | bytearray | memoryview
_BUFFERS = (bytes, bytearray, memoryview)

MAGIC = b"QNB1"
_HEAD = struct.Struct(">4sB8s32sH")
_TAG_END = 45  #: the tag covers everything behind it
_DEFLATED = 0x80
_COPY_BELOW = 1 << 14  #: to copy so little costs less than a view of it
_OVERHEAD = 4096  #: more than everything in an envelope that is not its body

#: Deflating costs 10 ms a MB and a local server takes that MB in 1 ms: only what is small enough
#: not to be noticed, and shrinks to half, is worth it.
_DEFLATE_FROM, _DEFLATE_TO, _SAMPLE = 4096, 1 << 20, 1024


class Content(IntEnum):
    """What a body holds; the codec's business, but signed with it."""

    MSGPACK = 0
    PICKLE = 1
    ERROR = 2  #: a pickled exception: never mistaken for a result that happens to be one
    OWN = 3  #: what the user's ``serializer=`` wrote


_CONTENTS = {int(content): content for content in Content}
_CODES = {content: bytes((content,)) for content in Content}


class Opened(NamedTuple):
    """What a verified envelope held."""

    content: Content
    body: Buffer
    binding: bytes
    attempt: int
    created_ms: int


# --- keys ------------------------------------------------------------------------------------

_Tagger: TypeAlias = Callable[[Sequence[Buffer]], bytes]


def _hmac_sha256(key: bytes) -> _Tagger:
    """HMAC-SHA256 under ``key`` with its two key blocks hashed once: half the time at 200 B.

    A closure, so that no frame or object that a traceback prints holds the key.
    """
    inner_pad = hashlib.sha256(bytes(byte ^ 0x36 for byte in key.ljust(64, b"\0")))
    outer_pad = hashlib.sha256(bytes(byte ^ 0x5C for byte in key.ljust(64, b"\0")))

    def tag(parts: Sequence[Buffer]) -> bytes:
        inner = inner_pad.copy()
        for part in parts:
            inner.update(part)
        outer = outer_pad.copy()
        outer.update(inner.digest())
        return outer.digest()

    return tag


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"qnb1 id" + key).digest()[:8]


def _derive(key: bytes) -> dict[str, _Tagger]:
    master = _hmac_sha256(key)
    return {kind: _hmac_sha256(master([b"qnb1 " + kind.encode()])) for kind in get_args(Kind)}


class Keys:
    """The keys of one queue: the first signs, all verify. Never printed, never pickled."""

    __slots__ = ("_by_id", "_count", "_sign", "_sign_id", "source")

    def __init__(self, keys: Sequence[bytes], source: str) -> None:
        if not keys or any(len(key) != 32 for key in keys):
            raise KeyFileError(f"{source}: expected one or more keys of 32 bytes")
        self.source = source  #: where they came from, for messages
        self._count = len(keys)
        self._by_id = {_key_id(key): _derive(key) for key in keys}
        self._sign_id = _key_id(keys[0])
        self._sign = self._by_id[self._sign_id]

    @classmethod
    def load(cls, queue: str, path: str | None = None, *, create: bool = True) -> Keys:
        """The keys of ``queue``, from ``path``, else ``$QNB_KEY_FILE``, else this user's own file.

        Only the user's own file is made on first use; a file that was named must exist.
        """
        check_name("queue", queue)
        named = path or os.environ.get("QNB_KEY_FILE")
        file = Path(named).expanduser() if named else _own_file(queue)
        if not named and create and not file.exists():
            _make(file)
        return cls(_parse(_read(file, queue, named=bool(named)), file), str(file))

    def __repr__(self) -> str:
        return f"<Keys {self.source!r}, {self._count} of them>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("the signing keys of a queue are never pickled; load them where needed")


def _own_file(queue: str) -> Path:
    data = os.environ.get("XDG_DATA_HOME", "")
    root = Path(data) if data.startswith("/") else Path.home() / ".local" / "share"
    return root / "qnb" / "keys" / f"{queue}.key"


def _make(file: Path) -> None:
    """Make ``file`` with a fresh key; of several processes at once, one wins and all agree.

    The key is written under another name and then linked, so that nobody reads half of it.
    """
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        file.parent.parent.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(draft, flags, 0o600), "wb") as out:  # noqa: PTH123 - from a descriptor
                out.write(secrets.token_bytes(32).hex().encode() + b"\n")
                out.flush()
                os.fsync(out.fileno())
            with suppress(FileExistsError):
                os.link(draft, file)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise KeyFileError(
            f"the signing key {str(file)!r} could not be made: {error.strerror}. Make that folder "
            "writable, or name another file with QNB_KEY_FILE or App(key_file=...)"
        ) from None


def _read(file: Path, queue: str, *, named: bool) -> bytes:
    """The bytes of ``file``, checked on the open descriptor: a regular file, ours, private."""
    # A file that was named may be a link: that is how clusters mount secrets. Ours never is.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if named else os.O_NOFOLLOW)
    try:
        descriptor = os.open(file, flags)
    except FileNotFoundError:
        raise KeyFileError(
            f"the key file {str(file)!r} does not exist. Workers and clients of queue {queue!r} "
            f"share one key: copy it from the machine that submits (there it is "
            f"~/.local/share/qnb/keys/{queue}.key), chmod 600 it, and name it with QNB_KEY_FILE"
        ) from None
    except OSError as error:
        raise KeyFileError(
            f"the key file {str(file)!r} could not be opened: {error.strerror}. It must be a "
            f"regular file of yours: chmod 600 {file}"
        ) from None
    with open(descriptor, "rb") as source:  # noqa: PTH123 - from a descriptor
        found = os.fstat(source.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise KeyFileError(f"the key file {str(file)!r} is not a regular file: name another")
        if found.st_uid != os.geteuid():
            raise KeyFileError(
                f"the key file {str(file)!r} belongs to user id {found.st_uid}, not to yours "
                f"({os.geteuid()}): copy it to a file of your own and chmod 600 that"
            )
        if found.st_mode & 0o077:
            raise KeyFileError(
                f"the key file {str(file)!r} is open to others (mode "
                f"{stat.S_IMODE(found.st_mode):04o}): chmod 600 {file}"
            )
        return source.read(1 << 16)


def _parse(text: bytes, file: Path) -> list[bytes]:
    keys, wrong = _keys_in(text)
    del text  # a traceback may print this frame
    if wrong or not keys:
        keys = []
        what = f"line {wrong} is malformed" if wrong else "it is empty"
        raise KeyFileError(
            f"the key file {str(file)!r} holds no usable key: {what}. Expected 64 hex digits a "
            "line; copy the file again, or, if no job was signed with it, delete it"
        )
    return keys


def _keys_in(text: bytes) -> tuple[list[bytes], int]:
    """The keys in ``text``, and the number of its first bad line (0: none)."""
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            key = bytes.fromhex(line.strip().decode("ascii"))
        except ValueError:
            return [], number
        if len(line.strip()) != 64:
            return [], number
        keys.append(key)
    return keys, 0


# --- seal and open ---------------------------------------------------------------------------


def seal(  # noqa: PLR0913 - all of them are signed
    keys: Keys,
    kind: Kind,
    queue: str,
    job_id: str,
    content: Content,
    body: Buffer | Sequence[Buffer],
    *,
    binding: bytes = b"",
    attempt: int = 0,
    limit: int,
) -> bytes:
    """``body`` as a signed envelope that only ``(kind, queue, job_id)`` opens.

    A list of buffers is joined once. A body above ``limit`` bytes is refused.
    """
    parts: Sequence[Buffer]
    if isinstance(body, _BUFFERS):
        parts, size = (body,), len(body)
    else:
        parts, size = body, sum(map(len, body))
    if size > limit:
        raise too_large(f"{job_id!r} carries {size:,} bytes", limit)
    code = _CODES[content]
    if _DEFLATE_FROM < size <= _DEFLATE_TO and (deflated := _deflate(b"".join(parts))):
        code, parts = bytes((content | _DEFLATED,)), (deflated,)
    header: bytes = msgpack.packb((now_ms(), size, binding, attempt))
    header = _LENGTH(len(header)) + header
    job = job_id.encode()
    context = _context(kind, queue) + _LENGTH(len(job)) + job + code
    tag = keys._sign[kind]((context + header, *parts))
    return b"".join((MAGIC, code, keys._sign_id, tag, header, *parts))


def open_(  # noqa: PLR0913 - what the reader expects, one by one
    keys: Keys, kind: Kind, queue: str, job_id: str, data: bytes, *, limit: int
) -> Opened:
    """What ``data`` holds, if one of ``keys`` signed it for ``(kind, queue, job_id)``.

    Anything else is a :class:`SignatureError`, and nothing of it has been decoded or inflated.
    """
    if len(data) > limit + _OVERHEAD:
        raise too_large(f"what is stored for {job_id!r} has {len(data):,} bytes", limit)
    if len(data) < _HEAD.size or data[:4] != MAGIC:
        raise _unsigned(keys, kind, queue, job_id, "it is not a qnb envelope")
    _, code, key_id, tag, header_length = _HEAD.unpack_from(data)
    taggers = keys._by_id.get(key_id)
    if taggers is None:
        raise _unsigned(keys, kind, queue, job_id, "it was signed with another key")
    job = job_id.encode()
    context = _context(kind, queue) + _LENGTH(len(job)) + job + data[4:5]
    covered: Buffer = data[_TAG_END:] if len(data) < _COPY_BELOW else memoryview(data)[_TAG_END:]
    if not compare_digest(taggers[kind]((context, covered)), tag):
        raise _unsigned(
            keys, kind, queue, job_id, "it was altered, cut, or copied from another place"
        )
    start = 2 + header_length
    content = _CONTENTS.get(code & ~_DEFLATED)
    try:
        created_ms, size, binding, attempt = msgpack.unpackb(covered[2:start])
    except (ValueError, TypeError, msgpack.UnpackException):
        content = None
    if content is None:  # signed by a holder of the key, so not an attack
        raise SignatureError(
            f"{_NOUNS[kind]} {job_id!r} is signed, but in a form that this version of qnb does "
            "not read: run the same version of qnb in workers and clients"
        )
    if size > limit:
        raise too_large(f"{job_id!r} carries {size:,} bytes", limit)
    body: Buffer = covered[start:]
    if code & _DEFLATED:
        body = _inflate(body, size)
    if len(body) != size:
        raise _unsigned(keys, kind, queue, job_id, "its length is not the one that was signed")
    return Opened(content, body, binding, attempt, created_ms)


_NOUNS = {
    "call": "job", "func": "function", "result": "the result of job", "event": "event",
    "sweep": "of a sweep, the",
}  # fmt: skip
_LENGTH = struct.Struct(">H").pack


@lru_cache(maxsize=64)
def _context(kind: Kind, queue: str) -> bytes:
    fields = (b"qnb1", kind.encode(), queue.encode())
    return b"".join(_LENGTH(len(field)) + field for field in fields)


def _deflate(clear: bytes) -> bytes:
    """``clear`` deflated, or nothing where it would not shrink to half."""
    middle = len(clear) // 2
    sample = clear[middle : middle + _SAMPLE]
    if len(zlib.compress(sample, 1)) * 2 > len(sample):
        return b""
    deflated = zlib.compress(clear, 1)
    return deflated if len(deflated) * 2 <= len(clear) else b""


def _inflate(body: Buffer, size: int) -> bytes:
    """At most ``size`` bytes and one more, however many ``body`` would open to."""
    try:
        return zlib.decompressobj().decompress(body, size + 1)
    except zlib.error:
        return b""


def _unsigned(keys: Keys, kind: Kind, queue: str, job_id: str, why: str) -> SignatureError:
    return SignatureError(
        f"{_NOUNS[kind]} {job_id!r} was refused unread: {why}. The key of queue {queue!r} here is "
        f"{keys.source!r}; give its workers and clients the same file (QNB_KEY_FILE)"
    )


def too_large(what: str, limit: int) -> PayloadTooLarge:
    """The error for a payload above the limit, with the setting that raises it."""
    return PayloadTooLarge(
        f"{what}; the limit is {limit:,}. Put large data into a file and pass its path, or raise "
        "the limit on both sides: App(max_payload=...)"
    )
