"""What the live view of a large sweep costs, measured in a real JupyterLab: ``make bench``.

A sweep of 100,000 jobs in progress, then one of 1,000,000, both played in the kernel; then a real
one of 100,000 on two workers, whose kernel is measured with its view in sight and without one.
"""

from __future__ import annotations

import os
import platform
import secrets
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "browser")]

from labdriver import CHROMIUM, CHROMIUM_ARGS, LabServer, NotebookPage  # noqa: E402

SECONDS = 15

WATCH = """() => {
    window.tasks = []; window.frames_ = [];
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) window.tasks.push(entry.duration);
    }).observe({ type: 'longtask' });
    let last = performance.now();
    const tick = (now) => {
        window.frames_.push(now - last);
        last = now;
        requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
}"""

REAL = """
import time, qnb
app = qnb.App(queue_name={queue!r})

@app.task
def nap(x, y):
    time.sleep(0.02)
    return x * y

pool = app.start_workers(2, linger="30 s")
sweep = nap.options(name="naps").grid(x=range(1000), y=range(100))
sweep._driver.submitted.result(60)
import os; print(os.getpid())
"""


class Traffic:
    """What the Jupyter server sends to the page."""

    def __init__(self, page: Any) -> None:
        self.messages = self.nbytes = 0
        page.on("websocket", lambda socket: socket.on("framereceived", self._count))

    def _count(self, frame: str | bytes) -> None:
        self.messages += 1
        self.nbytes += len(frame)


def measure(nb: NotebookPage, traffic: Traffic) -> dict[str, float]:
    """The page for a while: its traffic, frames, long tasks and memory."""
    nb.page.evaluate(WATCH)
    before = traffic.messages, traffic.nbytes
    nb.page.wait_for_timeout(1000 * SECONDS)
    messages, nbytes = traffic.messages - before[0], traffic.nbytes - before[1]
    frames = sorted(nb.page.evaluate("() => window.frames_"))
    heap = nb.page.evaluate("() => performance.memory.usedJSHeapSize")
    return {
        "messages/s": messages / SECONDS,
        "kB/s": nbytes / SECONDS / 1000,
        "p95 frame, ms": frames[int(0.95 * len(frames))],
        "long tasks": len(nb.page.evaluate("() => window.tasks")),
        "JS heap, MB": heap / 1e6,
    }


def played(nb: NotebookPage, lab: LabServer, traffic: Traffic, jobs: int) -> dict[str, float]:
    lab.write("played.ipynb", f"from fakes import Sweep\nSweep({jobs}, 60)")
    nb.open("played.ipynb")
    nb.run(0)
    nb.output(0).locator(".qnb-view").wait_for()
    nb.page.wait_for_timeout(2000)
    found = measure(nb, traffic)
    nb.shutdown_kernel()
    return found


def real(nb: NotebookPage, lab: LabServer, traffic: Traffic) -> dict[str, float]:
    queue = f"live-{secrets.token_hex(4)}"
    lab.write(
        "real.ipynb", REAL.format(queue=queue), "sweep", "sweep.cancel().result(60); pool.stop()"
    )
    nb.open("real.ipynb")
    nb.run(0)
    kernel = psutil.Process(int(nb.output(0).inner_text().split()[-1]))

    def cpu() -> float:
        times = kernel.cpu_times()
        return times.user + times.system

    before = cpu()
    time.sleep(SECONDS)
    unseen = cpu() - before
    nb.run(1)
    nb.output(1).locator(".qnb-view").wait_for()
    nb.page.wait_for_timeout(2000)
    before = cpu()
    found = measure(nb, traffic)
    found["kernel CPU, % of a core"] = 100 * (cpu() - before) / SECONDS
    found["the same without a view"] = 100 * unseen / SECONDS
    nb.run(2)
    nb.shutdown_kernel()
    return found


def main() -> None:
    names = ("jupyterlab", "ipykernel", "anywidget")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ",
        end="",
    )
    print(", ".join(f"{name} {version(name)}" for name in names))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        paths = [ROOT / "tests" / "browser", ROOT]
        with LabServer(Path(folder), python_path=paths) as lab:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM, args=[*CHROMIUM_ARGS, "--enable-precise-memory-info"]
            )
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            traffic = Traffic(page)
            nb = NotebookPage(page, lab)
            columns = {
                "100,000 played": played(nb, lab, traffic, 100_000),
                "1,000,000 played": played(nb, lab, traffic, 1_000_000),
                "100,000 real": real(nb, lab, traffic),
            }
            browser.close()
    width = max(map(len, columns))
    print(f"{'':26}" + "".join(f"{name:>{width + 2}}" for name in columns))
    for row in dict.fromkeys(name for found in columns.values() for name in found):
        cells = (f"{found[row]:.1f}" if row in found else "" for found in columns.values())
        print(f"{row:26}" + "".join(f"{cell:>{width + 2}}" for cell in cells))


if __name__ == "__main__":
    main()
