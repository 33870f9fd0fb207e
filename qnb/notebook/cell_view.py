"""The job of a ``%%qnb`` cell, and what it looks like: as a job, and with what the cell shows."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TypeVar

from qnb import bridge, display
from qnb.clock import seconds
from qnb.closeup import Closeup
from qnb.job import Job
from qnb.models import FINAL, UNFINISHED, JobRecord
from qnb.notebook import html
from qnb.notebook.background import KINDS, Bundle, outputs
from qnb.notebook.job_view import JobRenderer
from qnb.reading import value_of

__all__ = ["CellJob", "CellRecord", "CellRenderer", "renderer"]

R = TypeVar("R")

#: bytes of a value that is fetched to show what is kept beside it; above, it has to be asked for
MOST_FETCHED = 20_000_000

TEXT_CHARS = 2_000  #: of one output, as text


@dataclass(frozen=True, slots=True)
class CellRecord(JobRecord):
    """A job with what its cell has shown, once that is known."""

    shown: tuple[Bundle, ...] | None = None


class CellJob(Job[R]):
    """The job of a cell: a :class:`~qnb.Job` that also shows what the cell displayed."""

    __slots__ = ("_shown",)

    def __init__(self, job: Job[R]) -> None:
        super().__init__(job._client, job.id, job.snapshot())
        self._shown: tuple[Bundle, ...] | None = None

    def get(self, timeout: float | timedelta | None = None) -> R:
        self.wait(timeout)
        return super().get()

    def wait(self, timeout: float | timedelta | None = None) -> CellJob[R]:
        bridge.run(self._ended(seconds(timeout)))
        bridge.run(self._read())
        return self

    def snapshot(self) -> CellRecord:
        seen = super().snapshot()
        facts = {field.name: getattr(seen, field.name) for field in fields(JobRecord)}
        return CellRecord(**facts, shown=self._shown)

    async def _follow(self) -> None:
        if self._seen.status in UNFINISHED:
            self._shown = None
        await super()._follow()
        await self._read()

    async def _read(self) -> None:
        """Fetch what it has shown; it has ended."""
        self._seen = await Closeup(self._client, self.id).look() or self._seen
        record = await self._client.record(self.id)
        if self._shown is None and record is not None and record.outcome is not None:
            self._shown = await asyncio.to_thread(self._unpack, record)
        elif record is None:
            self._shown = ()
        self._tell()

    def _unpack(self, record: JobRecord) -> tuple[Bundle, ...]:
        outcome = record.outcome
        if outcome is None or not outcome.success:
            return ()
        if (outcome.result_nbytes or 0) > MOST_FETCHED:
            return ({"text/plain": f"a value of {html.size(outcome.result_nbytes or 0)}"},)
        try:
            with outputs() as shown:
                value_of(self._client.codec, self.id, record)
        except Exception as error:  # noqa: BLE001 - a user's class may raise anything
            return ({"text/plain": f"its value cannot be read here: {error}"},)
        return tuple(shown)


class CellRenderer(JobRenderer):
    """A job, below it what its cell has shown."""

    def finished(self, snapshot: JobRecord) -> bool:
        return snapshot.status in FINAL and _cell(snapshot).shown is not None

    def card(self, snapshot: JobRecord) -> str:
        return "".join([super().card(snapshot), *map(_markup, _cell(snapshot).shown or ())])

    def text(self, snapshot: JobRecord) -> str:
        plain = (_text(bundle.get("text/plain", "")) for bundle in _cell(snapshot).shown or ())
        return "\n".join([super().text(snapshot), *(html.clip(text, TEXT_CHARS) for text in plain)])


def _cell(snapshot: JobRecord) -> CellRecord:
    assert isinstance(snapshot, CellRecord)
    return snapshot


def _text(data: str | bytes) -> str:
    return data if isinstance(data, str) else data.decode(errors="replace")


def _pre(text: str) -> str:
    style = "margin:6px 0 0;padding:0 0 0 8px;white-space:pre-wrap;overflow-wrap:anywhere"
    return f'<pre style="{style}">{html.escape(text)}</pre>'


def _markup(bundle: Bundle) -> str:
    """The best that there is of an output. Its HTML is what the value's own class made of it."""
    kind = next(kind for kind in KINDS if kind in bundle)
    data = bundle[kind]
    if kind == "text/plain":
        return _pre(html.clip(_text(data), TEXT_CHARS))
    if kind == "text/html":
        return f'<div style="margin-top:6px;overflow-x:auto">{_text(data)}</div>'
    raw = data if isinstance(data, bytes) else data.encode()
    words = html.escape(html.clip(_text(bundle.get("text/plain", "a picture")), 200))
    return (
        f'<img alt="{words}" style="display:block;margin-top:6px;max-width:100%" '
        f'src="data:{kind};base64,{base64.b64encode(raw).decode()}">'
    )


renderer = CellRenderer()
display.register("CellJob", "qnb.notebook.cell_view:renderer")
