"""keep.lua: a function lives as long as a job that needs it."""

from __future__ import annotations

from dataclasses import replace

from qnb.storage.keys import UNFINISHED_TTL_MS
from tests.storage.desk import Desk, call

DAY = 24 * 3600 * 1000


async def test_a_function_outlives_the_latest_of_its_jobs(desk: Desk) -> None:
    late = call(delay_ms=40 * DAY)
    await desk.put(late)
    needed = desk.store.function_ttl_ms(late)
    assert await desk.store.keep_functions({"ab": needed}) == ["ab"]
    await desk.store.put_function("ab", b"code", needed)
    of_job = await desk.ttl(desk.keys.job(late.spec.task_id))
    assert abs(await desk.ttl(desk.keys.function("ab")) - of_job) < 60_000
    now = {"ab": desk.store.function_ttl_ms(call())}
    assert await desk.store.keep_functions(now) == []  # and an early one does not shorten it
    assert await desk.ttl(desk.keys.function("ab")) > 69 * DAY


async def test_a_job_that_runs_again_renews_its_function(desk: Desk) -> None:
    one = call("x")
    one = replace(one, spec=replace(one.spec, function="ab"))
    await desk.store.put_function("ab", b"code")
    await desk.raw("PEXPIRE", desk.keys.function("ab"), DAY)
    claimed = await desk.held(one)
    assert await desk.finish(claimed)
    assert await desk.store.rerun(replace(claimed.spec, nonce="again"), b"call")
    assert await desk.ttl(desk.keys.function("ab")) > UNFINISHED_TTL_MS - 60_000


async def test_a_time_beyond_all_counting_is_no_matter(desk: Desk) -> None:
    await desk.store.put_function("ab", b"code")
    for late in (call(delay_ms=2**63 - 1), call(schedule_ms=2**63 - 1)):
        assert await desk.store.keep_functions({"ab": desk.store.function_ttl_ms(late)}) == []
    assert await desk.store.function("ab") == b"code"
