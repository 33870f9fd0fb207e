"""A JupyterLab and a page for the whole session; a notebook in a tab for each test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from labdriver import LabServer, NotebookPage

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for labdriver: pytest's importlib mode leaves the path alone


def _missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing; the browser tests must run in CI")
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where pictures for people to look at go; git ignores it."""
    folder = HERE.parents[1] / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright")
    from labdriver import CHROMIUM, CHROMIUM_ARGS

    if not Path(CHROMIUM).exists():
        _missing(f"Chromium ({CHROMIUM}; $QNB_CHROMIUM names another)")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def lab(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    from labdriver import LabServer

    server = LabServer(tmp_path_factory.mktemp("lab"), python_path=[HERE, HERE.parents[1]])
    server.add_kernel("ipykernel6")  # a page knows only the kernels that it has found at first
    with server:
        yield server


@pytest.fixture(scope="session")
def lab_page(browser: Any, lab: LabServer) -> Iterator[NotebookPage]:
    from labdriver import NotebookPage

    context = browser.new_context(
        viewport={"width": 1280, "height": 1000}, reduced_motion="reduce", device_scale_factor=1
    )
    yield NotebookPage(context.new_page(), lab)
    context.close()


@pytest.fixture(scope="session")
def old_kernel(lab: LabServer) -> str:
    """The name of a kernel with ipykernel 6."""
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    folder = str(lab.packages("ipykernel6"))
    wanted = ["--no-deps", "--target", folder, "ipykernel==6.31.0", "nest-asyncio==1.6.0"]
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True, timeout=60)
    if done.returncode:
        _missing(f"ipykernel 6 ({done.stderr.strip()[-200:]})")
    return "ipykernel6"


@pytest.fixture
def open_notebook(
    lab: LabServer, lab_page: NotebookPage, request: pytest.FixtureRequest
) -> Iterator[Callable[..., NotebookPage]]:
    """``open_notebook(cell, cell, ...)``: its kernel and tab end with the test."""
    opened = []

    def open_(*cells: str, kernel: str = "python3") -> NotebookPage:
        name = re.sub(r"\W+", "-", request.node.name).strip("-") + ".ipynb"
        lab.write(name, *cells, kernel=kernel)
        lab_page.offsite.clear()
        if lab_page.page.url.startswith("http"):
            lab_page.open_tab(name)
        else:
            lab_page.open(name)
        opened.append(lab_page)
        return lab_page

    yield open_
    for notebook in opened:
        notebook.close()
