"""What a notebook holds that was executed by a real kernel and saved at once."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

FAKES = Path(__file__).parents[1] / "browser"


def test_an_executed_notebook_is_saved_with_the_last_state() -> None:
    cells = [
        f"import sys; sys.path[:0] = [{str(FAKES)!r}, {str(FAKES.parents[1])!r}]\n"
        "from fakes import Job, Sweep",
        "sweep = Sweep(100_000, 0.5); sweep",
        "Job('failed')",
        "sweep.wait()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=20).execute()
    left, card = (output.data for output in notebook.cells[1].outputs)
    assert left == {}
    assert set(card) == {"text/plain", "text/html"}
    assert card["text/plain"] == "scan: 100,000 of 100,000 finished, 2,702 failed"
    left, job = (output.data for output in notebook.cells[2].outputs)
    assert left == {}
    assert "the step is too large" in job["text/html"]
    assert len(nbformat.writes(notebook)) < 1_000_000
    nbformat.validate(notebook)
