"""All sweeps of a queue at a glance, and how one is forgotten."""

from __future__ import annotations

from typing import Literal

from qnb.client import Client, me
from qnb.models import CELLS, SweepInfo
from qnb.storage.gates import Gates
from qnb.storage.studies import DONE, QUEUED, RUNNING, UNKNOWN, Studies, Study

__all__ = ["forget", "infos"]

State = Literal["running", "paused", "stopped", "finished", "incomplete"]


async def infos(client: Client) -> list[SweepInfo]:
    """What the store knows of each sweep, the newest first.

    One that has ended has said so itself; the jobs of the others are counted.
    """
    studies = Studies((await client.link()).store)
    gates = Gates(studies.store)
    return [await _info(studies, gates, study) for study in await studies.all()]


async def _info(studies: Studies, gates: Gates, study: Study) -> SweepInfo:
    end, state, finish = study.end, _state(study), None
    if end is not None:
        counts, cached, state, finish = dict(end.counts), end.cached, "finished", end.finish or None
    else:
        found = await studies.tally([study.id(number) for number in range(study.jobs)])
        cells = bytes(cell for cell, *_ in found)
        counts = {word: cells.count(code) for code, word in enumerate(CELLS)}
        counts[CELLS[QUEUED]] += max(0, study.total - len(cells) + cells.count(UNKNOWN))
        cached = sum(cell == DONE and not start for cell, start, _ in found)
        if state == "running" and not counts[CELLS[QUEUED]] + counts[CELLS[RUNNING]]:
            state, finish = "finished", max((finish for *_, finish in found), default=None)
        elif (await gates.get(study.prefix)).state == "stopped":
            state = "stopped"
    return SweepInfo(
        name=study.name,
        fn_name=study.fn_name,
        priority=study.lane,
        created=study.created,
        total=study.total,
        stored=study.stored,
        counts=counts,
        cached=cached,
        finish=finish,
        state=state,
    )


def _state(study: Study) -> State:
    if study.held.startswith("paused"):
        return "paused"
    if study.held.startswith("cancelled"):
        return "stopped"
    return "running" if study.whole and study.stored >= study.jobs else "incomplete"


async def forget(client: Client, name: str) -> bool:
    """Remove a sweep with all its jobs; those that have not ended are aborted first."""
    studies = Studies((await client.link()).store)
    study = await studies.load(name)
    if study is None:
        return False
    ids = [study.id(number) for number in range(study.jobs)]
    open_ = [
        id_ for id_, (cell, *_) in zip(ids, await studies.tally(ids), strict=True)
        if cell in (QUEUED, RUNNING)
    ]  # fmt: skip
    gates = Gates(studies.store)
    if open_:
        await gates.cancel(open_, me())
    await studies.forget(study)
    await gates.set(study.prefix)
    return True
