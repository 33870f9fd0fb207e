"""What a body prints, logs and reports arrives with its job, while it runs."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import qnb
from qnb.models import Report
from qnb.running.capture import Ring
from qnb.running.executors import run_to_end
from qnb.running.progress import progress, report

Until = Callable[..., Awaitable[Any]]
WHERE = ["processes", "inline"]


def speaks() -> None:
    import ctypes
    import logging
    import subprocess
    import threading

    print("printed é")
    os.write(1, b"written\n")
    print("to stderr", file=sys.stderr)
    logging.getLogger("mine").info("logged %d", 1)
    thread = threading.Thread(target=print, args=("from a thread",))
    thread.start()
    thread.join()
    subprocess.run(["echo", "from a subprocess"], check=True)
    ctypes.CDLL(None).puts(b"from C")


def test_all_that_a_body_of_a_child_puts_out_is_captured(bench: Any) -> None:
    async def main() -> None:
        async with bench.processes():
            assert (await bench.run(speaks)).success
            lines = bench.output.splitlines()
            assert sorted(lines) == sorted(
                [
                    "printed é", "written", "to stderr", "INFO mine: logged 1", "from a thread",
                    "from a subprocess", "from C",
                ]
            )  # fmt: skip

    asyncio.run(main())


def test_output_is_told_apart_by_job_and_complete_at_its_end(bench: Any) -> None:
    def says(word: str) -> None:
        print(*[word] * 100, sep="\n")

    async def main() -> None:
        async with bench.processes(2):
            for _ in range(5):
                told: dict[str, list[Any]] = {"a": [], "b": []}
                await asyncio.gather(
                    *(
                        run_to_end(bench.executor, bench.attempt(says, w), told[w].append)
                        for w in told
                    )
                )
                assert {w: "".join(told[w]) for w in told} == {w: f"{w}\n" * 100 for w in told}

    asyncio.run(main())


@pytest.mark.parametrize("where", WHERE)
def test_bodies_that_share_a_process_are_told_apart(bench: Any, where: str) -> None:
    async def says(word: str) -> None:
        import logging

        for _ in range(10):
            print(word)
            await asyncio.sleep(0.001)
        await asyncio.to_thread(print, word)
        logging.getLogger("mine").warning(word)

    def threaded(word: str) -> None:
        print(word)

    async def main() -> None:
        async with getattr(bench, where)():
            told: dict[str, list[Any]] = {"a": [], "b": [], "t": []}
            await asyncio.gather(
                *(run_to_end(bench.executor, bench.attempt(says, w), told[w].append) for w in "ab"),
                run_to_end(
                    bench.executor,
                    bench.attempt(threaded, "t", isolation="thread"),
                    told["t"].append,
                ),
            )
            for word in "ab":
                assert "".join(told[word]) == f"{word}\n" * 11 + f"WARNING mine: {word}\n"
            assert told["t"] == ["t\n"]

    streams = sys.stdout, sys.stderr
    asyncio.run(main())
    assert (sys.stdout, sys.stderr) == streams


def test_in_your_own_process_it_is_shown_as_well(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with bench.inline():
            await bench.run(print, "here too")

    asyncio.run(main())
    assert capsys.readouterr().out == "here too\n"
    assert bench.output == "here too\n"


@pytest.mark.parametrize("where", WHERE)
def test_output_and_reports_arrive_while_the_body_runs(
    bench: Any, where: str, tmp_path: Path, until: Until
) -> None:
    def waits(path: str) -> None:
        print("begun")
        report(1, 4, "half way", loss=0.5)
        report(2, 4, "half way", loss=0.25)  # too soon after the first, and yet it arrives
        while not Path(path).exists():
            time.sleep(0.01)
        report(3)
        report(4)

    async def main() -> None:
        async with getattr(bench, where)():
            running = bench.begin(waits, str(tmp_path / "go"))

            async def heard() -> bool:
                return bench.output == "begun\n" and len(bench.reports) == 2

            await until(heard, "output and reports are here")
            assert bench.reports[-1] == Report(2, 4, "half way", {"loss": 0.25})
            (tmp_path / "go").touch()
            assert (await running).success
            assert bench.reports[-1] == Report(4)

    asyncio.run(main())


def test_a_flood_neither_blocks_nor_fills_memory(bench: Any) -> None:
    def floods() -> None:
        for n in range(200_000):
            print(f"{n:08d}", "x" * 90)

    async def main() -> None:
        async with bench.processes():
            begun = time.monotonic()
            assert (await bench.run(floods)).success
            assert time.monotonic() - begun < 5
            assert bench.output.startswith("00000000 ")
            assert "00199999 " in bench.output[-200:]

    asyncio.run(main())


def test_a_ring_keeps_both_ends_and_says_what_it_dropped() -> None:
    ring = Ring(limit=100)
    for n in range(100):
        ring.put(f"{n:09d}\n".encode())
    text = ring.take()
    assert text.startswith("000000000\n")
    assert text.endswith("000000099\n")
    assert "[… 900 bytes of output dropped …]" in text
    ring.put("é".encode()[:1])
    ring.put("é".encode()[1:])
    assert ring.take(final=True) == "é"


@pytest.mark.parametrize("where", WHERE)
def test_progress_is_a_tqdm(bench: Any, where: str) -> None:
    def works() -> list[int]:
        with progress(total=10, desc="warm up", unit="it", leave=False) as bar:
            bar.update(4)
            bar.set_postfix(loss=0.5, name="x")
            bar.set_description("later")
            bar.update(6)
            assert (bar.n, bar.total) == (10, 10)
        return list(progress(range(3), desc="items"))

    async def main() -> None:
        async with getattr(bench, where)():
            assert await bench.value(works) == [0, 1, 2]
            assert bench.reports[0] == Report(0, 10, "warm up")
            assert bench.reports[-1] == Report(3, 3, "items")

    asyncio.run(main())


def test_outside_of_a_task_progress_counts_and_report_is_refused() -> None:
    assert list(progress([1, 2])) == [1, 2]
    with pytest.raises(qnb.QnbError, match=r"report\(\) was called outside of a task"):
        report(1)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: report("1"), "done='1'"),  # type: ignore[arg-type]
        (lambda: report(float("nan")), "done=nan"),
        (lambda: report(1, True), "total=True"),
        (lambda: report(1, message=3), "message=3"),  # type: ignore[arg-type]
        (lambda: report(1, loss=[1]), "loss="),  # type: ignore[arg-type]
        (lambda: progress(total="many"), "total='many'"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_report_is_refused_where_it_is_made(call: Callable[[], Any], said: str) -> None:
    from qnb.models import TaskContext
    from qnb.running.context import Reporter, Running, running_as

    body = Running(TaskContext("id", "name", 1), Reporter(lambda _: None))
    with running_as(body), pytest.raises(qnb.errors.InvalidOption) as refused:
        call()
    assert said in str(refused.value)


def test_the_users_own_tqdm_reports_too(bench: Any) -> None:
    pytest.importorskip("tqdm")

    def works() -> int:
        from tqdm.auto import tqdm

        for _ in tqdm(range(5), desc="outer"):
            for _ in tqdm(range(2), leave=False):
                time.sleep(0.03)
        return 5

    async def main() -> None:
        async with bench.processes():
            assert await bench.value(works) == 5
            assert bench.reports[-1] == Report(5, 5, "outer")
            assert {told.message for told in bench.reports} == {"outer"}
            assert len(bench.reports) > 2

    asyncio.run(main())


@pytest.mark.parametrize("where", WHERE)
def test_a_body_knows_its_job_in_its_threads_too(bench: Any, where: str) -> None:
    def knows() -> tuple[str, int]:
        return qnb.current_task().name, qnb.current_task().tries

    def in_a_thread() -> str:
        import threading

        seen = []
        thread = threading.Thread(target=lambda: seen.append(qnb.current_task().name))
        thread.start()
        thread.join()
        return seen[0]

    async def main() -> None:
        async with getattr(bench, where)():
            assert await bench.value(knows, tries=3) == ("knows", 3)
            if where == "processes":
                assert await bench.value(in_a_thread) == "in_a_thread"

    asyncio.run(main())


@pytest.mark.parametrize("where", ["inline", "processes"])
def test_whatever_a_bar_counts_in_is_told_as_plain_numbers_and_text(bench: Any, where: str) -> None:
    def counts() -> None:
        import time

        import numpy as np
        from tqdm import tqdm

        bar = progress(total=np.int64(3))
        bar.set_postfix({1: np.float32(0.5), "\ud800": 10**400, "odd": [1]}, refresh=False)
        bar.update(np.int64(2))
        bar.reset(np.int64(4))
        bar.close()
        time.sleep(0.3)  # what is held back is sent by then
        with Path(os.devnull).open("w") as null:
            for _ in tqdm(range(2), total=np.int64(2), mininterval=0, file=null):
                pass
        time.sleep(0.3)
        report(np.int64(1), np.float64(2), loss=np.float32(1))

    async def main() -> None:
        async with getattr(bench, where)():
            assert (await bench.run(counts)).success

    asyncio.run(main())
    told = [
        each
        for one in bench.reports
        for each in (one.done, one.total, *one.metrics, *one.metrics.values())
    ]
    assert {type(each) for each in told} <= {int, float, str, type(None)}
    assert any(one.metrics.get("1") == 0.5 and one.metrics["odd"] == "[1]" for one in bench.reports)
    assert any(one.total == 2 and one.done == 2 for one in bench.reports)  # tqdm's
    assert (bench.reports[-1].done, bench.reports[-1].metrics) == (1, {"loss": 1.0})
