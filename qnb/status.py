"""A queue at a glance, as text for a terminal or as JSON for a program; no I/O.

An *overview* is what :meth:`Store.overview <qnb.storage.store.Store.overview>` gives: the queue's
name, how many jobs wait in each lane (lowest first), are delayed and run, and what each worker
says of itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from qnb.display import tidy

__all__ = ["as_json", "as_line", "as_text", "is_stuck", "summary"]

_SPANS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_SIZES = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def is_stuck(overview: dict[str, Any]) -> bool:
    """Whether jobs wait and nobody serves the queue."""
    return _waiting(overview) > 0 and not overview["workers"]


def summary(overview: dict[str, Any]) -> str:
    """The queue in one line.

    >>> summary({"queue": "q", "lanes": {"default": 2}, "delayed": 0, "running": 0, "workers": {}})
    "queue 'q': 2 waiting, 0 delayed, 0 running; no worker serves it: start one with qnb worker"
    """
    workers = overview["workers"]
    slots = sum(_whole(says.get("slots")) for says in workers.values())
    serves = f"{_many(len(workers), 'worker')} with {_many(slots, 'slot')}"
    if not workers:
        serves = f"no worker{' serves it: start one with qnb worker' * is_stuck(overview)}"
    return _plain(
        f"queue {overview['queue']!r}: {_waiting(overview):,} waiting, {overview['delayed']:,} "
        f"delayed, {overview['running']:,} running; {serves}"
    )


def as_text(overview: dict[str, Any], now_ms: int) -> str:
    """The summary, then the lanes, the first to be drained on top, then the workers."""
    parts = [summary(overview)]
    lanes = [(_plain(lane), f"{n:,}") for lane, n in reversed(overview["lanes"].items())]
    parts.append(_table(("lane", "waiting"), lanes))
    if workers := overview["workers"]:
        rows = [_row(id_, says, now_ms) for id_, says in sorted(workers.items())]
        said = [head for head in rows[0] if any(row[head] != "-" for row in rows)]
        parts.append(_table(said, [[row[head] for head in said] for row in rows]))
    return "\n\n".join(parts)


def as_line(overview: dict[str, Any], now_ms: int) -> str:
    """The time and the summary: a line of a log."""
    return f"{datetime.fromtimestamp(now_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ} {summary(overview)}"


def as_json(overview: dict[str, Any], now_ms: int) -> str:
    """The overview as one line of JSON, with the totals and the time ``at`` (epoch ms)."""
    totals = {"at": now_ms, "waiting": _waiting(overview), "stuck": is_stuck(overview)}
    return json.dumps({**overview, **totals}, default=repr)


def _plain(text: str) -> str:
    """``text`` in one line, with everything that a terminal would act on written out."""
    return tidy(text.replace("\r", "\\r")).replace("\t", "\\t").replace("\n", "\\n")


def _row(id_: str, says: dict[str, Any], now_ms: int) -> dict[str, str]:
    load, memory = says.get("load"), says.get("memory")
    heard = _since(says.get("at"), now_ms)
    return {
        "worker": _plain(id_),
        **{word: f"{_whole(says.get(word)):,}" for word in ("slots", "running", "done")},
        "load": f"{load:.2f}" if isinstance(load, int | float) else "-",
        "memory": _size(memory) if isinstance(memory, int) else "-",
        "up": _since(says.get("started"), now_ms),
        "heard": heard if heard == "-" else f"{heard} ago",
    }


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns wide enough, names to the left and figures to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (heads, *rows)
    )


def _waiting(overview: dict[str, Any]) -> int:
    return sum(overview["lanes"].values())


def _whole(said: object) -> int:
    return said if isinstance(said, int) else 0


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _since(then_ms: object, now_ms: int) -> str:
    if not isinstance(then_ms, int):
        return "-"
    passed = max(0, now_ms - then_ms) // 1000
    size, unit = next((span for span in _SPANS if passed >= span[0]), _SPANS[-1])
    return f"{passed // size} {unit}"


def _size(count: int) -> str:
    size, unit = next((span for span in _SIZES if count >= span[0]), _SIZES[-1])
    return f"{count / size:.1f} {unit}"
