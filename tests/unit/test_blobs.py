"""Large parts of values, stored once by content: in a folder, and in any store of fsspec."""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnb.errors import BrokerError, EncodingError, PayloadTooLarge, SignatureError, StoreFull
from qnb.options import AppOptions
from qnb.storage.blobs import Blobs, blobs_of
from qnb.wire.codec import Codec
from qnb.wire.envelope import Keys

ROOT = Path(__file__).parents[2]
KEYS = Keys([bytes(range(32))], "a test")
MB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, folder: Path) -> Blobs:
    url = str(folder) if request.param == "folder" else f"memory://{secrets.token_hex(4)}/blobs"
    blobs = blobs_of("q", url, None)
    assert blobs is not None
    return blobs


def _codec(blobs: Blobs | None, limit: int = 64 * MB, threshold: int = MB) -> Codec:
    return Codec(KEYS, "q", max_payload=limit, blobs=blobs, blob_threshold=threshold)


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []


# --- the store -----------------------------------------------------------------------------------


@given(parts=st.lists(st.binary(max_size=50), min_size=1))
def test_what_is_stored_comes_back_whole(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    blobs = blobs_of("q", str(tmp_path_factory.getbasetemp() / "any"), None)
    assert blobs is not None
    whole = b"".join(parts)
    assert blobs.get(blobs.put(parts), len(whole)) == whole
    assert blobs.put(parts) == blobs.put([whole])  # the same content is the same blob


def test_a_blob_is_private_and_written_once(folder: Path) -> None:
    blobs = blobs_of("q", folder.as_uri(), None)
    assert blobs is not None
    digest = blobs.put([b"content"])
    (file,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    written = file.stat()
    os.utime(file, (1, 1))
    assert blobs.put([b"con", b"tent"]) == digest
    assert file.stat().st_ino == written.st_ino
    assert file.stat().st_mtime > time.time() - 60  # but it counts as new


def test_what_is_missing_or_changed_is_refused_with_the_store_and_the_remedy(
    store: Blobs, folder: Path
) -> None:
    with pytest.raises(EncodingError, match=r"^job 'j' .*'(/|memory:).*blobs'.*App\(blob_store="):
        store.get(bytes(32), 7, "job 'j'")
    if "memory" not in repr(store):
        digest = store.put([b"content"])
        (folder / digest.hex()).write_bytes(b"CONTENT")
        with pytest.raises(SignatureError, match="refused unread"):
            store.get(digest, 7)
        assert store.put([b"content"]) == digest  # and it is not in the way of a sound one
        assert store.get(digest, 7) == b"content"
        (folder / digest.hex()).write_bytes(b"longer content")
        with pytest.raises(SignatureError, match="refused unread"):
            store.get(digest, 7)


def test_a_sweep_deletes_what_nobody_stored_for_so_long(folder: Path) -> None:
    blobs = blobs_of("q", str(folder), None)
    assert blobs is not None
    assert blobs.sweep(1) == 0  # before anything was ever stored
    old, new = blobs.put([b"old"]), blobs.put([b"new"])
    draft = folder / f".{old.hex()}.left-by-a-killed-process"
    draft.touch()
    for file in (folder / old.hex(), draft):
        os.utime(file, (1, 1))
    assert blobs.sweep(3600) == 1
    assert _names(folder) == [new.hex()]


def test_a_damaged_copy_of_a_sound_blob_is_fetched_again(folder: Path) -> None:
    blobs = blobs_of("near", "memory://" + str(folder), None)
    assert blobs is not None
    digest = blobs.put([b"content"])
    assert blobs.get(digest, 7) == b"content"
    near = Path(os.environ["XDG_DATA_HOME"]) / "qnb" / "blobs" / "near" / digest.hex()
    near.write_bytes(b"CONTENT")
    assert blobs.get(digest, 7) == b"content"
    assert near.read_bytes() == b"content"


def test_a_full_disk_is_said_to_be_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = blobs_of("q", str(folder), None)
    assert blobs is not None
    open_ = os.open
    monkeypatch.setattr(os, "open", lambda *_: open_("/dev/full", os.O_WRONLY))
    with pytest.raises(StoreFull, match="No space left on device"):
        blobs.put([b"content"])
    monkeypatch.undo()
    assert blobs.get(blobs.put([b"content"]), 7) == b"content"


def test_a_store_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for url in (str(tmp_path / "file" / "below"), "nosuchscheme://bucket/x"):
        blobs = blobs_of("q", url, None)
        assert blobs is not None
        with pytest.raises(BrokerError, match=r"blob store '.*' could not be .*blob_store="):
            blobs.put([b"x"])
    assert "secret" not in repr(blobs_of("q", "s3://user:secret@host/bucket", None))


@pytest.mark.parametrize(
    "server, here",
    [
        (None, True),
        ("unix:///run/s", True),
        ("redis://localhost:6379/0", True),
        ("redis://:pw@127.0.0.1:6379", True),
        ("rediss://store.example:6380", False),
    ],
)
def test_a_folder_of_ones_own_serves_a_local_server_only(server: str | None, here: bool) -> None:
    codec = Codec.of(AppOptions(queue_name="some.queue"), server)
    assert (codec.blobs is not None) is here
    if here:
        own = Path(os.environ["XDG_DATA_HOME"]) / "qnb" / "blobs" / "some.queue"
        assert str(own) in repr(codec.blobs)
    shared = AppOptions(queue_name="some.queue", blob_store="memory://shared")
    assert "memory://shared" in repr(Codec.of(shared, server).blobs)


# --- values with large parts ---------------------------------------------------------------------

_part = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40),
    st.integers(0, 400).map(lambda n: b"b" * n),
    st.integers(0, 400).map(lambda n: "é" * n),
    st.integers(0, 400).map(lambda n: bytearray(b"a" * n)),
    st.integers(0, 200).map(lambda n: list(range(n))),
    st.integers(0, 40).map(lambda n: np.arange(float(n)).tobytes()),
)


@given(st.tuples(_part, st.lists(_part, max_size=4)), st.dictionaries(st.text(max_size=3), _part))
def test_values_come_back_as_they_were_whatever_is_large_in_them(
    tmp_path_factory: pytest.TempPathFactory, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    blobs = blobs_of("q", str(tmp_path_factory.getbasetemp() / "values"), None)
    codec = _codec(blobs, threshold=64)
    call = codec.pack_call("job", args, kwargs)
    assert codec.unpack_call("job", call) == (args, kwargs)
    assert codec.unpack_result("job", codec.pack_result("job", 1, [args, kwargs])) == [args, kwargs]


@pytest.mark.parametrize(
    "large",
    [
        np.arange(300_000.0),
        np.arange(600_000.0)[::2],
        b"x" * (2 * MB),
        "é" * MB,
        [str(n) for n in range(200_000)],
        {"inside": [b"x" * (2 * MB)]},
    ],
    ids=["array", "strided", "bytes", "text", "list", "nested"],
)
def test_a_large_argument_is_stored_once_however_many_calls_have_it(
    store: Blobs, folder: Path, large: Any
) -> None:
    codec = _codec(store)
    calls = [codec.pack_call(f"job {n}", (n, large), {"again": large}) for n in range(3)]
    assert max(map(len, calls)) < 1000
    if folder.is_dir():
        assert len(_names(folder)) == 1
    args, kwargs = codec.unpack_call("job 2", calls[2])
    assert args[0] == 2
    assert kwargs["again"] is args[1]
    np.testing.assert_array_equal(args[1], large)


def test_arrays_from_blobs_are_writable_and_alone(store: Blobs) -> None:
    codec = _codec(store)
    call = codec.pack_call("job", (np.zeros(300_000),), {})
    codec.unpack_call("job", call)[0][0][:] = 1.0
    assert codec.unpack_call("job", call)[0][0].sum() == 0.0


def test_a_result_is_fetched_only_when_it_is_unpacked(folder: Path) -> None:
    codec = _codec(blobs_of("q", str(folder), None))
    packed, size = codec.pack_sized_result("job", 1, {"data": np.ones(300_000)})
    assert len(packed) < 1000
    assert 2_400_000 < size < 2_401_000
    (blob,) = folder.iterdir()
    blob.unlink()
    with pytest.raises(EncodingError, match=r"the result of job 'job' cannot be .*blob_store="):
        codec.unpack_result("job", packed)
    with pytest.raises(EncodingError, match=r"no blob store here.*blob_store="):
        _codec(None).unpack_result("job", packed)


def test_nothing_is_stored_of_what_is_above_the_limit(folder: Path) -> None:
    codec = _codec(blobs_of("q", str(folder), None), limit=16 * MB)
    huge = np.zeros(1 << 27)  # a GB that nobody has touched
    start = time.perf_counter()
    with pytest.raises(PayloadTooLarge, match=r"args\[1\].*numpy.ndarray.*max_payload=") as refusal:
        codec.pack_call("job", (np.ones(300_000), huge), {})
    assert time.perf_counter() - start < 0.05
    assert "1,076,141,824" in str(refusal.value)
    with pytest.raises(PayloadTooLarge, match="max_payload="):
        codec.pack_result("job", 1, huge)
    assert _names(folder) == []


def test_a_reader_takes_no_more_memory_than_its_own_limit(folder: Path) -> None:
    blobs = blobs_of("q", str(folder), None)
    packed = _codec(blobs).pack_result("job", 1, np.zeros(MB))
    with pytest.raises(PayloadTooLarge, match=r"max_payload="):
        _codec(blobs, limit=2 * MB).unpack_result("job", packed)


# --- functions with large globals ----------------------------------------------------------------


def _cell(source: str, **names: Any) -> dict[str, Any]:
    space = {"__name__": "__main__", **names}
    exec(compile(source, "<cell>", "exec"), space)  # noqa: S102 - a cell
    return space


@pytest.mark.parametrize(
    "table", [np.arange(300_000.0), [str(n) for n in range(200_000)]], ids=["array", "list"]
)
def test_a_large_global_is_told_of_once_and_not_sent_again_with_an_edited_function(
    folder: Path, table: Any
) -> None:
    codec = _codec(blobs_of("q", str(folder), None))
    source = "def helper(n): return table[n]\ndef task(n): return helper(n), len(table)"
    cell = _cell(source, table=table)
    with pytest.warns(UserWarning, match=r"'task' .*global 'table' .*,.* bytes.*argument") as seen:
        digest, blob = codec.pack_function(cell["task"])
    assert [warning.filename for warning in seen] == [__file__]
    stored = _names(folder)
    assert len(stored) == 1
    assert len(blob) < 5000
    cell = _cell(source + ", n", table=table)
    edited, blob = codec.pack_function(cell["task"])  # and no warning, which would be an error
    assert edited != digest
    assert _names(folder) == stored
    assert codec.unpack_function(edited, blob)(3) == (table[3], len(table), 3)


# --- what it costs -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["blobs", "inline"])
def test_array_data_is_copied_at_most_once_each_way(folder: Path, where: str) -> None:
    codec = _codec(blobs_of("q", str(folder), None) if where == "blobs" else None)
    array = np.ones(4 * MB)  # 32 MB
    codec.pack_call("job", (1,), {})
    tracemalloc.start()
    try:
        call = codec.pack_call("job", (array,), {})
        packing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        back = codec.unpack_call("job", call)[0][0]
        unpacking = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert back.nbytes == array.nbytes
    assert packing < (MB if where == "blobs" else array.nbytes + MB)
    assert unpacking < array.nbytes + MB


def test_fsspec_is_loaded_only_for_a_store_that_is_no_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from qnb.storage.blobs import blobs_of\n"
        "near, far = blobs_of('q', sys.argv[1], None), blobs_of('q', 'memory://x', None)\n"
        "near.get(near.put([b'abc']), 3); print('fsspec' in sys.modules)\n"
        "far.get(far.put([b'abc']), 3); print('fsspec' in sys.modules)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "b")], cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.split() == ["False", "True"]
