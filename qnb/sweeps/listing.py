"""All sweeps of a queue at a glance, and how one is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from qnb.client import Client, me
from qnb.models import CELLS, SweepInfo
from qnb.storage.gates import Gates
from qnb.storage.studies import DONE, QUEUED, RUNNING, UNKNOWN, Studies, Study

__all__ = ["forget", "infos", "newest"]

#: jobs that are looked at to tell how far the newest sweeps are, all together
SAMPLE = 500

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


async def newest(studies: Studies, most: int) -> list[SweepInfo]:
    """What the store knows of the newest sweeps, the newest first, at a bounded cost.

    Of large ones that have not ended, a sample of their jobs is counted.
    """
    found = await studies.all(most)
    open_ = [study for study in found if study.end is None and study.jobs]
    share = SAMPLE // max(1, len(open_))
    chosen = {study.prefix: _spread(study.jobs, share) for study in open_}
    ids = [study.id(number) for study in open_ for number in chosen[study.prefix]]
    cells = iter([cell for cell, *_ in await studies.tally(ids)])
    return [_glimpse(study, [next(cells) for _ in chosen.get(study.prefix, ())]) for study in found]


def _spread(count: int, most: int) -> Sequence[int]:
    """Up to ``most`` of the numbers below ``count``, evenly spread."""
    if count <= most:
        return range(count)
    return [(2 * at + 1) * count // (2 * most) for at in range(most)]


def _glimpse(study: Study, cells: list[int]) -> SweepInfo:
    if study.end is not None:
        counts = dict(study.end.counts)
        state: State = "finished"
    else:
        scale = study.jobs / max(1, len(cells))
        counts = {word: int(cells.count(code) * scale) for code, word in enumerate(CELLS)}
        counts["queued"] = max(0, study.total - sum(counts.values()) + counts["queued"])
        state = _state(study)
        ended = sum(counts[word] for word in CELLS[DONE:])
        if state == "running" and len(cells) == study.total == ended:
            state = "finished"
    return SweepInfo(
        study.name, study.fn_name, study.lane, study.created, study.total, study.stored, counts,
        study.end.cached if study.end else 0,
        study.end.finish or None if study.end else None,
        state,
        estimated=study.end is None and len(cells) < study.jobs,
    )  # fmt: skip


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
