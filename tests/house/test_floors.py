"""The house: who may import whom, what is exported, how large a file may grow."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qnb

ROOT = Path(__file__).parents[2]
QNB = ROOT / "qnb"

#: a total order: a module may import only modules above it
FLOORS = [
    "errors",
    "clock",
    "models",
    "options",
    "display",
    "registry",
    "batching",
    "storage.blobs",
    "wire.envelope",
    "wire.bodies",
    "wire.forms",
    "wire.origins",
    "wire.environment",
    "wire.sources",
    "wire.byvalue",
    "wire.blame",
    "wire.pickles",
    "wire.functions",
    "wire.codec",
    "content.values",
    "content.code",
    "content.text",
    "content.classes",
    "content.packages",
    "content.reached",
    "content.walk",
    "storage.keys",
    "storage.records",
    "storage.scripts",
    "storage.guardian",
    "storage.server",
    "storage.crashpoints",
    "storage.links",
    "storage.connection",
    "storage.store",
    "storage.rows",
    "storage.leases",
    "storage.gates",
    "storage.studies",
    "running.schedule",
    "running.context",
    "running.progress",
    "running.capture",
    "running.measure",
    "running.failures",
    "running.around",
    "running.attempt",
    "running.messages",
    "running.outlet",
    "running.pace",
    "running.traces",
    "running.slot",
    "running.trees",
    "running.bulletin",
    "running.body",
    "running.spawned",
    "running.child",
    "running.crew",
    "running.processes",
    "running.executors",
    "running.futures",
    "running.gatekeeper",
    "running.intake",
    "running.newsroom",
    "running.runs",
    "running.timers",
    "running.worker",
    "running.vigil",
    "running.serve",
    "reading",
    "link",
    "client",
    "bridge",
    "nesting",
    "inline",
    "why",
    "closeup",
    "job",
    "analysis.columns",
    "analysis.values",
    "analysis.frames",
    "analysis.plots",
    "analysis.tables",
    "analysis.cubes",
    "analysis.gather",
    "sweeps.axes",
    "sweeps.designs",
    "sweeps.sampling",
    "sweeps.spaces",
    "forecast.history",
    "forecast.durations",
    "forecast.makespan",
    "forecast.outlook",
    "forecast.forecast",
    "sweeps.layout",
    "sweeps.manifest",
    "sweeps.grouping",
    "sweeps.feed",
    "sweeps.completed",
    "sweeps.reuse",
    "sweeps.numbering",
    "sweeps.submit",
    "sweeps.opening",
    "sweeps.comparing",
    "sweeps.driver",
    "sweeps.sweep",
    "sweeps.listing",
    "rates",
    "lookout",
    "pool",
    "task",
    "adapters.callables",
    "adapters.dispatch",
    "adapters.futures",
    "adapters.sharing",
    "adapters.joblib",
    "app",
    "status",
    "notebook.html",
    "notebook.picture",
    "notebook.job_card",
    "notebook.sweep_card",
    "notebook.pool_card",
    "notebook.app_card",
    "notebook.widgets",
    "notebook.audience",
    "notebook.answers",
    "notebook.publisher",
    "notebook.live",
    "notebook.job_view",
    "notebook.measures",
    "notebook.sweep_answers",
    "notebook.sweep_view",
    "notebook.pool_view",
    "notebook.app_view",
    "notebook.background",
    "notebook.cells",
    "notebook.cell_view",
    "notebook.magics",
    "cli",
    "__init__",
    "__main__",
]


def _modules() -> Iterator[tuple[str, Path]]:
    for file in sorted(QNB.rglob("*.py")):
        name = ".".join(file.relative_to(QNB).with_suffix("").parts)
        if name == "__init__" or not name.endswith("__init__"):
            yield name, file


def _imports(file: Path) -> set[str]:
    """Names below ``qnb`` that the file imports anywhere: in functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "qnb":
            base = (node.module or "").removeprefix("qnb").removeprefix(".")
            found |= {f"{base}.{alias.name}".lstrip(".") for alias in node.names} | {base}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("qnb.") for a in node.names if a.name.startswith("qnb.")}
    return found & set(FLOORS)


def test_every_file_has_its_floor_and_imports_only_from_above() -> None:
    modules = dict(_modules())
    assert sorted(modules) == sorted(FLOORS)
    below = {
        f"{name} imports {other}"
        for name, file in modules.items()
        for other in _imports(file)
        if FLOORS.index(other) >= FLOORS.index(name) and other != name
    }
    assert not below


def test_the_public_names_are_sorted_and_there() -> None:
    assert sorted(qnb.__all__) == qnb.__all__
    assert all(getattr(qnb, name) for name in qnb.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        qnb.Nothing  # noqa: B018 - asking is the test


@pytest.mark.parametrize("name", [n for n in FLOORS if n not in ("__main__",)])
def test_a_module_says_what_it_offers_and_has_it(name: str) -> None:
    module = importlib.import_module("qnb" if name == "__init__" else f"qnb.{name}")
    assert module.__doc__
    for offered in module.__all__:
        assert hasattr(module, offered), f"{name}.__all__ names {offered}"


def test_no_file_and_no_function_has_become_a_concept_waiting_to_be_named() -> None:
    for name, file in _modules():
        assert len(file.read_text().splitlines()) <= 500, name
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 70, f"{name}.{node.name}"


def test_importing_qnb_and_making_an_app_loads_nothing_heavy() -> None:
    code = "import sys, qnb; qnb.App(); print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"redis", "pandas", "numpy", "ipywidgets", "anywidget", "IPython", "matplotlib"}
    assert not heavy & set(loaded.stdout.split())


def test_every_script_says_its_keys_and_takes_them_from_keys() -> None:
    for script in (QNB / "storage" / "lua").glob("*.lua"):
        text = script.read_text()
        for heading in ("-- KEYS", "-- ARGV", "-- Returns"):
            assert heading in text, f"{script.name} lacks {heading}"
        code = re.sub(r"--.*", "", text)
        assert "qnb:" not in code, f"{script.name} builds a key's name"


def test_notebooks_are_stored_without_outputs() -> None:
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(notebook.read_text())["cells"]:
            assert not cell.get("outputs"), notebook
            assert cell.get("execution_count") is None, notebook


def test_no_file_names_a_package_host() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    hosts = re.compile("|".join(["pypi" + r"\.org", "pythonhosted" + r"\.org", "file" + ":///opt"]))
    for name in listed.stdout.split():
        file = ROOT / name
        if file.suffix in (".md", ".txt", ".toml", ".py", ".sh", "") and file.is_file():
            assert not hosts.search(file.read_text(errors="replace")), name
