"""The guides are true: their code runs as in a notebook, and gives what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import qnb

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
GUIDES = [page for page in PAGES if "```python" in page.read_text()]

#: runs a page in ``__main__``, where a cell's code is, and awaits as a cell may
RUN = """
import ast, asyncio, sys

def shows(value, text):
    assert repr(value) == text, f"{value!r} is not {text}"

async def page():
    path = sys.argv[1]
    code = compile(open(path).read(), path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    waiting = eval(code, globals())
    if waiting is not None:
        await waiting

asyncio.run(page())
"""


def _script(page: Path, queue: str) -> str:
    """The page's code, with a queue of its own, and each ``x  # → text`` as a check."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    code = "\n".join(blocks).replace("qnb.App(", f"qnb.App(queue_name={queue!r}, ")
    return re.sub(
        r"^(\S.*?)  # (?:.* )?→ (.+)$",
        lambda line: f"shows(({line[1]}), {line[2]!r})",
        code,
        flags=re.M,
    )


@pytest.mark.parametrize("page", GUIDES, ids=lambda p: p.stem)
def test_the_code_of_a_guide_runs_and_shows_what_it_says(
    page: Path, app: qnb.App, queue: str, tmp_path: Path
) -> None:
    script, run = tmp_path / "page.py", tmp_path / "run.py"
    script.write_text(_script(page, queue))
    run.write_text(RUN)
    try:
        ran = subprocess.run(
            [sys.executable, run, script], capture_output=True, text=True, cwd=tmp_path, check=False
        )
    finally:
        app.pool().stop()  # a page that fails leaves its workers
    assert ran.returncode == 0, ran.stderr
    assert "shows((" in script.read_text()


def test_the_map_names_every_guide_and_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
        assert page.stem == "README" or f"({page.name})" in (ROOT / "docs/README.md").read_text()
