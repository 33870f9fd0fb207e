"""A job in words and as static HTML. Pure."""

from __future__ import annotations

from qnb.models import JobRecord, JobState
from qnb.notebook import html

__all__ = [
    "ARGUMENTS_CHARS",
    "frames",
    "job_card",
    "job_said",
    "job_text",
    "job_word",
    "job_words",
    "reproduce",
]

ARGUMENTS_CHARS = 400
_LOG = (
    "display:flex;flex-direction:column-reverse;"  # its end is in view
    "max-height:16em;overflow:auto;padding:4px 8px;border-radius:4px;"
    "background-color:rgba(128,128,128,.12)"
)
TRACEBACK_CHARS = 4_000  #: of the end of a traceback


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
        *([record.note] if record.note else []),
        *(["served from an earlier run"] if record.cached else []),
        *([f"{tries} {'try' if tries == 1 else 'tries'}"] if tries else []),
        *([f"on {html.clip(worker, 80)}"] if worker else []),
        *(
            [f"result {html.size(outcome.result_nbytes)}"]
            if outcome and outcome.success and outcome.result_nbytes is not None
            else []
        ),
    ]


def job_said(record: JobRecord) -> str:
    """What the body last said of itself, while it runs."""
    report = record.report
    if record.outcome is not None or report is None:
        return ""
    metrics = [f"{name} {_figure(value)}" for name, value in report.metrics.items()]
    words = [*([report.message] if report.message else []), *metrics]
    return html.clip(" · ".join(words), html.ERROR_CHARS)


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def reproduce(record: JobRecord) -> str:
    """The line that runs the job's very call in the notebook."""
    return f"app.job({html.clip(record.task_id, 200)!r}).reproduce()"


def frames(traceback: str) -> str:
    """The end of a traceback, tidy: the frames nearest to the error."""
    text = traceback.strip("\n")
    return html.tidy(text if len(text) <= TRACEBACK_CHARS else f"…{text[-TRACEBACK_CHARS:]}")


def job_text(record: JobRecord) -> str:
    """The job in one line of text."""
    failure = record.outcome.failure if record.outcome else record.failure
    facts = [
        f"{html.clip(record.fn_name, 120)} {html.clip(record.task_id, 80)}: {job_word(record)}"
    ]
    if record.outcome:
        facts.append(f"in {html.duration((record.outcome.finish - record.outcome.start) / 1000)}")
    if failure:
        facts.append(html.clip(failure.text, 120))
    return html.one_line(" · ".join(facts))


def job_card(record: JobRecord, elapsed: float | None = None) -> str:
    """The job as static HTML. ``elapsed`` is seconds since its start, for one that still runs."""
    outcome = record.outcome
    if outcome:
        elapsed = (outcome.finish - outcome.start) / 1000
    length = "" if elapsed is None else html.duration(elapsed)
    failure = outcome.failure if outcome else record.failure
    parts = [html.head(job_word(record), record.fn_name, record.task_id, length)]
    if outcome is None and record.progress is not None:
        parts.append(html.progress(record.progress, 1, f"{record.progress:.0%}"))
    if record.arguments:
        parts.append(html.pre(html.clip(record.arguments, ARGUMENTS_CHARS), html.MUTED))
    parts.append(html.facts([html.escape(word) for word in job_words(record)]))
    if said := job_said(record):
        parts.append(html.div(html.escape(said)))
    if failure:
        parts.append(html.error(html.clip(f"{failure.type}: {failure.message}", 1_000)))
        parts.append(html.pre(frames(failure.traceback), f"padding-left:11px;{html.MUTED}"))
    if record.log:
        parts.append(html.pre(record.log, _LOG, scrolls=True))
    return html.card("".join(parts))
