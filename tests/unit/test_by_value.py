"""Local code really leaves home: packed by a script, run by a fresh interpreter elsewhere.

Each case is a folder with a ``script.py`` (and files beside it) that defines ``task``; what it
returns is compared with what a process in another folder, which cannot import any of it, makes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PACK = """
from pathlib import Path as _Path
from qnb.wire.codec import Codec as _Codec
from qnb.wire.envelope import Keys as _Keys
_codec = _Codec(_Keys.load("q"), "q", max_payload=1 << 20)
assert _codec.reference(task) is None
_digest, _blob = _codec.pack_function(task)
assert _codec.pack_function(task)[0] == _digest
_Path("function").write_bytes(_digest + _blob)
_Path("call").write_bytes(_codec.pack_call("job", globals().get("args", ()), {}))
"""

RUN = """
import asyncio, importlib.util, inspect, sys
from pathlib import Path
from qnb.wire.codec import Codec
from qnb.wire.envelope import Keys
home = Path(sys.argv[1])
for name in ("helpers", "package", "script"):
    assert importlib.util.find_spec(name) is None
codec = Codec(Keys.load("q"), "q", max_payload=1 << 20)
stored = (home / "function").read_bytes()
task = codec.unpack_function(stored[:16], stored[16:], task="task")
args, kwargs = codec.unpack_call("job", (home / "call").read_bytes())
value = task(*args, **kwargs)
if inspect.isawaitable(value):
    value = asyncio.run(value)
print(repr(value))
assert not {"helpers", "package", "package.inner", "script"} & set(sys.modules)
(home / "result").write_bytes(codec.pack_result("job", 1, value))
"""

CASES: dict[str, tuple[dict[str, str], str]] = {
    "a function of the script": (
        {"script": "K = 3\ndef task(): return K + 1"}, "4"),
    "a closure": (
        {"script": "def make(n):\n    def task(): return n * 2\n    return task\ntask = make(4)"},
        "8"),
    "a lambda": (
        {"script": "task = lambda: 5"}, "5"),
    "a recursion": (
        {"script": "def task(n=5): return 1 if n == 0 else n * task(n - 1)"}, "120"),
    "two functions that call each other": (
        {"script": "def even(n): return n == 0 or odd(n - 1)\n"
                   "def odd(n): return n != 0 and even(n - 1)\n"
                   "def task(): return even(10), odd(10)"},
        "(True, False)"),
    "a class of the script": (
        {"script": "import dataclasses\n"
                   "@dataclasses.dataclass\nclass Point:\n    x: int\n"
                   "    def twice(self): return Point(2 * self.x)\n"
                   "def task(p): return p.twice(), isinstance(p, Point)\n"
                   "args = (Point(4),)"},
        "(Point(x=8), True)"),
    "a class with super() and an enum": (
        {"script": "import enum\n"
                   "class Colour(enum.Enum):\n    RED = 1\n"
                   "class Base:\n    def f(self): return Colour.RED\n"
                   "class Derived(Base):\n    def f(self): return super().f()\n"
                   "def task(): return Derived().f().name"},
        "'RED'"),
    "a coroutine function": (
        {"script": "import asyncio\nasync def inner(): return 6\n"
                   "async def task():\n    await asyncio.sleep(0)\n    return await inner()"},
        "6"),
    "a function that calls itself through its wrapper": (
        {"script": "class Task:\n    def __init__(self, fn): self.fn = fn\n"
                   "    def __call__(self, *a): return self.fn(*a)\n"
                   "@Task\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\n"
                   "task = fib.fn\nargs = (10,)"},
        "55"),
    "a partial": (
        {"script": "import functools\ndef add(a, b): return a + b\n"
                   "task = functools.partial(add, 1, 2)"},
        "3"),
    "a submodule of an installed package": (
        {"script": "import concurrent.futures\n"
                   "def task(): return concurrent.futures.Future.__name__"},
        "'Future'"),
    "from a file beside the script": (
        {"script": "from helpers import f\ndef task(): return f(2)",
         "helpers": "import threading, math\nlock = threading.Lock()\nK = 10\n"
                    "def g(x): return math.floor(x * K)\ndef f(x): return g(x) + 1"},
        "21"),
    "a function that is itself from a file beside the script": (
        {"script": "from helpers import task",
         "helpers": "def g(): return 3\ndef task(): return g()"},
        "3"),
    "a module beside the script": (
        {"script": "import helpers\ndef task(): return helpers.f(2), helpers.Thing().value",
         "helpers": "import threading\nunused = threading.Lock()\nK = 10\n"
                    "class Thing:\n    @property\n    def value(self): return f(K)\n"
                    "def f(x): return x * K"},
        "(20, 100)"),
    "a module that changes its own globals": (
        {"script": "import helpers\n"
                   "def task():\n    helpers.bump()\n    helpers.bump()\n"
                   "    return helpers.count, getattr(helpers, 'count')",
         "helpers": "count = 0\ndef bump():\n    global count\n    count += 1"},
        "(2, 2)"),
    "modules that import each other": (
        {"script": "import helpers\ndef task(): return helpers.ping(3)",
         "helpers": "import other\ndef ping(n): return n and other.pong(n - 1)",
         "other": "import helpers\ndef pong(n): return helpers.ping(n) or 'done'"},
        "'done'"),
    "a package beside the script": (
        {"script": "import package.inner\nfrom package import top\n"
                   "def task(): return top(1), package.inner.low(1), package.inner.Low.of()",
         "package/__init__": "from .inner import low\nfrom . import inner\n"
                             "def top(x): return low(x) + inner.K",
         "package/inner": "from . import base\nK = 10\n"
                          "class Low(base.Base): pass\n"
                          "def low(x): return base.minus(x)",
         "package/base": "class Base:\n    @classmethod\n    def of(cls): return cls.__name__\n"
                         "def minus(x): return -x"},
        "(9, -1, 'Low')"),
    "an argument of a class from a file beside the script": (
        {"script": "import helpers\nargs = (helpers.Model(3),)\ndef task(m): return m.predict()",
         "helpers": "K = 2\nclass Model:\n    def __init__(self, w): self.w = w\n"
                    "    def predict(self): return self.w * K"},
        "6"),
    "typing from a file beside the script": (
        {"script": "from helpers import Box, first\ndef task(): return first(Box([1, 2]))",
         "helpers": "from __future__ import annotations\nfrom typing import Generic, TypeVar\n"
                    "T = TypeVar('T')\nclass Box(Generic[T]):\n"
                    "    def __init__(self, items: list[T]) -> None: self.items = items\n"
                    "def first(box: Box[T]) -> T: return box.items[0]"},
        "1"),
    "a decorator from a file beside the script": (
        {"script": "from helpers import twice\n@twice\ndef task(): return 4",
         "helpers": "import functools\ndef twice(fn):\n    @functools.wraps(fn)\n"
                    "    def wrapper(*a): return 2 * fn(*a)\n    return wrapper"},
        "8"),
}  # fmt: skip


def _python(*command: str, cwd: Path, data_home: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "XDG_DATA_HOME": str(data_home),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    environment.pop("QNB_KEY_FILE", None)
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True
    )


def _write(home: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        file = home / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source + "\n" + (PACK if name == "script" else ""))


@pytest.mark.parametrize("case", CASES)
def test_it_runs_where_none_of_it_can_be_imported(tmp_path: Path, case: str) -> None:
    files, expected = CASES[case]
    home, away = tmp_path / "home", tmp_path / "away"
    _write(home, files)
    away.mkdir()
    packed = _python("script.py", cwd=home, data_home=tmp_path)
    assert packed.returncode == 0, packed.stderr
    ran = _python("-c", RUN, str(home), cwd=away, data_home=tmp_path)
    assert (ran.stdout.strip(), ran.stderr) == (expected, "")


def test_a_result_comes_home_as_the_class_it_was_sent_as(tmp_path: Path) -> None:
    files = {
        "helpers": "K = 1\nclass Out:\n    def __init__(self, x): self.x = x\n"
        "    def get(self): return self.x + K",
        "script": "from helpers import Out\nclass Mine:\n    def __init__(self): self.k = 1\n"
        "def task(): return [Out(1), Mine()]",
    }
    home = tmp_path
    _write(home, files)
    with (home / "script.py").open("a") as script:
        script.write(
            "import os, subprocess, sys\nos.mkdir('away')\n"
            f"subprocess.run([sys.executable, '-c', {RUN!r}, {str(home)!r}], check=True,"
            " cwd='away', stdout=subprocess.DEVNULL)\n"
            "import helpers\nmethod = Out.get\nhelpers.K = 5\n"
            "out, mine = _codec.unpack_result('job', _Path('result').read_bytes())\n"
            "assert type(out) is Out and type(mine) is Mine\n"
            "assert Out.get is method and out.get() == 6\n"
        )
    done = _python("script.py", cwd=home, data_home=tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_a_module_did_not_bring_is_said(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    _write(
        home,
        {
            "script": "import helpers\ndef task(): return getattr(helpers, 'fa'.upper())",
            "helpers": "FA = 1",
        },
    )
    away.mkdir()
    assert _python("script.py", cwd=home, data_home=tmp_path).returncode == 0
    ran = _python("-c", RUN, str(home), cwd=away, data_home=tmp_path)
    assert "module 'helpers' travelled with the task" in ran.stderr
    assert "Write helpers.FA in the task" in ran.stderr
