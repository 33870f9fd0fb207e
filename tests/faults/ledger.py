"""What bodies did and clients read, written down outside the store."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path


def note(path: str, *words: object) -> None:
    """Append one line: the process, a monotonic time in nanoseconds, and ``words``.

    One write at the end of the file: lines of many processes never mix, and one that was written
    survives whoever wrote it.
    """
    line = " ".join(str(word) for word in (os.getpid(), time.monotonic_ns(), *words)) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


class Ledger:
    """Reads what :func:`note` has written. Bodies are given ``path`` as an argument."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.path = str(path)
        path.touch(mode=0o600)

    def lines(self, word: str | None = None) -> list[list[str]]:
        """``[pid, ns, word, …]`` of each line, in order; of one ``word`` if that is given."""
        rows = [line.split(" ") for line in self._path.read_text().splitlines()]
        return rows if word is None else [row for row in rows if row[2] == word]

    def starts(self) -> Counter[str]:
        """How often each body has been started: lines ``start name``."""
        return Counter(row[3] for row in self.lines("start"))

    def ends(self) -> Counter[str]:
        """How often each body has come to its end: lines ``end name``."""
        return Counter(row[3] for row in self.lines("end"))

    def extra(self) -> int:
        """Starts beyond one of each."""
        return sum(count - 1 for count in self.starts().values())
