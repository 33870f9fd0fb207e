"""The stage of the fault suite, and the table it ends with: goal, target, figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.ledger import Ledger
from tests.faults.stage import Stage

FIGURES = Path(__file__).parents[2] / "build" / "faults.json"

Figures = Callable[..., None]

_rows: list[dict[str, object]] = []


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A file outside the store that bodies and clients write to."""
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Makes servers, proxies and workers; what is left of them ends with the test."""
    stage = Stage(tmp_path / "stage")
    yield stage
    stage.close()


@pytest.fixture
def figures() -> Iterator[Figures]:
    """``figures(goal, what, target, figure, ok)``: a row of the table; the test fails unless ok."""
    mine: list[dict[str, object]] = []

    def note(goal: str, what: str, target: str, figure: str, ok: bool) -> None:
        mine.append({"goal": goal, "what": what, "target": target, "figure": figure, "ok": ok})

    yield note
    _rows.extend(mine)
    missed = [row for row in mine if not row["ok"]]
    assert not missed, f"missed: {missed}"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not _rows:
        return
    rows = sorted(_rows, key=lambda row: (str(row["goal"]).rjust(4), str(row["what"])))
    terminalreporter.section("faults: goal, target, figure")
    for row in rows:
        sign = "ok    " if row["ok"] else "MISSED"
        terminalreporter.write_line(f"{sign} {row['goal']:4} {row['what']}")
        terminalreporter.write_line(f"            target  {row['target']}")
        terminalreporter.write_line(f"            figure  {row['figure']}")
    if config.getoption("--faults"):
        _keep(rows)


def _keep(rows: list[dict[str, object]]) -> None:
    """Put the figures of a whole scenario beside those of the others, for docs/faults.py."""
    kept = json.loads(FIGURES.read_text()) if FIGURES.exists() else []
    newest = {(row["goal"], row["what"]): row for row in (*kept, *rows)}
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(json.dumps(list(newest.values()), indent=1))
