"""Everyone can use a view: axe-core finds nothing serious, the keyboard reaches everything."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from labdriver import LabServer, NotebookPage
    from playwright.sync_api import Locator

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

Open = Callable[..., "NotebookPage"]

NAME = "everything.ipynb"
SETUP = "from IPython.display import display\nimport stills\n"
MADE = {"a_job": "JOBS", "a_sweep": "SWEEPS", "a_pool": "POOLS", "an_app": "APPS"}
# a cell each, as Lab shows no more than 50 outputs of one
LIVE = [f"for word in stills.{all}: display(stills.{make}(word))" for make, all in MADE.items()]
CARDS = [cell.replace("word))", "word).card())") for cell in LIVE]
ONE = SETUP + "thing = stills.{make}({word!r}); thing"

WITH_BUTTONS = [
    ("a_job", "running"),
    ("a_job", "failed"),
    ("a_sweep", "running"),
    ("a_sweep", "paused"),
    ("a_pool", "serving"),
    ("an_app", "busy"),
]


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core."""
    try:
        return files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    except ModuleNotFoundError:
        if os.environ.get("CI"):
            pytest.fail("axe-core is missing; these tests must run in CI")
        pytest.skip("axe-core is missing: make install")


@pytest.fixture(scope="module")
def opened(lab: LabServer, lab_page: NotebookPage) -> Iterator[NotebookPage]:
    """A notebook with every state of every view, and below of every card."""
    from playwright.sync_api import expect

    lab.write(NAME, SETUP, *LIVE, *CARDS)
    (lab_page.open_tab if lab_page.page.url.startswith("http") else lab_page.open)(NAME)
    lab_page.page.set_viewport_size({"width": 1000, "height": 12_000})
    for cell in range(1 + len(LIVE) + len(CARDS)):
        lab_page.run(cell)
    last = lab_page.output(len(LIVE)).get_by_role("group", name="app")
    expect(last).to_have_count(5, timeout=30_000)
    yield lab_page
    lab_page.open_tab(NAME)
    lab_page.close()


@pytest.fixture
def everything(opened: NotebookPage) -> Iterator[NotebookPage]:
    """The same, on top of all other tabs and as wide as it was."""
    opened.open_tab(NAME)
    opened.page.set_viewport_size({"width": 1000, "height": 12_000})
    yield opened
    opened.page.set_viewport_size({"width": 1280, "height": 1000})


def _shoot(nb: NotebookPage, screenshots: Path, name: str) -> None:
    """Pictures of the views and of the cards of each kind."""
    for cell, make in enumerate([*MADE, *MADE], 1):
        kind = "states" if cell <= len(MADE) else "cards"
        nb.output(cell).screenshot(path=screenshots / f"{kind}-{make.split('_')[1]}-{name}.png")


def _violations(nb: NotebookPage, axe: str, within: str) -> list[str]:
    """What axe-core finds serious or critical inside of ``within``."""
    if not nb.page.evaluate("() => 'axe' in window"):
        nb.page.evaluate(axe)
    found: list[dict[str, Any]] = nb.page.evaluate(
        """async (within) => {
            const nodes = [...document.querySelectorAll(within)].filter((n) => n.checkVisibility());
            if (!nodes.length) throw new Error(`nothing to look at: ${within}`);
            return (await axe.run(nodes, { resultTypes: ['violations'] })).violations;
        }""",
        within,
    )
    return [
        f"{one['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def test_axe_finds_nothing_serious_in_any_state_of_any_view_or_card(
    everything: NotebookPage, screenshots: Path, axe: str
) -> None:
    nb = everything
    for theme in ("dark", "light"):
        nb.set_theme(theme)
        assert _violations(nb, axe, ".qnb-view") == []
        assert _violations(nb, axe, ".mathjax_ignore") == []
        _shoot(nb, screenshots, theme)


def _looked_through(nb: NotebookPage) -> Locator:
    """A sweep with a job, the table and the heat map opened."""
    from playwright.sync_api import expect

    nb.run(0)
    view = nb.output(0).get_by_role("group", name="sweep scan")
    for name in ("Jobs", "Heat map"):
        view.get_by_role("button", name=name).click()
    view.get_by_role("button", name="open job 3", exact=True).click()
    expect(view.get_by_role("region", name=re.compile(r"^job \d"))).to_contain_text("epoch 2")
    expect(view.locator(".qnb-heat")).to_contain_text("known")
    return view


LOOKED_THROUGH = "from fakes import Sweep\nSweep(600, share=0.4)"


def test_axe_finds_nothing_serious_in_a_sweep_that_is_looked_through(
    open_notebook: Open, screenshots: Path, axe: str
) -> None:
    nb = open_notebook(LOOKED_THROUGH)
    nb.page.set_viewport_size({"width": 1000, "height": 3000})
    view = _looked_through(nb)
    for theme in ("dark", "light"):
        nb.set_theme(theme)
        assert _violations(nb, axe, ".qnb-view") == []
    for name, style in NARROW.items():
        nb.output(0).evaluate("(node, style) => { node.style.cssText = style; }", style)
        assert nb.page.evaluate(WIDER) == []
        view.screenshot(path=screenshots / f"sweep-opened-{name}.png")
    nb.page.set_viewport_size({"width": 1280, "height": 1000})


def test_the_keyboard_goes_through_a_sweep_that_is_looked_through_and_out_again(
    open_notebook: Open,
) -> None:
    nb = open_notebook(LOOKED_THROUGH)
    assert len(_tab_through(nb, _looked_through(nb))) >= 30


REACHABLE = """(view) => {
    window.wanted = [...view.querySelectorAll('*')].filter((node) => node.tabIndex >= 0
        && node.matches('button, select, input, summary, textarea, [tabindex]')
        && node.checkVisibility() && !node.disabled && !node.closest('[inert]'));
    return window.wanted.map((node) => node.outerHTML.slice(0, 200));
}"""
FOCUSED = """() => {
    const node = document.activeElement, style = getComputedStyle(node);
    if (!node.closest('.qnb-view')) return null;
    const outlined = style.outlineStyle !== 'none' && style.outlineWidth !== '0px';
    return [window.wanted.indexOf(node), outlined, node.outerHTML.slice(0, 200)];
}"""


@pytest.mark.parametrize("make, word", WITH_BUTTONS)
def test_the_keyboard_reaches_everything_and_presses_it(
    open_notebook: Open, make: str, word: str
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(ONE.format(make=make, word=word))
    nb.run(0)
    view = nb.output(0).locator(".qnb-view")
    expect(view).to_be_visible()
    assert len(_tab_through(nb, view)) >= (make != "an_app")
    buttons = view.locator(".qnb-buttons button")
    for place in range(buttons.count()):
        label = buttons.nth(place).inner_text()
        buttons.nth(place).focus()
        nb.page.keyboard.press("Enter" if place % 2 else "Space")
        expect(view.locator(".qnb-said")).to_have_text(f"{label}: done")
        expect(view.get_by_role("status")).to_have_text(f"{label}: done")
    for element in view.locator("summary:visible").all():
        element.focus()
        nb.page.keyboard.press("Enter")
        assert element.evaluate("(node) => node.parentElement.open")


def _tab_through(nb: NotebookPage, view: Locator) -> list[str]:
    """What Tab reaches: all there is to press, in the order of reading, and then the way out."""
    wanted: list[str] = view.evaluate(REACHABLE)
    _focus_before(view)
    reached: list[str] = []
    nb.page.keyboard.press("Tab")
    while (focus := nb.page.evaluate(FOCUSED)) is not None and len(reached) <= len(wanted):
        place, outlined, node = focus
        assert place == len(reached), f"{node} instead of {wanted[len(reached) :][:1]}"
        assert outlined, f"no focus is seen on {node}"
        reached.append(node)
        nb.page.keyboard.press("Tab")
    assert len(reached) == len(wanted)
    return reached


def _focus_before(view: Locator) -> None:
    """So that the next Tab goes to the first thing in the view that takes the focus."""
    view.evaluate(
        """(view) => {
            const before = document.createElement('span');
            before.tabIndex = -1;
            view.before(before);
            before.focus();
        }"""
    )


CHIP = """(all) => all.map((node) => (node.querySelector('.qnb-chip')
    ?? node.querySelector('span > span').parentElement).innerText.trim().split(/\\s+|(?<=^.)/u))"""


def test_each_state_is_a_sign_and_a_word_and_each_bar_has_a_value(
    everything: NotebookPage,
) -> None:
    nb = everything
    live = nb.page.locator(".qnb-view:visible")
    for shown in (live, nb.page.locator(".mathjax_ignore:visible")):
        chips: list[list[str]] = shown.evaluate_all(CHIP)
        assert len(chips) >= 20
        for sign, *words in chips:
            assert len(sign) == 1
            assert len(" ".join(words)) >= 4
    for view in live.all():
        status = view.get_by_role("status")
        assert status.get_attribute("aria-live") == "polite"
        assert view.locator(".qnb-word").inner_text() in status.inner_text()
        assert view.get_attribute("aria-label")
        for bar in view.get_by_role("progressbar").all():
            value, most = (int(bar.get_attribute(f"aria-value{at}") or -1) for at in ("now", "max"))
            assert 0 <= value <= most
            assert bar.get_attribute("aria-valuetext")
            assert bar.get_attribute("aria-label")


NARROW = {"narrow": "max-width: 320px", "zoomed": "zoom: 2"}
WIDER = """() => [...document.querySelectorAll('.qnb-view, .mathjax_ignore')]
    .filter((view) => view.checkVisibility()).flatMap((view) => {
        const edge = view.getBoundingClientRect().right + 0.5;
        const scrolls = (node) => node !== view && (getComputedStyle(node).overflowX !== 'visible'
            || scrolls(node.parentElement));
        return [...view.querySelectorAll('*')].filter((node) => node.checkVisibility()
            && node.getBoundingClientRect().right > edge && !scrolls(node))
            .map((node) => `${view.getAttribute('aria-label')}: ${node.outerHTML.slice(0, 120)}`);
    })"""


def test_nothing_sticks_out_of_a_view_that_is_narrow_or_zoomed(
    everything: NotebookPage, screenshots: Path
) -> None:
    nb = everything
    outputs = [nb.output(cell) for cell in range(1, 1 + len(LIVE) + len(CARDS))]
    for name, style in NARROW.items():
        for output in outputs:
            output.evaluate("(node, style) => { node.style.cssText = style; }", style)
        assert nb.page.evaluate(WIDER) == []
        _shoot(nb, screenshots, name)
    for output in outputs:
        output.evaluate("(node) => { node.style.cssText = ''; }")


def test_motion_stops_and_forced_colours_keep_bars_and_signs(
    everything: NotebookPage, screenshots: Path
) -> None:
    nb = everything
    moving = nb.page.evaluate(
        """() => [...document.querySelectorAll('.qnb-view *')].filter((node) => {
            const style = getComputedStyle(node);
            return parseFloat(style.transitionDuration) || style.animationName !== 'none';
        }).map((node) => node.outerHTML)"""
    )
    assert moving == []  # the page of these tests prefers reduced motion
    nb.page.emulate_media(forced_colors="active")
    try:
        bars = nb.page.locator(".qnb-view:visible .qnb-bar i[style]")
        colours = bars.evaluate_all("(all) => all.map((n) => getComputedStyle(n).backgroundColor)")
        assert len(set(colours)) >= 4
        _shoot(nb, screenshots, "forced-colours")
    finally:
        nb.page.emulate_media(forced_colors="none")
