"""``app.executor()``: whatever takes a ``concurrent.futures.Executor`` runs on the queue."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, as_completed, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qnb

Wait = Callable[..., Any]


@pytest.fixture
def executor(crew: qnb.App) -> Iterator[Any]:
    with crew.executor() as executor:
        yield executor


@pytest.fixture
def busy(executor: Any, tmp_path: Path, wait_until: Wait) -> Iterator[list[Any]]:
    """Futures that hold both slots until the end of the test, or until their file is there."""
    gate = tmp_path / "gate"
    futures = [executor.submit(held, str(gate)) for _ in range(2)]
    wait_until(lambda: all(future.running() for future in futures), "both run")
    yield futures
    gate.touch()
    wait(futures)


def held(gate: str) -> str:
    while not Path(gate).exists():
        time.sleep(0.01)
    return "through"


def add(x: int, y: int = 0) -> int:
    return x + y


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        return self.factor * x

    def times(self, x: int) -> int:
        return self.factor * x

    @classmethod
    def double(cls, x: int) -> int:
        return cls(2)(x)


async def later(x: int) -> int:
    await asyncio.sleep(0)
    return -x


@pytest.mark.parametrize(
    "fn, name, value",
    [
        (add, "add", 3),
        (lambda x: x + 7, "<lambda>", 10),
        (functools.partial(functools.partial(add, y=5)), "add", 8),
        (Scale(4).times, "Scale.times", 12),
        (Scale(4), "Scale", 12),
        (Scale.double, "Scale.double", 6),
        (later, "later", -3),
        (float, "float", 3.0),
        ([9, 3].index, "index", 1),
        (np.square, "square", 9),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_callable_runs_under_a_name_that_can_be_read(
    crew: qnb.App, executor: Any, fn: Any, name: str, value: Any
) -> None:
    future = executor.submit(fn, 3)
    assert future.result(10) == value
    assert crew.jobs_frame().loc[future.job.id, "fn_name"] == name
    assert repr(future.job) == f"<Job {future.job.id!r}>"  # not that it still waits


def test_a_method_is_called_on_the_object_as_it_is_now(executor: Any) -> None:
    scale = Scale(2)
    first = executor.submit(scale.times, 1)
    scale.factor = 5
    assert (first.result(10), executor.submit(scale.times, 1).result(10)) == (2, 5)


def test_a_task_keeps_its_name_and_options_and_those_of_the_executor_go_first(
    crew: qnb.App,
) -> None:
    @crew.task(name="weigh", priority="bulk")
    def weigh(x: int) -> int:
        return x

    with crew.executor() as plain, crew.executor(priority="urgent") as urgent:
        futures = [plain.submit(weigh, 1), urgent.submit(weigh, 2), urgent.submit(add, 3)]
    rows = crew.jobs_frame().loc[[future.job.id for future in futures]]
    assert rows["fn_name"].tolist() == ["weigh", "weigh", "add"]
    assert rows["priority"].tolist() == ["bulk", "urgent", "urgent"]
    with pytest.raises(qnb.InvalidOption, match="unique=True: each future"):
        crew.executor(unique=True)
    with pytest.raises(qnb.InvalidOption, match="Did you mean 'priority'"):
        crew.executor(prioritie="bulk")
    with pytest.raises(qnb.InvalidOption, match=r"max_workers=4: .*start_workers"):
        crew.executor(max_workers=4)


def test_a_cached_call_is_computed_once(crew: qnb.App) -> None:
    with crew.executor(cache=True) as executor:
        first = executor.submit(add, 40, y=2)
        assert first.result(10) == 42
        again = [executor.submit(add, 40, 2), executor.submit(add, 40, y=3)]
        assert [future.result(10) for future in again] == [42, 43]
    cached = crew.jobs_frame()["cached"]
    assert [bool(cached[future.job.id]) for future in (first, *again)] == [False, True, False]


def test_an_error_is_the_tasks_own_and_shows_where_it_was_raised(executor: Any) -> None:
    class Unlucky(Exception):
        pass

    def fail() -> None:
        raise Unlucky("thirteen")

    with pytest.raises(Unlucky, match="thirteen") as caught:
        executor.submit(fail).result(10)
    assert 'raise Unlucky("thirteen")' in str(caught.value.__cause__)
    with pytest.raises(qnb.ArgumentError, match="lock"):
        executor.submit(add, threading.Lock()).result(10)


def test_what_waits_can_be_cancelled_and_what_runs_cannot(
    crew: qnb.App, executor: Any, busy: list[Any], wait_until: Wait
) -> None:
    waiting = executor.submit(add, 1)
    wait_until(lambda: waiting.job.id in crew.jobs_frame().index, "it waits in the queue")
    assert not waiting.running()
    assert not waiting.done()
    assert waiting.cancel()
    assert waiting.cancel()  # twice is once
    assert wait([waiting], timeout=5).done == {waiting}
    with pytest.raises(CancelledError):
        waiting.result(0)
    ended = functools.partial(crew.jobs_frame, status="complete")
    wait_until(lambda: waiting.job.id in ended().index, "its job has ended")
    assert ended().loc[waiting.job.id, "aborted"]
    assert not busy[0].cancel()
    assert busy[0].job.abort().result(10)  # a job, as any other
    with pytest.raises(qnb.JobAborted):
        busy[0].result(10)


def test_shutting_down_waits_or_cancels_and_takes_nothing_more(
    crew: qnb.App, busy: list[Any], tmp_path: Path
) -> None:
    executor = crew.executor()
    waiting = [executor.submit(add, number) for number in range(20)]
    executor.shutdown(wait=False)
    assert not any(future.done() for future in waiting)
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    with pytest.raises(RuntimeError, match="has been shut down"):
        executor.submit(add, 1)
    with crew.executor() as other:
        last = other.submit(add, 4)
        (tmp_path / "gate").touch()
    assert last.done()
    assert last.result() == 4


def test_map_keeps_the_order_and_puts_small_calls_together(crew: qnb.App) -> None:
    before = len(crew.jobs_frame())
    with crew.executor() as executor:
        assert list(executor.map(add, range(40), range(40))) == list(range(0, 80, 2))
        many = executor.map(functools.partial(add, y=1), range(1000), chunksize=100)
        assert next(many) == 1
        assert list(many) == list(range(2, 1001))
        assert list(executor.map(later, [1, 2], chunksize=5)) == [-1, -2]
    assert len(crew.jobs_frame()) - before == 40 + 10 + 2
    for chunksize in (0, 2.0):
        with pytest.raises(ValueError, match=f"chunksize={chunksize}"):
            executor.map(add, [1], chunksize=chunksize)  # type: ignore[arg-type]


def test_map_gives_up_at_its_timeout_and_leaves_nothing_waiting(
    executor: Any, busy: list[Any], wait_until: Wait
) -> None:
    with pytest.raises(TimeoutError):
        list(executor.map(add, range(5), timeout=0.1))
    wait_until(lambda: set(executor.unfinished()) == set(busy), "what it had submitted is gone")


def test_event_loops_and_the_waits_of_the_standard_library_take_its_futures(
    executor: Any, busy: list[Any], tmp_path: Path, wait_until: Wait
) -> None:
    async def main() -> tuple[Any, ...]:
        loop = asyncio.get_running_loop()
        given_up = asyncio.wrap_future(source := executor.submit(add, 9))
        given_up.cancel()
        (tmp_path / "gate").touch()
        both = loop.run_in_executor(executor, add, 1), asyncio.wrap_future(executor.submit(add, 2))
        return *(await asyncio.gather(*both)), source.cancelled()

    assert asyncio.run(main()) == (1, 2, True)
    assert {future.result() for future in as_completed(busy, timeout=10)} == {"through"}


def test_thousands_of_futures_from_many_threads_need_no_thread_each(executor: Any) -> None:
    futures: list[Any] = []

    def submit(first: int) -> None:
        futures.extend(executor.submit(add, number) for number in range(first, first + 500))

    before = threading.active_count()
    threads = [threading.Thread(target=submit, args=(first,)) for first in range(0, 2000, 500)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert threading.active_count() < before + 5
    assert sorted(future.result(20) for future in futures) == list(range(2000))
    assert time.monotonic() - begun < 15  # 2 s on two free cores


def test_a_callback_may_wait_for_the_queue_and_hold_nothing_up(
    crew: qnb.App, executor: Any
) -> None:
    heard: list[Any] = []
    told = threading.Event()

    def back(future: Any) -> None:
        heard.append(executor.submit(add, future.result()).job.get(timeout=10))
        told.set()

    executor.submit(add, 6).add_done_callback(back)
    assert told.wait(10)
    assert heard == [6]


def test_a_worker_that_dies_fails_its_future_and_not_the_executor(executor: Any) -> None:
    broken = executor.submit(os._exit, 3)
    sound = executor.submit(add, 1)
    with pytest.raises(qnb.WorkerCrashed, match="_exit"):
        broken.result(15)
    assert sound.result(10) == 1


def test_closing_the_app_ends_the_wait_and_not_the_job(
    server_url: str, queue: str, app: qnb.App
) -> None:
    other = qnb.App(server_url, queue)
    executor = other.executor()
    waiting = executor.submit(add, 1)
    assert asyncio.run(other.status(waiting.job.id)) == "queued"
    other.close()
    with pytest.raises(qnb.BrokerError, match="closed"):
        waiting.result(5)
    with pytest.raises(qnb.BrokerError, match="closed"):
        executor.submit(add, 2).result(5)
    assert asyncio.run(app.status(waiting.job.id)) == "queued"


def test_a_process_that_ends_has_sent_what_it_submitted(
    server_url: str, app: qnb.App, queue: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import qnb
        executor = qnb.App({server_url!r}, {queue!r}).executor()
        futures = [executor.submit(divmod, number, 7) for number in range(700)]
        futures[0].cancel()
        """)
    )
    ran = subprocess.run(
        [sys.executable, script], check=False, timeout=20, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert asyncio.run(app.queue_size()) in (699, 700)  # the first may not have been sent


def test_only_tasks_go_by_name_to_workers_that_take_no_code(server_url: str, queue: str) -> None:
    app = qnb.App(server_url, queue, codec="msgpack")
    executor = app.executor()
    with pytest.raises(qnb.InvalidOption, match=r"'add' cannot be sent.*app\.ref"):
        executor.submit(add, 1).result(5)
    waiting = executor.submit(app.ref("add"), 1)
    executor.shutdown(cancel_futures=True)
    assert waiting.cancelled()
    app.close()


def test_optuna_asks_and_tells_as_it_does_here(executor: Any) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def cost(x: float, y: int) -> float:
        return (x - 2) ** 2 + y

    def optimise(run: Callable[..., Any]) -> list[float]:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
        for _ in range(4):
            trials = [study.ask() for _ in range(4)]
            points = [(t.suggest_float("x", -5, 5), t.suggest_int("y", 0, 3)) for t in trials]
            for trial, value in zip(trials, run(cost, *zip(*points, strict=True)), strict=True):
                study.tell(trial, value)
        return [trial.value for trial in study.trials]

    assert optimise(executor.map) == optimise(map)


def test_adaptive_learns_the_same_points_as_here(executor: Any) -> None:
    adaptive = pytest.importorskip("adaptive")

    def peak(x: float) -> float:
        return x + 0.01 / (0.01 + x**2)

    def learn(executor: Executor, **options: Any) -> dict[float, float]:
        learner = adaptive.Learner1D(peak, bounds=(-1, 1))
        adaptive.BlockingRunner(learner, npoints_goal=12, executor=executor, **options)
        return dict(learner.data)

    here = learn(adaptive.runner.SequentialExecutor())
    assert learn(executor, ntasks=1) == here
    assert len(learn(executor, ntasks=executor.max_workers)) >= 12


def test_dask_computes_on_it(executor: Any) -> None:
    dask = pytest.importorskip("dask")
    parts = [dask.delayed(add)(x, 1) for x in range(5)]
    assert dask.delayed(sum)(parts).compute(scheduler=executor) == 15
