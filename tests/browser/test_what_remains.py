"""Views outlive what happens to pages, kernels and files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from labdriver import NotebookPage

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

Open = Callable[..., "NotebookPage"]

SETUP = "from fakes import Job, Sweep\n"
REAL = """
import time, qnb
app = qnb.App(queue_name={queue!r})

@app.task
def square(x):
    if x == 13: raise ValueError("no luck")
    return x * x

app.start_workers(2, linger="60 s").slots
"""


def _path(nb: NotebookPage) -> Path:
    shown = nb.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.path")
    return nb.server.notebooks / str(shown)


def _ended(nb: NotebookPage, cell: int) -> int:
    bar = nb.output(cell).get_by_role("progressbar")
    return int(bar.get_attribute("aria-valuenow") or 0)


def _assert_moves(nb: NotebookPage, cell: int) -> None:
    from playwright.sync_api import expect

    bar = nb.output(cell).get_by_role("progressbar")
    expect(bar).not_to_have_attribute("aria-valuenow", str(_ended(nb, cell)))


def test_a_page_that_is_loaded_anew_shows_the_same_view_live(open_notebook: Open) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(SETUP + "s = Sweep(5_000, 40); s")
    nb.run(0)
    _assert_moves(nb, 0)
    nb.save()
    nb.open(_path(nb).name)
    expect(nb.output(0).get_by_role("group", name="sweep scan")).to_be_visible()
    _assert_moves(nb, 0)
    assert nb.page.get_by_text("model not found").count() == 0
    assert nb.offsite == []


def test_two_views_of_one_sweep_move_together(open_notebook: Open) -> None:
    nb = open_notebook(SETUP + "s = Sweep(5_000, 30); s", "s")
    nb.run(0)
    nb.run(1)
    _assert_moves(nb, 1)
    _assert_moves(nb, 0)
    assert nb.errors() == []


def test_of_forty_views_only_those_in_sight_are_sent(open_notebook: Open) -> None:
    from playwright.sync_api import expect

    counted = """
from qnb.notebook import live
sent = {}
def count(view, send):
    def counted(*args, **kwargs):
        sent[view] = sent.get(view, 0) + 1
        return send(*args, **kwargs)
    return counted
for n, view in enumerate(live._views.values()):
    view._widget.comm.send = count(n, view._widget.comm.send)
"""
    nb = open_notebook(
        *[SETUP + "for _ in range(20): display(Sweep(2_000, 60))"] * 2,
        counted,
        "print(sorted(sent))",
    )
    nb.run(0)
    nb.run(1)
    views = nb.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)").get_by_role(
        "group", name="sweep scan"
    )
    expect(views).to_have_count(40)
    views.nth(39).scroll_into_view_if_needed()
    _moves(views.nth(39))  # by now the others have said that nobody sees them
    nb.run(2)
    for _ in range(3):
        _moves(views.nth(39))
    nb.run(3)
    said = json.loads(nb.output(3).inner_text())
    assert 39 in said
    assert len(said) < 12, "a view that nobody sees was sent"
    views.nth(0).scroll_into_view_if_needed()
    _moves(views.nth(0))
    assert nb.errors() == []


def _moves(view: Any) -> None:
    from playwright.sync_api import expect

    bar = view.get_by_role("progressbar")
    expect(bar).not_to_have_attribute("aria-valuenow", bar.get_attribute("aria-valuenow") or "")


def test_a_finished_notebook_run_again_computes_nothing_and_is_the_same_file(
    open_notebook: Open, queue: str, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    ledger = tmp_path / "ledger"
    counted = f"    with open({str(ledger)!r}, 'a') as f: f.write('.')\n"
    nb = open_notebook(
        REAL.format(queue=queue).replace("    if x", counted + "    if x"),
        "sweep = square.options(name='squares').grid(x=range(60)); sweep",
        "sweep.wait(); len(sweep.errors())",
        "sweep",
    )

    def run_all() -> list[Any]:
        for cell in range(4):
            nb.run(cell)
        for cell in (1, 3):
            expect(nb.output(cell).get_by_role("group", name="sweep squares")).to_contain_text(
                "60 of 60 finished"
            )
        return nb.save()[1:]

    run_all()
    ran = len(ledger.read_text())
    assert ran == 60
    nb.restart_kernel()
    first = run_all()
    nb.restart_kernel()
    assert run_all() == first
    assert len(ledger.read_text()) == ran
    assert nb.errors() == []


def _converted(notebook: Path, to: str, folder: Path) -> str:
    command = [sys.executable, "-m", "nbconvert", "--to", to, "--output-dir", str(folder)]
    subprocess.run([*command, str(notebook)], check=True, capture_output=True, timeout=60)
    [written] = folder.glob(f"{notebook.stem}.{'html' if to == 'html' else 'md'}")
    return written.read_text()


def test_an_exported_notebook_says_the_last_state_without_scripts(
    open_notebook: Open, tmp_path: Path
) -> None:
    nb = open_notebook(
        SETUP + "s = Sweep(600, share=0.4); s", "Job('failed')", "Sweep(100_000, share=1)"
    )
    for cell in range(3):
        nb.run(cell)
    nb.save()
    nb.shutdown_kernel()
    notebook = _path(nb)
    assert notebook.stat().st_size < 1_000_000
    said = ("240 of 600 finished", "ValueError: the step is too large", "100,000 of 100,000")
    page = _converted(notebook, "html", tmp_path)
    text = _converted(notebook, "markdown", tmp_path)
    for words in said:
        assert words in page
        assert words in text
    ours = re.findall(r'<div class="qnb-card.*', page)
    assert len(ours) >= 3
    assert not any("<script" in line or "http" in line for line in ours)
    for cell in json.loads(notebook.read_text())["cells"]:  # what a renderer without scripts has
        live, card = cell["outputs"]
        assert set(live["data"]) <= {"application/vnd.jupyter.widget-view+json"}
        assert {"text/html", "text/plain"} == set(card["data"])


SERVED = """
import subprocess, tempfile, threading, asyncio, time, qnb
folder = tempfile.mkdtemp()
def serve():
    program = ["redis-server", "--port", "0", "--unixsocket", "s", "--appendonly", "yes"]
    return subprocess.Popen(program, cwd=folder, stdout=subprocess.DEVNULL)
process = serve()
app = qnb.App(f"unix://{folder}/s")

@app.task
def nap(x): time.sleep(0.05)

threading.Thread(target=lambda: asyncio.run(app.run()), daemon=True).start()
"""


def test_a_sweep_says_that_it_reconnects_and_catches_up(open_notebook: Open) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(
        SERVED,
        "sweep = nap.map(range(2_000)); sweep",
        "process.kill(); process.wait()",
        "process = serve()",
        "app.stop(); process.terminate(); process.wait()",
    )
    for cell in range(3):
        nb.run(cell)
    view = nb.output(1).get_by_role("group", name=re.compile("sweep nap"))
    expect(view).to_contain_text("reconnecting", timeout=15_000)
    stood = _ended(nb, 1)
    nb.run(3)
    expect(view).not_to_contain_text("reconnecting", timeout=20_000)
    _assert_moves(nb, 1)
    assert _ended(nb, 1) >= stood
    nb.run(4)
    assert nb.errors() == []


def test_notebook_7_shows_the_same_views(
    lab: Any, browser: Any, screenshots: Path, queue: str
) -> None:
    from labdriver import NotebookPage
    from playwright.sync_api import expect

    lab.write(
        "seven.ipynb",
        SETUP + "s = Sweep(2_000, 20); s",
        "import time; time.sleep(2)",
        REAL.format(queue=queue),
        "job = square.submit(13); job.wait(); job",
    )
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    nb = NotebookPage(context.new_page(), lab)
    try:
        nb.open("seven.ipynb", app="notebooks")
        nb.run(0)
        _assert_moves(nb, 0)
        nb.run(1, wait=False)
        _assert_moves(nb, 0)
        nb.run(2)
        nb.run(3)
        view = nb.output(3).get_by_role("group", name="job square")
        view.get_by_role("button", name="Retry").click()
        expect(view.locator(".qnb-said")).to_have_text("Retry: done")
        nb.page.screenshot(path=screenshots / "notebook-7.png")
        nb.save()
        nb.open("seven.ipynb", app="notebooks")
        expect(nb.output(0).get_by_role("group", name="sweep scan")).to_be_visible()
        nb.shutdown_kernel()
        assert nb.errors() == []
        assert nb.offsite == []
    finally:
        context.close()
