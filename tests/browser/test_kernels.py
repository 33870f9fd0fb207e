"""Buttons and nested loops on the kernels that people have: ipykernel 6 and 7."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from labdriver import NotebookPage

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

Open = Callable[..., "NotebookPage"]

SETUP = """
import ipykernel; print(ipykernel.__version__)
import asyncio, threading, time, qnb
app = qnb.App(queue_name={queue!r})

@app.task
async def nap(x):
    await asyncio.sleep(0.1)
    return x

async def ask(x):
    return await (await nap.enqueue(x))

threading.Thread(target=lambda: asyncio.run(app.run()), daemon=True).start()
"""


@pytest.fixture(params=["6", "7"])
def kernel(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("old_kernel") if request.param == "6" else "python3"


def test_a_press_is_answered_also_while_a_cell_blocks_and_while_one_waits(
    open_notebook: Open, queue: str, kernel: str
) -> None:
    from playwright.sync_api import expect

    nb = open_notebook(
        SETUP.format(queue=queue),
        "sweep = nap.options(name='naps', max_running=1).map(range(2_000)); sweep",
        "time.sleep(3)",
        "await asyncio.sleep(3)",
        "assert sweep.cancel().result(20) > 0; app.stop()",
        kernel=kernel,
    )
    nb.run(0)
    version = nb.output(0).inner_text().strip()
    assert version.startswith("6.31" if kernel == "ipykernel6" else "7.")
    nb.run(1)
    view = nb.output(1).get_by_role("group", name="sweep naps")
    said, word = view.locator(".qnb-said"), view.locator(".qnb-word")
    expect(word).to_have_text("running")
    for cell, label, then in ((2, "Pause", "paused"), (3, "Resume", "running")):
        nb.run(cell, wait=False)
        nb.page.wait_for_function(
            "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status"
            " === 'busy'"
        )
        view.get_by_role("button", name=label).click()
        expect(said).to_contain_text(f"{label}: ", timeout=500)  # at once, whatever runs
        expect(word).to_have_text(then, timeout=15_000)
        expect(said).to_have_text(f"{label}: done", timeout=15_000)
    nb.run(4)
    assert nb.errors() == []


def test_run_all_with_nested_loops_loses_no_queued_cell(
    open_notebook: Open, queue: str, kernel: str
) -> None:
    cells = [
        "qnb.nest(); ran = [asyncio.run(ask(1))]",
        "ran.append(2)",
        "ran.append(asyncio.get_event_loop().run_until_complete(ask(3)))",
        "ran.append(await ask(4))",
        "sweep = nap.map([5, 6]); ran += sweep.results()",
        "ran.append(asyncio.run(ask(7)))",
        "app.stop(); print(ran)",
    ]
    nb = open_notebook(SETUP.format(queue=queue), *cells, kernel=kernel)
    nb.run_all()
    assert nb.errors() == []
    assert nb.output(len(cells)).inner_text().strip() == "[1, 2, 3, 4, 5, 6, 7]"
