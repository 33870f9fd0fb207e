"""Values and functions on the wire: what comes back, what is refused, and in which words."""

from __future__ import annotations

import importlib
import json
import math
import pickle
import random
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnb.errors import (
    ArgumentError,
    EncodingError,
    PayloadTooLarge,
    ResultError,
    SignatureError,
)
from qnb.wire import byvalue, functions, origins, pickles
from qnb.wire.codec import Codec
from qnb.wire.envelope import Content, Keys, seal

KEYS = Keys([bytes(range(32))], "a test")
CODEC = Codec(KEYS, "q", max_payload=1 << 20)


def _there_and_back(value: Any) -> Any:
    return CODEC.unpack_result("job", CODEC.pack_result("job", 1, value), 1)


@dataclass
class Model:
    lock: Any
    name: str = "m"


# --- values ------------------------------------------------------------------------------------

_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=30,
)  # fmt: skip


@given(st.tuples(_plain, _plain), st.dictionaries(st.text(), _plain))
def test_plain_arguments_come_back_as_they_were(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    back = CODEC.unpack_call("job", CODEC.pack_call("job", args, kwargs))
    assert back == (args, kwargs)
    assert repr(back) == repr((args, kwargs))  # 1, 1.0 and True stay themselves


def test_arrays_and_frames_come_back_writable_and_alone() -> None:
    array = np.arange(10_000.0)
    frame = pd.DataFrame({"x": array, "s": ["a", "b"] * 5_000})
    one, other, same = _there_and_back((array, frame, array))
    assert same is one
    np.testing.assert_array_equal(one, array)
    pd.testing.assert_frame_equal(other, frame)
    one[0] = 7.0
    other.loc[0, "x"] = 7.0
    assert array[0] == 0.0


def test_odd_arrays_come_back_as_they_were() -> None:
    fixed = np.arange(5)
    fixed.flags.writeable = False
    grid = np.arange(12).reshape(3, 4)
    arrays = [fixed, grid[:, ::2], np.asfortranarray(grid), np.array([]), np.array(["a", None])]
    for array, back in zip(arrays, _there_and_back(arrays), strict=True):
        np.testing.assert_array_equal(back, array)
        assert back.dtype == array.dtype
        assert back.flags.f_contiguous == array.flags.f_contiguous


def test_local_classes_and_functions_travel_in_values() -> None:
    def double(x: int) -> int:
        return 2 * x

    back = _there_and_back({"fn": double, "model": Model(None, "n")})
    assert back["fn"](4) == 8
    assert back["model"] == Model(None, "n")  # the very class, since it was made here


def test_a_class_that_comes_home_keeps_its_own_methods() -> None:
    method = Model.__init__
    _there_and_back(Model(None))
    assert Model.__init__ is method


def test_an_argument_that_cannot_be_sent_is_named_with_the_way_to_it() -> None:
    lock = threading.Lock()
    start = time.perf_counter()
    with pytest.raises(
        ArgumentError,
        match=r"argument kwargs\['model'\] .*: kwargs\['model'\]\.lock is of type _thread\.lock: .*"
        r"cannot pickle.*Pass what it is made from",
    ) as refusal:
        CODEC.pack_call("job", (1, [2]), {"model": Model(lock)})
    assert time.perf_counter() - start < 1
    assert refusal.value.__cause__ is None
    with pytest.raises(ArgumentError, match=r"argument args\[1\] .*: args\[1\]\['a'\]\[2\] is"):
        CODEC.pack_call("job", (0, {"a": [1, 2, lock]}), {})
    with pytest.raises(ArgumentError, match=r"argument args\[0\] .*: it is of type generator"):
        CODEC.pack_call("job", ((x for x in ()),), {})
    with pytest.raises(ArgumentError, match=r"args\[0\] → variable 'lock' is of type"):
        CODEC.pack_call("job", (lambda: lock,), {})


class Rebel:
    def __reduce__(self) -> Any:
        raise LookupError("no papers")


def _nested(depth: int) -> list[Any]:
    nest: list[Any] = []
    for _ in range(depth):
        nest = [nest]
    return nest


@pytest.mark.parametrize("bad", [Rebel(), _nested(100_000)], ids=["rebel", "nested"])
def test_whatever_pickling_raises_is_one_kind_of_error(bad: Any) -> None:
    with pytest.raises(ArgumentError):
        CODEC.pack_call("job", (bad,), {})
    with pytest.raises(ResultError):
        CODEC.pack_result("job", 1, bad)


def test_a_result_that_cannot_be_sent_names_its_type() -> None:
    with pytest.raises(ResultError, match=r"result\['m'\]\.lock is of type _thread\.lock"):
        CODEC.pack_result("job", 1, {"m": Model(threading.Lock())})
    with pytest.raises(ResultError, match="result is of type generator"):
        CODEC.pack_result("job", 1, (x for x in ()))


@pytest.mark.parametrize(
    "large",
    [b"x" * (2 << 20), "x" * (2 << 20), np.zeros(1 << 18), list(range(1 << 20))],
    ids=["bytes", "text", "array", "list"],
)
def test_too_large_a_value_is_named_with_the_setting(large: Any) -> None:
    kind = type(large).__name__
    with pytest.raises(PayloadTooLarge, match=rf"kwargs\['big'\], of type .*{kind}.*max_payload"):
        CODEC.pack_call("job", (1, np.zeros(10)), {"small": 1, "big": large})
    with pytest.raises(PayloadTooLarge, match=rf"result, of type .*{kind}.*max_payload"):
        CODEC.pack_result("job", 1, large)


def test_a_large_array_is_refused_without_copying_it() -> None:
    array = np.zeros(1 << 23)
    start = time.perf_counter()
    with pytest.raises(PayloadTooLarge):
        CODEC.pack_call("job", (array,), {})
    assert time.perf_counter() - start < 0.05


# --- what a signature is good for --------------------------------------------------------------


def test_a_call_serves_its_job_and_its_function_only() -> None:
    call = CODEC.pack_call("job", (1,), {}, binding=b"score")
    assert CODEC.unpack_call("job", call, binding=b"score") == ((1,), {})
    with pytest.raises(SignatureError, match="'other'"):
        CODEC.unpack_call("other", call)
    with pytest.raises(SignatureError, match="another task"):
        CODEC.unpack_call("job", call, binding=b"delete_all")
    with pytest.raises(SignatureError):
        Codec(KEYS, "p", max_payload=1 << 20).unpack_call("job", call)


def test_a_result_serves_its_job_attempt_and_use_only() -> None:
    result = CODEC.pack_result("job", 2, "value")
    error = CODEC.pack_error("job", 2, ValueError("x"))
    assert CODEC.unpack_result("job", result, 2) == CODEC.unpack_result("job", result) == "value"
    for misuse in (
        lambda: CODEC.unpack_result("job", result, 1),
        lambda: CODEC.unpack_result("other", result, 2),
        lambda: CODEC.unpack_result("job", error, 2),
        lambda: CODEC.unpack_error("job", result, 2),
        lambda: CODEC.unpack_call("job", result),
        lambda: CODEC.unpack_result("job", CODEC.pack_call("job", (), {}), 0),
    ):
        with pytest.raises(SignatureError, match="refused unread"):
            misuse()


@pytest.fixture
def _tripwire(monkeypatch: pytest.MonkeyPatch) -> None:
    def trip(*_: object, **__: object) -> None:
        raise AssertionError("unpickled before the signature was checked")

    monkeypatch.setattr(pickles, "_unpickle", trip)
    monkeypatch.setattr(pickle, "loads", trip)


@pytest.mark.usefixtures("_tripwire")
def test_nothing_altered_is_unpickled() -> None:
    chance = random.Random(7)
    digest, blob = CODEC.pack_function(lambda: 1)
    genuine: list[tuple[bytes, Callable[[bytes], Any]]] = [
        (CODEC.pack_call("job", (1, "x"), {}), lambda data: CODEC.unpack_call("job", data)),
        (CODEC.pack_result("job", 1, 0.5), lambda data: CODEC.unpack_result("job", data)),
        (blob, lambda data: CODEC.unpack_function(digest, data)),
    ]
    for data, unpack in genuine:
        for _ in range(5_000):
            mutant = bytearray(data)
            for _ in range(chance.randrange(1, 4)):
                mutant[chance.randrange(len(mutant))] ^= chance.randrange(1, 256)
            if mutant != data:
                with pytest.raises(SignatureError):
                    unpack(bytes(mutant))


@pytest.mark.usefixtures("_tripwire")
def test_a_function_is_what_its_digest_names() -> None:
    digest, _ = CODEC.pack_function(lambda: 1)
    forged = seal(KEYS, "func", "q", digest.hex(), Content.PICKLE, b"other", limit=1 << 20)
    with pytest.raises(SignatureError, match="digest"):
        CODEC.unpack_function(digest, forged)


# --- errors ------------------------------------------------------------------------------------


class Custom(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"code {code}: {reason}")
        self.code = code


class Wrapping(Exception):
    def __init__(self, code: object) -> None:
        super().__init__(f"code {code}")


def test_an_exception_comes_back_as_itself() -> None:
    note = ValueError("bad", 1)
    note.add_note("look here")
    file = FileNotFoundError(2, "No such file", "x.csv")
    group = ExceptionGroup("two", [KeyError("k"), ZeroDivisionError()])
    cases = [
        note,
        file,
        group,
        Custom(4, "no"),
        Wrapping(5),
        SystemExit(3),
        json.JSONDecodeError("m", "d", 0),
    ]
    for error in cases:
        back = CODEC.unpack_error("job", CODEC.pack_error("job", 1, error), 1)
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert repr(vars(back)) == repr(vars(error))
    assert CODEC.unpack_error("job", CODEC.pack_error("job", 1, Custom(4, "no"))).code == 4  # type: ignore[union-attr]


def test_an_exception_that_cannot_be_rebuilt_is_nothing() -> None:
    error = ValueError("x")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    assert CODEC.pack_error("job", 1, error) == b""
    assert CODEC.unpack_error("job", b"") is None


# --- functions by value ------------------------------------------------------------------------


def _module(name: str, source: str, **names: Any) -> types.ModuleType:
    """A notebook-like namespace whose functions are of this process only."""
    module = types.ModuleType(name)
    vars(module).update(names)
    exec(compile(source, f"<{name}>", "exec"), vars(module))  # noqa: S102 - a cell
    return module


def _shipped(fn: Callable[..., Any]) -> Callable[..., Any]:
    return CODEC.unpack_function(*CODEC.pack_function(fn))


def test_an_unchanged_function_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = _module(
        "__main__",
        "import math\nK = 3\n"
        "class Point:\n    def norm(self): return math.hypot(K)\n"
        "def helper(x): return x * K\n"
        "def outer():\n    k = 2\n    def task(x, y=(1, 2)): return helper(x) * k, Point\n"
        "    return task\n"
        "task = outer()\n",
    )
    packed = CODEC.pack_function(cell.task)
    monkeypatch.setattr(functions, "dump", pytest.fail)
    assert CODEC.pack_function(cell.task)[1] is packed[1]


@pytest.mark.parametrize(
    "change, before, after",
    [
        ("def helper(x): return x + 1", 6, 3),
        ("def deep(): return 7", 6, 14),
        ("K = 5", 6, 30),
        ("Scale.by = 4", 6, 24),
        ("Scale.of = lambda self: 2", 6, 12),
        ("helper.__code__ = (lambda x: -x).__code__", 6, -2),
        ("def late(x): return 100", 6, 100),
        ("task.__defaults__ = (3,)", 6, 9),
        ("table.append(1)", 6, 7),
    ],
)
def test_a_change_of_anything_it_reaches_is_noticed(change: str, before: int, after: int) -> None:
    cell = _module(
        "__main__",
        "K = 1\ntable = []\n"
        "class Scale:\n    by = 1\n    def of(self): return self.by * K\n"
        "def deep(): return 3\n"
        "def helper(x): return x * deep() * Scale().of()\n"
        "def task(x=2):\n"
        "    try: return late(x)\n"
        "    except NameError: return helper(x) + len(table)\n",
    )
    if "table" not in change:
        exec("table = ()", vars(cell))  # noqa: S102 - a list would make every pack a fresh one
    assert _shipped(cell.task)() == before
    assert CODEC.pack_function(cell.task)[0] == CODEC.pack_function(cell.task)[0]
    exec(change, vars(cell))  # noqa: S102 - the next cell
    assert _shipped(cell.task)() == after


def test_a_reassigned_outer_variable_is_noticed() -> None:
    k = 1

    def task() -> int:
        return k

    assert _shipped(task)() == 1
    k = 2
    assert _shipped(task)() == 2


def test_a_global_that_cannot_be_sent_is_named() -> None:
    cell = _module("__main__", "def helper(): return lock\ndef task(): return helper()",
                   lock=threading.Lock())  # fmt: skip
    with pytest.raises(
        EncodingError,
        match=r"function 'task' .*global 'helper' → global 'lock' is of type _thread\.lock",
    ):
        CODEC.pack_function(cell.task)


def test_a_function_with_a_large_global_names_the_setting() -> None:
    cell = _module("__main__", "def task(): return data", data=np.zeros(1 << 20))
    with pytest.raises(PayloadTooLarge, match=r"'task'.*globals.*max_payload"):
        CODEC.pack_function(cell.task)


def test_a_missing_module_is_named_with_the_host_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = types.ModuleType("gone_package")
    gone.__file__ = str(tmp_path / "site-packages" / "gone_package.py")
    monkeypatch.setitem(sys.modules, "gone_package", gone)
    cell = _module("__main__", "def task(): return gone_package.x", gone_package=gone)
    digest, blob = CODEC.pack_function(cell.task)
    monkeypatch.delitem(sys.modules, "gone_package")
    with pytest.raises(EncodingError) as refusal:
        CODEC.unpack_function(digest, blob, task="score")
    said = str(refusal.value)
    assert said.startswith("task 'score' needs the module 'gone_package', which is not installed")
    assert sys.executable in said
    assert "Install it" in said


def test_code_of_another_python_is_refused_before_it_can_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = (3, sys.version_info[1] + 1, 0)
    monkeypatch.setattr(pickles.sys, "version_info", version)
    digest, blob = CODEC.pack_function(lambda: 1)
    plain = CODEC.pack_result("job", 1, np.zeros(3))
    monkeypatch.undo()
    with pytest.raises(EncodingError, match=rf"compiled by Python 3\.{version[1]}"):
        CODEC.unpack_function(digest, blob)
    assert len(CODEC.unpack_result("job", plain)) == 3


# --- by name -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn, name",
    [
        (math.hypot, "math:hypot"),
        (json.dumps, "json:dumps"),
        (len, "builtins:len"),
        (Fraction.from_float, "fractions:Fraction.from_float"),
        (np.linalg.norm, "numpy.linalg:norm"),
        (pd.DataFrame, "pandas:DataFrame"),
        (lambda: 1, None),
        (Path("x").exists, None),
        (_module("__main__", "def f(): pass").f, None),
    ],
)
def test_what_is_installed_goes_by_name_and_all_else_by_value(
    fn: Callable[..., Any], name: str | None
) -> None:
    found = CODEC.reference(fn)
    if name is None or found is None:
        assert found == name
    else:
        assert CODEC.resolve(found) == fn
        assert found.split(":")[1] == name.split(":")[1]


def test_what_a_reference_misses_here_is_named() -> None:
    with pytest.raises(EncodingError, match=r"'no_such_package'.*Install"):
        CODEC.resolve("no_such_package.tasks:score")
    with pytest.raises(EncodingError, match=r"'json:no_such'.*version"):
        CODEC.resolve("json:no_such")
    with pytest.raises(EncodingError, match="'math:pi' names no function but a float"):
        CODEC.resolve("math:pi")


@pytest.fixture
def _fresh_origins() -> Iterator[None]:
    caches = (
        origins._importable, origins._roots, origins._linked_folders, origins._editable_projects,
    )  # fmt: skip
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("_fresh_origins")
@pytest.mark.parametrize("style", ["link", "hook"])
def test_an_editable_install_goes_by_name_but_not_the_notebook_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str
) -> None:
    site, project = tmp_path / "site", tmp_path / "project"
    source = project / "src" if style == "link" else project
    package, beside = f"package_by_{style}", f"beside_{style}"
    (source / package).mkdir(parents=True)
    (source / package / "__init__.py").write_text("")
    (source / package / "tasks.py").write_text("def score(): return 1\n")
    (project / f"{beside}.py").write_text("def helper(): return 1\n")
    info = site / f"{package}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    editable = {"url": project.as_uri(), "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(editable))
    if style == "link":
        (site / "_editable.pth").write_text(f"# a comment\nimport sys\n{source}\n")
    monkeypatch.setattr(origins.site, "getsitepackages", lambda: [str(site)])
    monkeypatch.setattr(sys, "path", [*sys.path, str(site), str(source), str(project)])
    score = importlib.import_module(f"{package}.tasks").score
    helper = importlib.import_module(beside).helper
    assert CODEC.reference(score) == f"{package}.tasks:score"
    assert CODEC.reference(helper) is None


def test_importing_the_codec_loads_neither_numpy_nor_the_store() -> None:
    code = (
        "import sys; before = set(sys.modules); import qnb.wire.codec;"
        "print({'numpy', 'pandas', 'redis', 'IPython', 'asyncio', 'fsspec', 'cloudpickle'}"
        " & (set(sys.modules) - before))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.strip() == "set()"


def test_what_we_use_of_cloudpickle_is_there() -> None:
    """Its private names, so that an upgrade that renames them fails here first."""
    for name in (
        "_class_reduce", "_dynamic_class_reduce", "_class_setstate", "_should_pickle_by_reference",
        "_extract_code_globals", "_make_typevar", "_decompose_typevar",
    ):  # fmt: skip
        assert callable(getattr(byvalue._cloudpickle, name))
    pickler = byvalue._Pickler(byvalue._Sink(1), frozenset())
    assert pickler.globals_ref == {}
    assert callable(pickler._dynamic_function_reduce)
