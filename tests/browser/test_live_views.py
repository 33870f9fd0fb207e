"""What a reader sees of jobs and sweeps in a real JupyterLab."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from labdriver import NotebookPage
    from playwright.sync_api import Locator

pytestmark = [pytest.mark.browser, pytest.mark.timeout(90)]

Open = Callable[..., "NotebookPage"]

SETUP = "from fakes import Job, Sweep\n"
CARD = "[class^=qnb-card]"


def _finished(output: Locator) -> int:
    return int(output.get_by_role("progressbar").get_attribute("aria-valuenow") or 0)


def _assert_moves(nb: NotebookPage, view: Locator) -> None:
    nb.page.wait_for_function("before => document.querySelector('.qnb-bar')"
                              ".getAttribute('aria-valuenow') > before",
                              arg=_finished(view))  # fmt: skip


def _assert_moves_while_blocked(nb: NotebookPage, view: Locator) -> None:
    nb.page.wait_for_function(
        "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status"
        " === 'busy'"
    )
    _assert_moves(nb, view)
    assert nb.busy, "the blocking cell was over before the view moved"


def test_a_view_lives_on_after_its_cell_and_while_another_blocks(open_notebook: Open) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(SETUP + "s = Sweep(100_000, 5); s", "import time; time.sleep(2)")
    nb.run(0)
    view = nb.output(0)
    expect(view.get_by_role("group", name="sweep scan")).to_be_visible()
    expect(view.locator(CARD)).to_be_hidden()
    _assert_moves(nb, view)
    nb.run(1, wait=False)
    _assert_moves_while_blocked(nb, view)
    expect(view.locator(".qnb-word")).to_have_text("finished", timeout=15_000)
    expect(view.get_by_role("group")).to_contain_text("100,000 of 100,000 finished")
    expect(view.get_by_role("button", name="Retry failed")).to_be_visible()
    assert nb.errors() == []
    assert nb.offsite == []


def test_the_last_state_outlives_the_kernel(open_notebook: Open) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(
        SETUP + "s, j = Sweep(600, 1), Job('failed', 1); s", "j", "s.wait(); j.wait()"
    )
    for cell in range(3):
        nb.run(cell)
    expect(nb.output(0).locator(".qnb-word")).to_have_text("finished")
    expect(nb.output(1)).to_contain_text("ValueError: the step is too large")
    for outputs in nb.save()[:2]:
        live, card = (output["data"] for output in outputs)
        assert list(live) == ["application/vnd.jupyter.widget-view+json"]
        assert set(card) == {"text/plain", "text/html"}
        assert "Last known state" not in card["text/html"]
    nb.shutdown_kernel()
    nb.open(nb.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.path"))
    expect(nb.output(0).locator(CARD)).to_contain_text("600 of 600 finished")
    expect(nb.output(1).locator(CARD)).to_contain_text("ValueError: the step is too large")
    expect(nb.page.get_by_text("model not found").locator("visible=true")).to_have_count(0)
    assert nb.offsite == []


def test_a_view_hides_its_own_card_and_not_that_of_another_notebook(open_notebook: Open) -> None:
    from playwright.sync_api import expect

    cell = SETUP + "s = Sweep(600, share=0.4); s"
    nb = open_notebook(cell)
    nb.run(0)
    nb.server.write("the-same-again.ipynb", cell)
    nb.open_tab("the-same-again.ipynb")
    nb.run(0)
    expect(nb.output(0).get_by_role("group", name="sweep scan")).to_be_visible()
    expect(nb.output(0).locator(CARD)).to_be_hidden()
    nb.restart_kernel()
    expect(nb.output(0).locator(CARD)).to_be_visible()
    nb.close()


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "untrusted"])
def test_a_kernel_that_dies_midway_leaves_a_card(
    open_notebook: Open, screenshots: Path, trusted: bool
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(SETUP + "s = Sweep(600, share=0.4); s")
    nb.run(0)
    expect(nb.output(0).get_by_role("progressbar")).to_have_attribute("aria-valuenow", "240")
    nb.save()
    path = nb.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.path")
    nb.restart_kernel()
    expect(nb.output(0).locator(CARD)).to_be_visible()  # a dead view does not pretend to live
    expect(nb.output(0).get_by_role("group")).to_be_hidden()
    nb.shutdown_kernel()
    if not trusted:  # changed by somebody else, so that the signature does not fit
        file = nb.server.notebooks / path
        text = json.loads(file.read_text())
        text["metadata"]["from"] = "elsewhere"
        file.write_text(json.dumps(text))
    nb.open(path)
    expect(nb.output(0).locator(CARD)).to_contain_text("240 of 600 finished")
    expect(nb.output(0).get_by_text("Last known state")).to_be_visible()
    missing = nb.output(0).get_by_text("Error displaying widget: model not found")
    if trusted:  # Lab looks for the widget for 2 s, then says so in an output that we hide
        expect(missing).to_be_attached()
        expect(missing).to_be_hidden()
    else:  # Lab does not try
        expect(missing).to_have_count(0)
    nb.output(0).screenshot(path=screenshots / f"midway-{'' if trusted else 'un'}trusted.png")


GALLERY = [
    "Sweep(60, share=0)",
    "Sweep(60, share=0.35)",
    "Sweep(2_000, share=0.8, note='reconnecting')",
    "Sweep(100_000, share=0.6)",
    "Sweep(2_000, share=1)",
    "Job('queued')",
    "Job('running', progress=0.62)",
    "Job('done')",
    "Job('failed')",
]


def test_every_state_in_both_themes_and_narrow(open_notebook: Open, screenshots: Path) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(*[SETUP + cell for cell in GALLERY])
    nb.page.set_viewport_size({"width": 1100, "height": 3300})
    for cell in range(len(GALLERY)):
        nb.run(cell)
        expect(nb.output(cell)).to_contain_text("simulate")
    nb.pictures(screenshots, "views", wide=(1100, 3300), narrow=560)
    assert nb.errors() == []


def test_a_real_sweep_on_real_workers_is_live_and_stays(
    open_notebook: Open, screenshots: Path, queue: str
) -> None:
    """The whole way: a cell, the embedded server, worker processes, the view, the saved file."""
    from playwright.sync_api import expect

    nb = open_notebook(
        f"import time, qnb\napp = qnb.App(queue_name={queue!r})\n"
        "@app.task\ndef simulate(x):\n    time.sleep(0.15)\n"
        "    if x == 13: raise ValueError(f'no luck with {x}')\n    return {'y': x * x}\n"
        "pool = app.start_workers(2, linger=30)\npool.slots",
        "sweep = simulate.map(range(60)); sweep",
        "time.sleep(2)",
        "sweep.wait(); job = simulate.submit(13); job.wait(); job",
        "sweep.frame()[['x', 'y', 'success', 'error']].iloc[12:15]",
        "pool.stop()",
    )
    nb.run(0)
    nb.run(1)
    view = nb.output(1)
    expect(view.get_by_role("progressbar")).to_be_visible()
    nb.run(2, wait=False)
    _assert_moves_while_blocked(nb, view)
    for cell in (3, 4):
        nb.run(cell)
    expect(view).to_contain_text("60 of 60 finished")
    expect(view).to_contain_text("ValueError('no luck with 13')")
    expect(nb.output(3)).to_contain_text("ValueError: no luck with 13")
    for theme in ("dark", "light"):
        nb.set_theme(theme)
        nb.page.screenshot(path=screenshots / f"real-{theme}.png")
    nb.run(5)
    assert nb.errors() == []
    assert nb.offsite == []


REAL = """
import secrets, time, qnb
app = qnb.App(queue_name="buttons-" + secrets.token_hex(4))
pool = app.start_workers(2, linger="60 s")

@app.task
def nap(x):
    time.sleep(0.05)
    return x

sweep = nap.map(range(400))
sweep
"""


def test_the_buttons_of_a_sweep_pause_resume_and_cancel_it(
    open_notebook: Open, screenshots: Path
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(REAL, "assert sweep.wait(30).snapshot().counts['aborted'] > 0; pool.stop()")
    nb.run(0)
    view = nb.output(0)
    view.get_by_role("button", name="Pause").click()
    expect(view).to_contain_text("Pause: done")
    expect(view.locator(".qnb-word")).to_have_text("paused")
    view.screenshot(path=screenshots / "paused.png")
    resume = view.get_by_role("button", name="Resume")
    resume.focus()
    nb.page.keyboard.press("Enter")
    expect(view).to_contain_text("Resume: done")
    _assert_moves(nb, view)
    view.get_by_role("button", name="Cancel").click()
    expect(view).to_contain_text("400 of 400 finished", timeout=20_000)
    nb.run(1)
    assert nb.errors() == []
    assert nb.offsite == []
