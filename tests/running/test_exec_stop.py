"""Stop means stopped: whatever a body does, it and its processes are gone, and its slot is free."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from qnb.running.executors import SlotDied, SlotLost

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
        assert isinstance(ended[0], SlotLost)
        assert set(psutil.Process().children()) <= set(before)

    asyncio.run(main())
