"""What a reader sees of a pool and of an app in a real JupyterLab, with real workers."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from labdriver import NotebookPage
    from playwright.sync_api import Locator

pytestmark = [pytest.mark.browser, pytest.mark.timeout(90)]

Open = Callable[..., "NotebookPage"]

SETUP = """
import time, qnb
app = qnb.App(queue_name={queue!r}, priorities=["bulk", "urgent"])

@app.task
def simulate(x):
    time.sleep(2 if x < 8 else 0.2)
    if x in (8, 11):
        raise ValueError(f"no luck with {{x}}")
    return x
"""
STARTED = SETUP + "\npool = app.start_workers(1, linger=60)"


def _slots(view: Locator) -> Locator:
    return view.get_by_label("Slots", exact=True)


def _shoot(nb: NotebookPage, view: Locator, screenshots: Path, name: str) -> None:
    for theme in ("dark", "light"):
        nb.set_theme(theme)
        view.screenshot(path=screenshots / f"{name}-{theme}.png")
    nb.page.set_viewport_size({"width": 640, "height": 1000})
    view.screenshot(path=screenshots / f"{name}-narrow.png")
    nb.page.set_viewport_size({"width": 1280, "height": 1000})


def test_a_pool_is_made_larger_by_mouse_smaller_by_keyboard_and_stopped(
    open_notebook: Open, screenshots: Path, queue: str
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(
        STARTED.format(queue=queue), "pool", "s = simulate.map(range(4))", "pool.stop()"
    )
    nb.run(0)
    nb.run(1)
    view = nb.output(1)
    expect(view.get_by_role("group", name=f"pool {queue}")).to_be_visible()
    expect(_slots(view)).to_have_value("1")
    nb.run(2)
    running = view.locator(".qnb-runs")
    expect(running).to_contain_text(re.compile(r"simulate .*\.\d for \d"))
    view.get_by_role("button", name="One slot more").click()
    expect(view).to_contain_text("Scale: done", timeout=20_000)
    expect(view).to_contain_text("2 of 2 slots busy", timeout=15_000)
    expect(view.get_by_role("row", name=re.compile("process"))).to_have_count(2)
    _shoot(nb, view, screenshots, "pool")
    _slots(view).focus()
    _slots(view).fill("999")
    nb.page.keyboard.press("Enter")
    expect(view).to_contain_text("a number from 1 to ")  # and nothing is sent
    expect(_slots(view)).to_have_attribute("aria-invalid", "true")
    _slots(view).fill("1")
    nb.page.keyboard.press("Enter")
    expect(view.get_by_role("row", name=re.compile("process"))).to_have_count(1, timeout=30_000)
    expect(_slots(view)).to_have_value("1")
    view.get_by_role("button", name="Stop").focus()
    nb.page.keyboard.press("Enter")
    expect(view.locator(".qnb-word")).to_have_text("stopped", timeout=30_000)
    view.get_by_role("button", name="Start").click()
    expect(view.locator(".qnb-word")).to_have_text("idle", timeout=30_000)
    nb.run(3)
    assert nb.errors() == []
    assert nb.offsite == []


def test_an_app_shows_lanes_a_sweep_its_rate_and_what_has_failed(
    open_notebook: Open, screenshots: Path, queue: str
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(
        STARTED.format(queue=queue) + "\npool.scale(2)",
        "app",
        "s = simulate.options(priority='bulk', name='scan').map([*range(8, 60), *range(6)])\n"
        "later = [simulate.options(delay_ms=600_000).submit(1) for _ in range(3)]",
        "time.sleep(3)",
        "pool.stop()",
    )
    for cell in (0, 1, 2):
        nb.run(cell)
    view = nb.output(1)
    expect(view.get_by_role("group", name=f"app {queue}")).to_be_visible()
    expect(view.get_by_role("row", name=re.compile("^bulk"))).to_contain_text(re.compile(r"[1-9]"))
    nb.run(3, wait=False)
    expect(view).to_contain_text("ValueError('no luck with 8')")
    expect(view.get_by_role("progressbar", name=re.compile("^scan: [1-9].* of 58"))).to_be_visible()
    expect(view.locator(".qnb-time")).to_contain_text("jobs/s")
    expect(view).to_contain_text("3 delayed")
    expect(view.get_by_role("img", name=re.compile("jobs ended per second"))).to_be_visible(
        timeout=15_000
    )
    _shoot(nb, view, screenshots, "app")
    expect(view.get_by_role("row", name=re.compile("scan"))).to_contain_text(
        "58 of 58", timeout=30_000
    )
    _shoot(nb, view, screenshots, "app-ended")
    nb.run(4)
    expect(view).to_contain_text("0 running on 0 slots")
    assert nb.errors() == []
    assert nb.offsite == []


def test_a_worker_that_is_killed_leaves_the_pool_and_falls_silent_in_the_app(
    open_notebook: Open, queue: str
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(
        SETUP.format(queue=queue)
        + f"\nother = qnb.App(queue_name={queue!r}, priorities=['bulk', 'urgent'], lease_ms=6_000)"
        "\npool = other.start_workers(1, linger=60)",
        "pool",
        "other",
        "print([w.pid for w in pool.snapshot().workers][0])",
        "pool.stop()",
    )
    for cell in range(4):
        nb.run(cell)
    expect(nb.output(1).locator(".qnb-word")).to_have_text("idle")
    expect(nb.output(2).get_by_role("row", name=re.compile("idle"))).to_be_visible()
    os.kill(int(nb.output(3).inner_text()), signal.SIGKILL)
    expect(nb.output(1).locator(".qnb-word")).to_have_text("stopped")
    silent = nb.output(2).get_by_role("row", name=re.compile(r"silent for \d s"))
    expect(silent).to_be_visible(timeout=10_000)
    expect(silent).to_have_count(0, timeout=10_000)  # its lease is over
    nb.run(4)
    assert nb.errors() == []


def test_a_server_that_was_away_is_waited_for_and_the_view_catches_up(open_notebook: Open) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(
        "import tempfile, subprocess, qnb\nfolder = tempfile.mkdtemp()\n"
        "def serve():\n    return subprocess.Popen(['redis-server', '--port', '0', '--unixsocket',"
        " 's', '--appendonly', 'yes'], cwd=folder, stdout=subprocess.DEVNULL)\n"
        "process = serve()\napp = qnb.App(f'unix://{folder}/s')\n"
        "@app.task\ndef one(): return 1\n"
        "job = one.submit(); job.id",
        "app",
        "process.kill(); process.wait()",
        "process = serve()",
        "job = one.submit(); job.id",
        "process.terminate(); process.wait()",
    )
    nb.run(0)
    nb.run(1)
    view = nb.output(1)
    expect(view.locator(".qnb-word")).to_have_text("unserved")
    expect(view).to_contain_text("1 waiting")
    nb.run(2)
    expect(view.locator(".qnb-word")).to_have_text("reconnecting", timeout=15_000)
    expect(view).to_contain_text("1 waiting")
    nb.run(3)
    expect(view.locator(".qnb-word")).to_have_text("unserved", timeout=15_000)
    nb.run(4)
    expect(view).to_contain_text("2 waiting")
    nb.run(5)
    assert nb.errors() == []


GALLERY = [
    "Pool('serving')",
    "Pool('starting', wanted=16)",
    "Pool('idle')",
    "Pool('leaving')",
    "Pool('stopped')",
    "Pool('looking')",
    "Pool('serving', note='reconnecting')",
    "App()",
    "App(busy=False)",
    "App(busy=False, lanes={'default': 3})",
    "App(busy=False, note='the server at redis://h does not permit this: it is for readers only')",
    "from IPython.display import HTML; HTML(Pool('serving')._repr_html_() + App()._repr_html_())",
]


def test_every_state_of_a_pool_and_an_app_in_both_themes_and_narrow(
    open_notebook: Open, screenshots: Path
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(*[f"from queues import App, Pool\n{cell}" for cell in GALLERY])
    nb.page.set_viewport_size({"width": 1100, "height": 3900})
    for cell in range(len(GALLERY)):
        nb.run(cell)
        expect(nb.output(cell)).to_contain_text("shop")
    nb.pictures(screenshots, "queues", wide=(1100, 4600), narrow=600)
    assert nb.errors() == []
