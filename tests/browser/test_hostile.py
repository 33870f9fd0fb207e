"""In a real JupyterLab, text from users, their data and their errors is only ever text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from labdriver import NotebookPage
    from playwright.sync_api import Locator

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

Open = Callable[..., "NotebookPage"]

CARD = "[class^=qnb-card]"

#: what views, cards and Lab's own outputs are made of
ELEMENTS = """
    b button canvas caption code dd details div dl dt em header i img input label li option p path
    pre progress section select span strong style summary svg table tbody td th thead time tr u ul
"""
ATTRIBUTES = """
    alt border class colspan d data-listed data-lm-suppress-shortcuts data-mime-type data-tone dir
    disabled for height hidden id inert inputmode lang max min name open placeholder
    preserveaspectratio role scope scoped selected size spellcheck src step style tabindex title
    type value viewbox width
"""

FOUND = """([elements, attributes]) => {
    const found = new Set();
    const rule = /^[.\\w, :()+>~-]*\\{ ?display: ?none( !important;)? ?\\}$/; // ours
    const frame = /^[\\s\\w.{}:;-]*$/; // that of pandas
    const place = (node) => node.parentElement.outerHTML.slice(0, 200);
    for (const output of document.querySelectorAll('.jp-OutputArea-output'))
        for (const node of output.querySelectorAll('*')) {
            const tag = node.localName;
            if (node.closest('.dataframe mjx-container')) { // pandas lets Lab typeset its frames
                if (tag === 'a' && node.protocol !== 'https:') found.add(`link ${node.href}`);
                continue;
            }
            if (!elements.includes(tag)) found.add(`<${tag}> in ${place(node)}`);
            for (const { name, value } of node.attributes)
                if (!attributes.includes(name.toLowerCase()) && !name.startsWith('aria-'))
                    found.add(`${tag} ${name}=${value.slice(0, 100)}`);
            if (tag === 'img' && !node.src.startsWith('data:image/png;base64,'))
                found.add(`image ${node.src.slice(0, 100)}`);
            if (tag === 'style' && !rule.test(node.textContent) && !frame.test(node.textContent))
                found.add(`style ${node.textContent.slice(0, 200)}`);
            if (tag !== 'canvas' && getComputedStyle(node).position === 'fixed')
                found.add(`fixed ${tag}`);
        }
    const unseen = /[\\0-\\x08\\v-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\p{Cs}]/u;
    for (const node of document.querySelectorAll('.qnb-view, .qnb-view *')) {
        const said = node.localName === 'style' ? '' : node.firstChild?.nodeValue ?? '';
        for (const text of [said, node.getAttribute('aria-label') ?? '', node.title])
            if (unseen.test(text)) found.add(`unseen ${JSON.stringify(text.slice(0, 200))}`);
    }
    if (window.pwned !== undefined) found.add('a script has run');
    for (const at of ['iframe', 'frame', 'object', 'embed', 'base'])
        if (document.querySelector(`.jp-NotebookPanel ${at}`)) found.add(at);
    return [...found];
}"""


@contextmanager
def _nothing_runs(nb: NotebookPage) -> Iterator[list[str]]:
    """Whatever a page does beside showing text fails the test."""
    trouble: list[str] = []

    def heard(message: Any) -> None:
        if message.type == "error" and "Error displaying widget" not in message.text:
            trouble.append(message.text[:300])

    def asked(dialog: Any) -> None:
        trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def raised(error: Any) -> None:
        trouble.append(f"raised: {error}")

    listeners = [("console", heard), ("dialog", asked), ("pageerror", raised)]
    for event, listener in listeners:
        nb.page.on(event, listener)  # type: ignore[call-overload]
    yield trouble
    for event, listener in listeners:
        nb.page.remove_listener(event, listener)
    assert trouble == []
    assert nb.offsite == []


def _found(nb: NotebookPage) -> list[str]:
    found: list[str] = nb.page.evaluate(FOUND, [ELEMENTS.split(), ATTRIBUTES.split()])
    return found


def _path(nb: NotebookPage) -> str:
    path: str = nb.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.path")
    return path


def _changed_by_somebody(nb: NotebookPage, path: str) -> None:
    """So that its signature does not fit, and Lab does not trust it."""
    file = nb.server.notebooks / path
    text = json.loads(file.read_text())
    text["metadata"]["from"] = "elsewhere"
    file.write_text(json.dumps(text))


def _explore(nb: NotebookPage, view: Locator) -> None:
    """Open whatever the view can open, choose what it lets choose, and point at its pictures."""
    view.scroll_into_view_if_needed()
    for opener in (*view.locator(".qnb-disclosure").all(), view.locator(".qnb-link").first):
        opener.click()
    view.locator("canvas").first.hover()
    for place in range(4):
        for select in view.locator("select:visible").all():
            if place < select.locator("option").count():
                select.select_option(index=place)
        _answered(nb, view)
        assert _found(nb) == []


def _answered(nb: NotebookPage, view: Locator) -> None:
    from playwright.sync_api import expect

    expect(view.locator(".qnb-table td").first).to_be_visible()
    expect(view.locator(".qnb-detail .qnb-pairs dt").first).to_be_visible()
    nb.page.wait_for_function("() => window.jupyterapp.shell.currentWidget"
                              ".sessionContext.session.kernel.status === 'idle'")  # fmt: skip


SETUP = "from IPython.display import display\nimport stills\n"
#: Lab shows so many outputs of a cell, and a view is two
MOST = 25


@pytest.mark.parametrize("kind", ["jobs", "sweeps", "pools", "apps"])
def test_no_view_and_no_card_is_more_than_its_template(
    open_notebook: Open, screenshots: Path, kind: str
) -> None:
    from playwright.sync_api import expect

    cells = [
        f"{SETUP}for thing in [*stills.hostile_{kind}()][{at}:{at + MOST}]: display(thing)"
        for at in range(0, 4 * MOST, MOST)
    ]
    nb = open_notebook(*cells, f"print(len([*stills.hostile_{kind}()]))")
    nb.page.set_viewport_size({"width": 1000, "height": 3000})
    outputs = nb.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell-outputArea")
    with _nothing_runs(nb):
        for cell in range(len(cells)):
            nb.run(cell)
        nb.run(len(cells))
        count = int(nb.output(len(cells)).inner_text())
        assert 0 < count <= 4 * MOST
        expect(outputs.locator(".qnb-view:visible")).to_have_count(count, timeout=20_000)
        assert _found(nb) == []
        nb.page.screenshot(path=screenshots / f"hostile-{kind}.png")
        nb.save()
        path = _path(nb)
        nb.shutdown_kernel()
        for trusted in (True, False):
            if not trusted:
                _changed_by_somebody(nb, path)
            nb.open(path)
            expect(outputs.locator(CARD)).to_have_count(count)
            expect(outputs.locator(CARD).first).to_be_visible()
            assert _found(nb) == []
            nb.page.screenshot(path=screenshots / f"hostile-{kind}-card.png")
    nb.page.set_viewport_size({"width": 1280, "height": 1000})


REAL = """
import qnb
from tests.hostile import ARTFUL, CORPUS, FAMILIES
app = qnb.App(queue_name={queue!r})
pool = app.start_workers(1, linger=60)

class Oops(Exception):
    pass

@app.task
def told(texts, **named):
    for text in texts:
        print(text.encode("utf-8", "replace").decode())
        qnb.report(1, total=2, message=text, metric=text)
    raise type(texts[0][:50].replace("\\0", "") or "x", (Oops,), {{}})(" ".join(texts)[:5000])

@app.task
def given(text):
    if len(text) % 2:
        raise ValueError(text)
    return {{text: text, "y": text}}

@app.task
def loose(constructor, toString, __proto__):
    if constructor == toString:
        raise ValueError(constructor)
    return {{constructor: toString, "__proto__": len(toString), "<u>": 1.5, "hasOwnProperty": 2}}

@app.task
def kept(value):
    return value

short = [text for text in CORPUS if len(text) < 500]
"""


def test_real_jobs_with_hostile_arguments_logs_results_and_errors(
    open_notebook: Open, screenshots: Path, queue: str
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(
        REAL.format(queue=queue),
        "sweep = given.map(short); sweep",
        "from IPython.display import display\n"
        "jobs = [told.submit(family, **{family[0]: family[-1]}) for family in FAMILIES.values()]\n"
        "odd = [kept.submit(value) for value in ARTFUL.values()]\n"
        "for job in [*jobs, *odd]: display(job)",
        "app",
        "pool",
        "sweep.wait(60)\nfor job in [*jobs, *odd]: job.wait(60)",
        "display(sweep.frame(), app.jobs_frame(params='text'), repr(sweep), jobs)\n"
        "given.options(name='maths').map(FAMILIES['maths']).wait(60).frame()",
        "%load_ext qnb\n%qnb",
        "pool.stop()",
    )
    with _nothing_runs(nb):
        for cell in range(8):
            nb.run(cell)
        expect(nb.output(1)).to_contain_text("finished")
        nb.output(2).locator(".qnb-view").first.scroll_into_view_if_needed()
        expect(nb.output(2).locator(".qnb-traceback").first).to_be_visible()
        for summary in nb.output(2).locator("summary:visible").all():
            summary.click()
        assert _found(nb) == []
        nb.page.screenshot(path=screenshots / "hostile-real.png")
        assert nb.errors() == []
        nb.run(8)


def test_a_sweep_with_hostile_names_values_and_errors_is_explored(
    open_notebook: Open, screenshots: Path, queue: str
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(
        REAL.format(queue=queue),
        "given.map(short).wait(60)",
        "loose.grid(constructor=short[::25], toString=short[::25], __proto__=[1]).wait(60)",
        "pool.stop()",
    )
    nb.page.set_viewport_size({"width": 1280, "height": 2600})
    with _nothing_runs(nb):
        for cell in range(3):
            nb.run(cell)
        for cell in (1, 2):
            _explore(nb, nb.output(cell).locator(".qnb-view"))
            nb.output(cell).screenshot(path=screenshots / f"hostile-explored-{cell}.png")
        box = nb.output(2).get_by_label(re.compile("constructor")).and_(nb.page.locator("input"))
        expect(box).to_have_value("")  # and not what every object of JavaScript has by that name
        box.fill("iframe src=//")
        expect(nb.output(2).locator(".qnb-where")).to_have_text("1–10 of 10 (100 jobs)")
        assert nb.errors() == []
        nb.run(3)
    nb.page.set_viewport_size({"width": 1280, "height": 1000})
