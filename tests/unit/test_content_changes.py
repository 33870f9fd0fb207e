"""What a person is told of a function that has changed, and what is kept of it to tell so."""

from __future__ import annotations

import importlib.util
import linecache
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

import qnb
from qnb.content.code import Code, Part, changes, explain
from qnb.content.walk import code_of, content_of
from qnb.errors import EncodingError

ROOT = Path(__file__).parents[2]

Make = Callable[..., Any]


@pytest.fixture
def make() -> Iterator[Make]:
    """Run a source as a cell and have ``f`` of it."""
    cells: list[str] = []

    def run(source: str, **given: Any) -> Any:
        cells.append(f"<cell {id(cells)} {len(cells)}>")
        name = cells[-1]
        linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
        space = {"__name__": "__main__", **given}
        exec(compile(source, name, "exec", dont_inherit=True), space)  # noqa: S102 - a cell
        return space["f"]

    yield run
    for name in cells:
        linecache.cache.pop(name, None)


CELL = """
ALPHA = 0.1
def loss(x):
    return x * ALPHA

def f(x, n=3):
    return loss(x) + n
"""


def _told(old: Any, new: Any) -> str:
    """What is said of a change, without the numbers of cells."""
    return re.sub(r"<cell \d+ (\d+)>", r"Cell \1", explain(code_of(old), code_of(new)))


def test_a_changed_helper_is_named_with_its_place_and_a_diff(make: Make) -> None:
    told = _told(make(CELL), make(CELL.replace("return x *", "x = abs(x)\n    return x *")))
    assert told.splitlines() == [
        "helper `loss` changed (Cell 1, line 3)",
        "  --- before",
        "  +++ now",
        "  @@ -1,2 +1,3 @@",
        "   def loss(x):",
        "  +    x = abs(x)",
        "       return x * ALPHA",
    ]


@pytest.mark.parametrize(
    "edit, told",
    [
        (("= 0.1", "= 0.2"), "global `ALPHA`: 0.1 → 0.2"),
        (("n=3", "n=4"), "default `f(n)`: 3 → 4"),
        (("= 0.1", "= None"), "global `ALPHA`: 0.1 → None"),
        (("x * ALPHA", "x"), "global `ALPHA` is not reached any more"),
        (("ALPHA = 0.1", "from math import e as ALPHA"), "global `ALPHA`: 0.1 → 2.7182818284590"),
        (("loss(x) +", "abs(x) +"), "helper `loss` is not reached any more"),
    ],
)
def test_each_kind_of_change_is_told_in_a_line(
    edit: tuple[str, str], told: str, make: Make
) -> None:
    assert told in _told(make(CELL), make(CELL.replace(*edit)))


def test_another_version_of_a_package_is_told(make: Make) -> None:
    code = code_of(make("import numpy as np\ndef f(x): return np.sin(x)"))
    old = replace(code.parts["numpy"], text="2.0", digest=b"old")
    before = Code("0" * 32, {**code.parts, "numpy": old})
    assert explain(before, code) == f"numpy 2.0 → {np.__version__}"


def test_the_function_itself_comes_first_and_what_only_reaches_others_is_left_out(
    make: Make,
) -> None:
    edited = CELL.replace("+ n", "- n").replace("* ALPHA", "/ ALPHA").replace("0.1", "0.2")
    found = changes(code_of(make(CELL)), code_of(make(edited)))
    assert [change.name for change in found] == ["f", "loss", "ALPHA"]
    assert str(found[0]).startswith("function `f` changed")
    alias = code_of(make(f"{CELL}\ndef same(x): return x\nloss = same"))
    told = [str(change) for change in changes(code_of(make(CELL)), alias)]
    assert any(line.startswith("helper `same` is newly reached") for line in told)
    assert not any("`f`" in line for line in told)


def test_a_class_attribute_and_a_method_are_told_apart(make: Make) -> None:
    cell = "class A:\n    k = 1\n    def go(self): return 1\ndef f(): return A().go()"
    assert _told(make(cell), make(cell.replace("k = 1", "k = 2"))) == "attribute `A.k`: 1 → 2"
    told = _told(make(cell), make(cell.replace("return 1", "return 2")))
    assert told.startswith("helper `A.go` changed")
    assert "  -def go(self): return 1\n  +def go(self): return 2" in told


def test_much_that_changed_is_told_on_one_screen(make: Make) -> None:
    body = "".join(f"    x += {n}\n" for n in range(60))
    many = "".join(f"def g{n}(x):\n{body}    return x\n" for n in range(30))
    cell = f"{many}\ndef f(x): return {' + '.join(f'g{n}(x)' for n in range(30))}"
    lines = _told(make(cell), make(cell.replace("+=", "-="))).splitlines()
    assert lines[0] == "helper `g0` changed (Cell 1, line 1)"
    assert len(lines) < 60
    assert "  …" in lines
    assert lines[-1] == "and 18 more"


def test_values_are_told_short_without_addresses_and_without_secrets(make: Make) -> None:
    cell = "class A: pass\na = A()\nB = 'x' * 999\nAPI_KEY = 'one'\ndef f(): return a, B, API_KEY"
    told = _told(make(cell), make(f"{cell}\na.k = 1\nB += 'y'\nAPI_KEY = 'two'"))
    assert "global `a`: another __main__.A" in told.splitlines()
    assert max(map(len, told.splitlines())) < 250
    assert "global `API_KEY`: another" in told
    assert not re.search("one|two", told)


def test_equal_code_needs_no_explanation(make: Make) -> None:
    code, again = code_of(make(CELL)), code_of(make(f"# moved\n\n{CELL}"))
    assert code.digest == again.digest
    assert (explain(code, again), changes(code, again)) == ("", [])
    assert re.fullmatch("[0-9a-f]{32}", code.digest)


# --- what cannot be compared -------------------------------------------------------------------


def test_a_function_that_reaches_what_has_no_content_equals_nothing_and_says_why(
    make: Make,
) -> None:
    with Path(__file__).open() as file:
        fn = make("def f(): return file, 1", file=file)
        one, two = code_of(fn), code_of(fn)
    assert one.digest != two.digest
    assert not one.comparable
    assert one.reason.startswith("global `file` is of type _io.TextIOWrapper: cannot pickle")
    assert "it cannot be compared: global `file`" in explain(one, two)
    assert code_of(make(CELL)).comparable


def test_a_lock_is_no_obstacle(make: Make) -> None:
    fn = make("def f(): return lock", lock=threading.Lock())
    assert code_of(fn).digest == code_of(make("def f(): return lock", lock=threading.Lock())).digest


# --- the source must be that of the code -------------------------------------------------------


def test_a_file_edited_after_its_import_is_not_taken_for_what_runs(tmp_path: Path) -> None:
    def load(text: str) -> Any:
        file.write_text(text)
        spec = importlib.util.spec_from_file_location("edited_after_import", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.f

    file = tmp_path / "edited_after_import.py"
    old = load("def f(): return 'one'\n")
    file.write_text("def f(): return 'another'\n")
    code = code_of(old)
    assert "another" not in code.parts[next(iter(code.parts))].text
    new = load("def f(): return 'another'\n")
    assert code_of(new).digest != code.digest
    assert "another" in next(iter(code_of(new).parts.values())).text


def test_a_project_installed_in_editable_mode_is_followed_to_its_helpers(tmp_path: Path) -> None:
    """Its version stays while it is edited. A site of its own makes it an installed one."""
    code = """
import site, sys
site.addsitedir(sys.argv[1])
site.getsitepackages = lambda: [sys.argv[1]]
from project_in_work import f
from qnb.content.walk import code_of
from qnb.wire.origins import reference
assert reference(f) == "project_in_work:f"
print(code_of(f).digest, *code_of(f).parts)
"""
    site, source = tmp_path / "site", tmp_path / "src"
    site.mkdir()
    source.mkdir()
    (site / "project.pth").write_text(f"{source}\n")
    said = []
    for number in (1, 2, 2):
        (source / "project_in_work.py").write_text(
            f"def _helper(): return {number}\ndef f(): return _helper()\n"
        )
        ran = subprocess.run(
            [sys.executable, "-B", "-c", code, str(site)],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        said.append(ran.stdout.split())
    assert said[0][1:] == ["project_in_work.f", "project_in_work._helper"]
    assert said[0][0] != said[1][0] == said[2][0]


# --- to keep it --------------------------------------------------------------------------------


def test_what_is_packed_comes_back(make: Make) -> None:
    code = code_of(make(CELL))
    assert Code.unpack(code.pack()) == code
    assert list(Code.unpack(code.pack()).parts) == ["f", "loss", "f(n)", "ALPHA"]
    assert len(code.pack()) < 1000


def test_a_large_code_is_packed_small_and_still_explains(make: Make) -> None:
    many = "".join(f"def g{n}(x):\n    '''{'é' * 4000}'''\n    return x\n" for n in range(200))
    cell = f"{many}\ndef f(x): return {' + '.join(f'g{n}(x)' for n in range(200))}"
    old, new = code_of(make(cell)), code_of(make(cell.replace("return x\n", "return -x\n", 1)))
    assert len(old.pack()) < 256_000
    kept = Code.unpack(old.pack())
    assert kept.digest == old.digest
    assert _first(explain(kept, new)).startswith("helper `g0` changed")


def _first(text: str) -> str:
    return text.splitlines()[0]


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        msgpack.packb(None),
        msgpack.packb([2, "0" * 32, "", []]),
        msgpack.packb([1, 5, "", []]),
        msgpack.packb([1, "0" * 32, "", [["f", "spell", b"", "", ""]]]),
        msgpack.packb([1, "0" * 32, "", [["f", "function", b"", ""]]]),
    ],
)
def test_what_is_no_code_is_refused(packed: bytes) -> None:
    with pytest.raises(EncodingError, match=r"of a function cannot be read: .* Submit again"):
        Code.unpack(packed)


def test_a_change_of_which_no_record_was_kept_says_so() -> None:
    part = {"f": Part("function", b"x", "def f(): pass")}
    assert "no record was kept" in explain(Code("0" * 32, part), Code("1" * 32, part))


# --- again and again ---------------------------------------------------------------------------


def test_a_function_seen_before_is_told_at_once(make: Make) -> None:
    fn = make(CELL)
    code = code_of(fn)
    assert code_of(fn) is code
    took = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(200):
            code_of(fn)
        took.append((time.perf_counter() - start) / 200)
    assert min(took) < 100e-6


def test_many_functions_may_be_told_by_many_threads(make: Make) -> None:
    fns = [make(f"K = {n}\ndef f(): return K") for n in range(200)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as threads:
            found = [threads.submit(lambda: [code_of(fn).digest for fn in fns]) for _ in range(12)]
    finally:
        sys.setswitchinterval(before)
    assert len({tuple(each.result()) for each in found}) == 1


def test_what_changes_under_a_function_seen_before_is_noticed(make: Make) -> None:
    fn = make("A = 1\nB = [1]\nclass C: k = 1\ndef g(): return 1\ndef f(): return A, B, C.k, g()")
    space = fn.__globals__
    seen = [code_of(fn).digest]

    def noticed() -> bool:
        seen.append(code_of(fn).digest)
        return len(set(seen)) == len(seen)

    space["A"] = 2
    assert noticed()
    space["B"].append(2)
    assert noticed()
    space["C"].k = 2
    assert noticed()
    space["g"].__code__ = (lambda: 2).__code__
    assert noticed()
    space["g"] = len
    assert noticed()
    assert code_of(fn).digest == seen[-1]


def test_running_and_pickling_leave_a_function_what_it_is(make: Make) -> None:
    fn = make(
        "import copyreg\nclass A:\n    def __init__(self): self.k = 1\n"
        "a = A()\ndef f(x): return a.k + x"
    )
    digest = code_of(fn).digest
    for number in range(3000):
        fn(number)
    fn.__globals__["a"].__reduce_ex__(5)
    assert "__slotnames__" in vars(fn.__globals__["A"])
    assert code_of(fn).digest == digest


def test_a_task_is_its_function(make: Make) -> None:
    fn = make(CELL)
    assert code_of(qnb.App(queue_name="code").task(fn)).digest == code_of(fn).digest


# --- arguments ---------------------------------------------------------------------------------


@dataclass
class Point:
    x: float
    tags: list[str] = field(default_factory=list)


def test_arguments_may_have_local_classes_and_functions(make: Make) -> None:
    one = content_of((Point(1.0),), {"how": len, "at": np.arange(3)})
    assert re.fullmatch("[0-9a-f]{32}", one)
    assert content_of((Point(1.0),), {"at": np.arange(3), "how": len}) == one
    assert content_of((Point(1),), {"how": len, "at": np.arange(3)}) != one
    assert content_of((Point(1.0, ["a"]),), {"how": len, "at": np.arange(3)}) != one
    digests = {content_of((make(f"def f(): return {value}"),), {}) for value in ("1", "1.0", "1")}
    assert len(digests) == 2


def test_an_argument_that_cannot_be_compared_is_named(make: Make) -> None:
    with pytest.raises(EncodingError, match=r"^kwargs\['how'\]\[0\] is of type generator"):
        content_of((), {"how": [(i for i in [1])]})
    with Path(__file__).open() as file:
        fn = make("def f(): return file", file=file)
        with pytest.raises(EncodingError, match=r"^args\[0\] reaches .*global `file`"):
            content_of((fn,), {})
