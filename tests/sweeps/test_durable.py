"""A sweep has a name: it outlives its cell, its kernel, and a submission that was cut off."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qnb

Wait = Callable[..., Any]


def test_a_sweep_is_found_by_its_name_where_its_task_is_not_known(
    serving: qnb.App, elsewhere: qnb.App
) -> None:
    @serving.task
    def area(w: float, h: float) -> dict[str, float]:
        if not h:
            raise ValueError("flat")
        return {"area": w * h}

    sweep = area.options(name="areas").grid(w=[1, 2], h=[0, 3]).wait(10)
    found = elsewhere.sweep("areas").wait(10)
    assert (found.name, found.fn_name, len(found)) == ("areas", "area", 4)
    assert list(found.design) == list(sweep.design)
    assert [job.id for job in found] == [job.id for job in sweep]
    assert found.results("coerce") == [None, {"area": 3}, None, {"area": 6}]
    assert found.snapshot().counts == sweep.snapshot().counts
    assert found.snapshot().errors == {"ValueError('flat')": 2}
    assert found.frame().equals(sweep.frame())


def test_a_name_that_nobody_knows_is_refused_with_the_nearest_one(app: qnb.App) -> None:
    @app.task
    def f(x: int) -> int:
        return x

    f.options(name="scan of x").map([1])
    with pytest.raises(qnb.UnknownSweep, match="Did you mean 'scan of x'"):
        app.sweep("scan of y")
    with pytest.raises(qnb.InvalidName):
        app.sweep("")


def test_without_a_name_each_run_is_a_sweep_of_its_own_with_a_readable_one(app: qnb.App) -> None:
    @app.task
    def simulate(x: int) -> int:
        return x

    first, second = simulate.map([1]), simulate.map([1])
    assert first.name != second.name
    assert first.name.startswith("simulate-")
    assert f"app.sweep({second.name!r})" in repr(second)
    assert app.sweep(second.name)[0].id == second[0].id


def test_the_name_of_another_tasks_sweep_is_refused(app: qnb.App) -> None:
    @app.task
    def f(x: int) -> int:
        return x

    @app.task
    def g(x: int) -> int:
        return x

    f.options(name="mine").map([1])
    with pytest.raises(qnb.InvalidName, match=r"is of task 'f', not of 'g'.*app\.forget"):
        g.options(name="mine").map([1])


Counted = tuple[qnb.Task[..., Any], Callable[[], Counter[str]]]


@pytest.fixture
def counted(serving: qnb.App, tmp_path: Path) -> Counted:
    """A task whose every run is noted in a file, and what is noted by the arguments."""
    ledger = tmp_path / "runs"
    ledger.touch()

    @serving.task
    def f(x: Any, y: Any = 0) -> Any:
        with ledger.open("a") as lines:
            lines.write(f"{x!r} {y!r}\n")
        return x, y

    return f, lambda: Counter(ledger.read_text().splitlines())


def test_the_same_cell_again_attaches_and_runs_nothing(
    counted: Counted,
) -> None:
    f, runs = counted
    first = f.options(name="scan").grid(x=range(4), y=[0.5, 1]).wait(10)
    again = f.options(name="scan").grid(x=range(4), y=[0.5, 1]).wait(10)
    assert [job.id for job in again] == [job.id for job in first]
    assert again.results() == first.results()
    assert set(runs().values()) == {1}
    assert len(runs()) == 8


def test_only_new_points_run_and_values_keep_the_order_of_the_points(
    counted: Counted,
) -> None:
    f, runs = counted
    f.options(name="scan").grid(x=[1, 2], y=[1, 2]).wait(10)
    wider = f.options(name="scan").grid(x=[0, 1, 2], y=[2, 1, 3]).wait(10)
    assert wider.results() == [(x, y) for x in (0, 1, 2) for y in (2, 1, 3)]
    narrower = f.options(name="scan").grid(x=[2], y=[3, 1]).wait(10)
    assert narrower.results() == [(2, 3), (2, 1)]
    assert (len(runs()), set(runs().values())) == (9, {1})
    assert wider.frame()[["x", "y"]].values.tolist() == [
        [x, y] for x in range(3) for y in (2, 1, 3)
    ]


def test_points_that_only_look_alike_are_not_each_others(
    counted: Counted,
) -> None:
    f, runs = counted
    f.options(name="scan").map([1, 0.0]).wait(10)
    f.options(name="scan").map([True, 1.0, -0.0, 1, 0.0]).wait(10)
    assert runs() == {f"{x!r} 0": 1 for x in (1, 0.0, True, 1.0, -0.0)}


def test_equal_points_of_one_sweep_each_run(
    counted: Counted,
) -> None:
    f, runs = counted
    f.options(name="dice").map([6, 6, 6]).wait(10)
    assert runs() == {"6 0": 3}
    assert len({job.id for job in f.options(name="dice").map([6, 6, 6, 6]).wait(10)}) == 4
    assert runs() == {"6 0": 4}


def test_a_grid_is_extended_in_place(counted: Counted) -> None:
    f, runs = counted
    sweep = f.options(name="scan").grid(x=[1, 2], y=[5, 6]).wait(10)
    assert sweep.extend(x=[2, 3]).result(10) == 2
    assert sweep.wait(10).results() == [(x, y) for x in (1, 2, 3) for y in (5, 6)]
    assert set(runs().values()) == {1}
    with pytest.raises(qnb.InvalidOption, match="no axis 'z': it has x, y"):
        sweep.extend(z=[1])
    with pytest.raises(qnb.InvalidOption, match="its points are no grid"):
        f.map([1]).extend(x=[2])


def test_shuffled_jobs_run_in_another_order_and_stand_in_the_points_order(
    counted: Counted,
) -> None:
    f, runs = counted
    sweep = f.options(name="mixed", shuffle=True).map(range(40)).wait(10)
    assert sweep.results() == [(x, 0) for x in range(40)]
    assert list(runs()) != [f"{x} 0" for x in range(40)]
    assert sweep[7].get(timeout=5) == (7, 0)


def test_a_generator_is_taken_as_it_comes_and_known_points_keep_their_jobs(
    counted: Counted,
) -> None:
    f, runs = counted
    taken: list[int] = []

    def points(n: int) -> Iterator[dict[str, int]]:
        for x in range(n):
            taken.append(x)
            yield {"x": x}

    sweep = f.options(name="stream").sweep(points(1200)).wait(20)
    assert (len(sweep), sweep.results()[-1]) == (1200, (1199, 0))
    assert len(taken) == 1200
    again = f.options(name="stream").sweep(points(1300)).wait(20)
    assert (len(again), set(runs().values()), len(runs())) == (1300, {1}, 1300)
    assert again[3].id == sweep[3].id


CUT_OFF = """
    import os, qnb
    app = qnb.App({url!r}, {queue!r})

    @app.task
    def f(x: int) -> int:
        return x

    sweep = f.options(name="cut off").map(range(30_000))
    while not 2_000 <= sweep._driver.feed.study.stored < 25_000:
        pass
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("way", ["by name", "same cell"])
def test_a_submission_that_was_cut_off_is_completed(
    app: qnb.App, server_url: str, queue: str, way: str, wait_until: Wait, tmp_path: Path
) -> None:
    cell = textwrap.dedent(CUT_OFF).format(url=server_url, queue=queue)
    script = tmp_path / "cell.py"
    script.write_text(cell)
    done = subprocess.run([sys.executable, str(script)], check=False, timeout=25)
    assert done.returncode == -signal.SIGKILL
    before = asyncio.run(app.queue_size())
    assert 2_000 <= before < 30_000
    if way == "same cell":
        script.write_text(cell.partition("while not")[0])
        subprocess.run([sys.executable, "-W", "error", str(script)], check=True, timeout=25)
        assert asyncio.run(app.queue_size()) == 30_000
    sweep: qnb.Sweep[Any] = app.sweep("cut off")
    if way == "by name":
        wait_until(lambda: sweep.snapshot().note.startswith("stored "), "its note")
    wait_until(lambda: asyncio.run(app.queue_size()) == 30_000, "all is stored", 25)
    wait_until(lambda: sweep.snapshot().whole, "it says so")
    assert len(sweep) == len({job.id for job in sweep}) == 30_000


def test_a_forgotten_sweep_leaves_nothing(serving: qnb.App, server_url: str, queue: str) -> None:
    import redis

    @serving.task
    def f(x: int) -> int:
        print(x)
        if x > 2:
            threading.Event().wait(0.05)
        return x

    f.options(name="gone").map(range(4)).wait(10)
    assert serving.forget("gone").result(10) is True
    assert serving.forget("gone").result(10) is False
    with redis.Redis.from_url(server_url) as link:
        left = [key for key in link.scan_iter(f"qnb:[{{]{queue}[}}]:*") if b":job:" in key
                or b":log:" in key or b":points:" in key or b":sweep:" in key]  # fmt: skip
        assert left == []
        assert link.zcard(f"qnb:{{{queue}}}:jobs") == 0
    with pytest.raises(qnb.UnknownSweep):
        serving.sweep("gone")
    assert f.options(name="gone").map([7]).wait(10).results() == [7]


def test_a_kernel_that_goes_away_is_not_needed(
    serving: qnb.App, server_url: str, queue: str
) -> None:
    """The jobs of a sweep that another process has started end without it."""
    code = CUT_OFF.replace("30_000", "200").replace(
        "while not 2_000 <= sweep._driver.feed.study.stored < 25_000:\n        pass",
        "sweep._driver.submitted.result()",
    )
    script = textwrap.dedent(code).format(url=server_url, queue=queue)
    subprocess.run([sys.executable, "-c", script], check=False, timeout=25, env=os.environ)
    assert serving.sweep("cut off").wait(20).results() == list(range(200))


STREAM = """
    import os, sys, time, qnb
    app = qnb.App({url!r}, {queue!r})

    @app.task
    def f(x: int) -> int:
        return x

    def points():
        for x in range(3000):
            if x == 700:
                print("slow", flush=True)
                sys.stdin.read()
            yield {{"x": x}}

    f.options(name="stream").sweep(points())
"""


def test_the_points_of_a_generator_are_stored_though_the_script_ends(
    app: qnb.App, server_url: str, queue: str
) -> None:
    script = textwrap.dedent(STREAM).format(url=server_url, queue=queue)
    subprocess.run([sys.executable, "-c", script], check=True, timeout=25, input="", text=True)
    assert asyncio.run(app.queue_size()) == 3000


def test_a_slow_generator_is_not_taken_for_a_dead_one(
    app: qnb.App, server_url: str, queue: str, wait_until: Wait
) -> None:
    from qnb.sweeps import driver

    script = textwrap.dedent(STREAM).format(url=server_url, queue=queue)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "slow\n"
    sweep = app.sweep("stream")
    until = time.monotonic() + driver.SILENT + 1.5
    wait_until(lambda: time.monotonic() > until, "it has been slow for long")
    assert "ended with its kernel" not in sweep.snapshot().note
    assert not sweep.snapshot().whole
    process.communicate("", timeout=25)
    wait_until(lambda: len(sweep) == 3000, "the rest has come")


def test_a_generator_may_use_one_dict_for_all_its_points(
    counted: Counted,
) -> None:
    f, runs = counted

    def points() -> Iterator[dict[str, int]]:
        row: dict[str, int] = {}
        for x in range(700):
            row["x"] = x
            yield row

    assert f.sweep(points()).wait(20).results() == [(x, 0) for x in range(700)]
    assert len(runs()) == 700


def test_a_function_of_any_number_of_arguments_is_mapped(serving: qnb.App) -> None:
    @serving.task
    def total(*xs: int) -> int:
        return sum(xs)

    sweep = total.map([1, 2], [3, 4]).wait(10)
    assert sweep.results() == [4, 6]
    assert sweep.frame()[["xs_0", "xs_1"]].values.tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("line", ["app.sweep('last').cancel()", "app.forget('last')"])
def test_a_command_may_be_the_last_line_of_a_script(
    app: qnb.App, server_url: str, queue: str, line: str
) -> None:
    @app.task
    def f(x: int) -> int:
        return x

    sweep = f.options(name="last").map(range(3))
    script = f"import qnb\napp = qnb.App({server_url!r}, {queue!r})\n{line}\n"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=25)
    if "forget" in line:
        with pytest.raises(qnb.UnknownSweep):
            app.sweep("last")
    else:
        assert sweep.wait(10).snapshot().counts["aborted"] == 3


def test_digests_that_a_stranger_has_swapped_mix_no_results(
    counted: Counted, server_url: str, queue: str
) -> None:
    import redis

    from qnb.storage.keys import KeySpace

    f, _ = counted
    f.options(name="scan").map([1, 2]).wait(10)
    *_, key = KeySpace(queue).study("scan")
    with redis.Redis.from_url(server_url) as link:
        said = bytes(link.get(key) or b"")
        link.set(key, said[16:32] + said[:16], keepttl=True)
    assert f.options(name="scan").map([1, 2, 3]).wait(10).results() == [(1, 0), (2, 0), (3, 0)]


def test_a_sweep_copied_under_another_name_is_refused(
    counted: Counted, app: qnb.App, server_url: str, queue: str
) -> None:
    import redis

    from qnb.storage.keys import KeySpace

    f, _ = counted
    f.options(name="mine").map([1]).wait(10)
    keys = KeySpace(queue)
    with redis.Redis.from_url(server_url) as link:
        for mine, theirs in zip(keys.study("mine"), keys.study("theirs"), strict=True):
            link.copy(mine, theirs)
        link.hset(keys.sweep("theirs"), "n", "theirs")
    with pytest.raises(qnb.SignatureError, match="signed for sweep 'mine', and is refused"):
        app.sweep("theirs")


def test_points_that_are_large_are_stored_in_more_parts(app: qnb.App) -> None:
    @app.task
    def f(x: str) -> int:
        return len(x)

    sweep = f.map([str(at) * 900_000 for at in range(10, 40)])
    assert len(app.sweep(sweep.name)) == 30
    sweep.cancel().result(20)
