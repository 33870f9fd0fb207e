"""An interrupt ends a wait, tells how to return, and leaves the work alone."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from tests.notebook.kernels import Kernels

SETUP = """
    import asyncio, threading, qnb
    app = qnb.App({url!r}, {queue!r})

    @app.task
    async def nap(seconds):
        await asyncio.sleep(seconds)
        return seconds

    threading.Thread(target=lambda: asyncio.run(app.run()), daemon=True).start()
    sweep = nap.options(name="naps").map([0.0, 3.0])
    sweep[0].get(timeout=10)
"""

WAITS = ["sweep.wait()", "await sweep", "sweep.results()", "list(sweep.as_completed())",
         "[job async for job in sweep.as_completed()]", "sweep[1].get()"]  # fmt: skip


@pytest.mark.timeout(90)
def test_every_wait_can_be_interrupted_and_the_sweep_goes_on(
    server_url: str, queue: str, kernels: Kernels
) -> None:
    kernel = kernels.start()
    kernel.run(SETUP, url=server_url, queue=queue)
    for cell in WAITS:
        threading.Timer(0.3, os.kill, (kernel.pid, signal.SIGINT)).start()
        begun = time.monotonic()
        content = kernel.execute(cell)
        assert content["status"] == "error", cell
        # ipykernel cancels the task of a cell that awaits
        assert content["ename"] in ("KeyboardInterrupt", "CancelledError"), cell
        assert time.monotonic() - begun < 2, cell
        if cell in ("sweep.wait()", "list(sweep.as_completed())"):
            assert "app.sweep('naps') shows it" in "".join(content["traceback"])
    kernel.run("assert sweep.wait(20).results() == [0.0, 3.0]")
    kernel.run("app.stop()")
