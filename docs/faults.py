"""Writes the table of docs/faults.md from the figures of the last whole fault suite.

``make faults`` runs the suite with real servers, links and workers, keeps its figures in
build/faults.json, and then this.
"""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "faults.md"
FIGURES = ROOT / "build" / "faults.json"


def _order(row: dict[str, str]) -> tuple[int, str, str]:
    number = re.search(r"\d+", row["goal"])
    return int(number[0]) if number else 0, row["goal"], row["what"]


def table(rows: list[dict[str, str]]) -> str:
    """The figures, a row each; what missed its target says so."""
    lines = ["| what was done | target | figure |", "|---|---|---|"]
    for row in sorted(rows, key=_order):
        cells = [row["what"], row["target"], row["figure"] + ("" if row["ok"] else " **missed**")]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    machine = f"{os.cpu_count()} cores, {platform.system()}, CPython {platform.python_version()}"
    return f"Measured on {machine}.\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    text = PAGE.read_text()
    before, _, rest = text.partition("<!-- figures -->\n")
    _, _, after = rest.partition("<!-- end -->")
    written = table(json.loads(FIGURES.read_text()))
    PAGE.write_text(f"{before}<!-- figures -->\n{written}<!-- end -->{after}")


if __name__ == "__main__":
    main()
