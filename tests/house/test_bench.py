"""The benchmarks run, and the page of figures is what they wrote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.rows import INLINE, ROWS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"

#: rows that a worker in process has
OURS = [row for row in ROWS if row.key != "slot memory"]


def test_the_benchmarks_measure_every_row_of_a_worker_in_process() -> None:
    ran = subprocess.run(
        [sys.executable, "benchmarks/run.py", "--quick", "--only", INLINE.name],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for row in OURS:
        [line] = [line for line in ran.stdout.splitlines() if line.startswith(f"| {row.what}, ")]
        assert float(line.split("|")[2].replace(",", "")) > 0


@pytest.mark.parametrize("part", ["machine", "peers", "where", "alone", "fair"])
def test_the_page_of_figures_is_written_by_them(part: str) -> None:
    _, _, rest = PAGE.read_text().partition(f"<!-- {part} -->\n")
    written, _, _ = rest.partition("<!-- end -->")
    assert len(written) > 40, "run: make bench"
    if part == "peers":
        assert all(f"| {row.what}, " in written for row in ROWS)
