"""A job's view, with real workers: it follows, it is commanded, it says how to go on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from labdriver import NotebookPage

pytestmark = [pytest.mark.browser, pytest.mark.timeout(90)]

Open = Callable[..., "NotebookPage"]

SETUP = """
import time, qnb
app = qnb.App(queue_name={queue!r})
pool = app.start_workers(1, linger="60 s")

@app.task
def fit(steps, step=0.5):
    for i in qnb.progress(range(steps), desc="epoch"):
        print(f"loss after {{i}}: {{1 / (i + 1):.3f}}")
        time.sleep(0.2)
    return steps

@app.task
def fails_once(flag):
    import pathlib
    if not pathlib.Path(flag).exists():
        pathlib.Path(flag).touch()
        print("it will not do")
        raise ValueError("the first time it fails")
    return "well"
"""


def test_a_job_is_followed_while_a_cell_blocks_and_aborted_by_keyboard(
    open_notebook: Open, screenshots: Path, queue: str
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(
        SETUP.format(queue=queue), "job = fit.submit(200, step=0.25); job", "time.sleep(4)"
    )
    nb.run(0)
    nb.run(1)
    view = nb.output(1).get_by_role("group", name="job fit")
    expect(view).to_contain_text("200, step=0.25")
    nb.run(2, wait=False)
    log = view.get_by_role("region", name="the end of its output")
    expect(log).to_contain_text("loss after 8")
    assert nb.busy, "the log moved while the cell blocked"
    expect(view.get_by_role("progressbar")).to_have_attribute("aria-valuetext", re.compile(r"\d %"))
    expect(view.locator(".qnb-time")).to_contain_text("left")
    for theme in ("dark", "light"):
        nb.set_theme(theme)
        view.screenshot(path=screenshots / f"job-running-{theme}.png")
    abort = view.get_by_role("button", name="Abort")
    abort.focus()
    nb.page.keyboard.press("Space")
    expect(view.locator(".qnb-said")).to_contain_text("Abort: sent")
    expect(view.locator(".qnb-word")).to_have_text("aborted", timeout=15_000)
    expect(view.get_by_role("button", name="Retry")).to_be_visible()
    assert nb.errors() == []
    assert nb.offsite == []


def test_a_failed_job_is_retried_in_its_view_and_leaves_what_it_printed(
    open_notebook: Open, screenshots: Path, queue: str, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    flag = str(tmp_path / "flag")
    nb = open_notebook(
        SETUP.format(queue=queue), f"job = fails_once.submit({flag!r}); job", "pool.stop()"
    )
    nb.run(0)
    nb.run(1)
    output = nb.output(1)
    view = output.get_by_role("group", name="job fails_once")
    expect(view).to_contain_text("ValueError: the first time it fails")
    expect(view.get_by_role("region", name="traceback")).to_contain_text("in fails_once")
    expect(view).to_contain_text("it will not do")
    view.get_by_text("How to reproduce").click()
    expect(view).to_contain_text(".reproduce()")
    view.screenshot(path=screenshots / "job-failed.png")
    saved = nb.save()[1]
    assert "it will not do" in "".join(saved[1]["data"]["text/html"])
    view.get_by_role("button", name="Retry").click()
    expect(output.get_by_text("✓ done")).to_be_visible(timeout=15_000)
    expect(view).to_have_count(0)  # nothing is left to press: the card stays
    nb.run(2)
    assert nb.errors() == []
