"""Crash points, for the fault suite: a process that ends at its n-th call of the store.

``QNB_CRASH_AT=7`` ends the process before its 7th call is sent, ``QNB_CRASH_AT=7:after`` when the
reply has come and nothing has been made of it; with status 70, and no chance to clean up. It is for
the process that was started with it: what that starts in turn is not told.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from qnb.errors import InvalidOption

__all__ = ["STATUS", "VARIABLE", "watched"]

VARIABLE = "QNB_CRASH_AT"

#: how a process ends at its crash point
STATUS = 70

Send = Callable[[Awaitable[Any]], Awaitable[Any]]


class _Point:
    """The crash point of this process."""

    def __init__(self, text: str) -> None:
        if not (found := re.fullmatch(r"([1-9][0-9]{0,8})(:after)?", text)):
            raise InvalidOption(
                f"${VARIABLE}={text!r}: expected the number of a call from 1, such as '7', or "
                "'7:after' for the moment of its reply; unset it where nothing is to crash"
            )
        self.pid = os.getpid()
        self._left = int(found[1])
        self._after = found[2] is not None

    async def send(self, send: Send, call: Awaitable[Any]) -> Any:
        self._left -= 1
        here = self._left == 0
        if here and not self._after:
            os._exit(STATUS)
        reply = await send(call)
        if here:
            os._exit(STATUS)
        return reply


_point: _Point | None = None


def watched(send: Send) -> Send:
    """``send`` itself; where this process has a crash point, what counts its calls on the way."""
    global _point
    if text := os.environ.pop(VARIABLE, None):
        _point = _Point(text)
    if _point is None or _point.pid != os.getpid():
        return send
    return partial(_point.send, send)
