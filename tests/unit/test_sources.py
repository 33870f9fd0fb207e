"""Functions by value bring their source text: tracebacks and ``inspect`` work where no file is."""

from __future__ import annotations

import inspect
import linecache
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from qnb.wire import sources
from qnb.wire.codec import Codec
from qnb.wire.envelope import Keys

ROOT = Path(__file__).parents[2]
KEYS = Keys([bytes(range(32))], "a test")

#: In a kernel: two cells, of which the second one's task calls into the first; packed to a file.
HOME = """
import sys
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell
from ipykernel.compiler import XCachingCompiler
from qnb.wire.codec import Codec
from qnb.wire.envelope import Keys
InteractiveShell.compiler_class = XCachingCompiler
shell = InteractiveShell.instance()
for cell in (
    "def helper(x):\\n    # a comment\\n    return 1 / x",
    "import helpers\\ndef task(x):\\n    return helper(x) + helpers.f(x)",
):
    shell.run_cell(cell, store_history=True)
codec = Codec(Keys([bytes(range(32))], "k"), "q", max_payload=1 << 20)
digest, blob = codec.pack_function(shell.user_ns["task"])
Path("function").write_bytes(digest + blob)
"""

AWAY = """
import inspect, sys, traceback
from pathlib import Path
from qnb.wire.codec import Codec
from qnb.wire.envelope import Keys
from qnb.wire.sources import label
codec = Codec(Keys([bytes(range(32))], "k"), "q", max_payload=1 << 20)
stored = Path(sys.argv[1]).read_bytes()
task = codec.unpack_function(stored[:16], stored[16:])
for x in (0, 1):
    try:
        task(x)
    except Exception as error:
        for frame in traceback.extract_tb(error.__traceback__)[1:]:
            print(label(frame.filename).rpartition("/")[2], frame.lineno, frame.name, frame.line)
print(repr(inspect.getsource(task)))
print("IPython" in sys.modules)
"""


def _python(*command: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(cwd / "ipython")}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_traceback_far_from_home_names_cells_and_shows_their_lines(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    (home / "helpers.py").write_text("def f(x):\n    raise LookupError(x)\n")
    (home / "script.py").write_text(HOME)
    _python("script.py", cwd=home)
    (home / "helpers.py").unlink()
    said = _python("-c", AWAY, str(home / "function"), cwd=away)
    assert said.splitlines() == [
        "Cell In[2] 3 task return helper(x) + helpers.f(x)",
        "Cell In[1] 3 helper return 1 / x",
        "Cell In[2] 3 task return helper(x) + helpers.f(x)",
        "helpers.py 2 f raise LookupError(x)",
        repr("def task(x):\n    return helper(x) + helpers.f(x)\n"),
        "False",
    ]


@pytest.fixture
def _clean() -> Iterator[None]:
    lines, arrived = dict(linecache.cache), dict(sources._arrived)
    yield
    linecache.cache.clear()
    linecache.cache.update(lines)
    sources._arrived.clear()
    sources._arrived.update(arrived)


@pytest.mark.usefixtures("_clean")
def test_what_has_arrived_is_replaced_by_a_newer_version_and_stays() -> None:
    for text in ("x = 1\n", "a\fb\ny = 2\n"):
        sources.prime({"<far>/cell": ("Cell In[7]", text)})
        linecache.checkcache()
        assert "".join(linecache.getlines("<far>/cell")) == text
    assert linecache.getline("<far>/cell", 2) == "y = 2\n"
    assert sources.label("<far>/cell") == "Cell In[7]"
    assert sources.label("/a/path.py") == "/a/path.py"


@pytest.mark.usefixtures("_clean")
def test_a_file_of_this_process_keeps_its_own_text() -> None:
    sources.prime({__file__: ("Cell In[1]", "something else")})
    assert linecache.getline(__file__, 1) != "something else"
    assert sources.label(__file__) == __file__


@pytest.mark.usefixtures("_clean")
def test_long_sources_stay_at_home() -> None:
    short, long = "<a short cell>", "<a long cell>"
    for name, text in ((short, "x = 1\n"), (long, "# comment\n" * 200_000)):
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    assert sources.collect([short, long, "<unknown>"]) == {short: (short, "x = 1\n")}


@pytest.mark.usefixtures("_clean")
def test_a_function_is_the_same_wherever_the_rest_of_its_file_goes() -> None:
    codec = Codec(KEYS, "q", max_payload=1 << 20)
    digests = []
    for rest in ("", "# more\n"):
        text = f"def task():\n    return 1\n{rest}"
        linecache.cache["<f>"] = (len(text), None, text.splitlines(keepends=True), "<f>")
        space = {"__name__": "__main__"}
        exec(compile("def task():\n    return 1\n", "<f>", "exec"), space)  # noqa: S102 - a cell
        digest, blob = codec.pack_function(space["task"])  # type: ignore[arg-type]
        digests.append(digest)
        assert (
            inspect.getsource(codec.unpack_function(digest, blob)) == "def task():\n    return 1\n"
        )
    assert digests[0] == digests[1]


@pytest.mark.usefixtures("_clean")
def test_ones_own_file_is_read_again_once_it_is_newer_than_what_arrived(tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    sources.prime({str(file): ("shop.py", "theirs = 1\n")})
    assert sources.collect([str(file)])[str(file)][1] == "theirs = 1\n"
    file.write_text("mine = 1\n")
    os.utime(file, (2e9, 2e9))
    assert sources.collect([str(file)]) == {str(file): (str(file), "mine = 1\n")}
    assert sources.label(str(file)) == str(file)


@pytest.mark.usefixtures("_clean")
def test_the_file_of_a_module_comes_before_what_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    sources.prime({"/far/away.py": ("away.py", "theirs = 1\n")})
    module = types.ModuleType("away")
    module.__file__ = "/far/away.py"
    monkeypatch.setitem(sys.modules, "away", module)
    assert sources.collect(["/far/away.py"]) == {}


@pytest.mark.usefixtures("_clean")
def test_only_so_many_files_of_others_are_kept() -> None:
    for number in range(sources.KEPT + 50):
        sources.prime({f"<far>/{number}": (f"Cell {number}", "x = 1\n")})
        sources.prime({"<far>/often": ("often", "x = 1\n")})
    kept = [name for name in linecache.cache if name.startswith("<far>/")]
    assert len(kept) == len(sources._arrived) == sources.KEPT
    assert sources.label("<far>/often") == "often"
    assert "<far>/0" not in kept
