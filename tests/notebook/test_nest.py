"""Cells that call ``asyncio.run`` work once ``qnb.nest()`` was called, and no cell is lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import ipykernel
import pytest

from qnb.errors import QnbError
from qnb.nesting import nest
from tests.notebook.kernels import Kernels

SETUP = """
    import asyncio, threading, time, qnb
    app = qnb.App({url!r}, {queue!r})
    ran = []

    @app.task
    async def double(x):
        await asyncio.sleep(0.1)
        return 2 * x

    async def ask(x):
        return await (await double.enqueue(x))

    threading.Thread(target=lambda: asyncio.run(app.run()), daemon=True).start()
    job = double.submit(0)
    assert job.get(10) == 0
"""

RUN_ALL = [
    "qnb.nest()",
    "ran.append(asyncio.run(ask(1)))",
    "ran.append(4)",
    "sweep = double.map([1, 2, 3]); ran.append(sweep.results()[2])",
    "ran.append(asyncio.get_event_loop().run_until_complete(ask(4)))",
    "ran.append(await ask(5))",
    "ran.append(asyncio.run(ask(6))); ran.append(double.submit(7).get(10))",
    "qnb.nest(); ran.append(16)",
    "assert ran == list(range(2, 18, 2)), ran",
]


@pytest.mark.timeout(60)
def test_run_all_loses_no_cell_and_keeps_their_order_while_loops_are_nested(
    server_url: str, queue: str, kernels: Kernels
) -> None:
    kernel = kernels.start()
    kernel.run(SETUP, url=server_url, queue=queue)
    for _ in range(3):
        answers = kernel.run_all(["ran.clear()", *RUN_ALL])
        assert [answer["status"] for answer in answers] == ["ok"] * len(answers), answers
    counts = [answer["execution_count"] for answer in answers]
    assert counts == list(range(counts[0], counts[0] + len(counts)))
    kernel.run("app.stop()")


def test_a_kernel_where_nest_asyncio_would_lose_cells_is_told_so(kernels: Kernels) -> None:
    if ipykernel.version_info[0] < 7:
        pytest.skip("it loses none with this ipykernel")
    kernel = kernels.start()
    kernel.run("import asyncio, qnb; asyncio._nest_patched = True")  # what nest_asyncio leaves
    refused = kernel.execute("qnb.nest()")
    assert refused["ename"] == "QnbError"
    assert "restart the kernel, and call qnb.nest()" in refused["evalue"]
    kernel.run("assert asyncio.run.__module__ == 'asyncio.runners'")


def test_a_loop_that_cannot_be_entered_again_is_refused_by_its_name() -> None:
    class Compiled(asyncio.AbstractEventLoop):
        """As uvloop's: none of asyncio's own."""

    asyncio.events._set_running_loop(Compiled())
    try:
        with pytest.raises(QnbError, match=r"test_nest\..*Compiled: only asyncio's own loops"):
            nest()
    finally:
        asyncio.events._set_running_loop(None)
    assert not hasattr(asyncio, "_nest_patched")


SCRIPT = """
import asyncio, qnb

app = qnb.App({url!r}, {queue!r})

@app.task
async def double(x):
    return 2 * x

async def reproduce():
    job = await double.enqueue(4)
    return job.reproduce(), asyncio.run(double(5))

assert asyncio.run(double(1)) == 2
assert asyncio.run.__module__ == "asyncio.runners", "patched unasked"
qnb.nest()
assert asyncio.run(reproduce()) == (8, 10)
"""


def test_a_script_nests_only_once_it_has_asked_for_it(server_url: str, queue: str) -> None:
    code = SCRIPT.format(url=server_url, queue=queue)
    ran = subprocess.run(
        [sys.executable, "-Werror", "-c", code], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")


IN_A_FULL_TURN = """
import asyncio, qnb

async def inner():
    await asyncio.sleep(0.05)
    return "nested"

async def cell():
    loop, ran = asyncio.get_running_loop(), []

    def nest():
        qnb.nest()
        ran.append(asyncio.run(inner()))

    for handle in (*range(3), nest, *range(3, 9)):
        loop.call_soon(handle if callable(handle) else lambda number=handle: ran.append(number))
    while len(ran) < 10:
        await asyncio.sleep(0.01)
    assert sorted(ran[:-1]) == list(range(9)), ran
    assert ran[-1] == "nested"

asyncio.new_event_loop().run_until_complete(cell())
"""


def test_a_loop_that_has_more_to_do_in_this_turn_goes_on_after_the_nested_one() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", IN_A_FULL_TURN], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
