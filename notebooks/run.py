"""Execute a notebook with a real kernel, save it, and print what its tagged cells found.

    python notebooks/run.py notebooks/quickstart.ipynb build/quickstart.ipynb

The kernel is this interpreter. Cells with the tag "print" are shown as text when all is done.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

TIMEOUT = 600  # seconds a cell may take


def execute(source: Path, target: Path, sockets: str) -> Any:
    """The notebook, executed; it is saved even where a cell failed."""
    notebook = nbformat.read(source, as_version=4)
    kernel = AsyncKernelManager(
        # No kernel spec of the user or the system: ipykernel's own names the running interpreter.
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
        transport="ipc",
        ip=f"{sockets}/kernel",
    )
    place = {"metadata": {"path": str(source.parent)}}
    client = NotebookClient(notebook, km=kernel, timeout=TIMEOUT, resources=place)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        client.execute(cleanup_kc=True)
    finally:
        nbformat.write(notebook, target)
    return notebook


def found(notebook: Any) -> Iterator[str]:
    """What the cells tagged "print" left, each under the line that asked for it."""
    for cell in notebook.cells:
        if "print" in cell.metadata.get("tags", ()):
            yield f"\n>>> {cell.source.splitlines()[-1]}"
            for output in cell.outputs:
                if output["output_type"] in ("execute_result", "display_data"):
                    yield output["data"]["text/plain"]


def main(source: Path, target: Path) -> None:
    began = time.perf_counter()
    print(f"Executing {source} ...", flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="qnb-") as sockets:
            notebook = execute(source, target, sockets)
    except CellExecutionError as error:
        sys.exit(f"{source}: a cell failed; the notebook so far is {target}\n\n{error}")
    print(*found(notebook), sep="\n")
    print(f"\n{time.perf_counter() - began:.1f} s in all; the executed notebook is {target}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
