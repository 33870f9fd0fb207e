"""What happens when a task fails: retries, its own wish to be run again, timeouts, hooks."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

import qnb
from tests.serving import serving


def test_a_failing_task_is_tried_again_with_growing_pauses(app: qnb.App) -> None:
    starts: list[float] = []

    @app.task(max_retries=3, backoff_ms=100)
    async def flaky(fails: int) -> int:
        starts.append(time.monotonic())
        if len(starts) <= fails:
            raise ValueError(f"attempt {qnb.current_task().tries}")
        return len(starts)

    async def main() -> None:
        async with serving(app):
            job = await flaky.enqueue(2)
            assert await job == 3
            result = await job.result()
            assert result is not None
            assert result.tries == 3
            starts.clear()
            hopeless = await flaky.enqueue(99)
            with pytest.raises(ValueError, match="attempt 4"):
                await hopeless
        pauses = [b - a for a, b in pairwise(starts)]
        assert len(pauses) == 3
        assert all(pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True))
        assert sum(pauses) < 1.6

    asyncio.run(main())


def test_a_task_may_ask_to_be_run_again_and_when(app: qnb.App) -> None:
    starts: list[float] = []
    told: list[qnb.ErrorContext] = []

    @app.on_error
    def hook(context: qnb.ErrorContext) -> None:
        told.append(context)

    @app.task(max_retries=2, backoff_ms=60_000)
    async def limited(always: bool) -> int:
        starts.append(time.monotonic())
        if always or len(starts) < 3:
            raise qnb.Retry("rate limited", delay_ms=150)
        return len(starts)

    @app.task
    async def without_budget() -> None:
        raise qnb.Retry

    async def main() -> None:
        async with serving(app):
            assert await (await limited.enqueue(False)) == 3
            assert starts[1] - starts[0] >= 0.15
            assert not told  # a retry that was asked for is no failure
            with pytest.raises(qnb.Retry, match="rate limited"):
                await (await limited.enqueue(True))
            [(name, will_retry, tries)] = [(c.name, c.will_retry, c.tries) for c in told]
            assert (name, will_retry, tries) == ("limited", False, 3)
            result = await (await without_budget.enqueue()).result(timeout=5)
            assert result is not None
            assert "max_retries" in result.value

    asyncio.run(main())


def test_a_timeout_ends_an_attempt_and_counts_as_a_failure(app: qnb.App) -> None:
    told: list[tuple[str, bool]] = []
    starts: list[int] = []

    @app.on_error
    async def hook(context: qnb.ErrorContext) -> None:
        told.append((type(context.exc).__name__, context.will_retry))

    @app.task(timeout=0.1, max_retries=1)
    async def slow() -> None:
        starts.append(qnb.current_task().tries)
        await asyncio.sleep(30)

    async def main() -> None:
        async with serving(app):
            job = await slow.enqueue()
            begun = time.monotonic()
            with pytest.raises(TimeoutError, match=r"longer than its timeout of 0\.1 s"):
                await job
            assert time.monotonic() - begun < 2
        assert starts == [1, 2]
        assert told == [("TimeoutError", True), ("TimeoutError", False)]

    asyncio.run(main())


def test_a_hook_that_raises_changes_nothing(app: qnb.App, caplog: pytest.LogCaptureFixture) -> None:
    told = []

    @app.on_error
    def broken(context: qnb.ErrorContext) -> None:
        raise RuntimeError("the reporter is down")

    @app.on_error
    def sound(context: qnb.ErrorContext) -> None:
        told.append(context.exc)

    @app.task
    def bad() -> None:
        raise KeyError("x")

    async def main() -> None:
        async with serving(app):
            with pytest.raises(KeyError):
                await (await bad.enqueue())

    asyncio.run(main())
    assert [type(error) for error in told] == [KeyError]
    assert "the reporter is down" in caplog.text


def test_the_lifespan_surrounds_a_worker_and_fills_its_state(app: qnb.App) -> None:
    seen = []

    @app.lifespan
    async def resources():  # type: ignore[no-untyped-def]
        seen.append("up")
        yield {"db": "connected"}
        seen.append("down")

    @app.task
    def ask() -> str:
        return str(app.state.db)

    async def main() -> None:
        async with serving(app):
            assert await (await ask.enqueue()) == "connected"
            assert seen == ["up"]
        assert seen == ["up", "down"]

    asyncio.run(main())
    with pytest.raises(AttributeError, match=r"app\.state has no 'cache'"):
        _ = app.state.cache


def test_a_failure_can_be_reproduced_here_and_run_again(app: qnb.App) -> None:
    calm = []

    @app.task
    async def fit(x: int) -> int:
        if not calm:
            raise ZeroDivisionError(f"x = {x}")
        return x

    async def main() -> None:
        job = await fit.enqueue(5)
        async with serving(app):
            with pytest.raises(ZeroDivisionError):
                await job
            assert await job.retry() is True
            with pytest.raises(ZeroDivisionError):
                await job
            calm.append(1)
            job.retry()  # sent at once; what is asked next waits for it
            assert await job == 5
            assert await app.job("nobody").retry() is False

    asyncio.run(main())


def test_reproduce_runs_the_very_version_that_failed(app: qnb.App) -> None:
    @app.task
    def fit(x: int) -> float:
        return 1 / x

    job = fit.submit(0)

    @app.task
    def fit(x: int) -> float:  # type: ignore[no-redef]
        return 0.0

    with pytest.raises(ZeroDivisionError) as raised:
        job.reproduce()
    assert raised.traceback[-1].name == "fit"
    assert fit.submit(0).reproduce() == 0.0
