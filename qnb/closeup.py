"""A job from near, for those who look at it: its arguments as text, the end of its output."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from reprlib import Repr
from typing import Any

from qnb.client import Client
from qnb.errors import PayloadTooLarge
from qnb.models import JobRecord
from qnb.reading import call_of

__all__ = ["Closeup", "arguments", "brief", "tail"]

LINES = 200  #: of the end of the output
CHARS = 4_000  #: the same, at most
KEPT = 16_000  #: characters that are kept of it, before it is made readable
INLINE = 256 * 1024  #: most bytes of a call that is read only to be shown
LARGE = f"… (more than {INLINE:,} bytes)"

# what colours a terminal, moves its cursor, names its window or is a link there
_TERMINAL = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]{0,500}(?:\x07|\x1b\\\\)?)")

_brief = Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother, _brief.maxlong = 3, 60, 80, 40


def tail(text: str) -> str:
    r"""The end of ``text`` as a terminal would show it, without its colours.

    >>> tail("\x1b[32mgo\x1b[0m\n 10 %\r 20 %\n")
    'go\n 20 %'
    """
    lines = _TERMINAL.sub("", text[-KEPT:]).replace("\r\n", "\n").rstrip().split("\n")[-LINES:]
    shown = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
    return shown if len(shown) <= CHARS else f"…{shown[-CHARS:]}"


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """A call's arguments, each cut to what fits a line.

    >>> arguments((3, "x" * 100), {"tol": 1e-3})
    "3, 'xxxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxxx', tol=0.001"
    """
    return ", ".join([*map(brief, args), *(f"{name}={brief(kwargs[name])}" for name in kwargs)])


def brief(value: object) -> str:
    """A value in a line, cut; whatever its own ``repr`` does."""
    try:
        return " ".join(_brief.repr(value).split())
    except Exception as error:  # noqa: BLE001 - a user's __repr__ may raise anything
        return f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"


class Closeup:
    """Looks at one job again and again, for less than reading it anew; owned by one task."""

    def __init__(self, client: Client, task_id: str) -> None:
        self._client = client
        self._id = task_id
        self._arguments: str | None = None
        self._log, self._since = "", 0
        self._run = 0  # the run that the log is of, by when it was enqueued

    async def look(self) -> JobRecord | None:
        """The job now, None where it is unknown."""
        record = await self._client.glance(self._id)
        if record is None:
            return None
        if self._arguments is None:
            self._arguments = await self._read_call()
        if record.enqueue_time != self._run:  # it was run again
            self._run, self._log, self._since = record.enqueue_time, "", 0
        store = (await self._client.link()).store
        text, self._since = await store.log(record, self._since)
        self._log = (self._log + text)[-KEPT:]
        return self.dressed(record)

    def dressed(self, record: JobRecord) -> JobRecord:
        """``record`` with what is known beside it."""
        return replace(record, log=tail(self._log), arguments=self._arguments)

    async def _read_call(self) -> str:
        store = (await self._client.link()).store
        if await store.call_nbytes(self._id) > INLINE:
            return LARGE
        [record] = await store.records([self._id], call=True)
        if record is None:
            return ""
        return await asyncio.to_thread(self._read, record)

    def _read(self, record: JobRecord) -> str:
        try:
            return arguments(*call_of(self._client.sparing_codec(INLINE), record))
        except PayloadTooLarge:  # what is stored is small: it is deflated, or in the blob store
            return LARGE
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's own code
            return f"… ({type(error).__name__} when they were read here)"
