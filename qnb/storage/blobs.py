"""Large parts of values, stored once by content, beside the server.

A blob is named by the BLAKE2b-256 of what it holds, which the signed body that refers to it has
too: whoever can write to the store can lose a blob, but not change one.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from qnb.clock import now_ms
from qnb.errors import BrokerError, EncodingError, SignatureError, StoreFull

__all__ = ["Blobs", "blobs_of", "is_loopback"]

Buffer: TypeAlias = bytes | bytearray | memoryview

_FRESH = 24 * 3600  #: seconds for which a blob of a remote store is not written again


def blobs_of(queue: str, store: str | None, server: str | None) -> Blobs | None:
    """Where the blobs of ``queue`` are: ``store``, an fsspec URL; without it a folder of this user
    if ``server`` is on this host, and None if it is not: no folder here would be found there.
    """
    own = _Folder(_data_folder() / "blobs" / queue)
    if store is None:
        return own if _is_here(server) else None
    if "://" not in store and "::" not in store:
        return _Folder(Path(store).expanduser())
    url = urlsplit(store)
    if url.scheme in ("file", "local") and "::" not in store:
        return _Folder(Path(url.netloc + url.path))
    return _Remote(store, own)


def _is_here(server: str | None) -> bool:
    """Whether the server at this URL serves this host only; None is the embedded one."""
    url = urlsplit(server or os.environ.get("QNB_REDIS_URL") or "unix:")
    return url.scheme == "unix" or is_loopback(url.hostname or "")


def is_loopback(host: str) -> bool:
    """Whether a server of that name is on this host, by the name alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _data_folder() -> Path:
    """Where the keys are, too."""
    data = os.environ.get("XDG_DATA_HOME", "")
    return (Path(data) if data.startswith("/") else Path.home() / ".local" / "share") / "qnb"


class Blobs(ABC):
    """A store of blobs. Nothing is opened before the first one is written or read."""

    __slots__ = ()

    @abstractmethod
    def put(self, parts: Sequence[Buffer]) -> bytes:
        """Store ``parts``, one after another, under the digest that is returned.

        What is there already is not written again, but counts as new to :meth:`sweep`.
        """

    def get(self, digest: bytes, size: int, what: str = "this") -> bytearray:
        """The ``size`` bytes stored under ``digest``, verified, in memory of the caller's own.

        ``what`` names in errors the value that they are part of.
        """
        name = digest.hex()
        while True:
            data = self._read(name, size)
            if data is None:
                raise EncodingError(
                    f"{what} cannot be rebuilt: its blob {name[:16]}… of {size:,} bytes is not in "
                    f"{self!r}. It has been swept, or was stored on another machine: give clients "
                    "and workers a store that all of them reach, "
                    "App(blob_store='s3://bucket/folder') or a shared folder, and submit the job "
                    "again"
                )
            if blake2b(data, digest_size=32).digest() == digest:
                return data
            # One of another length may be half written; it is replaced when it is stored again.
            if len(data) != size or not self._drop(name):
                break
        raise SignatureError(
            f"{what} was refused unread: blob {name[:16]}… in {self!r} is not what its digest "
            "names: it was damaged or changed, and has been given up; submit the job again"
        )

    @abstractmethod
    def sweep(self, older_than_s: float) -> int:
        """Delete what nobody has stored for so long, and say how many blobs that were."""

    @abstractmethod
    def _drop(self, name: str) -> bool:
        """Delete what is damaged; true if there was a copy of it, and the original may be sound."""

    @abstractmethod
    def _read(self, name: str, size: int) -> bytearray | None:
        """What is stored under ``name``; at most one byte more than ``size``; None if nothing."""


def _digest(parts: Sequence[Buffer]) -> bytes:
    digest = blake2b(digest_size=32)
    for part in parts:
        digest.update(part)
    return digest.digest()


class _Folder(Blobs):
    """Plain files of this user, each written once."""

    __slots__ = ("_folder",)

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __repr__(self) -> str:
        return f"the blob store {str(self._folder)!r}"

    def put(self, parts: Sequence[Buffer]) -> bytes:
        digest = _digest(parts)
        file = self._folder / digest.hex()
        try:
            if _length(file) == sum(map(len, parts)):
                os.utime(file)
            else:
                self._write(file, parts)
        except FileNotFoundError:  # swept this very moment
            self._write(file, parts)
        except OSError as error:
            raise _failed(self, "written to", error.strerror or str(error), error) from None
        return digest

    def _write(self, file: Path, parts: Sequence[Buffer]) -> None:
        """Under another name first, so that nobody reads half of it."""
        if not self._folder.is_dir():
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
        draft = self._folder / f".{file.name}.{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            # Unbuffered: a buffer would copy what is in memory already.
            with open(os.open(draft, flags, 0o600), "wb", buffering=0) as out:  # noqa: PTH123
                for part in parts:
                    view = memoryview(part).cast("B")
                    while view:
                        view = view[out.write(view) :]
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Whether something is stored under ``name``."""
        return _length(self._folder / name) is not None

    def _drop(self, name: str) -> bool:
        with suppress(OSError):  # it may be another user's, and is refused each time then
            (self._folder / name).unlink()
        return False

    def _read(self, name: str, size: int) -> bytearray | None:
        try:
            with (self._folder / name).open("rb", buffering=0) as source:
                if os.fstat(source.fileno()).st_size != size:
                    return bytearray()
                data = bytearray(size)
                view = memoryview(data)
                while view and (count := source.readinto(view)):
                    view = view[count:]
                return data
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed(self, "read", error.strerror or str(error)) from None

    def sweep(self, older_than_s: float) -> int:
        before = now_ms() / 1000 - older_than_s
        swept = 0
        with suppress(FileNotFoundError):  # nothing was ever stored
            for file in list(self._folder.iterdir()):
                with suppress(FileNotFoundError):  # another worker sweeps too
                    if file.stat().st_mtime < before:
                        swept += self._sweep_one(file, before)
        return swept

    def _sweep_one(self, file: Path, before: float) -> bool:
        """Delete ``file`` unless it is stored anew this very moment."""
        aside = file.with_name(f".{file.name.lstrip('.')[:64]}.{secrets.token_hex(8)}")
        file.rename(aside)
        if aside.stat().st_mtime >= before:
            aside.rename(file)
            return False
        aside.unlink()
        return not file.name.startswith(".")  # what a killed process left half written is no blob


def _length(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None


class _Remote(Blobs):
    """Any store that fsspec knows, which finds its own credentials. What is read is kept near."""

    __slots__ = ("_fresh", "_near", "_opened", "_url")

    def __init__(self, url: str, near: _Folder) -> None:
        self._url = url
        self._near = near
        self._opened: tuple[Any, str] | None = None
        self._fresh: dict[str, float] = {}  # known to be there, and until when that is new enough

    def __repr__(self) -> str:
        scheme, _, rest = self._url.partition("://")
        return f"the blob store {scheme + '://' + rest.rpartition('@')[2]!r}"

    def _open(self) -> tuple[Any, str]:
        """The file system and the folder in it."""
        if self._opened is None:
            try:
                import fsspec

                self._opened = fsspec.core.url_to_fs(self._url)
            except Exception as error:  # noqa: BLE001 - each store has its own
                raise _failed(self, "opened", f"{type(error).__name__}: {error}") from None
        return self._opened

    def put(self, parts: Sequence[Buffer]) -> bytes:
        digest = _digest(parts)
        name = digest.hex()
        now = time.monotonic()
        if self._fresh.get(name, 0.0) < now:
            fs, folder = self._open()
            try:
                if not self._is_fresh(fs, f"{folder}/{name}", sum(map(len, parts))):
                    self._write(fs, folder, name, parts)
            except Exception as error:  # noqa: BLE001 - each store has its own
                raise _failed(
                    self, "written to", f"{type(error).__name__}: {error}", error
                ) from None
            self._fresh[name] = now + _FRESH / 2
        return digest

    @staticmethod
    def _is_fresh(fs: Any, path: str, size: int) -> bool:
        try:
            if fs.size(path) != size:
                return False
            return bool(now_ms() / 1000 - fs.modified(path).timestamp() < _FRESH)
        except FileNotFoundError:
            return False
        except NotImplementedError:  # it keeps no times, so nothing is swept either
            return True

    @staticmethod
    def _write(fs: Any, folder: str, name: str, parts: Sequence[Buffer]) -> None:
        fs.makedirs(folder, exist_ok=True)
        with fs.open(f"{folder}/{name}", "wb") as out:
            for part in parts:
                out.write(part)

    def _read(self, name: str, size: int) -> bytearray | None:
        data = None
        with suppress(BrokerError):  # where nothing can be kept, everything is fetched
            data = self._near._read(name, size)
        if not data and (data := self._fetch(name, size)):
            with suppress(BrokerError):
                self._near.put([data])
        return data

    def _drop(self, name: str) -> bool:
        if self._near.has(name):
            self._near._drop(name)
            return True
        self._fresh.pop(name, None)
        fs, folder = self._open()
        with suppress(Exception):  # it may not be ours to delete, and is refused each time then
            fs.rm_file(f"{folder}/{name}")
        return False

    def _fetch(self, name: str, size: int) -> bytearray | None:
        fs, folder = self._open()
        try:
            with fs.open(f"{folder}/{name}", "rb") as source:
                data = bytearray(size)
                view = memoryview(data)
                while view and (count := source.readinto(view)):
                    view = view[count:]
                return bytearray() if view else data
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - each store has its own
            raise _failed(self, "read", f"{type(error).__name__}: {error}") from None

    def sweep(self, older_than_s: float) -> int:
        self._near.sweep(older_than_s)
        fs, folder = self._open()
        # Not sooner: what is younger may be referred to by calls that did not write it again.
        before = now_ms() / 1000 - max(older_than_s, 2 * _FRESH)
        swept = 0
        with suppress(FileNotFoundError, NotImplementedError):
            for path in fs.ls(folder, detail=False):
                with suppress(FileNotFoundError):
                    if fs.modified(path).timestamp() < before:
                        fs.rm_file(path)
                        swept += 1
        return swept


def _failed(store: Blobs, what: str, why: str, error: BaseException | None = None) -> BrokerError:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(
            f"{store!r} could not be {what}: {why}. Make room there, or give App(blob_store=...) a "
            "place that has some"
        )
    return BrokerError(
        f"{store!r} could not be {what}: {why}. Check App(blob_store=...) and what it needs "
        "(a writable folder; an fsspec driver and credentials)"
    )
