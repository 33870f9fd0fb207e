"""Where a job's result comes from, and whether it would be the same today."""

from __future__ import annotations

from datetime import UTC, datetime

from qnb.client import Client
from qnb.content.code import Code, explain
from qnb.errors import EncodingError
from qnb.models import JobRecord, JobSpec
from qnb.reading import lost
from qnb.storage.studies import Studies

__all__ = ["Explanation", "why"]


class Explanation(str):
    """Text of several lines that a notebook shows as they are."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


async def why(client: Client, task_id: str) -> Explanation:
    """Why the job was computed, or was not, and what has changed since."""
    record = await client.record(task_id)
    if record is None or record.spec is None:
        raise lost(task_id)
    studies = Studies((await client.link()).store)
    told = [await _origin(studies, record, record.spec)]
    told += await _since(client, studies, record.spec)
    return Explanation("\n".join(told))


async def _origin(studies: Studies, record: JobRecord, spec: JobSpec) -> str:
    outcome = record.outcome
    if outcome is not None and outcome.cached:
        source = (await studies.store.records([outcome.cached]))[0]
        when = f" of {_when(source.enqueue_time)}" if source is not None else ""
        return (
            f"used again: job {outcome.cached!r}{when} has computed the same arguments with the "
            "same code"
        )
    if not spec.content:
        if spec.sweep is None:
            return (
                "computed: the results of its task are not used again; app.task(cache=True) and "
                "sweeps with a name do that"
            )
        return "computed: one of its arguments cannot be compared with another one"
    if not spec.code:
        return "computed: its function reaches something that cannot be compared"
    return (
        f"computed: when it was submitted ({_when(record.enqueue_time)}), no job with these "
        "arguments and this code was known"
    )


def _when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


async def _since(client: Client, studies: Studies, spec: JobSpec) -> list[str]:
    """What the function that its task has here now is beside the one that the job has."""
    now = client.code(client.registry.get(spec.fn_name))
    if now is None or not spec.code:
        return []
    if now.digest == spec.code:
        return [f"its function is the same now as task {spec.fn_name!r} has here"]
    packed = await studies.code(spec.code)
    try:
        said = explain(Code.unpack(packed), now) if packed else "what it was is no longer stored"
    except EncodingError as error:
        said = str(error)
    return [f"task {spec.fn_name!r} has another function here now:", said]
