"""Bodies in pools of others: the standard library's processes, and a real Dask cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qnb.errors import QnbError
from qnb.models import ErrorContext, Report
from qnb.running.executors import SlotDied, SlotLost, run_to_end
from qnb.running.futures import FuturesExecutor
from qnb.running.messages import SlotConfig

Pool = concurrent.futures.Executor


def pool() -> Pool:
    """As a user's factory would be."""
    return _pool(2)


def _pool(slots: int) -> Pool:
    return concurrent.futures.ProcessPoolExecutor(
        slots, mp_context=multiprocessing.get_context("spawn")
    )


def not_a_pool() -> int:
    return 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[Callable[[], Pool]]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        yield client.get_executor


@pytest.fixture(params=["processes", "dask"])
def factory(request: pytest.FixtureRequest) -> Callable[[], Pool]:
    if request.param == "processes":
        return pool
    found: Callable[[], Pool] = request.getfixturevalue("cluster")
    return found


def square(x: int) -> int:
    print("squaring", x)
    from qnb.running.progress import report

    report(x, 10)
    return x * x


async def asquare(x: int) -> int:
    await asyncio.sleep(0.001)
    print("squaring", x)
    return x * x


def where() -> int:
    return os.getpid()


def fails() -> None:
    raise ValueError("no")


def dies() -> None:
    os._exit(3)


def test_bodies_run_in_the_pool_and_what_they_say_comes_back(
    bench: Any, factory: Callable[[], Pool]
) -> None:
    async def main() -> None:
        bench.executor = FuturesExecutor(factory, SlotConfig(bench.options), 2)
        async with bench:
            assert bench.executor.room() == 2
            squares = await asyncio.gather(*(bench.value(square, x) for x in range(4)))
            assert squares == [0, 1, 4, 9]
            assert await bench.value(asquare, 5) == 25
            assert await bench.value(where) != os.getpid()
            assert sorted(bench.output.splitlines()) == [f"squaring {x}" for x in (0, 1, 2, 3, 5)]
            assert Report(3, 10) in bench.reports
            outcome = await bench.run(fails, max_retries=1)
            assert (outcome.failure.type, outcome.retry_in_ms) == ("ValueError", 0)
            assert not bench.executor.stops(bench.attempt(square).spec)

    asyncio.run(main())


def test_a_pool_that_breaks_is_replaced(bench: Any) -> None:
    async def main() -> None:
        bench.executor = FuturesExecutor(pool, SlotConfig(bench.options), 2)
        async with bench:
            with pytest.raises(SlotDied, match="lost the process"):
                await bench.run(dies)
            assert await bench.value(square, 3) == 9

    asyncio.run(main())


def test_who_ran_in_a_pool_that_broke_runs_alone_next_and_only_the_breaker_is_blamed(
    bench: Any, tmp_path: Path
) -> None:
    made = []

    def factory() -> Pool:
        made.append(1)
        return _pool(2)

    def waits(path: str) -> None:
        Path(path).touch()
        time.sleep(0.3)

    def breaks(path: str) -> None:
        while not Path(path).exists():
            time.sleep(0.01)
        os._exit(3)

    async def main() -> None:
        bench.executor = FuturesExecutor(factory, SlotConfig(bench.options), 3)
        async with bench:
            path = str(tmp_path / "up")
            attempts = [bench.attempt(fn, path) for fn in (breaks, waits, waits)]

            async def each() -> list[Any]:
                running = (run_to_end(bench.executor, one, bench.news.append) for one in attempts)
                return await asyncio.gather(*running, return_exceptions=True)

            assert [type(end) for end in await each()] == [SlotLost] * 3
            breaker, *others = await each()
            assert isinstance(breaker, SlotDied)
            assert all(end.success for end in others)
            assert bench.executor.room() == 3
        assert len(made) == 3  # not one for each job that needed it

    asyncio.run(main())


def test_a_factory_that_fails_later_loses_bodies_unblamed_until_it_works_again(bench: Any) -> None:
    class Cancels(concurrent.futures.ProcessPoolExecutor):
        """As a cluster whose scheduler has gone."""

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            future = super().submit(fn, *args, **kwargs)
            if args[1] and "cancelled" not in done:
                done.append("cancelled")
                future = concurrent.futures.Future()
                future.cancel()
            return future

    done: list[str] = []

    def factory() -> Pool:
        done.append("asked")
        if done.count("asked") == 2:
            raise OSError("the scheduler is away")
        return Cancels(1, mp_context=multiprocessing.get_context("spawn"))

    async def main() -> None:
        bench.executor = FuturesExecutor(factory, SlotConfig(bench.options), 2)
        async with bench:
            with pytest.raises(SlotLost, match="cancelled"):
                await bench.run(square, 1)
            bench.executor._pool.shutdown()  # by somebody
            for said in ("after shutdown", "the scheduler is away"):
                with pytest.raises(SlotLost, match=said):
                    await bench.run(square, 1)
            assert await bench.value(square, 2) == 4
            assert bench.executor.room() == 2

    asyncio.run(main())


def test_hooks_run_in_the_pool(bench: Any, tmp_path: Any) -> None:
    ledger = tmp_path / "ledger"

    def hook(failure: ErrorContext) -> None:
        with ledger.open("a") as file:
            file.write(f"{os.getpid()} {type(failure.exc).__name__}\n")

    async def main() -> None:
        setup = bench.codec.pack_call("setup", (None, [hook]), {})
        bench.executor = FuturesExecutor(pool, SlotConfig(bench.options, setup=setup), 2)
        async with bench:
            await bench.run(fails)
            await bench.executor.report_failure(
                bench.attempt(fails), "TimeoutError", "too long", will_retry=False
            )
        lines = [line.split() for line in ledger.read_text().splitlines()]
        assert [kind for _, kind in lines] == ["ValueError", "TimeoutError"]
        assert str(os.getpid()) not in {pid for pid, _ in lines}

    asyncio.run(main())


def test_a_body_that_was_given_up_on_keeps_its_place_until_it_ends(bench: Any) -> None:
    async def main() -> None:
        bench.executor = FuturesExecutor(lambda: _pool(1), SlotConfig(bench.options), 1)
        async with bench:
            running = bench.begin(time.sleep, 0.2)
            await asyncio.sleep(0.05)
            running.cancel()
            await asyncio.wait([running])
            assert running.cancelled()
            assert bench.executor.room() == 0
            assert await bench.value(square, 2) == 4
            assert bench.executor.room() == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    "factory, said",
    [
        ("json:nothing", "Expected module:factory"),
        ("nowhere:pool", "Expected module:factory"),
        (not_a_pool, "expected a concurrent.futures.Executor"),
        (lambda: 1 / 0, "gave no pool: ZeroDivisionError"),
        (
            lambda: concurrent.futures.ProcessPoolExecutor(initializer=dies, max_workers=1),
            "cannot run jobs",
        ),
    ],
)
def test_a_factory_that_gives_no_working_pool_is_refused(
    bench: Any, factory: Any, said: str
) -> None:
    async def main() -> None:
        bench.executor = FuturesExecutor(factory, SlotConfig(bench.options), 1)
        with pytest.raises(QnbError, match=said):
            await bench.executor.start()

    asyncio.run(main())
