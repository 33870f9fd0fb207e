"""What makes a function another one, and what does not: one edit a row, seen by other kernels.

An edit is written ``⟦before→after⟧``, cells are divided by ``%%``, and ``f`` is what is compared.
Both sides are run by different processes, with other hash seeds, other cell numbers, and the cases
in another order.
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

ROOT = Path(__file__).parents[2]

#: What stays the same function.
SAME = {
    "nothing": "def f(x): return x",
    "a comment": "def f(x):\n    ⟦return x→# the same\n    return x  # as ever⟧",
    "a blank line": (
        "⟦def f(x):\n    y = x\n    return y→\n\ndef f(x):\n    y = x\n\n    return y\n⟧"
    ),
    "layout": (
        "def f(⟦x, y=1):\n    return [x, y→\n    x,\n    y = (1),\n):\n    return [\n"
        "        x, y,\n    ⟧]"
    ),
    "quotes": 'def f(): return ⟦\'a"\', "b"→"a\\"", \'b\'⟧',
    "implicitly joined texts": "def f(): return ⟦'ab'→'a' 'b'⟧",
    "quotes in an f-string": 'def f(x): return ⟦f\'{x:>3} a\'→f"{x:>3}" " a"⟧',
    "an indented docstring": (
        "⟦def f():\n    '''One.\n\n    Two.\n→if True:\n    def f():\n        '''One.\n\n"
        "        Two.\n    ⟧    '''"
    ),
    "reordered cells": (
        "⟦a = 1 %% def g(): return a %% def f(): return g()→def f(): return g() %% "
        "def g(): return a %% a = 1⟧"
    ),
    "one cell instead of two": (
        "def ⟦g(): return 1 %% def f(): return g()→f(): return g()\n\ndef g(): return 1⟧"
    ),
    "a cell run twice": "def f(): return ⟦1→1 %% def f(): return 1⟧",
    "a magic in the cell": "⟦→%config Application.log_level = 30\n⟧def f(): return 2",
    "an unused global": "a = ⟦1→3⟧ %% def f(): return 2",
    "an unrelated cell": "⟦def→import json\nprint(json.dumps({})) %% def⟧ f(): return 2",
    "an attribute named like a global": "real = ⟦1→2⟧ %% def f(x): return x.real",
    "a local named like a global": "a = ⟦1→5⟧ %% def f():\n    a = 2\n    return a",
    "an unmentioned attribute of a local module": (
        "%%file helpers.py\nALPHA = 1\ndef scale(x): return x * ALPHA\ndef unused(): return ⟦2→"
        "2\nMORE = 3⟧ %% import helpers\ndef f(x): return helpers.scale(x)"
    ),
    "a comment in a local module": (
        "%%file helpers.py\n⟦ALPHA→# moved down\n\nALPHA⟧ = 1\ndef scale(x): return x * ALPHA\n"
        "def unused(): return 2 %% from helpers import scale\ndef f(x): return scale(x)"
    ),
    "a default computed otherwise": "n = 1 %% def f(x, k=n): return ⟦k→k %% n = 2⟧",
    "set literals": "def f(x): return x in {'a', 'b', 'c'}",
    "a global set": "a = {⟦'a', 'b', ('c', 1)→('c', 1), 'b', 'a'⟧} %% def f(): return a",
    "a set of enum members": (
        "import enum\nclass E(enum.Enum):\n    A = 'a'\n    B = 'b'\nS = {⟦E.A, E.B→E.B, E.A⟧}\n"
        "def f(): return S"
    ),
    "NaN": "a = float(⟦'nan'→'inf') - float('inf'⟧) %% def f(): return a",
    "a timeout of the task": (
        "import qnb\napp = qnb.App() %% @⟦app.task→app.task(timeout=5, max_retries=2)⟧\n"
        "def f(x): return x"
    ),
    "a helper made a task": (
        "import qnb\napp = qnb.App() %% ⟦def→@app.task\ndef⟧ g(): return 1\ndef f(x): return g()"
    ),
    "a global lock": "import threading\nl = threading.Lock()\ndef f():\n    with l: return 1",
    "warm code": "def g(x): return x + 1\ndef f(x): return g(x)⟦→\nfor i in range(5000): f(i)⟧",
    "a whole of everything": "EVERYTHING",
}

#: What makes it another one.
OTHER = {
    "a statement": "def f(x): return ⟦x→-x⟧",
    "a renamed local": "def f(x):\n    ⟦y = x\n    return y→z = x\n    return z⟧",
    "its own name": "def ⟦g(x): return x\nf = g→h(x): return x\nf = h⟧",
    "a docstring": "def f(): ⟦'one'→'two'⟧",
    "an annotation": "def f(x: ⟦int→float⟧): return x",
    "a helper two calls down": (
        "def h(): return ⟦1→2⟧ %% def g(): return h() %% def f(): return g()"
    ),
    "the value of a global": "a = ⟦0.1→0.2⟧ %% def f(): return a",
    "a global two calls down": (
        "a = ⟦0.1→0.2⟧\ndef h(): return a\ndef g(): return h() %% def f(): return g()"
    ),
    "1 and 1.0": "a = ⟦1→1.0⟧ %% def f(): return a",
    "1 and True": "a = ⟦1→True⟧ %% def f(): return a",
    "1 and True in the source": "def f(): return ⟦1→True⟧",
    "1 and 1.0 in the source": "def f(): return (⟦1→1.0⟧,)",
    "-0.0 and 0.0": "a = ⟦-0.0→0.0⟧ %% def f(): return a",
    "-0.0 and 0.0 in the source": "def f(): return ⟦0.0→-0.0⟧",
    "dict order": "a = {⟦'x': 1, 'y': 2→'y': 2, 'x': 1⟧} %% def f(): return a",
    "a list made a tuple": "a = ⟦[1]→(1,)⟧ %% def f(): return a",
    "a member of a set": "def f(x): return x in {'a', ⟦'b'→'c'⟧}",
    "a default": "n = ⟦1→2⟧ %% def f(x, k=n): return k",
    "a keyword's default": "n = ⟦1→2⟧ %% def f(x, *, k=n): return k",
    "star-args": "def f(*⟦x→*x⟧): return x",
    "a closure": "def make(k):\n    def f(x): return x * k\n    return f %% f = make(⟦1→2⟧)",
    "a closure's helper": (
        "def make(g):\n    return lambda x: g(x) %% def h(x): return ⟦1→2⟧ %% f = make(h)"
    ),
    "a nonlocal": (
        "def make():\n    n = ⟦0→5⟧\n    def f():\n        nonlocal n\n        n += 1\n"
        "        return n\n    return f\nf = make()"
    ),
    "a class attribute": "class A:\n    k = ⟦1→2⟧\ndef f(): return A.k",
    "a class attribute set later": "class A:\n    k = 1\n⟦def→A.k = 2\ndef⟧ f(): return A.k",
    "a method": "class A:\n    def go(self): return ⟦1→2⟧\ndef f(): return A().go()",
    "an inherited method": (
        "class B:\n    def go(self): return ⟦1→2⟧ %% class A(B): pass %% def f(): return A().go()"
    ),
    "an overridden method": (
        "class B:\n    def go(self): return 1\nclass A(B):⟦ pass→\n"
        "    def go(self): return super().go()⟧\ndef f(): return A().go()"
    ),
    "a helper of a method": (
        "def g(): return ⟦1→2⟧ %% class A:\n    @classmethod\n    def go(cls): return g()\n"
        "def f(): return A.go()"
    ),
    "another base": "class A(⟦ValueError→KeyError⟧): pass\ndef f(): raise A",
    "a property": "class A:\n    @property\n    def k(self): return ⟦1→2⟧\ndef f(): return A().k",
    "a static method": (
        "class A:\n    @staticmethod\n    def k(): return ⟦1→2⟧\ndef f(): return A().k()"
    ),
    "a cached property": (
        "import functools\nclass A:\n    @functools.cached_property\n    def k(self): return ⟦1→"
        "2⟧\ndef f(): return A().k"
    ),
    "a context manager class": (
        "class C:\n    def __enter__(self): return ⟦1→2⟧\n    def __exit__(self, *_): pass\n"
        "def f():\n    with C() as c: return c"
    ),
    "a context manager function": (
        "from contextlib import contextmanager\n@contextmanager\ndef c(): yield ⟦1→2⟧\ndef f():\n"
        "    with c() as x: return x"
    ),
    "an instance's attribute": "class A: pass\na = A()\na.k = ⟦1→2⟧\ndef f(): return a.k",
    "the method of an instance": (
        "class A:\n    def go(self): return ⟦1→2⟧\na = A()\ndef f(): return a.go()"
    ),
    "a bound method": (
        "class A:\n    def __init__(self, k): self.k = k\n    def go(self): return self.k\n"
        "f = A(⟦1→2⟧).go"
    ),
    "a callable instance": "class A:\n    def __call__(self): return ⟦1→2⟧\nf = A()",
    "a dataclass field's default": (
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    k: int = ⟦1→2⟧\n"
        "def f(): return A()"
    ),
    "a dataclass field's factory": (
        "from dataclasses import dataclass, field\n@dataclass\nclass A:\n"
        "    k: list = field(default_factory=⟦list→set⟧)\ndef f(): return A()"
    ),
    "a frozen dataclass": (
        "from dataclasses import dataclass\n@⟦dataclass→dataclass(frozen=True)⟧\nclass A:\n"
        "    k: int = 1\ndef f(): return A()"
    ),
    "the method of a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    k: int = 1\n"
        "    def __repr__(self): return ⟦'a'→'b'⟧\ndef f(): return A()"
    ),
    "an enum member": "import enum\nclass E(enum.Enum):\n    A = ⟦1→2⟧\ndef f(): return E.A",
    "the order of an enum": (
        "import enum\nclass E(enum.Enum):\n    ⟦A = enum.auto()\n    B→B = enum.auto()\n"
        "    A⟧ = enum.auto()\ndef f(): return E.A"
    ),
    "a global enum member": (
        "import enum\nclass E(enum.Enum):\n    A = 1\n    B = 2\ne = ⟦E.A→E.B⟧\ndef f(): return e"
    ),
    "a named tuple's default": (
        "from typing import NamedTuple\nclass T(NamedTuple):\n    a: int = ⟦1→2⟧\n"
        "def f(): return T()"
    ),
    "a named tuple's fields": (
        "from collections import namedtuple\nT = namedtuple('T', ⟦'a b'→'b a'⟧)\n"
        "def f(): return T(1, 2)"
    ),
    "a decorator": "def twice(g):\n    return lambda x: ⟦2→3⟧ * g(x) %% @twice\ndef f(x): return x",
    "a decorator's argument": (
        "import functools\ndef times(n):\n    def wrap(g):\n        @functools.wraps(g)\n"
        "        def inner(x): return n * g(x)\n        return inner\n    return wrap %% "
        "@times(⟦2→3⟧)\ndef f(x): return x"
    ),
    "a decorator less": "def same(g): return g %% ⟦@same\ndef→def⟧ f(x): return x",
    "a decorated function": (
        "import functools\ndef deco(g):\n    @functools.wraps(g)\n    def inner(x): return g(x)\n"
        "    return inner %% @deco\ndef f(x): return ⟦1→2⟧"
    ),
    "a decorated helper of a task": (
        "import qnb\napp = qnb.App() %% def g(): return ⟦1→2⟧ %% @app.task\ndef f(x): return g()"
    ),
    "a helper that is a task": (
        "import qnb\napp = qnb.App() %% @app.task\ndef g(): return ⟦1→2⟧ %% @app.task\n"
        "def f(x): return g()"
    ),
    "a cached function": (
        "from functools import lru_cache\n@lru_cache\ndef g(): return ⟦1→2⟧\ndef f(): return g()"
    ),
    "the size of a cache": (
        "from functools import lru_cache\ndef h(): return 1\ng = lru_cache(⟦1→2⟧)(h)\n"
        "def f(): return g()"
    ),
    "a choice of singledispatch": (
        "from functools import singledispatch\n@singledispatch\ndef g(x): return 1\n@g.register\n"
        "def _(x: int): return ⟦2→3⟧\ndef f(x): return g(x)"
    ),
    "a lambda in a dict": (
        "t = {'a': lambda x: x, 'b': lambda x: ⟦1→2⟧}\ndef f(x): return t['b'](x)"
    ),
    "two lambdas of a line exchanged": (
        "t = (lambda x: x ⟦+ 1), (lambda x: x -→- 1), (lambda x: x +⟧ 1)\ndef f(x): return t[0](x)"
    ),
    "which lambda of a line": "⟦a, f→f, a⟧ = (lambda x: x), (lambda x: x + 1)",
    "a partial": "from functools import partial\ndef g(x, k): return x\nf = partial(g, k=⟦1→2⟧)",
    "a helper in a partial": (
        "from functools import partial\ndef g(x, k): return ⟦1→2⟧\nf = partial(g, k=1)"
    ),
    "a recursion": "def f(n): return n * f(n - ⟦1→2⟧) if n else 1",
    "a mutual recursion": "def g(n): return f(n - ⟦1→2⟧)\ndef f(n): return g(n) if n else 1",
    "a nested function": "def f(x):\n    def g(y): return ⟦y→y + 1⟧\n    return g(x)",
    "a global of a comprehension": "a = ⟦1→2⟧ %% def f(x): return [a for _ in x]",
    "a global of an inner class": (
        "a = ⟦1→2⟧ %% def f():\n    class A:\n        k = a\n    return A.k"
    ),
    "an f-string": "def f(x): return f'{⟦x→x!r⟧}'",
    "an f-string's format": "def f(x): return f'{x:⟦.2f→.3f⟧}'",
    "a walrus": "def f(x):\n    if (y := ⟦x→x + 1⟧): return y",
    "a match": "def f(x):\n    match x:\n        case ⟦None→True⟧: return 1",
    "async": "⟦def→async def⟧ f(x): return x",
    "a generator": "def f(x): yield ⟦x→from x⟧",
    "an attribute of a function": "def g(): return g.k\ng.k = ⟦1→2⟧\ndef f(): return g()",
    "an attribute of a local module": (
        "%%file helpers.py\nK = ⟦1→2⟧ %% import helpers\ndef f(): return helpers.K"
    ),
    "the __getattr__ of a local module": (
        "%%file helpers.py\ndef __getattr__(name): return ⟦1→2⟧ %% import helpers\n"
        "def f(): return helpers.K"
    ),
    "a helper below a local module": (
        "%%file helpers.py\ndef h(): return ⟦1→2⟧\ndef g(): return h() %% import helpers as hp\n"
        "def f(): return hp.g()"
    ),
    "a local module behind another": (
        "%%file one.py\nimport two %% %%file two.py\nK = ⟦1→2⟧ %% import one\n"
        "def f(): return one.two.K"
    ),
    "a local module imported inside": (
        "%%file helpers.py\ndef g(): return ⟦1→2⟧ %% def f():\n    from helpers import g\n"
        "    return g()"
    ),
    "below a module imported inside": (
        "%%file one.py\nfrom two import K %% %%file two.py\nK = ⟦1→2⟧ %% def f():\n"
        "    import one\n    return one.K"
    ),
    "an installed function": "from math import ⟦sin→cos⟧ as g\ndef f(x): return g(x)",
    "what an alias means": "import ⟦json→pickle⟧ as j\ndef f(x): return j.dumps(x)",
    "a builtin hidden by a global": "def ⟦f→len(x): return 3\ndef f⟧(x): return len(x)",
    "a name that is defined now": "def ⟦f→g(x): return 3\ndef f⟧(x): return g(x)",
    "code without source": "exec('def g(): return ⟦1'→2'⟧)\ndef f(): return g()",
    "an open file": "import sys\nfile = open(sys.executable, 'rb')\ndef f(): return file",
    "a generator that is running": "g = (i for i in [1])\ndef f(): return next(g)",
    "an element of a global array": (
        "import numpy as np\na = np.zeros(9)⟦→\na[3] = 1e-9⟧ %% def f(): return a.sum()"
    ),
    "a cell of a global frame": (
        "import pandas as pd\na = pd.DataFrame({'x': [1, ⟦2→3⟧]}) %% def f(): return a"
    ),
    "the dtype of an array": (
        "import numpy as np\na = np.zeros(⟦9→9, dtype='f4'⟧) %% def f(): return a"
    ),
}

EVERYTHING = """
import asyncio, dataclasses, enum, functools, itertools, typing
K = {1, 2.5, "a", None, (True, b"x")}
%%
class Color(enum.Flag):
    RED = enum.auto()
    BLUE = enum.auto()
    @property
    def warm(self): return self is Color.RED
class Base(typing.Protocol):
    def go(self) -> int: ...
T = typing.TypeVar("T")
@dataclasses.dataclass(order=True, slots=True)
class Item(typing.Generic[T]):
    '''An item.'''
    name: str
    tags: list = dataclasses.field(default_factory=list, repr=False)
    kind: Color = Color.RED
    def __post_init__(self): self.tags.append(self.name)
class Row(typing.NamedTuple):
    a: int
    b: float = -0.0
    def total(self): return self.a + self.b
class Own(ValueError):
    def __str__(self): return f"{super().__str__()!r:>{10}} {{}} {1 + 1=}"
%%
def logged(note):
    def wrap(fn):
        @functools.wraps(fn)
        def inner(*args, **kwargs):
            try: return fn(*args, **kwargs)
            except* Own as group: raise
            finally: print(note)
        return inner
    return wrap
@logged("x")
async def helper(x, /, y=Row(1), *, z: "int" = 3):
    async with asyncio.Lock(): await asyncio.sleep(0)
    return [a async for a in agen() if (b := a)], lambda q=y: {**q}
async def agen():
    for i in itertools.count():
        yield i
%%
def f(x):
    match x:
        case {"a": [1, *rest], **more}: return rest, more
        case Item(name=n) | Row(a=n): return n
        case None: pass
    class Inner: k: int = len(K); name = __name__
    global LATER
    LATER = {i: j for i, j in zip("ab", x) if i}
    return helper(x), Inner, Color.BLUE, Item, f"{x!s}{'a' 'b'}" "c" f"{{{x:{3}.{2}}}}", Own, x[1:]
"""

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
    odd = ("import numpy", "import pandas", "import qnb", "%%file", "exec(")
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
