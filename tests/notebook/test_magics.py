"""``%qnb`` and ``%%qnb`` in a real notebook: a cell as a job, with all that it shows."""

from __future__ import annotations

import ast
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from qnb.notebook.cells import needed

Cells = Callable[..., list[Any]]


@pytest.fixture
def run_all(server_url: str, queue: str) -> Cells:
    """Executes the cells of a notebook with an app and a worker; what is left of each."""
    before = f"""
        %load_ext qnb
        import qnb
        app = qnb.App({server_url!r}, {queue!r})
    """

    def run(*cells: str, errors: bool = False) -> list[Any]:
        sources = [dedent(cell).strip() for cell in (before, *cells)]
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in sources]
        )
        NotebookClient(notebook, timeout=30, allow_errors=errors).execute()
        nbformat.validate(notebook)
        return [cell.outputs for cell in notebook.cells[1:]]

    return run


def _said(outputs: list[Any]) -> str:
    """All text of a cell's outputs."""
    return "\n".join(
        str(output.get("text", "")) + str(output.get("evalue", ""))
        + str(output.get("data", {}).get("text/plain", ""))
        for output in outputs
    )  # fmt: skip


@pytest.mark.timeout(60)
def test_a_cell_runs_on_a_worker_with_the_names_it_needs_and_leaves_what_it_showed(
    run_all: Cells,
) -> None:
    define = """
        import pandas as pd
        base, rows = 40, [1, 2]
        file = open("/dev/null")

        def shifted(x):
            return base + x

        class Point:
            def __init__(self, x): self.x = x
            def _repr_html_(self): return f"<b>point {self.x}</b>"
    """
    cell = """
        %%qnb fit

        import matplotlib.pyplot as plt
        with open("/dev/null") as file:
            pass
        print("fitting <1> &", base)
        base = base + 1
        display(Point(3))
        plt.plot(rows)
        plt.show()
        frame = pd.DataFrame({"x": rows, "y": [shifted(x) for x in rows]})
        frame
    """
    check = """
        job = _
        with app.start_workers(1, linger="30 s"):
            job.wait(20)
        value = job.get()
        assert value.y.tolist() == [42, 43], value
        assert base == 40 and "frame" not in globals() and not file.closed
        assert job.logs() == "fitting <1> & 40\\n"
        assert job.id == "fit" and app.job("fit").get().equals(value)
        assert job.reproduce().equals(value) and base == 40
    """
    _, (note, left, card), *_ = run_all(define, cell, check)
    assert "app.start_workers() starts some" in note.text
    assert left.data == {}
    shown = card.data["text/html"]
    assert "fitting &lt;1&gt; &amp; 40" in shown
    order = [shown.index(part) for part in ("<b>point 3</b>", '<table border="1"')]
    assert order == sorted(order)
    assert shown.count('src="data:image/png;base64,') == 1
    assert "%%qnb fit: done" in card.data["text/plain"]
    assert "1  2  43" in card.data["text/plain"]


@pytest.mark.timeout(60)
def test_a_cell_may_await_fail_and_be_stopped_and_the_magic_says_what_goes_on(
    run_all: Cells,
) -> None:
    results = run_all(
        """
        import time
        pool = app.start_workers(2, linger="30 s")
        @app.task
        def nap(seconds):
            time.sleep(seconds)
        sweep = nap.options(name="long naps", max_running=1).map([0, 60, 60])
        sweep[0].wait(20)
        """,
        "%qnb",
        "line = %qnb cancel long naps\nsweep.wait(20); line",
        """
        %%qnb
        import asyncio
        async def double(x):
            await asyncio.sleep(0)
            return 2 * x
        got = await double(4)
        [x async for x in asyncio.as_completed([])] if False else got
        """,
        "assert _.get(20) == 8; (await _).bit_length()",
        """
        %%qnb quiet
        print("said"); 5;
        """,
        "assert _.get(20) is None and _.logs() == 'said\\n'",
        """
        %%qnb broken

        def fails(x):
            return x / 0
        fails(2)
        """,
        """
        broken = _.wait(20)
        frames = (await broken.result()).failure.frames
        assert [(f.function, f.line, f.text) for f in frames] == [
            ("<module>", 5, "fails(2)"), ("fails", 4, "return x / 0")], frames
        assert {f.file for f in frames} == {"Cell In[9]"}, frames
        """,
        """
        %%qnb slow
        time.sleep(60)
        """,
        "%%qnb slow\nother_code",
        "assert _ == app.job('slow'); line = %qnb cancel slow\nline",
        "%qnb show broken",
        "%%qnb\n__import__('threading').Lock()",
        "assert 'result.value is of type _thread.lock' in repr(_.wait(20).snapshot().outcome)",
        "pool.stop()",
    )
    for cell in results:
        assert not [output for output in cell if output.output_type == "error"], cell
    status, cancelled = (_said(cell) for cell in results[1:3])
    assert status.endswith("running; 1 worker with 2 slots; sweeps: long naps 1 of 3"), status
    assert cancelled == "sweep 'long naps' is cancelled: 2 jobs had not ended"
    assert _said(results[4]) == "4"
    assert "job 'slow' has not ended yet" in _said(results[10])
    assert _said(results[11]) == "job 'slow' is aborted"
    assert "ZeroDivisionError: division by zero" in results[12][-1].data["text/html"]


def test_what_a_magic_cannot_do_it_says_with_the_remedy(run_all: Cells) -> None:
    refused = {
        "%qnb cancle x": "Did you mean 'cancel'?",
        "%qnb cancel": "needs a name",
        "%qnb cancel nothing": "no sweep and no job 'nothing'",
        "%%qnb two words\n1": "one name at most",
        "%%qnb\nx = 1\n!ls": "subprocess.run()",
        "%%qnb\nx = (": "was never closed",
        "%%qnb\nreturn 1": "outside function",
        "lock = __import__('threading').Lock()": "",
        "%%qnb\nlock.acquire()": "global 'lock' is of type",
        "other = qnb.App(queue_name='x'); main = app; del app": "",
        "%qnb": "several apps: main, other",
    }
    said = run_all(*refused, errors=True)
    for (cell, part), outputs in zip(refused.items(), said, strict=True):
        assert part in _said(outputs), cell


@pytest.mark.parametrize(
    "code,names",
    [
        ("x = 1; y = x", ""),
        ("x = x + y", "x y"),
        ("x += 1", "x"),
        ("for i in rows: total = f(i)", "f rows"),
        ("for i in rows: pass\ni", "i rows"),
        ("if a:\n    b = 1\nb", "a b"),
        ("while a:\n    b = 1; c = b\n    break", "a"),
        ("try:\n    x = f()\nexcept E as e:\n    print(e)\nx", "E f print x"),
        ("with f() as t[k], g() as (a, b): a", "f g k t"),
        ("async with f() as a: await a", "f"),
        ("def f(a, *, b=c): return a + d\nf", "c d"),
        ("class A(B):\n    x = y\n    def m(self): return self.z + w", "B w y"),
        ("[i * k for i in rows]", "k rows"),
        ("(lambda v: v + w)(1)", "w"),
        ("import a.b as c, d.e\nc, d", ""),
        ("from m import x as y\ny", ""),
        ("t[i] = u.v", "i t u"),
        ("del x", "x"),
        ("match p:\n    case A(q): r = 1\nr, q", "A p q r"),
        ("x: int\ny: int = 2", "int"),
        ("f'{a!r:>{b}}'", "a b"),
        ("def f():\n    global g\n    g = h\nf()", "h"),
    ],
)
def test_a_cell_takes_along_what_it_may_read_and_not_what_it_assigns_first(
    code: str, names: str
) -> None:
    assert sorted(needed(ast.parse(code).body)) == names.split()
