"""What makes a function another one, and what does not: one edit a row, seen by other kernels.

The rows are in ``tests/edits.py``. Both sides are run by different processes, with other hash
seeds, other cell numbers, and the cases in another order.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import msgpack
import pytest

from tests.edits import EVERYTHING, OTHER, SAME

ROOT = Path(__file__).parents[2]

#: Runs cells as the kernel of a notebook does, each case in a folder and a namespace of its own.
KERNEL = """
import contextlib, io, json, os, sys, tempfile
from IPython.core.interactiveshell import InteractiveShell
from ipykernel.compiler import XCachingCompiler
from qnb.content.walk import code_of

InteractiveShell.compiler_class = XCachingCompiler
shell = InteractiveShell.instance()
found = {}
for case, cells in json.load(sys.stdin):
    os.chdir(tempfile.mkdtemp(dir=sys.argv[1]))
    sys.path.insert(0, os.getcwd())
    before = set(sys.modules)
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in cells:
            shell.run_cell(cell, store_history=True).raise_error()
    found[case] = code_of(shell.user_ns["f"]).digest
    shell.user_ns.clear()
    shell.user_ns["__name__"] = "__main__"
    shell.init_user_ns()
    sys.path.pop(0)
    for name in {"helpers", "one", "two"} & set(sys.modules):
        del sys.modules[name]
    sys.path_importer_cache.clear()
print(json.dumps(found))
"""

#: The same without IPython, which an interpreter without packages has not got.
PLAIN = """
import json, linecache, os, sys, tempfile, types
from qnb.content.walk import code_of

found = {}
number = 0
for case, cells in json.load(sys.stdin):
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    for cell in cells:
        number += 1
        name = f"<cell {number}>"
        linecache.cache[name] = len(cell), None, cell.splitlines(True), name
        exec(compile(cell, name, "exec"), vars(main))
    found[case] = code_of(main.f).digest
print(json.dumps(found))
"""


def _cells(text: str) -> list[str]:
    """The cells of one side. A cell that writes a file begins with the magic that does so."""
    text = text.replace("EVERYTHING", EVERYTHING).replace("%%file", "%@file")
    return [cell.strip().replace("%@file", "%%file") for cell in text.split("%%")]


def _side(row: str, at: int) -> list[str]:
    return _cells(re.sub("⟦(.*?)→(.*?)⟧", lambda edit: edit[at], row, flags=re.DOTALL))


#: case → the cells before and after the edit
SIDES = {case: (_side(row, 1), _side(row, 2)) for case, row in {**SAME, **OTHER}.items()}


def _start(
    python: str, code: str, args: list[str], path: list[Path], seed: int
) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return subprocess.Popen(
        [python, "-c", code, *args], env=env, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _read(process: subprocess.Popen[str], given: list[Any]) -> dict[str, str]:
    out, err = process.communicate(json.dumps(given), timeout=25)
    assert process.returncode == 0, err
    found: dict[str, str] = json.loads(out.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], ...]:
    """What two kernels make of all functions before the edit, and a third after it."""
    folder = tmp_path_factory.mktemp("cells")
    kernels = []
    for seed, side in ((1, 0), (2, 0), (3, 1)):
        given = [(case, cells[side]) for case, cells in SIDES.items()]
        random.Random(seed).shuffle(given)
        kernels.append((_start(sys.executable, KERNEL, [str(folder)], [ROOT], seed), given))
    return tuple(_read(process, given) for process, given in kernels)


UNLIKE = {"an open file", "a generator that is running"}  #: anything, themselves too


@pytest.mark.parametrize("case", SAME)
def test_a_function_stays_the_same_after(case: str, digests: tuple[dict[str, str], ...]) -> None:
    assert len({found[case] for found in digests}) == 1


@pytest.mark.parametrize("case", OTHER)
def test_a_function_is_another_one_after(case: str, digests: tuple[dict[str, str], ...]) -> None:
    first, again, after = (found[case] for found in digests)
    assert (first == again) is (case not in UNLIKE)
    assert after != first


def _interpreters() -> list[str]:
    known = [
        *(Path.home() / ".pyenv" / "versions").glob("3.1[1-9]*/bin/python3"),
        *Path("/usr/bin").glob("python3.1[1-9]"),
    ]
    mine = f"3.{sys.version_info.minor}"
    return sorted(str(python) for python in known if mine not in str(python))


def test_another_minor_python_makes_the_same_digests(tmp_path: Path) -> None:
    if not _interpreters():
        pytest.skip("there is no other Python 3.11 or newer in ~/.pyenv or /usr/bin")
    for package in (cloudpickle, msgpack):  # msgpack does without its compiled part
        folder = Path(package.__file__).parent
        (tmp_path / folder.name).symlink_to(folder)
    odd = (
        "import numpy", "import pandas", "import qnb", "%%file", "exec(", "scipy", "numpy.random",
        "get_ipython",
    )  # fmt: skip
    given = [
        (case, before)
        for case, (before, _) in SIDES.items()
        if case not in UNLIKE and not any(word in cell for cell in before for word in odd)
    ]
    assert len(given) > 60
    pythons = [sys.executable, *_interpreters()]
    started = [_start(python, PLAIN, [], [ROOT, tmp_path], 0) for python in pythons]
    mine, *theirs = [_read(process, given) for process in started]
    for python, found in zip(pythons[1:], theirs, strict=True):
        assert {case for case in mine if found[case] != mine[case]} == set(), python
