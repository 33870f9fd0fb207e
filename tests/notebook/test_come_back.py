"""Story B: the kernel is killed in the middle of a sweep; another kernel comes back to it."""

from __future__ import annotations

import os
import signal
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

import qnb

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


@pytest.fixture
def kernels() -> Iterator[Callable[[], tuple[KernelManager, BlockingKernelClient]]]:
    """Starts real kernels; what is left of them ends with the test."""
    started: list[tuple[KernelManager, BlockingKernelClient]] = []
    context: zmq.Context[Any] = zmq.Context()

    def start() -> tuple[KernelManager, BlockingKernelClient]:
        manager = KernelManager(kernel_name="python3", context=context)
        manager.start_kernel(env={**os.environ, "PYTHONPATH": str(Path(qnb.__file__).parents[1])})
        client = manager.blocking_client()
        client.start_channels()
        client.wait_for_ready(timeout=20)
        started.append((manager, client))
        return manager, client

    yield start
    for manager, client in started:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    context.destroy(linger=0)


def run(client: BlockingKernelClient, cell: str, **names: str) -> None:
    """Execute a cell; its error is this test's."""
    reply = client.execute_interactive(
        textwrap.dedent(cell).format(**names), timeout=60, output_hook=lambda _: None
    )
    content = reply["content"]
    assert content["status"] == "ok", "\n".join(content.get("traceback", []))


@pytest.mark.timeout(90)
def test_a_killed_kernels_sweep_is_all_there_in_another_and_nothing_ran_twice(
    server_url: str, queue: str, tmp_path: Path, wait_until: Wait,
    kernels: Callable[[], tuple[KernelManager, BlockingKernelClient]],
) -> None:  # fmt: skip
    ledger = tmp_path / "ledger"
    names = {"url": server_url, "queue": queue, "ledger": str(ledger)}
    first, client = kernels()
    run(client, FIRST, **names)
    pid = first.provisioner.pid  # type: ignore[union-attr, attr-defined]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not first.is_alive(), "the kernel is dead")
    done = ledger.read_text().count("end")
    assert done < 300  # it was killed in the middle
    _, client = kernels()
    run(client, SECOND, **names)
    lines = Counter(ledger.read_text().splitlines())
    assert lines == {f"{word} {point}": 1 for word in ("start", "end") for point in range(300)}
