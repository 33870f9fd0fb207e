"""What has no counterpart in the peers, on the embedded server: starting from nothing, sweeps."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rows import Contender, markdown

import qnb
from qnb.storage import server

NOTEBOOK = """
import qnb

app = qnb.App()

@app.task
def double(x):
    return 2 * x

pool = app.start_workers(1)
print(double.submit(21).get(timeout=60), flush=True)
pool.stop()
"""

#: what, how it is written, and the seconds that it is to take at most
ROWS = {
    "server": ("the embedded server is up, from nothing", "{:.2f} s", 0.5),
    "first": ("a new process has its first result: import, server, worker, job", "{:.2f} s", 3),
    "four": ("4 workers are ready", "{:.2f} s", 2),
    "handle": ("a sweep of 100,000 points has its handle", "{:.3f} s", 1),
    "stored": ("… all its points are stored", "{:.1f} s", 5),
    "ran": ("… all have run, on one worker in process", "{:.1f} s", None),
    "frame": ("… its frame is made", "{:.2f} s", 2),
}

Rounds = Mapping[str, Sequence[float]]


def imports(
    contenders: Sequence[Contender], python: Mapping[bool, str | None]
) -> Iterator[tuple[str, float]]:
    """What each package's import takes over a bare interpreter's start, in ms."""

    def once(contender: Contender, code: str) -> float:
        began = time.perf_counter()
        subprocess.run([str(python[contender.is_ours]), "-c", code], check=True)
        return time.perf_counter() - began

    for contender in {one.package: one for one in reversed(contenders)}.values():
        code = f"import {contender.package}" + ("; qnb.App" if contender.is_ours else "")
        yield contender.name, (once(contender, code) - once(contender, "pass")) * 1e3


def measured(*, quick: bool) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(1 if quick else 3):
        for part in (_from_nothing, _fresh_process, _workers, _sweep):
            with tempfile.TemporaryDirectory(prefix="qnb-bench-") as home:
                os.environ["QNB_DATA_DIR"] = home
                try:
                    for key, took in part(1000 if quick else 100_000).items():
                        found[key].append(took)
                finally:
                    server.stop(Path(home))
    return dict(found)


def _from_nothing(count: int) -> dict[str, float]:
    began = time.perf_counter()
    server.ensure()
    return {"server": time.perf_counter() - began}


def _fresh_process(count: int) -> dict[str, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(NOTEBOOK)
        script.flush()
        began = time.perf_counter()
        command = [sys.executable, script.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert process.stdout.readline() == "42\n"
            return {"first": time.perf_counter() - began}


def _workers(count: int) -> dict[str, float]:
    app = qnb.App(server.ensure(), "ready")
    began = time.perf_counter()
    pool = app.start_workers(4)
    took = time.perf_counter() - began
    pool.stop()
    app.close()
    return {"four": took}


def _sweep(count: int) -> dict[str, float]:
    app = qnb.App(server.ensure(), "sweeps")

    @app.task
    async def nothing(x: int) -> int:
        return x

    nothing.submit(0)  # what a first call takes is not the sweep's
    began = time.perf_counter()
    sweep = nothing.map(range(count))
    handle = time.perf_counter() - began
    while not sweep.snapshot().whole:
        time.sleep(0.01)
    stored = time.perf_counter() - began
    app.burst = True
    asyncio.run(app.run())
    sweep.wait()
    ran = time.perf_counter() - began
    began = time.perf_counter()
    assert sweep.frame()["status"].eq("complete").all()
    frame = time.perf_counter() - began
    app.close()
    return {"handle": handle, "stored": stored, "ran": ran, "frame": frame}


def table(rounds: Rounds) -> str:
    lines = [["", "qnb"], ["---", "---"]]
    for key, (what, figure, _) in ROWS.items():
        lines.append([what, figure.format(statistics.median(rounds[key]))])
    return markdown(lines)


def goals(rounds: Rounds) -> str:
    """What is to be reached, and is or is not."""
    medians = [(key, statistics.median(rounds[key]), most) for key, (_, _, most) in ROWS.items()]
    return "\n".join(
        f"{'reached' if took <= most else 'MISSED '} {key}: {took:.2f} s, ≤ {most:g}"
        for key, took, most in medians if most is not None
    )  # fmt: skip
