"""Story B: the kernel is killed in the middle of a sweep; another kernel comes back to it."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.notebook.kernels import Kernels

Wait = Callable[..., Any]

FIRST = """
    import os, time, qnb
    app = qnb.App({url!r}, {queue!r})
    pool = app.start_workers(2, linger="30 s")

    def note(word, x):
        with open({ledger!r}, "a") as ledger:
            ledger.write(f"{{word}} {{x}}\\n")

    @app.task
    def simulate(x, y):
        note("start", x * 10 + y)
        print("point", x, y)
        time.sleep(0.01)
        note("end", x * 10 + y)
        return {{"sum": x + y}}

    sweep = simulate.options(name="scan").grid(x=range(30), y=range(10))
    sweep[20].wait(20)
"""

SECOND = """
    import qnb
    app = qnb.App({url!r}, {queue!r})
    sweep = app.sweep("scan")
    sweep.wait(60)
    frame = sweep.frame()
    assert frame["sum"].tolist() == [x + y for x in range(30) for y in range(10)], frame
    said = [f"point {{x}} {{y}}\\n" for x in range(30) for y in range(10)]
    assert [job.logs() for job in sweep] == said
    assert frame["tries"].eq(1).all() and frame["success"].all()
    app.pool().stop()
"""


@pytest.mark.timeout(90)
def test_a_killed_kernels_sweep_is_all_there_in_another_and_nothing_ran_twice(
    server_url: str, queue: str, tmp_path: Path, wait_until: Wait,
    kernels: Kernels,
) -> None:  # fmt: skip
    ledger = tmp_path / "ledger"
    names = {"url": server_url, "queue": queue, "ledger": str(ledger)}
    first = kernels.start()
    first.run(FIRST, **names)
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: not first.is_alive(), "the kernel is dead")
    done = ledger.read_text().count("end")
    assert done < 300  # it was killed in the middle
    kernels.start().run(SECOND, **names)
    lines = Counter(ledger.read_text().splitlines())
    assert lines == {f"{word} {point}": 1 for word in ("start", "end") for point in range(300)}
