"""Stop means stopped: whatever a body does, it and its processes are gone, and its slot is free."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from qnb.running.executors import SlotDied, SlotLost, run_to_end

Until = Callable[..., Awaitable[Any]]


def _here(path: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")


def loop(path: str) -> None:
    _here(path)
    while True:
        pass


def c_extension(path: str) -> None:
    import ctypes

    _here(path)
    ctypes.PyDLL(None).sleep(20)  # holds the GIL


def swallows(path: str) -> None:
    _here(path)
    while True:
        try:
            time.sleep(20)
        except BaseException:  # noqa: BLE001, S112 - that is the point
            continue


def masks_signals(path: str) -> None:
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _here(path)
    time.sleep(20)


def has_a_subprocess(path: str) -> None:
    import subprocess

    child = subprocess.Popen(["sleep", "20"])
    Path(path).write_text(f"{child.pid}\n")
    _here(path)
    child.wait()


def has_a_daemon(path: str) -> None:
    import subprocess

    # its parent, a shell, is gone: an orphan in a session of its own
    subprocess.run(["sh", "-c", f"sleep 20 & echo $! > {path}"], start_new_session=True, check=True)
    _here(path)
    time.sleep(20)


def forks(path: str) -> None:
    if os.fork() == 0:
        os.setsid()
        _here(path)
        time.sleep(20)
    _here(path)
    time.sleep(20)


def has_threads(path: str) -> None:
    import threading

    for _ in range(4):
        threading.Thread(target=time.sleep, args=(20,)).start()
    _here(path)
    while True:
        pass


async def never_yields(path: str) -> None:
    _here(path)
    while True:
        pass


async def swallows_cancellation(path: str) -> None:
    _here(path)
    while True:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            continue


HOSTILE = [
    loop, c_extension, swallows, masks_signals, has_a_subprocess, has_a_daemon, forks, has_threads,
    never_yields, swallows_cancellation,
]  # fmt: skip
TWO = ("has_a_subprocess", "has_a_daemon", "forks")


def same(x: int) -> int:
    return x


async def asame(x: int) -> int:
    return x


def pid() -> int:
    return os.getpid()


def _alive(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: body.__name__)
def test_a_cancelled_body_is_gone_and_its_slot_free_within_a_second(
    bench: Any, body: Callable[[str], Any], tmp_path: Path, until: Until
) -> None:
    path = tmp_path / "pids"
    wanted = 2 if body.__name__ in TWO else 1

    async def main() -> None:
        async with bench.processes():
            running = bench.begin(body, str(path))

            async def started() -> bool:
                return path.exists() and len(path.read_text().split()) == wanted

            await until(started, "the body runs")
            begun = time.monotonic()
            running.cancel()
            await asyncio.wait([running])
            assert running.cancelled()
            assert not [one for one in path.read_text().split() if _alive(int(one))]
            assert await bench.value(same, 1) == 1
            assert time.monotonic() - begun < 1

    asyncio.run(main())


def test_a_shared_body_that_yields_is_cancelled_and_its_neighbours_go_on(bench: Any) -> None:
    async def neighbour() -> int:
        await asyncio.sleep(0.3)
        return os.getpid()

    async def patient() -> None:
        print("begun", flush=True)
        await asyncio.sleep(20)

    async def main() -> None:
        async with bench.processes():
            other = asyncio.ensure_future(bench.value(neighbour))
            running = bench.begin(patient)
            await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait([running])
            assert running.cancelled()
            assert await other == await bench.value(pid)

    asyncio.run(main())


def test_neighbours_of_a_body_that_does_not_yield_are_lost_and_not_blamed(
    bench: Any, tmp_path: Path, until: Until
) -> None:
    async def neighbour() -> None:
        await asyncio.sleep(20)

    async def main() -> None:
        async with bench.processes():
            others = [bench.begin(neighbour) for _ in range(2)]
            running = bench.begin(never_yields, str(tmp_path / "pid"))

            async def started() -> bool:
                return (tmp_path / "pid").exists()

            await until(started, "the body runs")
            begun = time.monotonic()
            running.cancel()
            ends = await asyncio.gather(running, *others, return_exceptions=True)
            assert [type(end) for end in ends] == [asyncio.CancelledError, SlotLost, SlotLost]
            assert time.monotonic() - begun < 1
            assert await bench.value(same, 2) == 2

    asyncio.run(main())


def test_what_a_body_leaves_running_ends_with_it(bench: Any, tmp_path: Path) -> None:
    def leaves(path: str) -> int:
        import subprocess

        child = subprocess.Popen(["sleep", "20"], start_new_session=True)
        Path(path).write_text(str(child.pid))
        return os.getpid()

    def leaves_a_thread() -> int:
        import threading

        threading.Thread(target=time.sleep, args=(20,)).start()
        return os.getpid()

    async def main() -> None:
        async with bench.processes():
            first = await bench.value(leaves, str(tmp_path / "pid"))
            assert not _alive(int((tmp_path / "pid").read_text()))
            second = await bench.value(leaves_a_thread)
            third = await bench.value(pid)
            assert len({first, second, third}) == 3
            assert not _alive(first)
            assert not _alive(second)
            assert await bench.value(pid) == third  # and it stays

    asyncio.run(main())


def test_a_body_that_ends_its_process_is_told_with_signal_pid_and_last_lines(bench: Any) -> None:
    def crashes() -> None:
        for line in range(30):
            print("line", line)
        os.write(2, b"out of luck\n")
        os.kill(os.getpid(), 11)

    def exits() -> None:
        os._exit(7)

    async def main() -> None:
        async with bench.processes():
            before = await bench.value(pid)
            with pytest.raises(SlotDied) as death:
                await bench.run(crashes)
            said = str(death.value)
            assert f"process {before} was ended by signal SIGSEGV" in said
            assert said.endswith("line 29\nout of luck")
            assert len(said.splitlines()) == 10
            with pytest.raises(SlotDied, match=r"exited with status 7$"):
                await bench.run(exits)
            assert await bench.value(same, 3) == 3

    asyncio.run(main())


def test_what_a_crashed_body_had_started_is_ended(bench: Any, tmp_path: Path) -> None:
    def crashes(path: str) -> None:
        import subprocess

        child = subprocess.Popen(["sleep", "20"], start_new_session=True)
        Path(path).write_text(str(child.pid))
        os._exit(1)

    async def main() -> None:
        async with bench.processes():
            with pytest.raises(SlotDied):
                await bench.run(crashes, str(tmp_path / "pid"))
            assert not _alive(int((tmp_path / "pid").read_text()))

    asyncio.run(main())


def test_an_idle_child_that_dies_is_replaced_at_once(bench: Any, until: Until) -> None:
    async def main() -> None:
        async with bench.processes():
            before = await bench.value(pid)
            rooms: list[int] = []
            bench.executor.on_room = lambda: rooms.append(bench.executor.room())
            os.kill(before, 9)

            async def replaced() -> bool:
                return rooms == [1]

            await until(replaced, "its place is taken, and that is told", limit=2)
            assert await bench.value(pid) != before

    asyncio.run(main())


def test_closing_ends_what_runs_and_leaves_no_process(bench: Any, until: Until) -> None:
    before = psutil.Process().children()

    async def main() -> None:
        async with bench.processes(2):
            running = bench.begin(time.sleep, 20)

            async def taken() -> bool:
                return bench.executor.room() == 1

            await until(taken, "it runs")
        ended = await asyncio.gather(running, return_exceptions=True)
        assert isinstance(ended[0], asyncio.CancelledError)
        assert set(psutil.Process().children()) <= set(before)

    asyncio.run(main())


def test_who_shared_a_process_that_died_runs_alone_next_and_only_the_killer_is_blamed(
    bench: Any,
) -> None:
    async def neighbour() -> int:
        await asyncio.sleep(0.05)
        return os.getpid()

    async def kills() -> None:
        await asyncio.sleep(0.02)
        os._exit(7)

    async def main() -> None:
        async with bench.processes():
            attempts = [bench.attempt(fn) for fn in (kills, neighbour, neighbour)]

            async def each() -> list[Any]:
                running = (run_to_end(bench.executor, one, bench.news.append) for one in attempts)
                return await asyncio.gather(*running, return_exceptions=True)

            ends = await each()
            assert [type(end) for end in ends] == [SlotLost] * 3
            assert "3 jobs shared it; each runs alone next" in str(ends[0])
            killer, *others = await each()
            assert isinstance(killer, SlotDied)
            assert all(end.success for end in others)
            assert bench.executor._crew.early == 0  # its replacement does not wait
            assert bench.executor.room(attempts[1].spec) == 4  # they may share again

    asyncio.run(main())


@pytest.mark.parametrize("alone", [False, True])
def test_an_exit_in_a_task_of_a_body_does_not_end_the_process_of_others(
    bench: Any, alone: bool
) -> None:
    async def exits() -> int:
        async def inner() -> None:
            raise SystemExit(2)

        task = asyncio.create_task(inner())
        await asyncio.sleep(0.05)
        return task.done() and os.getpid()

    async def main() -> None:
        async with bench.processes():
            isolation = "process" if alone else None
            assert await bench.value(exits, isolation=isolation) == await bench.value(pid)

    asyncio.run(main())


@pytest.mark.parametrize("alone", [False, True])
def test_tasks_that_a_coroutine_leaves_end_with_it_and_the_lifespans_go_on(
    bench: Any, alone: bool
) -> None:
    async def lifespan() -> AsyncIterator[dict[str, Any]]:
        ticker = asyncio.create_task(asyncio.sleep(20))
        yield {"ticker": ticker}

    async def leaves(queue: str) -> tuple[int, bool]:
        from qnb.registry import serving

        before = len(asyncio.all_tasks())
        asyncio.create_task(asyncio.sleep(20))  # noqa: RUF006 - forgotten by intention
        return before, serving[queue].state.ticker.done()

    async def main() -> None:
        bench.registry.lifespan = lifespan
        async with bench.processes():
            isolation = "process" if alone else None
            told = [
                await bench.value(leaves, bench.options.queue_name, isolation=isolation)
                for _ in range(3)
            ]
            assert told == [(told[0][0], False)] * 3

    asyncio.run(main())


def test_a_body_finishes_although_its_process_gets_the_supervisors_signals(bench: Any) -> None:
    def body() -> list[int]:
        import multiprocessing
        import signal
        import subprocess

        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        ended = []
        for number in (signal.SIGTERM, signal.SIGINT):  # what it starts obeys them
            child = subprocess.Popen(["sleep", "20"])
            child.send_signal(number)
            ended.append(child.wait(5))
        forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
        forked.start()
        forked.terminate()
        forked.join(5)
        return [*ended, forked.exitcode or 0]

    async def main() -> None:
        async with bench.processes():
            assert await bench.value(body) == [-15, -2, -15]

    asyncio.run(main())


def test_a_process_that_closes_all_it_has_before_it_exits_is_told_with_its_status(
    bench: Any,
) -> None:
    def closes() -> None:
        os.closerange(3, 100)
        time.sleep(0.1)
        os._exit(7)

    async def main() -> None:
        async with bench.processes():
            with pytest.raises(SlotDied, match="exited with status 7"):
                await bench.run(closes)

    asyncio.run(main())


def test_an_orphan_without_any_mark_ends_with_the_process_that_started_it(
    bench: Any, tmp_path: Path
) -> None:
    script = tmp_path / "supervisor.py"
    script.write_text(
        "import asyncio, os, subprocess, sys\n"
        "sys.path.insert(0, os.getcwd())\n"
        "from tests.running.conftest import Bench\n"
        "from qnb.running.executors import SlotDied\n"
        "from qnb.running.trees import adopt_orphans\n"
        "def crashes():\n"
        "    child = subprocess.Popen(['sleep', '20'], env={}, start_new_session=True)\n"
        "    print(child.pid, flush=True)\n"
        "    os._exit(1)\n"
        "async def main():\n"
        "    mine = subprocess.Popen(['sleep', '20'])\n"
        "    bench = Bench(sys.argv[1]).processes()\n"
        "    bench.executor._adopts = adopt_orphans()\n"
        "    async with bench:\n"
        "        try: await bench.run(crashes)\n"
        "        except SlotDied: pass\n"
        "    print(bench.output.strip(), mine.poll())\n"
        "    mine.kill(); mine.wait()\n"
        "asyncio.run(main())\n"
    )
    ran = subprocess.run(
        [sys.executable, script, bench.options.queue_name], capture_output=True, text=True,
        check=True, timeout=20,
    )  # fmt: skip
    orphan, mine = ran.stdout.split()
    assert mine == "None"
    assert not _alive(int(orphan))
