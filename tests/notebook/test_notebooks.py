"""The notebooks are the documentation: each runs from top to end, and finds what its text says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

import qnb

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

#: what cells show, by their names: the figures that the text around them speaks of
SAID = {
    "sweep": {"extend": "96"},
    "resume": {"check": "(200, 200)", "more": "210", "cache": str([True] * 5 + [False] * 5)},
    "gallery": {"counts": "(42, [6])"},
    "failures": {"retry": "74", "mended": "(338, 0, 338)", "right": "130"},
}


@pytest.fixture
def default(server_url: str) -> Iterator[qnb.App]:
    """The queue that a notebook uses; workers that it has left are sent home."""
    app = qnb.App(server_url)
    yield app
    app.pool().stop()
    app.close()


@pytest.mark.timeout(150)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_with_a_real_kernel_and_finds_what_it_says(
    notebook: Path, default: qnb.App, tmp_path: Path
) -> None:
    executed = tmp_path / notebook.name
    ran = subprocess.run(
        [sys.executable, ROOT / "notebooks/run.py", notebook, executed],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    shown = {}
    for cell in nbformat.read(executed, as_version=4).cells:
        outputs = cell.get("outputs", [])
        raised = any(one["output_type"] == "error" for one in outputs)
        assert raised == ("raises-exception" in cell.metadata.get("tags", ())), cell.id
        shown[cell.id] = [one["data"].get("text/plain") for one in outputs if "data" in one]
    for name, text in SAID.get(notebook.stem, {}).items():
        assert shown[name] == [text], name
    assert default.pool().slots == 0  # it has ended its workers
