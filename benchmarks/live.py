"""What the live view of a large sweep costs, measured in a real JupyterLab.

A sweep of 100,000 jobs in progress, one of 1,000,000, and forty of 2,000 of which one is in sight,
played in the kernel: their jobs end in no order. Then a real one of 100,000 on two workers, whose
kernel is measured with its view in sight and without one. The traffic is that of all websockets.
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
while len(app.jobs_frame(sweep="naps", status="complete", limit=1)) < 1: time.sleep(0.1)
"""


class Traffic:
    """What the Jupyter server sends to the page."""

    def __init__(self, page: Any) -> None:
        self.messages = self.nbytes = 0
        page.on("websocket", lambda socket: socket.on("framereceived", self._count))

    def _count(self, frame: str | bytes) -> None:
        self.messages += 1
        self.nbytes += len(frame)


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def measure(nb: NotebookPage, traffic: Traffic, kernel: psutil.Process) -> dict[str, float]:
    """The page for a while: its traffic, frames, long tasks and memory; and the kernel."""
    nb.page.evaluate(WATCH)
    before, spent = (traffic.messages, traffic.nbytes), cpu(kernel)
    nb.page.wait_for_timeout(1000 * SECONDS)
    spent = cpu(kernel) - spent
    messages, nbytes = traffic.messages - before[0], traffic.nbytes - before[1]
    frames = sorted(nb.page.evaluate("() => window.frames_"))
    tasks = nb.page.evaluate("() => window.tasks")
    return {
        "messages/s": messages / SECONDS,
        "kB/s": nbytes / SECONDS / 1000,
        "p95 frame, ms": frames[int(0.95 * len(frames))],
        "longest task over 50, ms": max(tasks, default=0),
        "memory of the page, MB": renderer() / 1e6,
        "kernel CPU, % of a core": 100 * spent / SECONDS,
    }


def renderer() -> int:
    """What the process that draws the page holds for itself (PSS, bytes): JupyterLab too."""
    below = psutil.Process().children(recursive=True)
    pages = [one for one in below if "--type=renderer" in one.cmdline()]
    return max(one.memory_full_info().pss for one in pages)


def opened(nb: NotebookPage, lab: LabServer, name: str, *cells: str) -> psutil.Process:
    """Open a notebook; the process of its kernel."""
    lab.write(name, "import os; print(os.getpid())", *cells)
    nb.open(name)
    nb.run(0)
    return psutil.Process(int(nb.output(0).inner_text()))


def played(
    nb: NotebookPage, lab: LabServer, traffic: Traffic, jobs: int, views: int = 1
) -> dict[str, float]:
    """Sweeps whose jobs end in no order, ten times a second some of them; one view is in sight."""
    cell = f"from fakes import Sweep\nfor _ in range({min(views, 20)}): display("
    cells = [f"{cell}Sweep({jobs}, 60, steps=600))"] * max(1, views // 20)
    kernel = opened(nb, lab, "played.ipynb", *cells)
    for place in range(1, len(cells) + 1):
        nb.run(place)
    nb.page.locator(".jp-NotebookPanel .qnb-view").last.scroll_into_view_if_needed()
    nb.page.wait_for_timeout(3000)
    found = measure(nb, traffic, kernel)
    nb.shutdown_kernel()
    return found


def real(nb: NotebookPage, lab: LabServer, traffic: Traffic) -> dict[str, float]:
    """A sweep of two workers: without a view, with one, and without once more."""
    queue = f"live-{secrets.token_hex(4)}"
    end = "sweep.cancel().result(60); pool.stop()"
    kernel = opened(nb, lab, "real.ipynb", REAL.format(queue=queue), "sweep", end)
    nb.run(1)
    try:
        nb.page.wait_for_timeout(5000)
        unseen = [window(kernel)]
        nb.run(2)
        nb.output(2).locator(".qnb-view").wait_for()
        nb.page.wait_for_timeout(3000)
        found = measure(nb, traffic, kernel)
        nb.page.evaluate(
            "async () => { await window.jupyterapp.commands.execute("
            "'notebook:clear-all-cell-outputs'); }"
        )
        unseen.append(window(kernel))
    finally:
        nb.run(3)
        nb.shutdown_kernel()
    return {**found, "the same without a view": sum(unseen) / len(unseen)}


def window(kernel: psutil.Process) -> float:
    """The kernel's CPU for a while, in % of a core."""
    before = cpu(kernel)
    time.sleep(SECONDS)
    return 100 * (cpu(kernel) - before) / SECONDS


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
                "40 × 2,000 played": played(nb, lab, traffic, 2_000, views=40),
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
