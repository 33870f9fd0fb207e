"""Edits of notebooks, and whether each makes another function of ``f``, one a row.

An edit is written ``⟦before→after⟧``, and cells are divided by ``%%``.
"""

from __future__ import annotations

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
    "a global that is only written": (
        "def f():\n    global LAST\n    LAST = 3\n    return 1⟦→\nf()⟧"
    ),
    "a new type": "from typing import NewType\nU = NewType('U', int)\ndef f(x): return U(x)",
    "a distribution": (
        "from scipy.stats import norm\nd = norm(0, 1)\ndef f(x): return norm.pdf(x), d.cdf(x)"
    ),
    "the generators of random and numpy": (
        "from random import choice\nfrom numpy.random import rand\ndef f(): return choice([rand()])"
    ),
    "the shell": "def f(): return get_ipython().user_ns",
    "a figure's axes": (
        "class Axes: pass\nclass Figure: pass\nfigure = Figure()\n"
        "figure.all = [Axes() for _ in range(40)]\n"
        "for axes in figure.all: axes.figure, axes.shared = figure, figure.all\n"
        "def f(): return figure"
    ),
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
    "the order of an enum's members": (
        "import enum\nclass E(enum.Enum):\n    ⟦A = 1\n    B = 2→B = 2\n    A = 1⟧\n"
        "def f(): return list(E)"
    ),
    "a private attribute of an enum": (
        "import enum\nclass E(enum.Enum):\n    A = 1\n    __k = ⟦1→2⟧\n"
        "    def go(self): return self.__k\ndef f(): return E.A.go()"
    ),
    "the boundary of flags": (
        "import enum\nclass E(enum.Flag, boundary=enum.⟦STRICT→KEEP⟧):\n    A = 1\n"
        "def f(): return E(5)"
    ),
    "an installed function as a method": (
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    k: int = 1\n"
        "    plain = dataclasses.⟦asdict→astuple⟧\ndef f(): return A().plain()"
    ),
    "a context variable's default": (
        "from contextvars import ContextVar\nc = ContextVar('c', default=⟦1→2⟧)\n"
        "def f(): return c.get()"
    ),
    "what a new type is of": (
        "from typing import NewType\nU = NewType('U', ⟦int→str⟧)\ndef f(x): return U(x)"
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
    "which constant lambda of a line": "⟦a, f→f, a⟧ = (lambda x: -1), (lambda *x: -1)",
    "which lambda of a line": "⟦a, f→f, a⟧ = (lambda x: x), (lambda x: x + 1)",
    "a partial": "from functools import partial\ndef g(x, k): return x\nf = partial(g, k=⟦1→2⟧)",
    "a helper in a partial": (
        "from functools import partial\ndef g(x, k): return ⟦1→2⟧\nf = partial(g, k=1)"
    ),
    "a second wrapper of a decorated function": (
        "import numpy as np\n@np.errstate(all='warn')\ndef g(x): return 1 / x\n"
        "h = np.errstate(all='⟦ignore→raise⟧')(g)\ndef f(x): return h(x)"
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
    "an attribute of a local module that is handed on": (
        "%%file helpers.py\nK = ⟦1→2⟧ %% import helpers\ndef g(m): return m.K\n"
        "def f(): return g(helpers)"
    ),
    "an attribute of a local module that a helper returns": (
        "%%file helpers.py\nK = ⟦1→2⟧ %% import helpers\ndef g(): return helpers\n"
        "def f(): return g().K"
    ),
    "the version of a local module": (
        "%%file helpers.py\n__version__ = ⟦1→2⟧ %% import helpers\n"
        "def f(): return helpers.__version__"
    ),
    "what a decorator is given of an instance": (
        "class Options: pass\no = Options()\no.k = ⟦1→2⟧\ndef keep(k): return lambda g: g\n"
        "@keep(o.k)\ndef f(): return 1"
    ),
    "what a decorator is given of a local module": (
        "%%file helpers.py\nK = ⟦1→2⟧\ndef keep(k): return lambda g: g %% import helpers\n"
        "@helpers.keep(helpers.K)\ndef f(): return 1"
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
class Color(enum.Flag, boundary=enum.STRICT):
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
