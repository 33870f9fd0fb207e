"""Small tables about many jobs: what went wrong, which sweeps there are, who works."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from qnb.analysis.columns import (
    booleans,
    category,
    fractions,
    instants,
    integers,
    objects,
    strings,
    utc,
)
from qnb.models import Ending, Frame, SweepInfo
from qnb.storage.rows import Row

__all__ = ["errors_frame", "sweeps_frame", "workers_frame"]

_STATES = ("running", "paused", "incomplete", "stopped", "finished")


def errors_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """What went wrong: one row for each type of error and line of the user's, the commonest first.

    ``where`` and ``line`` are that line's place and text, missing where no line of hers was to
    blame: a worker that was lost, a timeout, an abort. ``example`` is the id of the job that
    failed first, and ``message`` what it said; ``task_ids`` has the ids of all.
    """
    found: dict[tuple[str, str | None], list[tuple[Row, Frame | None]]] = {}
    for row in sorted(rows, key=lambda row: row.finish or 0):
        if row.ending in (None, Ending.DONE):
            continue
        frame = row.failure.frames[-1] if row.failure and row.failure.frames else None
        type_ = row.failure.type if row.failure else str(row.ending)
        found.setdefault((type_, _place(frame) if frame else None), []).append((row, frame))
    groups = sorted(found.items(), key=lambda group: -len(group[1]))
    firsts = [members[0] for _, members in groups]
    return pd.DataFrame(
        {
            "error_type": category([type_ for (type_, _), _ in groups]),
            "where": strings([place for (_, place), _ in groups]),
            "line": strings([frame.text or None if frame else None for _, frame in firsts]),
            "count": pd.Series([len(members) for _, members in groups], dtype="int64"),
            "message": strings([row.failure.message if row.failure else None for row, _ in firsts]),
            "example": strings([row.task_id for row, _ in firsts]),
            "first": utc(instants([row.finish for row, _ in firsts])),
            "last": utc(instants([members[-1][0].finish for _, members in groups])),
            "task_ids": pd.Series(
                objects([[row.task_id for row, _ in members] for _, members in groups]),
                dtype=object,
            ),
        }
    )


def _place(frame: Frame) -> str:
    return f"{frame.file}, line {frame.line}"


def sweeps_frame(infos: Sequence[SweepInfo]) -> pd.DataFrame:
    """One row a sweep, in the given order, indexed by its name."""
    ended = [
        sum(info.counts.get(word, 0) for word in ("done", "failed", "aborted")) for info in infos
    ]
    columns = {
        "fn_name": category([info.fn_name for info in infos]),
        "priority": category([info.priority for info in infos]),
        "state": category([info.state for info in infos], _STATES),
        "total": integers([info.total for info in infos]),
        "stored": integers([info.stored for info in infos]),
        **{
            word: integers([info.counts.get(word, 0) for info in infos])
            for word in ("queued", "running", "done", "failed", "aborted")
        },
        "cached": integers([info.cached for info in infos]),
        "progress": fractions(
            [
                min(1.0, n / info.total) if info.total else None
                for n, info in zip(ended, infos, strict=True)
            ]
        ),
        "created": utc(instants([info.created for info in infos])),
        "finish": utc(instants([info.finish for info in infos])),
    }
    return pd.DataFrame(
        columns, index=pd.Index([info.name for info in infos], dtype=str, name="name")
    )


def workers_frame(workers: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row a worker, by what each last said of itself, indexed by ``host:pid``.

    ``heard`` is when that was. What a worker does not say, or says in another form, is missing.
    """
    says = list(workers.values())

    def said(word: str, kind: type | tuple[type, ...]) -> list[Any]:
        found = [each.get(word) for each in says]
        return [value if isinstance(value, kind) else None for value in found]

    def whole(word: str) -> list[int | None]:
        return [None if type(n) is not int or not 0 <= n < 2**63 else n for n in said(word, int)]

    def moments(word: str) -> Any:
        return utc(instants([n if n is not None and n <= _LATEST else None for n in whole(word)]))

    columns = {
        "host": category(said("host", str)),
        **{word: integers(whole(word)) for word in ("pid", "slots", "running", "done")},
        "load": fractions([None if n is None else float(n) for n in said("load", (int, float))]),
        "memory": integers(whole("memory")),
        "lanes": strings(
            [
                ", ".join(map(str, lanes)) if lanes is not None else None
                for lanes in said("lanes", (list, tuple))
            ]
        ),
        "leaving": booleans(said("leaving", bool)),
        "started": moments("started"),
        "heard": moments("at"),
    }
    ids = [f"{each.get('host')}:{each.get('pid')}" for each in says]
    return pd.DataFrame(columns, index=pd.Index(ids, dtype=str, name="worker"))


_LATEST = 253_402_300_799_999  # the end of the year 9999, in epoch ms
