"""Exploring a sweep in its view: a job, the table, the colours, the heat map."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from labdriver import NotebookPage
    from playwright.sync_api import Locator

pytestmark = [pytest.mark.browser, pytest.mark.timeout(90)]

Open = Callable[..., "NotebookPage"]

JOB = re.compile(r"^job \d")
SETUP = "from fakes import Sweep\n"
STANDING = SETUP + "s = Sweep(600, share=0.4); s"
CELL_36 = {"x": 36 * 11 + 4, "y": 4}  # place 36 of 600 cells of 11 px: it has failed


def _shown(nb: NotebookPage, cell: int = 0) -> Locator:
    from playwright.sync_api import expect

    view = nb.output(cell).get_by_role("group", name="sweep scan")
    expect(view.get_by_role("slider", name="jobs")).to_be_visible()
    return view


def _shoot(nb: NotebookPage, view: Locator, screenshots: Path, name: str) -> None:
    for theme in ("dark", "light"):
        nb.set_theme(theme)
        view.screenshot(path=screenshots / f"sweep-{name}-{theme}.png")


def _calm(nb: NotebookPage) -> None:
    assert nb.errors() == []
    assert nb.offsite == []


def test_a_view_at_rest_asks_nothing(open_notebook: Open, screenshots: Path) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(STANDING, "print(s.asked)")
    nb.run(0)
    view = _shown(nb)
    assert view.locator(".qnb-part:visible").count() == 0
    expect(view).to_contain_text("3 of 4 slots busy")
    _shoot(nb, view, screenshots, "rest")
    nb.run(1)
    assert nb.output(1).inner_text().strip() == "[]"
    _calm(nb)


def test_pointing_at_a_cell_says_what_it_is_and_a_click_keeps_it(
    open_notebook: Open, screenshots: Path
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(STANDING, "print(s.asked)")
    nb.run(0)
    view = _shown(nb)
    cells, tip = view.get_by_role("slider", name="jobs"), view.locator(".qnb-tip")
    cells.hover(position=CELL_36)
    expect(tip).to_contain_text("Job 36")
    expect(tip).to_contain_text(re.compile("rate\\s*0.2"))
    expect(tip).to_contain_text("ValueError")
    view.screenshot(path=screenshots / "sweep-tip.png")
    cells.click(position=CELL_36)
    panel = view.get_by_role("region", name=JOB)
    expect(panel).to_contain_text("tried 1×")
    expect(panel.get_by_role("group", name="where it failed")).to_contain_text("in simulate")
    view.locator(".qnb-bar").hover()
    expect(tip).to_be_hidden()
    _shoot(nb, view, screenshots, "job")
    panel.get_by_role("button", name="Close").click()
    expect(panel).to_be_hidden()
    nb.run(1)
    assert set(re.findall(r"\w+", nb.output(1).inner_text())) == {"job"}
    _calm(nb)


def test_the_table_sorts_filters_turns_pages_and_opens_a_job(
    open_notebook: Open, screenshots: Path
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(STANDING)
    nb.run(0)
    view = _shown(nb)
    view.get_by_role("button", name="Jobs").click()
    table = view.get_by_role("table", name="jobs")
    shown = view.locator(".qnb-where")
    expect(shown).to_have_text("1–20 of 600")
    _shoot(nb, view, screenshots, "table")
    view.get_by_role("button", name="Next").click()
    expect(shown).to_have_text("21–40 of 600")
    view.get_by_role("button", name="loss").click()
    losses = table.locator("tbody tr td:nth-child(6)")
    expect(losses.first).to_have_text("0.05")
    expect(table.get_by_role("columnheader", name="loss")).to_have_attribute(
        "aria-sort", "ascending"
    )
    expect(shown).to_have_text("1–20 of 600")
    table.get_by_label("filter model").fill("forest")
    table.get_by_label("filter rate").fill(">0.5")
    table.get_by_label("filter state").fill("done")
    expect(shown).to_have_text(re.compile(r"^1–20 of 37 \(600 jobs\)$"))
    values = [float(text) for text in losses.all_inner_texts()]
    assert values == sorted(values)
    assert set(table.locator("tbody tr td:nth-child(5)").all_inner_texts()) == {"forest"}
    _shoot(nb, view, screenshots, "filtered")
    place = table.locator("tbody button").nth(3).inner_text()
    table.locator("tbody tr").nth(3).click(position={"x": 200, "y": 8})
    panel = view.get_by_role("region", name=JOB)
    expect(panel).to_contain_text(f"Job {place}")
    expect(panel).to_contain_text("forest")
    _calm(nb)


def test_a_filter_that_cannot_be_read_says_so(open_notebook: Open) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(STANDING)
    nb.run(0)
    view = _shown(nb)
    view.get_by_role("button", name="Jobs").click()
    view.get_by_label("filter rate").fill("about 3")
    expect(view.locator(".qnb-part:visible > .qnb-note")).to_contain_text(
        "could not convert string to float"
    )
    view.get_by_label("filter rate").fill("0.2")
    expect(view.locator(".qnb-part:visible > .qnb-note")).to_have_count(1)
    expect(view.locator(".qnb-part > .qnb-note:visible")).to_have_count(0)
    expect(view.locator(".qnb-where")).to_contain_text("1–20 of 30")
    _calm(nb)


PIXEL = """(canvas, [x, y]) => {
    const scale = canvas.width / canvas.clientWidth;
    return [...canvas.getContext('2d').getImageData(x * scale, y * scale, 1, 1).data];
}"""


def test_the_cells_take_the_colours_of_a_column(open_notebook: Open, screenshots: Path) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(STANDING)
    nb.run(0)
    view = _shown(nb)
    canvas, legend = view.locator(".qnb-map canvas"), view.locator(".qnb-legend").first
    by = view.get_by_role("combobox", name="Colour by")
    by.focus()
    expect(by.locator("option")).to_have_text(
        ["state", "rate", "depth", "model", "loss", "duration"]
    )
    by.select_option("rate")
    expect(legend).to_contain_text("600 of 600 known")
    low = canvas.evaluate(PIXEL, [3, 3])
    assert low == [0x44, 0x01, 0x54, 255]  # the lowest rate: the dark end of the scale
    _shoot(nb, view, screenshots, "colour-number")
    by.select_option("model")
    expect(legend).to_contain_text("perceptron")
    assert canvas.evaluate(PIXEL, [3, 3]) == [0xE6, 0x9F, 0x00, 255]
    _shoot(nb, view, screenshots, "colour-text")
    by.select_option("loss")
    expect(legend).to_contain_text("of 600 known")
    _shoot(nb, view, screenshots, "colour-result")
    by.select_option(label="state")
    expect(legend).to_be_hidden()
    _calm(nb)


KNOWN = """(root) => Number(root.querySelector('.qnb-heat .qnb-known').textContent
    .match(/(\\d+) of 200/)[1])"""


def test_the_heat_map_fills_while_the_sweep_runs_and_a_cell_blocks(
    open_notebook: Open, screenshots: Path
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(SETUP + "s = Sweep(600, 12); s", "import time; time.sleep(5)")
    nb.run(0)
    view = _shown(nb)
    view.get_by_role("button", name="Heat map").click()
    heat, legend = (
        view.get_by_role("slider", name="heat map"),
        view.locator(".qnb-heat .qnb-legend"),
    )
    expect(heat).to_be_visible()
    expect(legend).to_contain_text(re.compile(r"\b[1-9]\d* of 200 known"))
    for label, text in (("Across", "rate"), ("Up", "depth"), ("Colour", "loss")):
        expect(view.get_by_role("combobox", name=label, exact=True)).to_have_value(text)
    nb.run(1, wait=False)
    nb.page.wait_for_function(
        "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status"
        " === 'busy'"
    )
    known = view.evaluate(KNOWN)
    nb.page.wait_for_function(f"(before) => ({KNOWN})(document) > before", arg=known)
    assert nb.busy, "the blocking cell was over before the heat map moved"
    heat.hover(position={"x": 5, "y": 5})
    expect(view.locator(".qnb-readout")).to_contain_text("rate = 0.05, depth = 10: loss")
    _shoot(nb, view, screenshots, "heat")
    _calm(nb)


def test_a_sweep_of_one_line_or_of_no_parameters_is_drawn_or_says_so(
    open_notebook: Open, screenshots: Path
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(
        SETUP + "s = Sweep(600, share=0.4, parameters=1); s",
        SETUP + "t = Sweep(60, share=0.4, parameters=0); t",
    )
    nb.run(0)
    nb.run(1)
    view = _shown(nb)
    view.get_by_role("button", name="Heat map").click()
    expect(view.locator(".qnb-heat .qnb-legend")).to_contain_text("20 of 20 known")
    view.screenshot(path=screenshots / "sweep-strip.png")
    other = _shown(nb, 1)
    other.get_by_role("button", name="Heat map").click()
    expect(other).to_contain_text("has no parameters to put on an axis")
    _calm(nb)


def test_the_keyboard_alone_explores_a_sweep(open_notebook: Open) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(STANDING, "0")
    nb.run(0)
    view = _shown(nb)
    keys = nb.page.keyboard
    cells = view.get_by_role("slider", name="jobs")
    cells.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
        keys.press(key)
    place = int(cells.get_attribute("aria-valuenow") or 0) - 1
    assert place >= 50  # one to the right, and a row below
    expect(cells).to_have_attribute("aria-valuetext", re.compile(rf"^Job {place} · \w+"))
    keys.press("Enter")
    panel = view.get_by_role("region", name=JOB)
    expect(panel).to_contain_text(f"Job {place}")
    keys.press("Escape")
    expect(panel).to_be_hidden()
    expect(cells).to_be_focused()
    view.get_by_role("button", name="Jobs").focus()
    keys.press("Enter")
    opener = view.get_by_role("button", name="open job 3", exact=True)
    opener.focus()
    keys.press("Space")
    expect(panel.get_by_role("button", name="Close")).to_be_focused()
    expect(panel).to_contain_text("Job 3")
    keys.press("Escape")
    expect(opener).to_be_focused()
    active = "() => window.jupyterapp.shell.currentWidget.content.activeCellIndex"
    assert nb.page.evaluate(active) == 0  # the notebook did not take the arrows for its own
    _calm(nb)


AXE = """async (views) => {
    const found = await axe.run(views, { resultTypes: ['violations'] });
    return found.violations.filter(({ impact }) => ['serious', 'critical'].includes(impact))
        .flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html.slice(0, 200)}`));
}"""
WIDER = """(view) => {
    const edge = view.getBoundingClientRect().right + 0.5;
    const scrolls = (node) => node !== view
        && (getComputedStyle(node).overflowX !== 'visible' || scrolls(node.parentElement));
    return [...view.querySelectorAll('*')].filter((node) => node.checkVisibility()
        && node.getBoundingClientRect().right > edge && !scrolls(node))
        .map((node) => node.outerHTML.slice(0, 120));
}"""


def test_all_open_at_once_it_is_accessible_and_fits_narrow_and_zoomed_pages(
    open_notebook: Open, screenshots: Path
) -> None:
    from playwright.sync_api import expect

    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    nb = open_notebook(STANDING)
    nb.page.set_viewport_size({"width": 1000, "height": 3000})
    nb.run(0)
    view = _shown(nb)
    view.get_by_role("slider", name="jobs").click(position=CELL_36)
    for part in ("Jobs", "Heat map"):
        view.get_by_role("button", name=part).click()
    expect(view.locator(".qnb-where")).to_have_text("1–20 of 600")
    expect(view.locator(".qnb-heat .qnb-legend")).to_contain_text("known")
    nb.page.evaluate(axe)
    for theme in ("dark", "light"):
        nb.set_theme(theme)
        assert view.evaluate(AXE) == []
    output = nb.output(0)
    for name, style in (("narrow", "max-width: 320px"), ("zoomed", "zoom: 2")):
        output.evaluate("(node, style) => { node.style.cssText = style; }", style)
        assert view.evaluate(WIDER) == []
        view.screenshot(path=screenshots / f"sweep-open-{name}.png")
    nb.page.set_viewport_size({"width": 1280, "height": 1000})
    _calm(nb)


def test_a_heat_map_opened_before_the_first_result_shows_it_when_it_comes(
    open_notebook: Open, queue: str
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(
        f"import qnb\napp = qnb.App(queue_name={queue!r})\n"
        "@app.task\ndef area(x, y): return {'area': x * y}\n"
        "sweep = area.grid(x=range(4), y=range(5)); sweep",
        "pool = app.start_workers(1, linger='30 s')",
        "sweep.wait(); pool.stop()",
    )
    nb.run(0)
    view = nb.output(0).get_by_role("group")
    view.get_by_role("button", name="Heat map").click()
    colour = view.locator(".qnb-heat select").nth(2)
    expect(colour).to_have_value("duration")
    expect(view).to_contain_text("0 of 20 known")
    nb.run(1)
    expect(colour).to_have_value("area", timeout=20_000)
    expect(view).to_contain_text("20 of 20 known", timeout=20_000)
    nb.run(2)
    assert nb.errors() == []
    assert nb.offsite == []
