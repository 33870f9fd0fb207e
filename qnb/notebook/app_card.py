"""A queue in words and as static HTML. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qnb.models import FailedJob, QueueSnapshot, SweepInfo
from qnb.notebook import html
from qnb.notebook.pool_card import SIGNS, head, worker_card
from qnb.status import summary

__all__ = [
    "app_card", "app_text", "app_word", "failure_rows", "rate_text", "spark", "sweep_rows",
]  # fmt: skip

LANES = 16  #: that are shown
NAME = 80  #: characters of a name

_BLOCKS = "▁▂▃▄▅▆▇█"
_TONES = {"stopped": "aborted", "incomplete": "queued"}


def app_word(snapshot: QueueSnapshot) -> str:
    """The one word for how the queue is."""
    if snapshot.note in SIGNS:
        return snapshot.note
    if not snapshot.at:
        return "looking"
    if snapshot.running:
        return "busy"
    return "unserved" if snapshot.waiting and not snapshot.workers else "idle"


def app_text(snapshot: QueueSnapshot) -> str:
    """The queue in one line of text."""
    if not snapshot.at:
        return html.one_line(f"queue {html.clip(snapshot.queue, NAME)!r}: {app_word(snapshot)}")
    workers = {worker.id: {"slots": worker.slots} for worker in snapshot.workers}
    said = summary(
        {
            "queue": html.clip(snapshot.queue, NAME), "lanes": snapshot.lanes, "workers": workers,
            "delayed": snapshot.delayed, "running": snapshot.running,
        }
    )  # fmt: skip
    return html.one_line(f"{said} ({html.clip(snapshot.note, NAME)})" if snapshot.note else said)


def rate_text(rate: float | None) -> str:
    """Jobs per second as a person says it."""
    if rate is None:
        return ""
    return f"{rate:,.0f} jobs/s" if rate >= 9.95 else f"{rate:.1f} jobs/s"


def spark(rates: Sequence[float | None], most: int = 40) -> str:
    """The last figures as a line of blocks."""
    last = rates[-most:]
    top = max((rate for rate in last if rate), default=0.0)
    return "".join(
        " " if rate is None else _BLOCKS[round(7 * rate / top) if top else 0] for rate in last
    )


def sweep_rows(sweeps: Sequence[SweepInfo]) -> list[dict[str, object]]:
    """A row a sweep: how it is, what it is called, how far it has come."""
    rows: list[dict[str, object]] = []
    for sweep in sweeps:
        counts = {word: sweep.counts.get(word, 0) for word in ("done", "failed", "aborted")}
        word = _sweep_word(sweep.state, counts)
        tone = html.tone(_TONES.get(word, word))
        rows.append(
            {
                "name": html.clip(sweep.name, NAME),
                "task": html.clip(sweep.fn_name, NAME),
                "word": word,
                "glyph": html.GLYPHS.get(word, html.GLYPHS[tone]),
                "tone": tone,
                "ended": sum(counts.values()),
                "total": sweep.total,
                "shares": [[name, count] for name, count in counts.items()],
                "about": sweep.estimated,
            }
        )
    return rows


def _sweep_word(state: str, counts: Mapping[str, int]) -> str:
    """What the sweep's own view says."""
    if state != "finished":
        return state
    return "finished" if counts["failed"] else "aborted" if counts["aborted"] else "done"


def failure_rows(failures: Sequence[FailedJob]) -> list[list[object]]:
    """Task, id, error and end (epoch ms) of each job."""
    return [
        [
            html.clip(job.fn_name, NAME), html.clip(job.task_id, NAME),
            html.clip(html.one_line(job.text), html.ERROR_CHARS), job.finish,
        ]
        for job in failures
    ]  # fmt: skip


def app_card(snapshot: QueueSnapshot) -> str:
    """The queue as static HTML."""
    parts = [head(app_word(snapshot), snapshot.queue, "app", rate_text(snapshot.rate))]
    if snapshot.at:
        waiting = [
            f"{html.escape(html.clip(lane, NAME))}: {n:,}"
            for lane, n in list(snapshot.lanes.items())[:LANES]
        ]
        slots = f"{snapshot.slots:,} slot{'s' * (snapshot.slots != 1)}"
        parts += [
            html.div(
                f"{html.sign('running')} {snapshot.running:,} running on {slots} &nbsp; "
                f"{html.sign('queued')} {snapshot.waiting:,} waiting ({', '.join(waiting)}) "
                f"&nbsp; {html.sign('scheduled')} {snapshot.delayed:,} delayed"
            ),
            _rates(snapshot),
            _titled("Sweeps", _sweeps(snapshot)),
            _titled("Recent failures", _failures(snapshot)),
            _titled("Workers", worker_card(snapshot.workers, snapshot.at, host=True)),
        ]
    return html.card("".join(parts))


def _titled(title: str, content: str) -> str:
    return html.div(f"<b>{title}</b>{content}", "margin-top:8px") if content else ""


def _rates(snapshot: QueueSnapshot) -> str:
    top = max((rate for rate in snapshot.rates if rate), default=0.0)
    if not top:
        return ""
    passed = html.duration(len(snapshot.rates[-40:]) * snapshot.step)
    line = html.span(spark(snapshot.rates), f"{html.MONO};color:{html.TONES['running']}")
    return html.div(f"{line} {html.span(f'{passed}, {rate_text(top)} at most', html.MUTED)}")


def _sweeps(snapshot: QueueSnapshot) -> str:
    lines = []
    for row in sweep_rows(snapshot.sweeps):
        sign = html.span(str(row["glyph"]), f"color:{html.TONES[str(row['tone'])]}")
        about = "about " if row["about"] else ""
        lines.append(
            html.div(
                f"{sign} <b>{html.escape(row['name'])}</b> "
                f"{html.span(html.escape(row['task']), f'{html.MONO};{html.MUTED}')} · "
                f"{html.escape(row['word'])} · {about}{row['ended']:,} of {row['total']:,}",
                "margin-top:2px",
            )
        )
    if snapshot.more_sweeps:
        lines.append(html.div(f"and {snapshot.more_sweeps:,} more", html.MUTED))
    return "".join(lines)


def _failures(snapshot: QueueSnapshot) -> str:
    return "".join(
        html.error(f"{fn} {id_}: {text}") for fn, id_, text, _ in failure_rows(snapshot.failures)
    )
