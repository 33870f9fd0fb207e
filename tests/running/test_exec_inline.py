"""Bodies in your own process: they share its objects; coroutines can be stopped, threads cannot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psutil
import pytest

from qnb.models import ErrorContext
from qnb.running import executors
from qnb.running.executors import run_to_end

Until = Callable[..., Awaitable[Any]]


def _registered(bench: Any, fn: Callable[..., Any]) -> Callable[..., Any]:
    bench.registry.add(fn.__name__, fn)
    return fn


def test_the_function_registered_here_runs_on_the_loop_or_in_a_thread(bench: Any) -> None:
    threads = []

    def note() -> None:
        threads.append(threading.current_thread() is threading.main_thread())

    async def anote() -> None:
        note()

    _registered(bench, note)
    _registered(bench, anote)

    async def main() -> None:
        async with bench.inline():
            for fn, policy in ((note, {}), (anote, {}), (note, {"isolation": "loop"})):
                assert (await bench.run(fn, **policy)).success

    asyncio.run(main())
    assert threads == [False, True, True]


def test_a_cancelled_coroutine_is_gone_and_a_thread_is_said_to_run_on(
    bench: Any, until: Until
) -> None:
    state = []
    go = threading.Event()

    async def patient() -> None:
        try:
            await asyncio.sleep(20)
        finally:
            state.append("gone")

    def thread() -> None:
        go.wait(20)
        state.append("thread")

    _registered(bench, patient)
    _registered(bench, thread)

    async def main() -> None:
        async with bench.inline(slots=1):
            for fn in (patient, thread):
                running = bench.begin(fn)
                await asyncio.sleep(0)
                assert bench.executor.room() == 0
                running.cancel()
                await asyncio.wait([running], timeout=1)
                assert running.cancelled()
                assert bench.executor.room() == 1
            assert state == ["gone"]
            stops = bench.executor.stops
            assert stops(bench.attempt(patient).spec)
            assert not stops(bench.attempt(thread).spec)
            assert stops(bench.attempt(thread, isolation="process").spec)
            go.set()
            assert await bench.value(os.getpid) == os.getpid()  # the next is not held up

            async def over() -> bool:
                return len(state) == 2

            await until(over, "the thread has run on")

    asyncio.run(main())


def test_a_body_that_swallows_its_cancellation_is_still_cancelled(bench: Any) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            return "I go on"
        return ""

    async def main() -> None:
        async with bench.inline():
            running = bench.begin(stubborn)
            await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.wait([running])
            assert running.cancelled()

    asyncio.run(main())


def test_isolation_process_gives_a_body_a_process_that_can_be_killed(bench: Any) -> None:
    def spins() -> None:
        while True:
            pass

    async def main() -> None:
        async with bench.inline(config=True):
            assert await bench.value(os.getpid, isolation="process") != os.getpid()
            running = bench.begin(spins, isolation="process")
            await asyncio.sleep(0.1)
            running.cancel()
            await asyncio.wait([running], timeout=1)
            assert running.cancelled()

    asyncio.run(main())


def test_without_a_way_to_start_processes_it_says_so(bench: Any) -> None:
    async def main() -> None:
        async with bench.inline():
            outcome = await bench.run(os.getpid, isolation="process", max_retries=1)
            assert "isolation='process' needs worker processes" in outcome.failure.message
            assert outcome.retry_in_ms is None

    asyncio.run(main())


def test_lifespan_state_and_hooks_are_here(bench: Any) -> None:
    told: list[ErrorContext] = []
    order = []

    async def lifespan() -> AsyncIterator[dict[str, Any]]:
        order.append("up")
        yield {"db": order}
        order.append("down")

    def uses() -> None:
        bench.registry.state.db.append("used")
        raise ValueError("no")

    async def hook(failure: ErrorContext) -> None:
        told.append(failure)

    _registered(bench, uses)
    bench.registry.lifespan = lifespan
    bench.registry.add_error_hook(hook)

    async def main() -> None:
        async with bench.inline():
            await bench.run(uses, max_retries=1)
            await bench.executor.report_failure(
                bench.attempt(uses), "TimeoutError", "too long", will_retry=False
            )
        with pytest.raises(AttributeError, match=r"@app\.lifespan"):
            _ = bench.registry.state.db

    asyncio.run(main())
    assert order == ["up", "used", "down"]
    kinds = [(type(failure.exc), failure.will_retry) for failure in told]
    assert kinds == [(ValueError, True), (TimeoutError, False)]


def test_children_are_started_when_needed_and_a_body_begins_when_it_has_one(bench: Any) -> None:
    before = len(psutil.Process().children())

    async def main() -> None:
        async with bench.inline(slots=16, config=True):
            begun = []
            running = asyncio.ensure_future(
                run_to_end(
                    bench.executor,
                    bench.attempt(os.getpid, isolation="process"),
                    bench.news.append,
                    lambda: begun.append(len(psutil.Process().children()) - before),
                )
            )
            await asyncio.sleep(0)
            assert begun == []
            assert (await running).success
            assert begun == [1]
            pids = [bench.value(os.getpid, isolation="process") for _ in range(2)]
            assert len(set(await asyncio.gather(*pids))) <= 2
            assert len(psutil.Process().children()) - before <= 2

    asyncio.run(main())


def test_a_coroutine_that_swallows_its_cancellation_is_not_waited_for_and_said_to_run_on(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "GRACE", 0.05)
    go: list[asyncio.Event] = []

    async def stubborn() -> None:
        go.append(asyncio.Event())
        while not go[0].is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go[0].wait()

    _registered(bench, stubborn)

    async def main() -> None:
        async with bench.inline():
            attempt = bench.attempt(stubborn)
            running = asyncio.ensure_future(run_to_end(bench.executor, attempt, bench.news.append))
            await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.wait([running], timeout=1)
            assert running.cancelled()
            assert not bench.executor.stops(attempt.spec)
            go[0].set()

    asyncio.run(main())


@pytest.mark.parametrize("hangs", ["body", "hook"])
def test_a_thread_that_hangs_keeps_no_script_from_ending(
    server_url: str, queue: str, hangs: str
) -> None:
    script = textwrap.dedent(f"""
        import asyncio, time
        import qnb
        from qnb.running import around
        around.HOOKS = 0.1
        app = qnb.App({server_url!r}, {queue!r})
        @app.on_error
        def hook(failure):
            if {hangs!r} == "hook": time.sleep(60)
        @app.task(timeout=0.1)
        def body():
            if {hangs!r} == "body": time.sleep(60)
            raise ValueError
        body.submit()
        app.burst = True
        asyncio.run(app.run())
        print("ended")
        """)
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=15, check=True
    )
    assert ran.stdout == "ended\n"
