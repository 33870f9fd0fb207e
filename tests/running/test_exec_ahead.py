"""Brief bodies are handed to a child while it runs another one: none of them can tell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qnb.running import processes
from qnb.running.body import SlotDied, Unbegun
from qnb.running.child import AHEAD
from qnb.running.executors import run_to_end


def step(ledger: str, name: str, seconds: float = 0.0) -> str:
    with Path(ledger).open("a") as out:
        out.write(f"{name}\n")
    time.sleep(seconds)
    return name


def dies(ledger: str, name: str) -> None:
    step(ledger, name)
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(ledger: str, name: str) -> None:
    step(ledger, name)
    subprocess.Popen(["sleep", "20"])


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def _begun(ledger: Path) -> Counter[str]:
    return Counter(ledger.read_text().split()) if ledger.exists() else Counter()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh child is waited for, however long it takes to start."""
    monkeypatch.setattr(processes, "HOLD", 20)


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in a child is left there, however long the body before it takes."""
    monkeypatch.setattr(processes, "OVERDUE", 20)


def _brief(bench: Any, *bodies: Callable[..., Any]) -> None:
    """Have it believed that these are."""
    for body in bodies * 60:
        bench.executor.pace.took(body.__name__, 0)


def _waiting(bench: Any) -> int:
    """How many bodies wait in children."""
    return sum(max(0, len(child.bodies) - 1) for child in bench.executor._crew.serving)


def test_a_busy_child_takes_as_many_brief_bodies_as_it_may_and_no_others(
    bench: Any, ledger: Path
) -> None:
    async def main() -> None:
        async with bench.processes():
            brief = bench.attempt(step, str(ledger), "x").spec
            running = bench.begin(time.sleep, 0.2)
            await asyncio.sleep(0)
            assert bench.executor.room(brief) == 0  # behind what may take long
            await running
            _brief(bench, step)
            running = bench.begin(step, str(ledger), "x")
            await asyncio.sleep(0)
            assert bench.executor.room(brief) == AHEAD - 1
            assert bench.executor.room() == 0
            assert bench.executor.room(bench.attempt(time.sleep, 0).spec) == 0
            assert bench.executor.room(bench.attempt(step, max_memory=1 << 30).spec) == 0
            await running

    asyncio.run(main())


def test_each_body_is_told_its_own_output_however_it_is_put_out(bench: Any) -> None:
    def says(word: str) -> None:
        print(word)
        os.write(1, f"{word}\n".encode())
        if word.endswith("0"):
            subprocess.run(["echo", word], check=True)
        if word.endswith("5"):
            print(word * 60_000)

    async def main() -> None:
        told: dict[str, list[Any]] = {f"w{n}": [] for n in range(60)}
        waited = 0
        async with bench.processes(2):
            _brief(bench, says)

            async def say(word: str) -> None:
                nonlocal waited
                waited = max(waited, _waiting(bench))
                await run_to_end(bench.executor, bench.attempt(says, word), told[word].append)

            words = list(told)
            for at in range(0, len(words), 12):
                await asyncio.gather(*map(say, words[at : at + 12]))
        assert waited > 2
        for word, pieces in told.items():
            text = "".join(pieces)
            assert text.startswith(f"{word}\n")
            assert set(text.replace(word, "").split()) == set()
            many = 60_000 if word.endswith("5") else 0
            assert text.count(word) == 2 + word.endswith("0") + many

    asyncio.run(main())


@pytest.mark.usefixtures("patient")
def test_what_waits_behind_a_body_that_takes_long_runs_elsewhere_once(
    bench: Any, ledger: Path
) -> None:
    async def main() -> None:
        async with bench.processes(2):
            await asyncio.gather(*(bench.run(step, str(ledger), "first") for _ in range(2)))
            _brief(bench, step)
            begun = time.monotonic()
            long = bench.begin(step, str(ledger), "long", 0.8)
            others = [bench.begin(step, str(ledger), f"n{n}") for n in range(AHEAD)]
            await asyncio.sleep(0)
            assert _waiting(bench) == AHEAD - 1
            await asyncio.gather(*others)
            assert time.monotonic() - begun < 0.7
            assert not long.done()
            await long
            assert _begun(ledger) == Counter(
                ["first", "first", "long", *(f"n{n}" for n in range(AHEAD))]
            )

    asyncio.run(main())


def test_what_finds_no_other_place_is_given_back_unbegun(
    bench: Any, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "HOLD", 0.05)

    async def main() -> None:
        async with bench.processes():
            _brief(bench, step)
            long = bench.begin(step, str(ledger), "long", 0.6)
            other = bench.begin(step, str(ledger), "other")
            with pytest.raises(Unbegun, match="waited"):
                await other
            assert not long.done()
            await long
            assert _begun(ledger) == Counter(["long"])
            assert await bench.value(step, str(ledger), "next") == "next"

    asyncio.run(main())


@pytest.mark.usefixtures("patient", "trusting")
def test_a_death_is_blamed_on_the_body_that_ran_and_the_others_run_elsewhere_once(
    bench: Any, ledger: Path
) -> None:
    async def main() -> None:
        async with bench.processes():
            _brief(bench, step, dies)
            first = [bench.begin(step, str(ledger), f"a{n}") for n in range(3)]
            killer = bench.begin(dies, str(ledger), "killer")
            last = [bench.begin(step, str(ledger), f"z{n}") for n in range(3)]
            await asyncio.sleep(0)
            assert _waiting(bench) == 6
            ends = await asyncio.gather(*first, killer, *last, return_exceptions=True)
            assert [type(end) for end in ends if isinstance(end, Exception)] == [SlotDied]
            assert isinstance(ends[3], SlotDied)
            assert set(_begun(ledger).values()) == {1}
            assert len(_begun(ledger)) == 7

    asyncio.run(main())


@pytest.mark.usefixtures("patient", "trusting")
def test_stopping_a_body_that_waits_or_runs_touches_no_other(bench: Any, ledger: Path) -> None:
    async def main() -> None:
        async with bench.processes():
            _brief(bench, step)
            runs = bench.begin(step, str(ledger), "runs", 20)
            waits = bench.begin(step, str(ledger), "waits")
            others = [bench.begin(step, str(ledger), f"n{n}") for n in range(3)]
            await asyncio.sleep(0)
            assert _waiting(bench) == 4
            waits.cancel()
            await asyncio.wait([waits], timeout=5)
            assert waits.cancelled()
            runs.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await runs
            await asyncio.gather(*others)
            begun = _begun(ledger)
            assert begun["waits"] == 0
            assert begun - Counter(["runs"]) == Counter(["n0", "n1", "n2"])

    asyncio.run(main())


@pytest.mark.usefixtures("patient", "trusting")
def test_a_child_that_must_be_ended_after_a_body_begins_no_other(bench: Any, ledger: Path) -> None:
    async def main() -> None:
        async with bench.processes():
            _brief(bench, step, leaves)
            bodies = [bench.begin(leaves, str(ledger), "leaves")]
            bodies += [bench.begin(step, str(ledger), f"n{n}") for n in range(4)]
            await asyncio.sleep(0)
            assert _waiting(bench) == 4
            ends = await asyncio.gather(*bodies)
            assert all(end.success for end in ends)
            pids = [end.worker for end in ends]
            assert len(set(pids)) == 2
            assert pids.count(pids[0]) == 1
            assert set(_begun(ledger).values()) == {1}

    asyncio.run(main())


def test_brief_bodies_do_not_keep_a_child_from_one_that_takes_long(
    bench: Any, ledger: Path
) -> None:
    async def main() -> None:
        async with bench.processes():
            _brief(bench, step)
            long, short = bench.attempt(time.sleep, 0).spec, bench.attempt(step).spec

            running = bench.begin(step, str(ledger), "asked", 0.1)
            await asyncio.sleep(0)
            assert bench.executor.room(short) == AHEAD - 1
            assert bench.executor.room(long) == 0
            assert bench.executor.room(short) == 0  # until a child has been at rest
            await running
            _brief(bench, step)
            running = bench.begin(step, str(ledger), "runs", 0.1)
            await asyncio.sleep(0)
            assert bench.executor.room(short) == AHEAD - 1

            waits = bench.begin(time.sleep, 0)
            later = bench.begin(step, str(ledger), "later")
            await asyncio.sleep(0)
            assert _waiting(bench) == 0
            await asyncio.gather(running, waits, later)

    asyncio.run(main())


def test_what_a_lifespan_has_begun_goes_on_between_brief_bodies(bench: Any, ledger: Path) -> None:
    async def counting() -> Any:
        async def count() -> None:
            while True:
                await asyncio.sleep(0.01)
                step(str(ledger), "tick")

        task = asyncio.ensure_future(count())
        yield {}
        task.cancel()

    def nothing() -> None:
        return None

    bench.registry.lifespan = counting

    async def main() -> None:
        async with bench.processes():
            _brief(bench, nothing)
            await bench.run(nothing)
            _brief(bench, nothing)
            end, before = time.monotonic() + 0.5, _begun(ledger)["tick"]

            async def one_after_the_other() -> None:
                while time.monotonic() < end:
                    await bench.run(nothing)

            await asyncio.gather(*(one_after_the_other() for _ in range(AHEAD)))
            assert _begun(ledger)["tick"] - before > 5

    asyncio.run(main())
