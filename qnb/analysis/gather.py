"""Frames of what the store holds: read there what is needed, decode it here, lay it out."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from qnb import bridge
from qnb.analysis import frames, tables
from qnb.analysis.columns import MISSING
from qnb.analysis.frames import DataFrame
from qnb.analysis.values import LAZY_ABOVE, LazyValue, Values
from qnb.client import Client
from qnb.errors import QnbError
from qnb.options import FrameOptions
from qnb.storage import rows as stored
from qnb.storage.rows import Row

__all__ = ["errors_frame", "jobs_frame", "sweep_frame"]


def jobs_frame(client: Client, wanted: FrameOptions) -> DataFrame:
    """The jobs of a queue that fit; see :meth:`App.jobs_frame <qnb.App.jobs_frame>`."""

    async def read() -> list[Row]:
        return await stored.find((await client.link()).store, wanted, LAZY_ABOVE)

    values = Values(client)

    def value(row: Row) -> object:
        try:
            return values.value(row)
        except QnbError:  # a table of everybody's jobs shows what can be shown
            return MISSING

    with _undisturbed():
        return frames.jobs_frame(
            bridge.run(read()), values.call, params=wanted.params,
            values=value if wanted.values else None,
        )  # fmt: skip


def sweep_frame(  # noqa: PLR0913 - what a sweep is
    client: Client,
    name: str,
    task_ids: Sequence[str],
    points: Mapping[str, Sequence[object]],
    labels: Mapping[str, Sequence[object]] | None = None,
    *,
    lazy_above: int = LAZY_ABOVE,
) -> DataFrame:
    """A sweep as it stands now: see :func:`qnb.analysis.frames.sweep_frame`.

    The result bytes of jobs that returned more than ``lazy_above`` are not even read.
    """

    async def read() -> list[Row]:
        return await stored.look((await client.link()).store, task_ids, lazy_above)

    values = Values(client, lazy_above)

    def value(row: Row) -> object:
        try:
            return values.value(row)
        except QnbError:  # a gap among the results would not say why
            return values.lazy(row)

    with _undisturbed():
        rows = bridge.run(read()) if task_ids else []
        found = list(map(value, rows))
        frame = frames.sweep_frame(name, points, rows, found, labels=labels)
    unread = sum(isinstance(one, LazyValue) for one in found)
    if unread and len(frame.attrs["results"]) > 1:  # a mean of the fields would be of the others
        warnings.warn(
            f"{unread:,} of {len(found):,} results are not loaded, as they have more than "
            f"{lazy_above // 1024} kB or cannot be read here: their fields are missing among the "
            "columns. A LazyValue stands for each, and its get() loads it",
            stacklevel=3,
        )
    return frame


def errors_frame(client: Client, task_ids: Sequence[str]) -> DataFrame:
    """What went wrong with these jobs: see :func:`qnb.analysis.tables.errors_frame`."""

    async def read() -> list[Row]:
        return await stored.look((await client.link()).store, task_ids)

    return tables.errors_frame(bridge.run(read()) if task_ids else [])


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the garbage collector: it would go through a million new objects again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
