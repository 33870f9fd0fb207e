"""Large arguments that many calls have in common: stored once, loaded once by each worker process.

A call that takes one carries a signed reference of some hundred bytes in its place. That
reference says by content what it stands for, so that nobody else can say otherwise.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qnb.client import Client
from qnb.options import MOST_BYTES

__all__ = ["Item", "Shared", "Sharing", "opened"]

#: a function, and the arguments that it is to be called with
Item = tuple[Callable[..., Any], Any, dict[str, Any]]

#: arrays that a worker process keeps for the next job
KEPT = 8

_loaded: OrderedDict[bytes, Any] = OrderedDict()
_lock = threading.Lock()


class Shared:
    """Stands for an object that is stored apart. It is loaded when it is called for, and not where
    only a table of jobs is made.
    """

    def __init__(self, client: Client, value: Any, *, keep: bool) -> None:
        self._client = client
        self._what = type(value).__name__
        self._keep = keep and _is_array(value)
        self._sealed = client.codec.pack_call("shared", (value,), {})

    def load(self) -> Any:
        """An equal object. A kept array cannot be written to: the next job is given it, too."""
        if not self._keep:
            return self._read()
        with _lock:
            if self._sealed not in _loaded:
                array = _loaded[self._sealed] = self._read()
                array.flags.writeable = False
            _loaded.move_to_end(self._sealed)
            if len(_loaded) > KEPT:
                _loaded.popitem(last=False)
            return _loaded[self._sealed]

    def _read(self) -> Any:
        (value,), _ = self._client.codec.unpack_call("shared", self._sealed)
        return value

    def __repr__(self) -> str:
        return f"<shared {self._what}>"


class Sharing:
    """What calls through one client have in common, for as long as this object lives.

    Objects of ``least`` bytes or more are shared; None shares nothing. ``keep`` has each worker
    process load an array once; without it, each job has one of its own.
    """

    def __init__(self, client: Client, least: int | None, *, keep: bool) -> None:
        # max_payload is a limit of what calls carry; these are beside them.
        self._client = Client(client.url, replace(client.options, max_payload=MOST_BYTES))
        self._least = least if self._client.codec.blobs is not None else None
        self._keep = keep
        self._known: dict[int, tuple[Any, Shared]] = {}  # by id; the object is held, and so its id
        self._lock = threading.Lock()

    def closed(self, item: Item) -> Item:
        """A call whose large arguments are references, for :func:`opened`."""
        fn, args, kwargs = item
        return fn, [self._put(value) for value in args], {k: self._put(kwargs[k]) for k in kwargs}

    def _put(self, value: Any) -> Any:
        if self._least is None or _size(value) < self._least:
            return value
        with self._lock:
            if id(value) not in self._known:
                shared = Shared(self._client, value, keep=self._keep)
                self._known[id(value)] = value, shared
            return self._known[id(value)][1]


def opened(batch: Any) -> Any:
    """Make the calls of ``batch``, on a worker, with the objects that its references stand for."""
    batch.items = [
        (fn, [_get(value) for value in args], {k: _get(kwargs[k]) for k in kwargs})
        for fn, args, kwargs in batch.items
    ]
    return batch()


def _get(value: Any) -> Any:
    return value.load() if isinstance(value, Shared) else value


def _is_array(value: Any) -> bool:
    """Whether it is an array of numbers, which can be locked as a whole."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and not value.dtype.hasobject


def _size(value: Any) -> int:
    """About how many bytes it holds; 0 if that is not easily told."""
    sizes = [getattr(held, "nbytes", 0) for held in (value, getattr(value, "data", None))]
    try:
        sizes.append(sys.getsizeof(value))
    except Exception:  # noqa: BLE001 - a user's __sizeof__ may do anything
        return 0
    return max((size for size in sizes if isinstance(size, int)), default=0)
