"""The cells of a sweep as a small picture, for a page without scripts. Pure."""

from __future__ import annotations

import base64
import struct
import zlib

from qnb.models import CELLS
from qnb.notebook import html

__all__ = ["picture"]

_WIDTH = 640
_HEIGHT = 120
_MOST = 250_000  #: cells in a picture; of a larger sweep every k-th is drawn


def picture(cells: bytes, words: str) -> str:
    """An ``<img>`` of the states of a sweep's jobs; nothing if there are none."""
    if not cells:
        return ""
    data = base64.b64encode(_png(cells[:: -(-len(cells) // _MOST)])).decode()
    return (
        f'<img alt="one cell for each job: {html.escape(words)}" '
        f'src="data:image/png;base64,{data}" style="display:block;margin-top:8px;max-width:100%">'
    )


def _png(cells: bytes) -> bytes:
    """A paletted PNG: one square a job, as large as fits; the gaps and the ground transparent."""
    side = max(1, min(14, int((_WIDTH * _HEIGHT / len(cells)) ** 0.5)))
    gap = 2 if side > 8 else 1 if side > 3 else 0
    columns = max(_WIDTH // side, -(-len(cells) // 400))
    ground = len(CELLS)
    empty = bytes([ground])
    squares = [bytes([code]) * (side - gap) + empty * gap for code in range(len(CELLS))]
    lines = []
    for first in range(0, len(cells), columns):
        row = cells[first : first + columns]
        if side > 1:
            row = b"".join(squares[cell] for cell in row)
        line = b"\0" + row.ljust(columns * side, empty)
        lines += [line] * (side - gap)
        lines += [b"\0" + empty * (columns * side)] * gap
    palette = b"".join(bytes.fromhex(html.TONES[word][1:]) for word in CELLS) + b"\0\0\0"
    alpha = bytes([90, 255, 255, 255, 255, 0])
    header = struct.pack(">IIBBBBB", columns * side, len(lines), 8, 3, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data)
        for kind, data in (
            (b"IHDR", header),
            (b"PLTE", palette),
            (b"tRNS", alpha),
            (b"IDAT", zlib.compress(b"".join(lines), 6)),
            (b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
