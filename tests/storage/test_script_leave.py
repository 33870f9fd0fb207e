"""leave.lua: a worker that goes is forgotten, what it still holds is not."""

from __future__ import annotations

import pytest

from qnb.storage import leases
from tests.storage.desk import LOST, Desk, call, overdue


async def _consumers(desk: Desk) -> set[str]:
    found = await desk.raw("XINFO", "CONSUMERS", desk.keys.lane("default"), "qnb")
    return {
        dict(zip(row[::2], row[1::2], strict=True))[b"name"].decode() if isinstance(row, list)
        else str(row["name"].decode() if isinstance(row["name"], bytes) else row["name"])
        for row in found
    }  # fmt: skip


async def test_a_worker_that_leaves_is_forgotten(desk: Desk) -> None:
    claimed = await desk.held(name="a")
    assert len(await _consumers(desk)) == 1
    assert await desk.finish(claimed)
    await desk.worker("a").heartbeat("a", {"running": 0}, 60_000)
    assert list(await desk.store.workers()) == ["a"]
    await desk.worker("a").leave("a")
    assert await _consumers(desk) == set()
    assert await desk.store.workers() == {}
    await desk.worker("a").leave("a")  # the reply was lost


async def test_what_it_still_holds_is_recovered_by_others(desk: Desk) -> None:
    claimed = await desk.held(name="a")
    [name] = await _consumers(desk)
    assert await desk.store.server.scripts.leave([desk.keys.lane("default")], name) == 1
    await desk.worker("a").leave("a")
    assert await _consumers(desk) == {name}
    assert await desk.worker("b").recover(overdue(claimed), LOST) == 1
    [again] = await desk.claim("b")
    assert again.spec == claimed.spec
    assert await desk.store.server.scripts.leave([desk.keys.lane("default")], name) == 0


async def test_a_worker_that_died_is_off_the_books_when_another_speaks(desk: Desk) -> None:
    await desk.worker("dead").heartbeat("dead", {"running": 1}, 60_000)
    long_ago = 1
    await desk.raw("ZADD", desk.keys.workers, long_ago, "dead")
    await desk.worker("b").heartbeat("b", {"running": 0}, 60_000)
    assert await desk.raw("ZRANGE", desk.keys.workers, 0, -1) == [b"b"]


async def test_the_index_forgets_jobs_whose_records_are_gone(desk: Desk) -> None:
    kept, gone = await desk.put(call(), call())
    await desk.raw("DEL", desk.keys.job(gone))
    assert await desk.worker().sweep_index() == 1
    assert await desk.store.index() == [desk.keys.job(kept)]


async def test_jobs_that_are_there_do_not_hide_those_behind_them(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "INDEX_PAGE", 10)
    there = await desk.put(*(call() for _ in range(25)))
    gone = await desk.put(*(call() for _ in range(30)))
    last = await desk.put(call())
    await desk.raw("ZADD", desk.keys.jobs, 1, b"\xff no job")
    await desk.raw("DEL", *map(desk.keys.job, gone))
    total = sum([await desk.worker().sweep_index() for _ in range(6)])
    assert total == len(gone)
    assert set(await desk.store.index()) == {desk.keys.job(id_) for id_ in (*there, *last)}
    await desk.raw("DEL", *map(desk.keys.job, there))
    total = sum([await desk.worker().sweep_index() for _ in range(2)])
    assert total == len(there)  # it begins anew


async def test_the_oldest_jobs_leave_the_index_however_many_come_after_them(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "INDEX_PAGE", 10)
    oldest = await desk.put(*(call() for _ in range(20)))
    for _ in range(5):
        await desk.put(*(call() for _ in range(20)))
        assert await desk.worker().sweep_index() == 0
    await desk.raw("DEL", *map(desk.keys.job, oldest))
    assert await desk.worker().sweep_index() == len(oldest)


async def test_whoever_asked_for_an_abort_is_shown_whatever_the_name_is(desk: Desk) -> None:
    claimed = await desk.held()
    await desk.raw("HSET", desk.keys.job(claimed.spec.task_id), "k", b"me\xff")
    assert await desk.worker().asked([claimed]) == {claimed.ref: "me\ufffd"}
