"""Execute a notebook with a real kernel, save it, and print what its tagged cells found.

    python notebooks/run.py notebooks/quickstart.ipynb build/quickstart.ipynb

The kernel is this interpreter. Cells with the tag "print" are shown as text when all is done.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

TIMEOUT = 600  # seconds a cell may take


def execute(source: Path, target: Path) -> Any:
    """The notebook, executed; it is saved even where a cell failed."""
    notebook = nbformat.read(source, as_version=4)
    # No kernel spec of the user or the system: ipykernel's own names the running interpreter.
    specs = KernelSpecManager(kernel_dirs=[])
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_spec_manager=specs),
        timeout=TIMEOUT,
        resources={"metadata": {"path": str(source.parent)}},
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        client.execute()
    finally:
        nbformat.write(notebook, target)
    return notebook


def found(notebook: Any) -> list[str]:
    """The texts that the cells tagged "print" left."""
    return [
        output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"]
        for cell in notebook.cells
        if "print" in cell.metadata.get("tags", ())
        for output in cell.outputs
        if output["output_type"] in ("stream", "execute_result")
    ]


def main(source: Path, target: Path) -> None:
    began = time.perf_counter()
    print(f"Executing {source} ...", flush=True)
    try:
        notebook = execute(source, target)
    except CellExecutionError as error:
        sys.exit(f"{source}: a cell failed; the notebook so far is {target}\n\n{error}")
    print("", *found(notebook), sep="\n", end="\n\n")
    print(f"{time.perf_counter() - began:.1f} s in all; the executed notebook is {target}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
