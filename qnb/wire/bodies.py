"""Bodies: a value's bytes with large parts beside them, or in the blob store.

::

    code u8 | streams u32 | buffers u32 | (streams + buffers) x length u64 | parts

``code`` is 0, or the minor version of the Python whose compiled functions the value holds: no
other can run them. The first parts make, one after another, the text that a form reads (a pickle,
a msgpack document); with none of them that is all the rest. The others are buffers that the text
refers to. A length with its top bit set is that of a blob: in its place stand the 32 bytes of
its digest. Little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from qnb.errors import EncodingError
from qnb.storage.blobs import Blobs
from qnb.wire.envelope import Buffer, too_large

__all__ = ["PLAIN", "Bodies", "Parts"]

_HEAD = struct.Struct("<BII")
_BLOB = 1 << 63
_DIGEST = 32  #: bytes

#: the head of a body that is text and nothing else
PLAIN = _HEAD.pack(0, 0, 0)


class Parts(NamedTuple):
    """What a body is made of, and what is left of one."""

    text: Sequence[Buffer]
    buffers: Sequence[Buffer] = ()
    code: int = 0


class Bodies:
    """Makes and reads the bodies of one queue."""

    __slots__ = ("blobs", "limit", "threshold")

    def __init__(self, limit: int, blobs: Blobs | None = None, threshold: int = 1 << 20) -> None:
        self.limit = limit  #: bytes of one value, wherever they are
        self.blobs = blobs
        self.threshold = threshold  #: bytes of a part that is stored by content

    def is_large(self, part: Buffer) -> bool:
        """Whether ``part`` has its place in the blob store."""
        return self.blobs is not None and len(part) >= self.threshold

    def write(self, parts: Parts) -> list[Buffer]:
        """The pieces of a body. Nothing is stored if it would be above the limit."""
        size = sum(map(len, parts.text)) + sum(map(len, parts.buffers))
        if size > self.limit:
            raise too_large(f"it takes {size:,} bytes", self.limit)
        lengths: list[int] = []
        laid: list[Buffer] = []
        texts = self._runs(parts.text)
        for run in (*texts, *([buffer] for buffer in parts.buffers)):
            length = sum(map(len, run))
            if self.blobs is not None and length >= self.threshold:
                lengths.append(length | _BLOB)
                laid.append(self.blobs.put(run))
            else:
                lengths.append(length)
                laid += run
        head = _HEAD.pack(parts.code, len(texts), len(parts.buffers))
        return [head, struct.pack(f"<{len(lengths)}Q", *lengths), *laid]

    def _runs(self, text: Sequence[Buffer]) -> list[list[Buffer]]:
        """``text`` so that each large piece, which others may share, stands by itself."""
        runs: list[list[Buffer]] = []
        for piece in text:
            if not runs or self.is_large(piece) or self.is_large(runs[-1][0]):
                runs.append([])
            runs[-1].append(piece)
        return runs

    @staticmethod
    def nbytes(body: Sequence[Buffer]) -> int:
        """Bytes of the value that these pieces of a body hold, wherever they are."""
        if body[0] is PLAIN:
            return len(body[1])
        return sum(length & ~_BLOB for (length,) in struct.iter_unpack("<Q", body[1]))

    def read(self, body: Buffer, what: str) -> Parts:
        """The parts of a verified body; buffers are writable, in memory of their own."""
        view = memoryview(body)
        try:
            code, streams, count = _HEAD.unpack_from(view)
            if not streams and not count:
                return Parts((view[_HEAD.size :],), (), code)
            lengths = struct.unpack_from(f"<{streams + count}Q", view, _HEAD.size)
        except struct.error:
            raise EncodingError(f"{what} is malformed: {len(body)} bytes are no body") from None
        size = sum(length & ~_BLOB for length in lengths)
        if size > self.limit:  # before memory is taken for it
            raise too_large(f"{what} takes {size:,} bytes", self.limit)
        at = _HEAD.size + 8 * len(lengths)
        found: list[Buffer] = []
        for number, length in enumerate(lengths):
            if length & _BLOB:
                digest = bytes(view[at : at + _DIGEST])
                found.append(self._fetch(digest, length & ~_BLOB, what))
                at += _DIGEST
            else:
                part = view[at : at + length]
                found.append(part if number < streams else bytearray(part))
                at += length
        if at != len(view):
            raise EncodingError(f"{what} is malformed: its parts are not as long as it says")
        return Parts(found[:streams], found[streams:], code)

    def _fetch(self, digest: bytes, size: int, what: str) -> bytearray:
        if self.blobs is None:
            raise EncodingError(
                f"{what} refers to a blob of {size:,} bytes, and there is no blob store here: give "
                "clients and workers the same App(blob_store=...), such as 's3://bucket/folder'"
            )
        return self.blobs.get(digest, size, what)
