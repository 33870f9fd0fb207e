"""What is asked of a job: commands in their order, errors as they were raised, runs of its own."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

import qnb
from tests.serving import serving


def test_commands_to_one_job_are_carried_out_in_their_order(app: qnb.App) -> None:
    @app.task
    async def f() -> int:
        return 1

    async def main() -> None:
        for _ in range(5):
            delayed = await f.options(delay_ms=60_000).enqueue()
            abort, retry = delayed.abort(), delayed.retry()
            assert (await abort, await retry) == (True, True)
            assert await delayed.status() == "queued"
            again = delayed.abort()
            assert await again is True
            retry, abort = delayed.retry(), delayed.abort()
            assert (await retry, await abort) == (True, True)
            assert await delayed.status() == "complete"

    asyncio.run(main())


def test_a_command_that_fails_unheard_is_said_in_the_log(
    caplog: pytest.LogCaptureFixture, wait_until: Callable[..., Any]
) -> None:
    caplog.set_level(logging.WARNING, "qnb")
    qnb.App("unix:///nowhere/at/all", "q").job("a").abort()
    wait_until(lambda: "abort of job 'a' failed: no server answers" in caplog.text, "it is said")


def test_an_error_comes_home_as_it_was_raised(app: qnb.App) -> None:
    class Two(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a} and {b}")
            self.b = b

    @app.task
    def fail(kind: str) -> None:
        if kind == "timeout":
            raise TimeoutError("from a library")
        if kind == "stop":
            raise StopIteration
        raise ExceptionGroup("several", [ValueError(1), Two(3, 4), OSError(threading.Lock())])

    async def main() -> dict[str, qnb.Job[Any]]:
        async with serving(app):
            jobs = {kind: await fail.enqueue(kind) for kind in ("timeout", "stop", "group")}
            for job in jobs.values():
                with pytest.raises(Exception, match=r"library|outside of the task|several"):
                    await job
            return jobs

    jobs = asyncio.run(main())
    with pytest.raises(TimeoutError, match="from a library") as raised:
        jobs["timeout"].get(5)
    assert 'raise TimeoutError("from a library")' in str(raised.value.__cause__)
    with pytest.raises(qnb.RemoteError, match="not raised outside of the task"):
        jobs["stop"].get(5)
    with pytest.raises(ExceptionGroup) as group:
        jobs["group"].get(5)
    first, second, third = group.value.exceptions
    assert (type(first), str(second), getattr(second, "b", 0)) == (ValueError, "3 and 4", 4)
    assert isinstance(third, qnb.RemoteError)


def test_reproduce_gives_a_body_what_it_had_on_the_worker(app: qnb.App) -> None:
    @app.task(name="by.value")
    def body(x: int) -> tuple[str, int]:
        qnb.report(1, 2)
        return qnb.current_task().name, x

    @app.task
    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    assert body.submit(1).reproduce() == ("by.value", 1)
    assert later.submit(1).reproduce() == 2

    async def in_a_cell_that_awaits() -> int:
        return (await later.enqueue(2)).reproduce()

    assert asyncio.run(in_a_cell_that_awaits()) == 3
    by_name = app.ref("by.value").submit(4)
    assert by_name.reproduce() == ("by.value", 4)
    with pytest.raises(qnb.UnknownTask, match="with the app that defines the task"):
        qnb.App(app._client._url, app.queue_name).job(by_name.id).reproduce()


def test_functions_that_share_a_name_are_told_apart(app: qnb.App) -> None:
    def make(factor: int) -> Any:
        @app.task
        def scaled(x: int) -> int:
            return x * factor

        return scaled

    make(2)
    with pytest.raises(qnb.NameTaken, match="'scaled' belongs to"):
        make(3)
    with pytest.raises(qnb.InvalidOption, match="no name of its own"):
        app.task(lambda x: x)
    for _ in range(2):  # a cell that runs again
        app.task(name="partial")(functools.partial(print, 1))
    told: list[int] = []
    app.on_error(lambda _: told.append(1))
    app.on_error(lambda _: told.append(2))

    class Model:
        name, fn = "resnet", "conv"

        def __call__(self) -> None:
            raise KeyError

    model = app.task(name="model")(Model())
    assert model.name == "model"

    async def main() -> None:
        async with serving(app):
            await (await model.enqueue()).result(timeout=5)

    asyncio.run(main())
    assert told == [1, 2]
