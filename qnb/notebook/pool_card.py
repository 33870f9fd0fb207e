"""Workers in words and as static HTML. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from qnb.models import PoolSnapshot, WorkerInfo
from qnb.notebook import html

__all__ = [
    "SIGNS", "head", "pool_busy", "pool_card", "pool_facts", "pool_load", "pool_text", "pool_word",
    "worker_card", "worker_rows", "worker_sign",
]  # fmt: skip

WORKERS = 32  #: that are shown
JOBS = 64  #: of running jobs that are named, of all workers together
NAME = 60  #: characters of a name

#: the word of a pool, a queue or a worker → its sign and whose colour it has
SIGNS = {
    "looking": ("…", "queued"),
    "reconnecting": ("↻", "failed"),
    "starting": ("◷", "running"),
    "serving": ("▸", "running"),
    "busy": ("▸", "running"),
    "idle": ("○", "queued"),
    "leaving": ("◁", "aborted"),
    "silent": ("!", "failed"),
    "stopped": ("□", "queued"),
    "unserved": ("!", "failed"),
}


def pool_word(snapshot: PoolSnapshot) -> str:
    """The one word for how the pool is."""
    return snapshot.note if snapshot.note in SIGNS else snapshot.state


def pool_busy(snapshot: PoolSnapshot) -> int:
    """How many of its slots run something."""
    return sum(worker.running for worker in snapshot.workers if not worker.leaving)


def pool_load(snapshot: PoolSnapshot) -> str:
    """How busy it is."""
    if snapshot.slots:
        return f"{pool_busy(snapshot):,} of {_many(snapshot.slots, 'slot')} busy"
    left = sum(worker.running for worker in snapshot.workers)
    return f"{_many(left, 'job')} still to finish" if left else ""


def pool_facts(snapshot: PoolSnapshot) -> list[str]:
    """What there is to say of the pool as a whole."""
    workers = snapshot.workers
    if not snapshot.at:
        return []
    count = _many(len(workers), "worker") if workers else "no worker"
    facts = [f"{count} on {html.clip(snapshot.host, NAME)}"]
    loads = [worker.load for worker in workers if worker.load is not None]
    if loads:
        facts.append(f"load {max(loads):.1f}")
    if memory := sum(worker.memory or 0 for worker in workers):
        facts.append(f"{html.size(memory)} of memory")
    if workers:
        facts.append(f"{_many(sum(worker.done for worker in workers), 'job')} ended")
    return facts


def pool_text(snapshot: PoolSnapshot) -> str:
    """The pool in one line of text."""
    said = [f"pool of queue {html.clip(snapshot.queue, NAME)}: {pool_word(snapshot)}"]
    return html.one_line(", ".join([*said, *filter(None, [pool_load(snapshot)])]))


def pool_card(snapshot: PoolSnapshot) -> str:
    """The pool as static HTML."""
    busy, load = min(pool_busy(snapshot), snapshot.slots), pool_load(snapshot)
    return html.card(
        head(pool_word(snapshot), snapshot.queue, "pool", load)
        + (html.progress(busy, snapshot.slots, load) if snapshot.slots else "")
        + html.facts([html.escape(fact) for fact in pool_facts(snapshot)])
        + worker_card(snapshot.workers, snapshot.at)
    )


def head(word: str, title: str, beside: str, right: str) -> str:
    """The first line of a card."""
    sign, tone = SIGNS[word]
    colour = html.TONES[tone]
    chip = html.span(
        html.span(sign, f"color:{colour};font-weight:700") + f" {html.escape(word)}",
        f"display:inline-block;padding:0 9px 0 7px;border:1px solid {colour};border-radius:99px;"
        f"background-color:{colour}24;margin-right:4px",
    )
    return html.div(
        f"{html.span(html.escape(right), f'float:right;{html.MUTED}') if right else ''}"
        f"{chip} <b>{html.escape(html.clip(title, 120))}</b> "
        f"{html.span(html.escape(html.clip(beside, 120)), f'{html.MONO};{html.MUTED}')}",
        "margin:0",
    )


# -- workers -----------------------------------------------------------------------------------


def worker_sign(worker: WorkerInfo) -> str:
    """The one word for what a worker does."""
    if worker.silent:
        return "silent"
    if worker.leaving:
        return "leaving"
    return "busy" if worker.running else "idle"


def worker_rows(
    workers: Sequence[WorkerInfo], *, host: bool = False, jobs: int = JOBS
) -> list[dict[str, object]]:
    """A row for each of the first workers, and up to ``jobs`` running ones below them."""
    rows: list[dict[str, object]] = []
    for worker in workers[:WORKERS]:
        word = worker_sign(worker)
        shown = worker.jobs[: max(0, jobs)]
        jobs -= len(shown)
        rows.append(
            {
                "name": worker_name(worker, host=host),
                "word": word,
                "glyph": SIGNS[word][0],
                "tone": SIGNS[word][1],
                "busy": worker.running,
                "slots": worker.slots,
                "done": worker.done,
                "memory": html.size(worker.memory) if worker.memory else "–",
                "load": "–" if worker.load is None else f"{worker.load:.1f}",
                "started": worker.started,
                "heard": worker.at if worker.silent else 0,
                "jobs": [
                    [html.clip(job.fn_name, NAME), html.clip(job.task_id, NAME), job.start]
                    for job in shown
                ],
                "more": max(0, worker.running - len(shown)) if shown else 0,
            }
        )
    return rows


def worker_name(worker: WorkerInfo, *, host: bool) -> str:
    """What a reader calls it."""
    return html.clip(f"{worker.host}:{worker.pid}" if host else f"process {worker.pid}", NAME)


def worker_card(workers: Sequence[WorkerInfo], now: int, *, host: bool = False) -> str:
    """The workers as static HTML, with what they run."""
    parts = []
    for row, worker in zip(worker_rows(workers, host=host), workers, strict=False):
        facts = [
            f"<b>{html.escape(row['name'])}</b>",
            html.escape(row["word"]),
            f"{worker.running:,} of {_many(worker.slots, 'slot')}",
            f"{worker.done:,} ended",
            html.escape(row["memory"]),
        ]
        glyph = html.span(str(row["glyph"]), f"color:{html.TONES[str(row['tone'])]}")
        parts.append(html.div(f"{glyph} " + " · ".join(facts), "margin-top:4px"))
        for job in worker.jobs[:4]:
            took = html.duration(max(0, now - job.start) / 1000)
            name = html.escape(html.clip(f"{job.fn_name} {job.task_id}", 2 * NAME))
            parts.append(html.div(f"{name} · {took}", f"margin-left:1.4em;{html.MUTED}"))
        if worker.running > 4 and worker.jobs:
            parts.append(_more(worker.running - min(4, len(worker.jobs)), "job"))
    if len(workers) > WORKERS:
        parts.append(_more(len(workers) - WORKERS, "worker"))
    return "".join(parts)


def _more(count: int, noun: str) -> str:
    return html.div(
        f"and {count:,} more {noun}{'s' * (count != 1)}", f"margin-top:2px;{html.MUTED}"
    )


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
