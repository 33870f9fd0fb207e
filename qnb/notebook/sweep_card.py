"""A sweep in words and as static HTML. Pure."""

from __future__ import annotations

from heapq import nsmallest

from qnb.models import SweepSnapshot
from qnb.notebook import html
from qnb.notebook.picture import picture

__all__ = ["sweep_card", "sweep_errors", "sweep_text", "sweep_word"]

ERROR_GROUPS = 5  #: how many kinds of error a sweep shows


def sweep_word(snapshot: SweepSnapshot) -> str:
    """The one word for where the sweep is; ``done`` says that every job is."""
    counts = snapshot.counts
    if snapshot.finished:
        return "finished" if counts["failed"] else "aborted" if counts["aborted"] else "done"
    if snapshot.state == "paused":
        return "paused"
    return "queued" if counts["queued"] == len(snapshot.cells) else "running"


def sweep_errors(snapshot: SweepSnapshot) -> tuple[list[tuple[str, int, list[int]]], int]:
    """The most frequent errors, each with how many jobs ended so and where some of them are; and
    how many kinds are left out."""
    groups = snapshot.errors.items()
    first = nsmallest(ERROR_GROUPS, groups, key=lambda group: (-group[1], group[0]))
    shown = [
        (
            html.clip(html.one_line(text), html.ERROR_CHARS),
            count,
            list(snapshot.examples.get(text, ())),
        )
        for text, count in first
    ]
    return shown, max(0, len(groups) - ERROR_GROUPS)


def sweep_text(snapshot: SweepSnapshot) -> str:
    """The sweep in one line of text."""
    counts = snapshot.counts
    ended = len(snapshot.cells) - counts["queued"] - counts["running"]
    facts = [f"{html.clip(snapshot.name, 120)}: {ended:,} of {snapshot.total:,} finished"]
    facts += [
        f"{counts[word]:,} {word}" for word in ("failed", "aborted", "running") if counts[word]
    ]
    return html.one_line(", ".join(facts))


def sweep_card(snapshot: SweepSnapshot) -> str:
    """The sweep as static HTML, its cells as a picture."""
    counts = snapshot.counts
    ended = len(snapshot.cells) - counts["queued"] - counts["running"]
    length = html.duration(snapshot.elapsed) if snapshot.elapsed else ""
    label = f"{ended:,} of {snapshot.total:,} finished"
    words = [
        f"{html.sign(word)} {counts[word]:,} {word}"
        for word in ("done", "failed", "aborted", "running", "queued")
        if counts[word]
    ]
    shown, left_out = sweep_errors(snapshot)
    groups = [html.error(f"{count:,} × {text}") for text, count, _ in shown]
    if left_out:
        groups.append(
            html.div(f"and {left_out:,} more kinds of error", f"margin-top:4px;{html.MUTED}")
        )
    note = html.clip(snapshot.note, html.ERROR_CHARS)
    title = html.head(sweep_word(snapshot), snapshot.name, snapshot.fn_name, length)
    return html.card(
        title
        + html.progress(ended, snapshot.total, label)
        + html.div(" &nbsp; ".join([html.escape(label), *words]), "margin-top:4px")
        + picture(snapshot.cells, ", ".join(f"{n:,} {word}" for word, n in counts.items() if n))
        + "".join(groups)
        + html.div(html.escape(note), f"margin-top:6px;{html.MUTED}")
    )
