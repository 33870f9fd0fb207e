"""Which job is which: ids, unique calls, references by name, batches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import qnb
from tests.serving import serving


def test_a_unique_call_in_flight_is_one_job_also_by_name_and_in_batches(app: qnb.App) -> None:
    runs: list[Any] = []

    @app.task(unique=True)
    async def build(*parts: Any, **options: Any) -> int:
        runs.append((parts, options))
        return len(runs)

    ref = app.ref("build", unique=True)

    async def main() -> None:
        first = await build.enqueue(1, deep={"a": [1.0]})
        again = await build.enqueue(1, deep={"a": [1.0]})
        by_name = await ref.enqueue(1, deep={"a": [1.0]})
        other = await build.enqueue(True, deep={"a": [1.0]})  # True is not 1
        batch = await app.enqueue_many(
            [build.prepare(1, deep={"a": [1.0]}), build.prepare(2), build.prepare(2)]
        )
        assert first == again == by_name == batch[0]
        assert batch[1] == batch[2]
        assert len({job.id for job in (first, other, batch[1])}) == 3
        async with serving(app):
            assert await first == 1
            await asyncio.gather(other, *batch)
        assert len(runs) == 3
        fresh = await build.enqueue(1, deep={"a": [1.0]})
        assert fresh == first
        assert await fresh.result() is None  # the old result no longer answers
        async with serving(app):
            assert await fresh == 4

    asyncio.run(main())


def test_a_task_known_by_name_only_can_do_all_but_be_called(app: qnb.App) -> None:
    @app.task(name="report.build")
    async def build(day: str, *, deep: bool = False) -> str:
        return f"{day} {deep}"

    async def main() -> None:
        other = qnb.App(app._client._url, app.queue_name)
        job = await other.send("report.build", "monday", deep=True)
        late = await other.ref("report.build").options(delay_ms=50).enqueue("tuesday")
        nobody = await other.send("report.biuld", "friday")
        async with serving(app):
            assert await job == "monday True"
            assert await late == "tuesday False"
            with pytest.raises(qnb.UnknownTask, match=r"'report.biuld' is not known.*report.build"):
                await nobody
        with pytest.raises(TypeError, match="no function here"):
            other.ref("report.build")("sunday")
        await other._client.close()

    asyncio.run(main())


def test_a_batch_mixes_tasks_and_options_and_is_checked_whole_before_it_is_sent(
    server_url: str, queue: str
) -> None:
    app = qnb.App(server_url, queue, ["low", "high"])

    @app.task
    async def double(x: int) -> int:
        return 2 * x

    @app.task(priority="low")
    async def shout(word: str) -> str:
        return word.upper()

    async def main() -> None:
        calls = [
            shout.prepare("a"),
            double.options(task_id="mine").prepare(2),
            double.options(delay_ms=30).prepare(3),
            app.ref("double", priority="low").prepare(4),
        ]
        jobs = await app.enqueue_many(iter(calls))
        assert jobs[1].id == "mine"
        async with serving(app):
            assert await asyncio.gather(*jobs) == ["A", 4, 6, 8]
        with pytest.raises(qnb.InvalidOption, match=r"expects what task\.prepare"):
            await app.enqueue_many([shout.prepare("b"), "c"])  # type: ignore[list-item]
        assert await app.queue_size() == 0

    asyncio.run(main())


@pytest.mark.parametrize("task_id", ["ünï:{}/..\n\x1b[31m", "x" * 256, " "])
def test_any_text_names_a_job(app: qnb.App, task_id: str) -> None:
    @app.task
    async def f() -> str:
        return qnb.current_task().task_id

    async def main() -> None:
        job = await f.options(task_id=task_id).enqueue()
        assert "\x1b" not in repr(job)
        async with serving(app):
            assert await app.job(task_id) == task_id
        assert job.id == task_id

    asyncio.run(main())


@pytest.mark.parametrize("task_id", ["", "x" * 257, "\udcff", 7])
def test_what_cannot_name_a_job_is_refused(app: qnb.App, task_id: Any) -> None:
    @app.task
    def f() -> None: ...

    with pytest.raises(qnb.InvalidName, match="task_id="):
        f.options(task_id=task_id)
    with pytest.raises(qnb.InvalidName, match="task_id="):
        app.job(task_id)
