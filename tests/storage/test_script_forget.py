"""forget.lua: a sweep goes with all that is its own, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

from qnb.storage.keys import job_hex
from qnb.storage.records import Finished
from qnb.storage.studies import Studies, Study
from tests.storage.desk import DONE, Desk, call

SCAN = Study("scan", "scan-1", "f", "default", b"manifest", total=3, jobs=3, whole=True)


async def _keys(desk: Desk) -> set[str]:
    """All keys of the queue but its lanes."""
    found = await desk.raw("KEYS", desk.keys.prefix.replace("{", "[{]").replace("}", "[}]") + "*")
    kept = (desk.keys.lane("default"), desk.keys.back("default"))
    return {key.decode() for key in found} - set(kept)


async def _with_jobs(desk: Desk, study: Study) -> Study:
    """The sweep with its jobs: ended, each with a log."""
    studies = Studies(desk.store)
    made = await studies.create(study, [b"points"])
    assert made
    assert await studies.mark(made, stored=made.jobs, digests=(0, bytes(16 * made.jobs)))
    await desk.put(*(call(made.id(number)) for number in range(made.jobs)))
    held = await desk.claim(count=made.jobs)
    await desk.worker().report([(claimed, None, "said\n") for claimed in held])
    ends = [Finished(claimed, DONE, has_log=True) for claimed in held]
    assert await desk.worker().finish(ends) == [True] * made.jobs
    return made


async def test_jobs_logs_points_and_digests_go_and_others_stay(desk: Desk) -> None:
    other = await _with_jobs(desk, replace(SCAN, name="other", prefix="other-1"))
    await desk.finish(await desk.held(call("single")))
    before = await _keys(desk)
    made, studies = await _with_jobs(desk, SCAN), Studies(desk.store)
    assert len(await _keys(desk) - before) == 3 + 2 * SCAN.jobs
    assert await studies.forget(made) == 3
    assert await _keys(desk) == before
    assert await studies.load("scan") is None
    assert [study.name for study in await studies.all()] == ["other"]
    left = {"single", *(other.id(number) for number in range(3))}
    indexed = {hex_.decode() for hex_ in await desk.raw("ZRANGE", desk.keys.jobs, 0, -1)}
    assert indexed == {job_hex(id_) for id_ in left}


async def test_forgotten_twice_it_is_gone_once(desk: Desk) -> None:
    made, studies = await _with_jobs(desk, SCAN), Studies(desk.store)
    assert await studies.forget(made) == 3
    assert await studies.forget(made) == 0
    keys = desk.keys.study("scan")
    assert await desk.store.server.scripts.forget(keys, sweep=job_hex("scan")) == 0
    assert not await _keys(desk)


async def test_a_new_sweep_of_that_name_stays(desk: Desk) -> None:
    made, studies = await _with_jobs(desk, SCAN), Studies(desk.store)
    assert await studies.forget(made) == 3
    new = await _with_jobs(desk, replace(SCAN, prefix="scan-2"))
    before = await _keys(desk)
    assert await studies.forget(made) == 0
    assert await _keys(desk) == before
    assert await studies.points("scan") == [b"points"]
    found = await studies.load("scan")
    assert found is not None
    assert (found.prefix, found.stored) == (new.prefix, 3)
    assert await studies.all() == [found]


async def test_more_jobs_than_a_call_takes_go_and_only_those_that_are_there_count(
    desk: Desk,
) -> None:
    studies, many = Studies(desk.store), replace(SCAN, jobs=1_200)
    made = await studies.create(many, [])
    assert made
    ids = [made.id(number) for number in range(0, 1_200, 2)]
    await desk.put(*map(call, ids))
    assert await studies.forget(made) == 600
    assert await desk.raw("ZCARD", desk.keys.jobs) == 0
    assert not await _keys(desk)


async def test_what_a_stranger_wrote_goes_too(desk: Desk) -> None:
    made, studies = await _with_jobs(desk, SCAN), Studies(desk.store)
    await desk.raw("HSET", desk.keys.job(made.id(0)), "t", "long ago")
    await desk.raw("SET", desk.keys.job(made.id(1)), "of another type", "PX", 60_000)
    assert await studies.forget(made) == 2
    logs = {key for key in await _keys(desk) if ":log:" in key}
    assert await _keys(desk) == logs  # whose run nobody can tell: they expire
    assert len(logs) == 2
