"""Children of a worker: reused, replaced, limited; the app's lifespan and hooks run in them."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from qnb.errors import QnbError, Retry
from qnb.models import Ending, ErrorContext
from qnb.running import crew, spawned

Until = Callable[..., Awaitable[Any]]


def pid() -> int:
    return os.getpid()


def fails() -> None:
    raise ValueError("no")


async def apid() -> int:
    await asyncio.sleep(0.02)
    return os.getpid()


def test_a_child_is_warm_and_reused(bench: Any) -> None:
    async def main() -> None:
        async with bench.processes():
            assert len({await bench.value(pid) for _ in range(5)}) == 1

    asyncio.run(main())


def test_each_sync_body_has_a_child_and_async_ones_share_one(bench: Any) -> None:
    def slow() -> int:
        time.sleep(0.2)
        return os.getpid()

    async def main() -> None:
        async with bench.processes(2):
            assert bench.executor.room() == 2
            assert bench.executor.room(bench.attempt(apid).spec) == 8  # concurrency is 4
            assert len(set(await asyncio.gather(*(bench.value(slow) for _ in range(2))))) == 2
            bench.executor.pace.took(apid.__name__, 1)  # it is known not to block others
            running = [asyncio.ensure_future(bench.value(apid)) for _ in range(3)]
            await asyncio.sleep(0)
            assert bench.executor.room() == 1
            assert bench.executor.room(running and bench.attempt(apid).spec) == 5
            assert len(set(await asyncio.gather(*running))) == 1
            assert bench.executor.room() == 2

    asyncio.run(main())


def test_isolation_puts_a_body_beside_others_or_alone(bench: Any) -> None:
    def threaded() -> tuple[int, bool]:
        import threading

        time.sleep(0.1)
        return os.getpid(), threading.current_thread() is threading.main_thread()

    async def main() -> None:
        async with bench.processes():
            running = [bench.value(threaded, isolation="thread") for _ in range(3)]
            begun = time.monotonic()
            assert {main for _, main in await asyncio.gather(*running)} == {False}
            assert time.monotonic() - begun < 0.3
            assert (await bench.value(threaded, isolation="loop"))[1]
            assert bench.executor.room(bench.attempt(apid, isolation="process").spec) == 1

    asyncio.run(main())


def test_a_sync_body_is_a_program_of_its_own(bench: Any) -> None:
    def program() -> str:
        import signal

        async def inner() -> str:
            await asyncio.sleep(0)
            return "done"

        seen = []
        signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
        os.kill(os.getpid(), signal.SIGUSR1)
        return asyncio.run(inner()) + str(seen)

    async def main() -> None:
        async with bench.processes():
            assert await bench.value(program) == "done[1]"
            assert await bench.value(program) == "done[1]"

    asyncio.run(main())


def test_numerical_libraries_get_the_threads_of_their_slot(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"]
    for name in [*names, "MKL_NUM_THREADS"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")

    def told(name: str) -> str | None:
        return os.environ.get(name)

    async def main() -> None:
        async with bench.processes():
            each = str(len(os.sched_getaffinity(0)))
            assert [await bench.value(told, name) for name in names] == [each] * 3
            assert await bench.value(told, "MKL_NUM_THREADS") == "7"  # the user's word
        assert spawned.environment(None, 4096)["OMP_NUM_THREADS"] == "1"

    asyncio.run(main())


def test_a_child_is_replaced_after_so_many_bodies(
    bench: Any, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    monkeypatch.setattr(crew, "RECYCLE", 3)

    async def main() -> None:
        async with bench.processes():
            first = await bench.value(pid)

            async def another() -> bool:
                return bool(await bench.value(pid) != first)

            await until(another, "a fresh child serves")

            async def gone() -> bool:
                return not psutil.pid_exists(first)

            await until(gone, "the worn one has left")

    asyncio.run(main())


def test_a_child_that_keeps_too_much_memory_is_replaced(bench: Any, until: Until) -> None:
    def hoards() -> int:
        import builtins

        builtins.hoard = bytearray(150_000_000)  # type: ignore[attr-defined]
        return os.getpid()

    async def main() -> None:
        async with bench.processes(max_memory=150_000_000):
            before = await bench.value(pid)
            assert await bench.value(hoards) == before

            async def another() -> bool:
                return bool(await bench.value(pid) != before)

            await until(another, "a fresh child serves")

    asyncio.run(main())


def test_over_its_max_memory_a_job_fails_naming_both_figures(bench: Any) -> None:
    def grows() -> None:
        import subprocess

        code = "import time; kept = bytearray(300_000_000); time.sleep(20)"
        subprocess.run([sys.executable, "-c", code], check=True)

    async def main() -> None:
        async with bench.processes():
            outcome = await bench.run(grows, max_memory=200_000_000, max_retries=1)
            assert (outcome.ending, outcome.retry_in_ms) == (Ending.FAILED, 0)
            assert outcome.failure.type == "MemoryLimitExceeded"
            assert "max_memory is 200,000,000" in outcome.failure.message
            assert outcome.peak_memory > 200_000_000
            assert f"held {outcome.peak_memory:,} bytes" in outcome.failure.message
            assert await bench.value(pid, max_memory=10**9)

    asyncio.run(main())


def test_each_attempt_is_measured(bench: Any) -> None:
    def takes() -> int:
        kept = bytearray(200_000_000)
        begun = time.process_time()
        while time.process_time() - begun < 0.1:
            pass
        return len(kept)

    def brief() -> None:
        time.sleep(0.01)

    async def main() -> None:
        async with bench.processes():
            here = await bench.value(pid)
            outcome = await bench.run(takes)
            assert outcome.peak_memory > 200_000_000
            assert 100_000 <= outcome.cpu_time_us < 2_000_000
            assert outcome.worker == f"{socket.gethostname()}:{here}"
            later = await bench.run(brief)
            assert later.peak_memory < 150_000_000  # its own, not the highest ever
            assert later.cpu_time_us < 50_000

    asyncio.run(main())


def test_the_lifespan_runs_in_each_child_around_its_jobs(bench: Any, tmp_path: Path) -> None:
    ledger = str(tmp_path / "ledger")

    def note(word: str) -> None:
        with Path(ledger).open("a") as file:
            file.write(f"{word} {os.getpid()}\n")

    async def lifespan() -> AsyncIterator[dict[str, int]]:
        note("up")
        yield {"answer": 42, "home": os.getpid()}
        note("down")

    def reads(queue: str) -> tuple[int, bool]:
        from qnb.registry import serving

        state = serving[queue].state
        return state.answer, state.home == os.getpid()

    async def main() -> None:
        bench.registry.lifespan = lifespan
        async with bench.processes(2):
            assert await bench.value(reads, bench.options.queue_name) == (42, True)

    asyncio.run(main())
    lines = Path(ledger).read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == ["down", "down", "up", "up"]
    assert len(set(lines)) == 4


def _wrong_shapes() -> dict[str, tuple[Any, str]]:
    async def raises() -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    async def never() -> AsyncIterator[None]:
        for _ in ():
            yield

    async def a_list() -> AsyncIterator[list[int]]:
        yield [1]

    def plain() -> None:
        return

    return {
        "raises": (raises, "RuntimeError: no database"),
        "never": (never, "without a yield"),
        "list": (a_list, r"yielded \[1\]: expected a mapping"),
        "plain": (plain, "expects an async generator function"),
    }


@pytest.mark.parametrize("shape", _wrong_shapes())
@pytest.mark.parametrize("where", ["processes", "inline"])
def test_a_lifespan_that_fails_is_told_by_the_start(bench: Any, shape: str, where: str) -> None:
    bench.registry.lifespan, said = _wrong_shapes()[shape]
    before = psutil.Process().children()

    async def main() -> None:
        with pytest.raises((QnbError, RuntimeError), match=said.rpartition(": ")[2]):
            async with getattr(bench, where)():
                pass
        assert set(psutil.Process().children()) <= set(before)

    asyncio.run(main())


def test_hooks_are_told_where_the_body_ran(bench: Any, tmp_path: Path) -> None:
    ledger = str(tmp_path / "ledger")

    def write(failure: ErrorContext) -> None:
        with Path(ledger).open("a") as file:
            said = (failure.name, type(failure.exc).__name__, failure.tries, failure.will_retry)
            file.write(f"{os.getpid()} {said}\n")

    def hook(failure: ErrorContext) -> None:
        write(failure)
        raise RuntimeError("a broken hook changes nothing")

    async def ahook(failure: ErrorContext) -> None:
        await asyncio.sleep(0)
        write(failure)

    def again() -> None:
        raise Retry("later", delay_ms=5)

    async def afails() -> None:
        fails()

    async def main() -> int:
        bench.registry.add_error_hook(hook)
        bench.registry.add_error_hook(ahook)
        async with bench.processes():
            child: int = await bench.value(pid)
            assert (await bench.run(fails, max_retries=1)).retry_in_ms == 0
            assert not (await bench.run(afails, tries=2)).success
            assert (await bench.run(again, max_retries=1)).retry_in_ms == 5
            assert (await bench.run(again)).retry_in_ms is None
            attempt = bench.attempt(fails)
            await bench.executor.report_failure(
                attempt, "TimeoutError", "too long", will_retry=True
            )
            return child

    child = asyncio.run(main())
    expected = [
        ("fails", "ValueError", 1, True),
        ("afails", "ValueError", 2, False),
        ("again", "Retry", 1, False),
        ("fails", "TimeoutError", 1, True),
    ]
    lines = Path(ledger).read_text().splitlines()
    assert lines == [f"{child} {said}" for said in expected for _ in range(2)]
    assert "a broken hook changes nothing" in bench.output


def test_a_serializer_that_children_cannot_import_is_refused(bench: Any) -> None:
    from qnb.options import AppOptions

    bench.options = AppOptions(
        queue_name=bench.options.queue_name, serializer=lambda _: b"", deserializer=lambda _: None
    )

    async def main() -> None:
        with pytest.raises(QnbError, match="move it into an installed module"):
            async with bench.processes():
                pass

    asyncio.run(main())


def test_more_functions_than_a_child_keeps_are_sent_again(bench: Any) -> None:
    def made(n: int) -> Callable[[], int]:
        return lambda: n

    async def main() -> None:
        async with bench.processes():
            functions = [made(n) for n in range(150)]
            for _ in range(2):
                assert [await bench.value(fn) for fn in functions] == list(range(150))

    asyncio.run(main())


def test_what_a_body_changes_of_its_process_is_put_back_for_the_next(
    bench: Any, tmp_path: Path
) -> None:
    def changes(folder: str) -> None:
        import signal

        os.chdir(folder)
        os.umask(0)
        signal.alarm(1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    async def achanges(folder: str) -> None:
        changes(folder)
        del sys.stdout

    def finds() -> tuple[Any, ...]:
        import signal

        mask = os.umask(0)
        os.umask(mask)
        print("heard")
        os.kill(os.getpid(), signal.SIGTERM)
        return os.getpid(), str(Path.cwd()), mask, signal.alarm(0)

    async def main() -> None:
        async with bench.processes():
            before = await bench.value(finds)
            for fn in (changes, achanges):
                await bench.run(fn, str(tmp_path))
                assert await bench.value(finds) == before
        assert bench.output == "heard\n" * 3

    asyncio.run(main())


@pytest.mark.parametrize("how", ["os.close(1); os.close(2)", "sys.stdout.close()"])
@pytest.mark.parametrize("isolation", [None, "thread"])
def test_a_body_that_closes_its_output_breaks_no_later_one(
    bench: Any, how: str, isolation: str | None
) -> None:
    def closes(code: str) -> int:
        exec(code, {"os": os, "sys": sys})  # noqa: S102 - the test's own text
        return os.getpid()

    def prints() -> int:
        print("heard", flush=True)
        return os.getpid()

    async def main() -> None:
        async with bench.processes():
            first = await bench.value(closes, how, isolation=isolation)
            assert await bench.value(prints) != first
        assert bench.output == "heard\n"

    asyncio.run(main())


def test_children_that_end_while_they_start_are_told_at_once(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")

    async def main() -> None:
        begun = time.monotonic()
        with pytest.raises(QnbError, match=r"did not start: process .* exited with status 1"):
            async with bench.processes(8):
                pass
        assert time.monotonic() - begun < 3

    asyncio.run(main())
