"""The other ways to write values: msgpack alone, and a serializer of the user's own."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnb.errors import ArgumentError, EncodingError, PayloadTooLarge, ResultError, SignatureError
from qnb.options import AppOptions
from qnb.storage.blobs import blobs_of
from qnb.wire.bodies import PLAIN
from qnb.wire.codec import Codec
from qnb.wire.envelope import Content, Keys, seal

ROOT = Path(__file__).parents[2]
KEYS = Keys([bytes(range(32))], "a test")
SIGNED = Codec(KEYS, "q", max_payload=1 << 20)
MSGPACK = Codec(KEYS, "q", max_payload=1 << 20, mode="msgpack")


def _dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


OWN = Codec(KEYS, "q", max_payload=1 << 20, serializer=_dumps, deserializer=json.loads)

_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
    | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


class Colour(IntEnum):
    RED = 1


class Point(NamedTuple):
    x: int


# --- msgpack -------------------------------------------------------------------------------------


@given(st.lists(_values).map(tuple), st.dictionaries(st.text(), _values))
def test_what_msgpack_carries_comes_back_as_it_was(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    back = MSGPACK.unpack_call("job", MSGPACK.pack_call("job", args, kwargs))
    assert repr(back) == repr((args, kwargs))
    assert MSGPACK.unpack_result("job", MSGPACK.pack_result("job", 1, kwargs)) == kwargs


def test_msgpack_brings_plain_types() -> None:
    args, _ = MSGPACK.unpack_call("job", MSGPACK.pack_call("job", ((1, 2), Colour.RED), {}))
    assert args == ([1, 2], 1)
    assert type(args[1]) is int
    assert MSGPACK.unpack_result("job", MSGPACK.pack_result("job", 1, {1: Point(2)})) == {1: [2]}


@pytest.mark.parametrize(
    "bad, inside, kind",
    [
        ({1, 2}, "", "set"),
        ({"a": [1, 1j]}, r"\['a'\]\[1\]", "complex"),
        ([1 << 70], r"\[0\]", "int"),
        (threading.Lock(), "", "_thread.lock"),
        (lambda: 1, "", "function"),
    ],
)
def test_what_msgpack_does_not_carry_is_named_with_what_it_does(
    bad: Any, inside: str, kind: str
) -> None:
    said = rf"{inside} is of type {kind}: .*codec='msgpack'\) carries None, bool, int of 64 bits"
    with pytest.raises(ArgumentError, match=rf"argument args\[0\] .*{said}"):
        MSGPACK.pack_call("job", (bad,), {})
    with pytest.raises(ResultError, match=rf"sent back: result{said}"):
        MSGPACK.pack_result("job", 1, bad)


def test_a_pickle_is_refused_unread_where_msgpack_is_read() -> None:
    digest, function = SIGNED.pack_function(lambda: 1)
    refused: list[tuple[str, Callable[[], object]]] = [
        ("job 'job'", lambda: MSGPACK.unpack_call("job", SIGNED.pack_call("job", (1,), {}))),
        ("the result", lambda: MSGPACK.unpack_result("job", SIGNED.pack_result("job", 1, 2))),
        ("the error", lambda: MSGPACK.unpack_error("job", SIGNED.pack_error("job", 1, OSError()))),
        ("task 't'", lambda: MSGPACK.unpack_function(digest, function, task="t")),
        ("function 'os:system'", lambda: MSGPACK.resolve("os:system")),
        ("job 'job'", lambda: SIGNED.unpack_call("job", MSGPACK.pack_call("job", (1,), {}))),
    ]
    for what, misuse in refused:
        with pytest.raises(SignatureError, match=rf"^{what}.* was refused"):
            misuse()


def test_msgpack_sends_tasks_by_name_and_errors_as_text() -> None:
    assert MSGPACK.reference(math.hypot) == MSGPACK.reference(lambda: 1) == ""
    assert MSGPACK.pack_error("job", 1, ValueError("x")) == b""
    assert MSGPACK.unpack_error("job", b"") is None
    with pytest.raises(EncodingError, match=r"'_dumps' .*codec='msgpack'\) sends names, no code"):
        MSGPACK.pack_function(_dumps)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        PLAIN,
        PLAIN + b"\xc1",
        PLAIN + msgpack.packb([1, 2]),
        PLAIN + msgpack.packb([[1], {2: 3}]),
        PLAIN + msgpack.packb([[1], {}]) + b"more",
        b"\0" + b"\xff" * 8 + b"x",
        b"\0\1\0\0\0\0\0\0\0" + b"\xff" * 7 + b"\x7f",  # a part of 2^63 bytes
        b"\0\1\0\0\0\0\0\0\0" + (1 << 63 | 1 << 40).to_bytes(8, "little") + bytes(32),  # a blob
    ],
)
def test_what_a_hostile_producer_signs_is_an_error_and_costs_nothing(body: bytes) -> None:
    forged = seal(KEYS, "call", "q", "job", Content.MSGPACK, body, limit=1 << 20)
    with pytest.raises(EncodingError):
        MSGPACK.unpack_call("job", forged)


def test_msgpack_never_loads_what_could_run_code() -> None:
    code = """
import pickle, sys
pickle.loads = pickle.load = pickle.Unpickler = pickle.dumps = None
from qnb.options import AppOptions
from qnb.wire.codec import Codec
codec = Codec.of(AppOptions(codec="msgpack"), None)
call = codec.pack_call("job", (1, b"x" * (2 << 20)), {"a": [2]})
assert codec.unpack_call("job", call) == ((1, b"x" * (2 << 20)), {"a": [2]})
assert len(call) < 1000
print({"cloudpickle", "qnb.wire.pickles", "qnb.wire.byvalue", "numpy"} & set(sys.modules))
"""
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (said.stdout.strip(), said.stderr) == ("set()", "")


# --- a serializer of one's own -------------------------------------------------------------------


def test_a_serializer_is_given_lists_and_dicts_of_a_call_and_the_value_of_a_result() -> None:
    seen: list[Any] = []

    def spy(value: Any) -> bytes:
        seen.append(value)
        return _dumps(value)

    codec = Codec(KEYS, "q", max_payload=1 << 20, serializer=spy, deserializer=json.loads)
    call = codec.pack_call("job", (1, "x"), {"k": [2]})
    assert codec.unpack_call("job", call) == ((1, "x"), {"k": [2]})
    assert codec.unpack_result("job", codec.pack_result("job", 1, "value")) == "value"
    assert seen == [[[1, "x"], {"k": [2]}], "value"]


def test_with_a_serializer_functions_and_errors_travel_as_the_codec_says() -> None:
    assert OWN.unpack_function(*OWN.pack_function(lambda: 5))() == 5
    assert isinstance(OWN.unpack_error("job", OWN.pack_error("job", 1, OSError(2, "x"))), OSError)
    names_only = AppOptions(codec="msgpack", serializer=_dumps, deserializer=json.loads)
    assert Codec.of(names_only, None).reference(_dumps) == ""


def test_what_a_serializer_raises_or_returns_wrong_is_named() -> None:
    name = r"serializer=.*\._dumps"
    with pytest.raises(ArgumentError, match=rf"{name} raised TypeError: Object of type set"):
        OWN.pack_call("job", ({1},), {})
    with pytest.raises(ResultError, match=rf"{name} raised TypeError: Object of type set"):
        OWN.pack_result("job", 1, {1})
    with pytest.raises(PayloadTooLarge, match="max_payload"):
        OWN.pack_call("job", ("x" * (2 << 20),), {})
    text = Codec(KEYS, "q", max_payload=99, serializer=json.dumps, deserializer=json.loads)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"serializer=json\.dumps returned a str; .*bytes"):
        text.pack_call("job", (), {})
    odd = Codec(KEYS, "q", max_payload=99, serializer=_dumps, deserializer=lambda _: 7)
    with pytest.raises(EncodingError, match="malformed: expected a list"):
        odd.unpack_call("job", odd.pack_call("job", (), {}))
    torn = Codec(KEYS, "q", max_payload=99, serializer=_dumps, deserializer=pickle.loads)
    with pytest.raises(EncodingError, match=r"deserializer=_pickle\.loads raised UnpicklingError"):
        torn.unpack_result("job", torn.pack_result("job", 1, "x"))


def test_what_one_form_wrote_no_other_reads() -> None:
    for mine, other in ((OWN, SIGNED), (SIGNED, OWN), (OWN, MSGPACK), (MSGPACK, OWN)):
        with pytest.raises(SignatureError, match="give clients and workers the same options"):
            other.unpack_call("job", mine.pack_call("job", (1,), {}))


def test_large_values_of_any_form_are_stored_by_content(tmp_path: Path) -> None:
    blobs = blobs_of("q", str(tmp_path / "blobs"), None)
    own = Codec(
        KEYS, "q", max_payload=8 << 20, blobs=blobs, serializer=_dumps, deserializer=json.loads
    )
    for codec in (own, Codec(KEYS, "q", max_payload=8 << 20, mode="msgpack", blobs=blobs)):
        packed = codec.pack_result("job", 1, ["x" * (2 << 20)])
        assert len(packed) < 1000
        assert codec.unpack_result("job", packed) == ["x" * (2 << 20)]
    assert len(list((tmp_path / "blobs").iterdir())) == 2
