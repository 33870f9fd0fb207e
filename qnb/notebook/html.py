"""What is known of a job or sweep as static HTML and as one line of text. Pure.

Every piece of text passes through :func:`escape`. The markup has to look right where nothing but
it is left: in a saved, exported or untrusted notebook, without scripts, without style sheets, with
``role`` stripped, in a light or dark page. Hence inline styles, colours that read on both grounds,
a native ``<progress>``, and the sweep's cells as a small picture.
"""

from __future__ import annotations

import base64
import html
import re
import struct
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime

from qnb.display import duration, tidy
from qnb.models import CELLS, JobRecord, JobState, SweepSnapshot

__all__ = [
    "ERROR_CHARS",
    "GLYPHS",
    "TONES",
    "clip",
    "duration",
    "escape",
    "frames",
    "job_card",
    "job_text",
    "job_word",
    "job_words",
    "provisional",
    "size",
    "sweep_card",
    "sweep_errors",
    "sweep_text",
    "sweep_word",
    "tidy",
    "tone",
]

#: the colour of a state, readable on white and on black; `static/view.css` says the same
TONES = {
    "queued": "#8b929a",
    "running": "#2f8fe6",
    "done": "#3da35a",
    "failed": "#e5534b",
    "aborted": "#9a78cf",
}
#: a state's sign, for those who cannot tell the colours apart
GLYPHS = {
    "scheduled": "◷",
    "queued": "○",
    "running": "▸",
    "done": "✓",
    "failed": "✕",
    "aborted": "⊘",
    "expired": "⊘",
    "crashed": "✕",
    "refused": "✕",
    "complete": "✓",
    "not_found": "?",
    "finished": "!",
    "paused": "‖",
}
_TONE_OF = {
    "paused": "queued",
    "scheduled": "queued",
    "expired": "aborted",
    "crashed": "failed",
    "refused": "failed",
    "complete": "done",
    "not_found": "queued",
    "finished": "failed",
}
ERROR_GROUPS = 5  #: how many kinds of error a sweep shows
ERROR_CHARS = 300  #: of one error's line
TRACEBACK_CHARS = 4_000


def clip(text: object, limit: int) -> str:
    """``text``, tidy, cut to ``limit`` characters with a word on how many are missing."""
    whole = str(text)
    if len(whole) <= limit:
        return tidy(whole)
    return f"{tidy(whole[:limit])}… ({len(whole) - limit:,} more characters)"


def escape(text: object) -> str:
    """``text``, tidy, safe between tags and inside a quoted attribute."""
    return html.escape(tidy(text), quote=True)


def size(nbytes: int) -> str:
    """A number of bytes as a person says it: ``512 B``, ``1.2 kB``."""
    if nbytes < 1000:
        return f"{nbytes} B"
    power = 1
    while nbytes >= 999.5 * 1000**power and power < 4:
        power += 1
    amount = nbytes / 1000**power
    unit = " kMGT"[power] + "B"
    return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:.0f} {unit}"


def tone(word: str) -> str:
    """Which of :data:`TONES` a state has."""
    return _TONE_OF.get(word, word)


# -- words -------------------------------------------------------------------------------------


def job_word(record: JobRecord) -> str:
    """The one word for where the job is: ``running``, ``done``, ``failed`` …"""
    if record.status is JobState.COMPLETE and record.outcome is not None:
        return record.outcome.ending.value
    return record.status.value


def job_words(record: JobRecord) -> list[str]:
    """The facts under a job's title: attempts, worker, size of the result."""
    outcome = record.outcome
    tries = outcome.tries if outcome else record.tries
    worker = (outcome.worker if outcome else "") or record.worker
    return [
        *(["served from an earlier run"] if record.cached else []),
        *([f"{tries} {'try' if tries == 1 else 'tries'}"] if tries else []),
        *([f"on {clip(worker, 80)}"] if worker else []),
        *(
            [f"result {size(outcome.result_nbytes)}"]
            if outcome and outcome.success and outcome.result_nbytes is not None
            else []
        ),
    ]


def frames(traceback: str) -> str:
    """The end of a traceback, tidy: the frames nearest to the error."""
    text = traceback.strip("\n")
    return tidy(text if len(text) <= TRACEBACK_CHARS else f"…{text[-TRACEBACK_CHARS:]}")


def job_text(record: JobRecord) -> str:
    """The job in one line of text."""
    failure = record.outcome.failure if record.outcome else record.failure
    facts = [f"{clip(record.fn_name, 120)} {clip(record.task_id, 80)}: {job_word(record)}"]
    if record.outcome:
        facts.append(f"in {duration((record.outcome.finish - record.outcome.start) / 1000)}")
    if failure:
        facts.append(clip(failure.text, 120))
    return _one_line(" · ".join(facts))


def sweep_word(snapshot: SweepSnapshot) -> str:
    """The one word for where the sweep is; ``done`` says that every job is."""
    counts = snapshot.counts
    if snapshot.finished:
        return "finished" if counts["failed"] else "aborted" if counts["aborted"] else "done"
    if snapshot.state == "paused":
        return "paused"
    return "queued" if counts["queued"] == len(snapshot.cells) else "running"


def sweep_errors(snapshot: SweepSnapshot) -> tuple[list[tuple[str, int]], int]:
    """The most frequent errors with how many jobs ended so, and how many kinds are left out."""
    groups = sorted(snapshot.errors.items(), key=lambda group: -group[1])
    shown = [(clip(_one_line(text), ERROR_CHARS), count) for text, count in groups[:ERROR_GROUPS]]
    return shown, max(0, len(groups) - ERROR_GROUPS)


def sweep_text(snapshot: SweepSnapshot) -> str:
    """The sweep in one line of text."""
    counts = snapshot.counts
    ended = len(snapshot.cells) - counts["queued"] - counts["running"]
    facts = [f"{clip(snapshot.name, 120)}: {ended:,} of {snapshot.total:,} finished"]
    facts += [
        f"{counts[word]:,} {word}" for word in ("failed", "aborted", "running") if counts[word]
    ]
    return _one_line(", ".join(facts))


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ⏎ ", text.strip())


# -- markup ------------------------------------------------------------------------------------

_MUTED = "opacity:.72"
_MONO = "font-family:var(--jp-code-font-family,monospace);font-size:.92em"
_CARD = (
    "box-sizing:border-box;max-width:680px;margin:2px 0;padding:10px 12px;border-radius:6px;"
    "border:1px solid rgba(128,128,128,.4);line-height:1.45;"
    "font-family:var(--jp-ui-font-family,system-ui,sans-serif);"
    "font-size:var(--jp-ui-font-size1,13px);text-align:left"
)


def _div(content: str, style: str = "margin-top:6px") -> str:
    return f'<div style="{style}">{content}</div>' if content else ""


def _span(content: str, style: str) -> str:
    return f'<span style="{style}">{content}</span>'


def _sign(word: str) -> str:
    return _span(GLYPHS.get(word, "•"), f"color:{TONES[tone(word)]};font-weight:700")


def _head(word: str, title: str, beside: str, length: str) -> str:
    colour = TONES[tone(word)]
    chip = _span(
        f"{_sign(word)} {escape(word.replace('_', ' '))}",
        f"display:inline-block;padding:0 9px 0 7px;border:1px solid {colour};border-radius:99px;"
        f"background-color:{colour}24;margin-right:4px",
    )
    return _div(
        f"{_span(length, f'float:right;{_MUTED}') if length else ''}"
        f"{chip} <b>{escape(clip(title, 120))}</b> "
        f"{_span(escape(clip(beside, 120)), f'{_MONO};{_MUTED}')}",
        "margin:0",
    )


def _progress(value: float, most: float, label: str) -> str:
    return (
        f'<progress value="{value:g}" max="{max(most, 1):g}" aria-label="{escape(label)}" '
        f'style="width:100%;height:10px;margin-top:6px;accent-color:{TONES["done"]}">'
        f"{escape(label)}</progress>"
    )


def _facts(facts: Sequence[str]) -> str:
    return _div(" &nbsp;·&nbsp; ".join(facts), f"margin-top:4px;{_MUTED}")


def _error(text: str) -> str:
    return (
        f'<pre style="margin:6px 0 0;padding:0 0 0 8px;border-left:3px solid {TONES["failed"]};'
        f'white-space:pre-wrap;overflow-wrap:anywhere;{_MONO}">{escape(text)}</pre>'
    )


def job_card(record: JobRecord, elapsed: float | None = None) -> str:
    """The job as static HTML. ``elapsed`` is seconds since its start, for one that still runs."""
    outcome = record.outcome
    if outcome:
        elapsed = (outcome.finish - outcome.start) / 1000
    length = "" if elapsed is None else duration(elapsed)
    failure = outcome.failure if outcome else record.failure
    parts = [_head(job_word(record), record.fn_name, record.task_id, length)]
    if outcome is None and record.progress is not None:
        parts.append(_progress(record.progress, 1, f"{record.progress:.0%}"))
    parts.append(_facts([escape(word) for word in job_words(record)]))
    if outcome is None and record.message:
        parts.append(_div(escape(clip(record.message, ERROR_CHARS))))
    if failure:
        parts.append(_error(clip(f"{failure.type}: {failure.message}", 1_000)))
        parts.append(_frames(frames(failure.traceback)))
    return _div("".join(parts), _CARD)


def _frames(text: str) -> str:
    if not text:
        return ""
    return (
        f'<pre style="margin:4px 0 0;padding:0 0 0 11px;white-space:pre-wrap;'
        f'overflow-wrap:anywhere;{_MUTED};{_MONO}">{escape(text)}</pre>'
    )


def sweep_card(snapshot: SweepSnapshot) -> str:
    """The sweep as static HTML, its cells as a picture."""
    counts = snapshot.counts
    ended = len(snapshot.cells) - counts["queued"] - counts["running"]
    length = duration(snapshot.elapsed) if snapshot.elapsed else ""
    label = f"{ended:,} of {snapshot.total:,} finished"
    words = [
        f"{_sign(word)} {counts[word]:,} {word}"
        for word in ("done", "failed", "aborted", "running", "queued")
        if counts[word]
    ]
    shown, left_out = sweep_errors(snapshot)
    groups = [_error(f"{count:,} × {text}") for text, count in shown]
    if left_out:
        groups.append(_div(f"and {left_out:,} more kinds of error", f"margin-top:4px;{_MUTED}"))
    title = _head(sweep_word(snapshot), snapshot.name, snapshot.fn_name, length)
    return _div(
        title
        + _progress(ended, snapshot.total, label)
        + _div(" &nbsp; ".join([escape(label), *words]), "margin-top:4px")
        + _picture(snapshot.cells, ", ".join(f"{n:,} {word}" for word, n in counts.items() if n))
        + "".join(groups)
        + _div(escape(clip(snapshot.note, ERROR_CHARS)), f"margin-top:6px;{_MUTED}"),
        _CARD,
    )


def provisional(card: str, ident: str, at_ms: int) -> str:
    """``card`` as it stands below a live view, in case that the kernel ends before the thing does.

    The live view hides it by its class. In a file whose kernel is gone the front end says "model
    not found" in the live view's place; the rule hides that output as long as no view is in it.
    """
    at = datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%d %b %Y, %H:%M:%S UTC")
    child = ".jp-OutputArea-child"
    return (
        f"<style>{child}:has(+ {child} .qnb-card-{ident}):not(:has(.qnb-view))"
        "{display:none}</style>"
        f'<div class="qnb-card-{ident}">{card}'
        f"{_div(f'Last known state, {at}. Run the cell again to follow it.', _MUTED)}</div>"
    )


# -- the cells as a picture --------------------------------------------------------------------

_WIDTH = 640
_HEIGHT = 120
_MOST = 250_000  #: cells in a picture; of a larger sweep every k-th is drawn


def _picture(cells: bytes, words: str) -> str:
    if not cells:
        return ""
    data = base64.b64encode(_png(cells[:: -(-len(cells) // _MOST)])).decode()
    return (
        f'<img alt="one cell for each job: {escape(words)}" src="data:image/png;base64,{data}" '
        'style="display:block;margin-top:8px;max-width:100%">'
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
    palette = b"".join(bytes.fromhex(TONES[word][1:]) for word in CELLS) + b"\0\0\0"
    alpha = bytes([90, 255, 255, 255, 255, 0])
    header = struct.pack(">IIBBBBB", columns * side, len(lines), 8, 3, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data)
        for kind, data in (
            (b"IHDR", header),
            (b"PLTE", palette),
            (b"tRNS", alpha),
            (b"IDAT", zlib.compress(b"".join(lines), 9)),
            (b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
