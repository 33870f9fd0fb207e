"""What a value is: the same digest wherever it is made, another one for anything else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.headerregistry import Address
from functools import partial
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnb.content.values import call_digest, value_digest
from qnb.errors import EncodingError
from qnb.wire.codec import Codec
from qnb.wire.envelope import Keys

ROOT = Path(__file__).parents[2]

_hashable = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.complex_numbers() | st.datetimes() | st.timedeltas() | st.decimals(allow_nan=False)
)  # fmt: skip
_values = st.recursive(
    _hashable | st.sets(_hashable) | st.builds(np.array, st.lists(st.floats(), max_size=3)),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(_values)
def test_a_value_and_its_copy_have_one_digest(value: Any) -> None:
    codec = Codec(Keys([bytes(32)], "a test"), "q", max_payload=1 << 20)
    copy = codec.unpack_result("job", codec.pack_result("job", 1, value))
    assert value_digest(copy) == value_digest(value)
    assert len(value_digest(value)) == 16


@given(_values, _values)
def test_values_with_one_digest_are_written_alike(one: Any, other: Any) -> None:
    if value_digest(one) == value_digest(other):
        assert type(one) is type(other)
        assert _text(one) == _text(other)


def _text(value: Any) -> str:
    """The ``repr`` of a value, with the parts of sets, whose order is not theirs, sorted."""
    if isinstance(value, set):
        return f"set {sorted(map(_text, value))}"
    if isinstance(value, dict):
        return f"dict {[(_text(key), _text(part)) for key, part in value.items()]}"
    if isinstance(value, list | tuple):
        return f"{type(value)} {[_text(part) for part in value]}"
    return repr(value)


FRAME = pd.DataFrame({"a": [1, 2], "s": ["x", None]})
DISTINCT: list[Any] = [
    None, 0, 1, -1, 255, 256, 1 << 70, 0.0, -0.0, 1.0, float("nan"), float("inf"), True, False,
    1j, complex(-0.0, 1), "", "1", "a", b"a", bytearray(b"a"), ..., int, len, partial(len, [1]),
    (), [], {}, set(), frozenset(), (1,), [1], {1}, frozenset([1]), {1: 2, 3: 4}, {3: 4, 1: 2},
    [[1], 2], [[1, 2]], ["ab"], ["a", "b"], OrderedDict(a=1), deque([1]), range(3), slice(1, 2),
    re.compile("a"), re.compile("a", re.IGNORECASE), re.IGNORECASE, list[int],
    date(2020, 1, 1), datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC),  # noqa: DTZ001
    datetime(2020, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")), timedelta(1),
    Decimal("1.0"), Decimal("1.00"), UUID(int=5), Path("a"), PurePosixPath("a"),
    urlsplit("a"), Address("a", "b", "c"), types.SimpleNamespace(a=1),
    np.float64(1), np.float32(1), np.int64(1), np.True_, np.datetime64("2020", "s"), np.sin,
    np.arange(3), np.arange(3.0), np.arange(3, dtype=">i8"), np.arange(6).reshape(2, 3),
    np.arange(6).reshape(3, 2), np.array([]), np.array(3), np.array(["a"]), np.array(["a", None]),
    np.zeros(1, dtype=[("a", "i4")]), np.zeros(1, dtype=[("b", "i4")]), np.dtype("f8"),
    np.ma.array([1, 2], mask=[0, 1]), np.random.default_rng(0), np.random.default_rng(1),
    FRAME, FRAME[["a"]], FRAME["a"], FRAME["a"].rename("b"), FRAME.set_index("s"),
    FRAME.astype({"a": "Int64"}), FRAME.astype({"s": "category"}), FRAME.astype({"s": object}),
    pd.RangeIndex(2), pd.Index([0, 1]), pd.MultiIndex.from_product([[1, 2], ["a"]]),
    pd.date_range("2020", periods=2), pd.date_range("2020", periods=2, tz="UTC"), pd.NaT, pd.NA,
    pd.Timestamp("2020"), pd.Timedelta(1, "s"), pd.Interval(1, 2), pd.array([1, None]),
]  # fmt: skip


def test_what_differs_in_type_order_sign_or_content_has_another_digest() -> None:
    for (one, first), (other, second) in combinations(
        [(value, value_digest(value)) for value in DISTINCT], 2
    ):
        assert first != second, (one, other)


@pytest.mark.parametrize(
    "one, other",
    [
        (float("nan"), -float("nan")),
        (np.float64("nan"), -np.float64("nan")),
        ({"a", "b", 1}, {1, "b", "a"}),
        (np.arange(20)[::2], np.arange(0, 20, 2)),
        (np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(6).reshape(2, 3)),
        (np.array(["a", [1]], dtype=object), np.array(["a", [1]], dtype=object)),
        (FRAME, pd.concat([FRAME[["a"]], FRAME[["s"]]], axis=1)),
        (pd.DataFrame({"a": [1, 3]}), pd.DataFrame([[1, 2], [3, 4]], columns=["a", "b"])[["a"]]),
        (pd.Series(["u", "v"], dtype="category"), pd.Series(["u", "v"]).astype("category")),
        (np.arange(4).view(), np.require(np.arange(4), requirements="O")),
    ],
)
def test_what_is_the_same_content_has_one_digest(one: Any, other: Any) -> None:
    assert value_digest(one) == value_digest(other)


def test_values_that_hold_themselves_or_much_in_common_are_no_trap() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    same: list[Any] = [1]
    same.append(same)
    assert value_digest(ring) == value_digest(same) != value_digest([1, [1, [1]]])
    tree: list[Any] = []
    for _ in range(200):
        tree = [tree, tree]
    start = time.perf_counter()
    value_digest(tree)
    assert time.perf_counter() - start < 1


def test_many_values_that_lead_back_to_each_other_take_no_longer() -> None:
    def mesh(last: int) -> list[Any]:
        nodes: list[list[Any]] = [[number] for number in range(60)]
        for node in nodes:
            node.extend(nodes)
        nodes[-1].append(last)
        return nodes

    start = time.perf_counter()
    assert value_digest(mesh(1)) == value_digest(mesh(1)) != value_digest(mesh(2))
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "value",
    [
        pd.Series(np.arange(300_000)),
        pd.Series(np.arange(300_000), dtype="Int64"),
        pd.Series(np.arange(300_000) % 7).astype("category"),
        pd.MultiIndex.from_product([range(500), range(600)]),
    ],
    ids=["plain", "nullable", "categorical", "multi-index"],
)
def test_long_columns_and_indexes_are_no_walk_through_their_rows(value: Any) -> None:
    start = time.perf_counter()
    value_digest(value)
    assert time.perf_counter() - start < 0.6


def test_to_which_value_another_leads_back_counts() -> None:
    def pair(*, to_outer: bool) -> list[Any]:
        outer: list[Any] = ["outer"]
        inner: list[Any] = ["inner"]
        inner.append(outer if to_outer else inner)
        outer.append(inner)
        return outer

    assert value_digest(pair(to_outer=True)) != value_digest(pair(to_outer=False))
    alike, apart = ["a", ["a"]], ["a"]
    one, two = [alike, apart, pair(to_outer=True)], [alike, apart, pair(to_outer=False)]
    assert value_digest(one) != value_digest(two)


_cell: dict[str, Any] = {"__name__": "__main__"}
exec(  # noqa: S102 - a notebook's cell
    "import dataclasses\n@dataclasses.dataclass\nclass Local:\n    x: int\ndef local(): pass", _cell
)


@pytest.mark.parametrize(
    "value, said",
    [
        (threading.Lock(), r"value is of type _thread\.lock: cannot pickle"),
        ({"a": [1, threading.Lock()]}, r"value\['a'\]\[1\] is of type _thread\.lock"),
        (types.SimpleNamespace(q=(threading.Lock(),)), r"value\.q\[0\] is of type"),
        (_cell["Local"](1), r"value has the class '__main__\.Local', which no installed package"),
        (_cell["local"], r"value has the function '__main__\.local', which no installed"),
        ([lambda: 1], r"value\[0\] has the function '.*<lambda>'"),
        (pd.DataFrame({"x": [threading.Lock()]}), r"value\['x'\].* is of type _thread\.lock"),
    ],
)
def test_what_cannot_be_compared_is_named_with_the_way_to_it(value: Any, said: str) -> None:
    with pytest.raises(EncodingError, match=said + r".*options\(task_id="):
        value_digest(value)


def test_nesting_without_end_is_refused() -> None:
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    with pytest.raises(EncodingError, match="nested too deeply"):
        value_digest(nest)


def test_a_call_is_its_task_its_arguments_and_its_words_in_any_order() -> None:
    calls: list[Callable[[], str]] = [
        lambda: call_digest("f", (1, 2), {}),
        lambda: call_digest("g", (1, 2), {}),
        lambda: call_digest("f", ((1, 2),), {}),
        lambda: call_digest("f", (1,), {"x": 2}),
        lambda: call_digest("f", (1, "x"), {}),
        lambda: call_digest("f", (), {"x": 1, "y": 2}),
        lambda: call_digest("f", (), {"x": 2, "y": 1}),
    ]
    assert len({call() for call in calls}) == len(calls)
    assert call_digest("f", (), {"y": 2, "x": 1}) == calls[5]()
    assert re.fullmatch("[0-9a-f]{32}", calls[0]())
    with pytest.raises(EncodingError, match=r"^kwargs\['m'\]\['a'\] is of type _thread\.lock"):
        call_digest("f", (), {"m": {"a": threading.Lock()}})


def test_digests_are_those_of_any_kernel_and_any_release() -> None:
    """Fixed digests: whoever changes one makes every stored digest a miss."""
    code = """
import datetime, enum, pathlib, re, uuid
import numpy as np, pandas as pd
from qnb.content.values import call_digest
print(call_digest("f", (1, 2.5, "é", b"x", None, {"b", "a", ("c", 1)}, frozenset("abc")), {}))
print(call_digest("f", (datetime.datetime(2020, 1, 1), pathlib.PurePosixPath("a")), {}))
print(call_digest("f", (), {"flag": re.RegexFlag.I, "id": uuid.UUID(int=1)}))
print(call_digest("f", (np.arange(3.0), np.int8(1), np.array(["a", {"y", "x"}], dtype=object)), {}))
print(call_digest("f", (pd.DataFrame({"a": [1], "s": ["x"]}), ), {}))
"""
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed}, cwd=ROOT,
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "1", "random")
    }  # fmt: skip
    assert len(said) == 1
    assert said.pop().split()[:4] == [
        "fba8af1e4d1beeabafe4388d866ef403",
        "2f5c14064a1cbef3c1bfb47d81a533f3",
        "cc8346cc7a2eb597b95da9e5bbf19a58",
        "2afc659e8908bf5f6e2f5f9a86e9d329",
    ]


# --- classes of an installed package, which hold more than one sees at first ---------------------

CLASSES = """
import dataclasses, typing, collections

@dataclasses.dataclass
class Listed(list):
    x: int = 0

class Slotted:
    __slots__ = ("hidden",)

@dataclasses.dataclass
class OverSlots(Slotted):
    x: int = 0

@dataclasses.dataclass(slots=True)
class Plain:
    x: int = 0

class Point(typing.NamedTuple):
    x: int = 0

class Named(Point):
    pass

@dataclasses.dataclass
class Queued(collections.deque):
    x: int = 0

class Tags(set):
    pass

class Broken:
    def __reduce__(self):
        raise ValueError("no way")

class BadKey:
    def __init__(self, text): self.text = text
    def __hash__(self): return 1
    def __repr__(self): raise KeyError("repr")
    def __reduce__(self): return BadKey, (self.text,)
"""


@pytest.fixture
def classes(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Importable here and taken for installed: by-value functions know no such module."""
    module = types.ModuleType("qnb_test_classes")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(CLASSES, vars(module))  # noqa: S102 - the test's own text
    monkeypatch.setattr("qnb.wire.origins.installed", lambda name: True)
    return module


def test_what_a_class_holds_beside_its_fields_counts(classes: Any) -> None:
    listed, other = classes.Listed(), classes.Listed()
    listed += [1]
    assert value_digest(listed) != value_digest(other)
    one, two = classes.OverSlots(), classes.OverSlots()
    one.hidden, two.hidden = 1, 2
    assert value_digest(one) != value_digest(two)
    one, two = classes.Named(1), classes.Named(1)
    assert value_digest(one) == value_digest(two)
    one.note = "first"
    assert value_digest(one) != value_digest(two)
    one, two = classes.Queued(), classes.Queued()
    one.append(1)
    assert value_digest(one) != value_digest(two)
    assert value_digest(classes.Plain(1)) == value_digest(classes.Plain(1))
    assert value_digest(classes.Plain(1)) != value_digest(classes.Plain(2))


def test_a_set_of_a_class_of_its_own_has_no_order(classes: Any) -> None:
    words = [f"word {number}" for number in range(50)]
    one, other = classes.Tags(words), classes.Tags(reversed(words))
    grown = classes.Tags([*words, *range(1000)]) - set(range(1000))  # another table, another order
    grown = classes.Tags(grown)
    assert value_digest(one) == value_digest(other) == value_digest(grown)
    assert value_digest(one) != value_digest(classes.Tags(words[1:]))
    one.note = 1
    assert value_digest(one) != value_digest(other)


def _dirty(array: np.ndarray[Any, Any], padding: int) -> np.ndarray[Any, Any]:
    """A copy of ``array`` in memory that held ``padding`` before."""
    raw = np.full(array.nbytes, padding, np.uint8)
    copy = raw.view(array.dtype).reshape(array.shape)
    if array.dtype.names:
        for name in array.dtype.names:
            copy[name] = array[name]
    else:
        copy[...] = array
    return copy


@pytest.mark.parametrize(
    "array",
    [
        np.array([(1, 2.5), (3, 4.5)], dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        np.array([(1, [2, 3])], dtype=np.dtype([("a", "i1"), ("b", "i4", 2)], align=True)),
        np.array([0.1, -0.0, 1e4000], dtype=np.longdouble),
        np.array([0.1 + 2j], dtype=np.clongdouble),
    ],
    ids=["aligned", "nested", "longdouble", "clongdouble"],
)
def test_bytes_that_mean_nothing_do_not_count(array: Any) -> None:
    clean, dirty = _dirty(array, 0), _dirty(array, 0xFF)
    assert value_digest(clean) == value_digest(dirty)
    assert value_digest(clean[0]) == value_digest(dirty[0])
    other = clean.copy()
    other[0] = 0
    assert value_digest(clean) != value_digest(other)


def test_an_error_of_a_part_names_it(classes: Any) -> None:
    with pytest.raises(EncodingError, match=r"value\['k'\]\[1\] is of type .*Broken: no way"):
        value_digest({"k": [1, classes.Broken()]})
    with pytest.raises(EncodingError, match=r"^value.* is of type .*Broken"):
        value_digest({classes.BadKey("k"): classes.Broken()})
