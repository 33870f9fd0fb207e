"""What a signature covers, and that nothing is handed out before it has been checked."""

from __future__ import annotations

import hmac
import os
import pickle
import random
import subprocess
import sys
import zlib
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnb.errors import InvalidName, KeyFileError, PayloadTooLarge, SignatureError
from qnb.wire import envelope
from qnb.wire.envelope import Content, Keys, open_, seal

LIMIT = 1 << 20
KEYS = Keys([bytes(range(32))], "a test")
OTHER = Keys([bytes(32)], "another test")
ROOT = Path(__file__).parents[2]


def _seal(body: bytes = b"body", **changes: object) -> bytes:
    what: dict[str, object] = {"kind": "call", "queue": "q", "job_id": "job", "limit": LIMIT}
    return seal(KEYS, content=Content.PICKLE, body=body, **(what | changes))  # type: ignore[arg-type]


def _open(data: bytes, **changes: object) -> envelope.Opened:
    what: dict[str, object] = {"kind": "call", "queue": "q", "job_id": "job", "limit": LIMIT}
    return open_(KEYS, data=data, **(what | changes))  # type: ignore[arg-type]


@given(
    st.binary(max_size=20_000),
    st.text(max_size=50).filter(lambda text: text.isprintable()),
    st.binary(max_size=32),
    st.integers(0, 2**31),
)
def test_what_was_sealed_comes_back(body: bytes, job: str, binding: bytes, attempt: int) -> None:
    data = _seal(body, job_id=job, binding=binding, attempt=attempt)
    opened = _open(data, job_id=job)
    assert (bytes(opened.body), opened.binding, opened.attempt) == (body, binding, attempt)


def test_the_format_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "now_ms", lambda: 1_700_000_000_000)
    data = _seal(b"body", binding=b"bound", attempt=2)
    header = bytes.fromhex("94cf0000018bcfe5680004c405626f756e6402")
    key = hmac.digest(bytes(range(32)), b"qnb1 call", "sha256")
    said = b"\0\4qnb1\0\4call\0\1q\0\3job\1" + b"\0\x13" + header + b"body"
    key_id = sha256(b"qnb1 id" + bytes(range(32))).digest()[:8]
    tag = hmac.digest(key, said, "sha256")
    assert data == b"QNB1\1" + key_id + tag + b"\0\x13" + header + b"body"
    assert data[5:45].hex() == (
        "c4685546b9cf3ca07e6ddb687bfedc2f8d5466213e959acdcbd314ba8ab058fee11bb718bf9bb902"
    )


def test_a_copy_in_another_place_is_refused() -> None:
    data = _seal()
    for place in ({"job_id": "other"}, {"queue": "p"}, {"kind": "result"}, {"kind": "func"}):
        with pytest.raises(SignatureError, match="copied from another place"):
            _open(data, **place)
    with pytest.raises(SignatureError, match="another key"):
        open_(OTHER, "call", "q", "job", data, limit=LIMIT)


def test_fields_cannot_be_shifted_into_each_other() -> None:
    data = _seal(queue="ab", job_id="c")
    with pytest.raises(SignatureError):
        _open(data, queue="a", job_id="bc")


def test_every_flipped_bit_is_refused() -> None:
    data = _seal(b"x" * 20)
    for bit in range(len(data) * 8):  # the 256 of the tag among them
        mutant = bytearray(data)
        mutant[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError):
            _open(bytes(mutant))


def _mutants(data: bytes, count: int, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(count):
        mutant = bytearray(data)
        at = chance.randrange(len(mutant))
        match chance.randrange(5):
            case 0:
                mutant[at] ^= chance.randrange(1, 256)
            case 1:
                del mutant[at:]
            case 2:
                mutant.insert(at, chance.randrange(256))
            case 3:
                mutant += chance.randbytes(chance.randrange(1, 9))
            case 4:
                mutant[at:] = chance.randbytes(len(mutant) - at)
        if bytes(mutant) == data:
            continue
        try:
            _open(bytes(mutant))
        except SignatureError:
            continue
        raise AssertionError(f"opened with seed {seed}: {bytes(mutant).hex()}")


@pytest.fixture
def _tripwire(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test that decodes or inflates anything."""

    def trip(*_: object, **__: object) -> None:
        raise AssertionError("decoded before the signature was checked")

    monkeypatch.setattr(pickle, "loads", trip)
    monkeypatch.setattr(envelope.zlib, "decompressobj", trip)
    monkeypatch.setattr(envelope.msgpack, "unpackb", trip)


@pytest.mark.usefixtures("_tripwire")
@pytest.mark.parametrize("body", [b"plain", b"deflated " * 1000], ids=["plain", "deflated"])
def test_mutants_are_refused_unread(body: bytes) -> None:
    _mutants(_seal(body), 25_000, seed=len(body))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("_tripwire")
def test_a_million_mutants_are_refused_unread() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    _mutants(_seal(b"some body of a usual length " * 5), 1_000_000, seed)


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    for data in (noise, b"QNB1" + noise, _seal()[:13] + noise):
        with pytest.raises(SignatureError):
            _open(data)


def test_a_refusal_names_the_job_and_the_remedy_but_never_the_bytes() -> None:
    with pytest.raises(SignatureError) as refusal:
        _open(b"QNB1secret secret secret secret secret secret secret", job_id="a\n\x1b[31mb")
    said = str(refusal.value)
    assert r"'a\n\x1b[31mb'" in said
    assert "'a test'" in said
    assert "QNB_KEY_FILE" in said
    assert "secret" not in said


def test_all_keys_verify_and_the_first_signs() -> None:
    old, new = bytes(32), bytes(range(32))
    rotated = Keys([new, old], "rotated")
    assert open_(rotated, "call", "q", "job", _seal(), limit=LIMIT).body == b"body"
    signed = seal(OTHER, "call", "q", "job", Content.PICKLE, b"old", limit=LIMIT)
    assert open_(rotated, "call", "q", "job", signed, limit=LIMIT).body == b"old"
    fresh = seal(rotated, "call", "q", "job", Content.PICKLE, b"new", limit=LIMIT)
    assert _open(fresh).body == b"new"


def test_a_body_above_the_limit_is_refused_on_both_sides() -> None:
    with pytest.raises(PayloadTooLarge, match=r"1,001 bytes; the limit is 1,000\. .*max_payload"):
        _seal(b"x" * 1001, limit=1000)
    for body in (b"x" * 10_000, os.urandom(10_000)):
        with pytest.raises(PayloadTooLarge, match="max_payload"):
            _open(_seal(body), limit=1000)


def test_a_decompression_bomb_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zlib.compress(bytes(1 << 26), 9)
    monkeypatch.setattr(envelope, "_deflate", lambda clear: bomb)
    opened: list[int] = []
    inflate = envelope._inflate

    def watched(body: envelope.Buffer, size: int) -> bytes:
        clear = inflate(body, size)
        opened.append(len(clear))
        return clear

    monkeypatch.setattr(envelope, "_inflate", watched)
    with pytest.raises(SignatureError, match="length"):
        _open(_seal(bytes(5000)))
    assert opened == [5001]


def test_texts_shrink_and_noise_is_left_alone() -> None:
    assert len(_seal(b"all work and no play " * 1000)) < 1000
    assert len(_seal(os.urandom(20_000))) < 20_100


def test_a_key_is_never_shown_nor_pickled() -> None:
    assert repr(KEYS) == "<Keys 'a test', 1 of them>"
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(KEYS)


# --- key files ---------------------------------------------------------------------------------


@pytest.fixture
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("QNB_KEY_FILE", raising=False)
    return tmp_path


def test_a_key_is_made_on_first_use_for_this_user_alone(data_home: Path) -> None:
    first = Keys.load("lab")
    file = data_home / "qnb" / "keys" / "lab.key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert len(file.read_text().strip()) == 64
    assert list(file.parent.iterdir()) == [file]
    sealed = seal(first, "call", "lab", "job", Content.PICKLE, b"body", limit=LIMIT)
    assert open_(Keys.load("lab"), "call", "lab", "job", sealed, limit=LIMIT).body == b"body"
    with pytest.raises(SignatureError):
        open_(Keys.load("other"), "call", "lab", "job", sealed, limit=LIMIT)


def test_processes_that_start_at_once_agree_on_one_key(data_home: Path) -> None:
    code = "from qnb.wire.envelope import Keys; print(Keys.load('lab')._sign_id.hex())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    said = {racer.communicate(timeout=20)[0] for racer in racers}
    assert len(said) == 1
    assert said != {""}


def test_a_named_file_must_exist(data_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyFileError, match="copy it from the machine that submits"):
        Keys.load("lab", str(data_home / "absent.key"))
    monkeypatch.setenv("QNB_KEY_FILE", str(data_home / "absent.key"))
    with pytest.raises(KeyFileError, match=r"absent\.key"):
        Keys.load("lab")
    assert list(data_home.iterdir()) == []


def test_a_file_that_others_can_read_is_refused(data_home: Path) -> None:
    file = data_home / "k"
    file.write_text("ab" * 32)
    for mode in (0o640, 0o604, 0o620, 0o601):
        file.chmod(mode)
        with pytest.raises(KeyFileError, match=f"mode {mode:04o}.*chmod 600"):
            Keys.load("lab", str(file))
    file.chmod(0o600)
    Keys.load("lab", str(file))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(data_home: Path) -> None:
    file = data_home / "k"
    file.write_text("ab" * 32)
    file.chmod(0o600)
    os.chown(file, 65534, 65534)
    with pytest.raises(KeyFileError, match="belongs to user id 65534"):
        Keys.load("lab", str(file))


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("ab" * 31, "line 1"),
        ("ab" * 32 + "\n" + "zz" * 32, "line 2"),
        ("ab " * 32, "line 1"),
        ("é" * 64, "line 1"),
    ],
)
def test_a_malformed_file_is_refused_without_showing_it(
    data_home: Path, text: str, why: str
) -> None:
    file = data_home / "k"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(KeyFileError, match=why) as refusal:
        Keys.load("lab", str(file))
    assert "abab" not in str(refusal.value)
    frames = refusal.tb
    while frames is not None:
        if frames.tb_frame.f_code.co_filename == envelope.__file__:
            assert "abab" not in repr(frames.tb_frame.f_locals)
        frames = frames.tb_next


def test_neither_a_link_nor_a_pipe_is_taken_for_the_users_own_key(data_home: Path) -> None:
    keys = data_home / "qnb" / "keys"
    keys.mkdir(parents=True)
    real = data_home / "real"
    real.write_text("ab" * 32)
    real.chmod(0o600)
    (keys / "lab.key").symlink_to(real)
    with pytest.raises(KeyFileError, match=r"lab\.key"):
        Keys.load("lab")
    Keys.load("lab", str(keys / "lab.key"))  # named by the user, as mounted secrets are
    os.mkfifo(keys / "pipe.key", 0o600)
    with pytest.raises(KeyFileError, match="not a regular file"):
        Keys.load("pipe")


def test_a_queue_cannot_name_a_file_elsewhere(data_home: Path) -> None:
    with pytest.raises(InvalidName):
        Keys.load("../../etc/passwd")
