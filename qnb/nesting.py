"""Loops that run inside running loops, for cells that call ``asyncio.run``; only when asked for."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from types import SimpleNamespace
from typing import Any

from qnb.errors import QnbError

__all__ = ["nest"]

_NOTHING: Any = SimpleNamespace(_cancelled=True, _context=None)  # a loop passes it over


def nest() -> None:
    """Let cells call ``asyncio.run`` and ``loop.run_until_complete``, which a kernel refuses.

    For code that was written for scripts: qnb itself never needs it, and never does it unasked.
    It patches asyncio for the whole process, for good; calling it again changes nothing. While a
    nested loop runs, the cells that follow wait as ever.

    :class:`~qnb.QnbError` where nesting would lose cells, or cannot work at all.
    """
    with _loop() as loop:
        if not isinstance(loop, asyncio.BaseEventLoop):
            kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
            raise QnbError(
                f"qnb.nest() cannot nest in this loop, a {kind}: only asyncio's own loops can be "
                "entered again. Use await in place of asyncio.run(), or start the kernel without "
                f"{kind.partition('.')[0]}"
            )
        if _is_old():
            _check_kernel()
            import nest_asyncio

            nest_asyncio.apply(loop)
        else:
            import nest_asyncio2

            # otherwise asyncio.run() would leave the loops open that it makes
            nest_asyncio2.apply(loop, run_close_loop=True)
            _spare(loop)


class _Ready(deque[asyncio.Handle]):
    """The handles of a loop that are to be run; where there is none, one that does nothing."""

    def popleft(self) -> asyncio.Handle:
        return super().popleft() if self else _NOTHING


def _spare(loop: asyncio.BaseEventLoop) -> None:
    """Let the turn of ``loop`` that runs just now come to its end.

    It has counted its handles before asyncio was patched, and takes as many; a loop that is nested
    in one of them runs the others first.
    """
    inner: Any = loop
    old: deque[asyncio.Handle] = inner._ready
    if isinstance(old, _Ready):
        return
    inner._ready = _Ready(old)
    moved = len(inner._ready)

    def late() -> None:  # what other threads have still put where they had looked before
        nonlocal moved
        there, moved_before = list(old), moved
        moved = len(there)
        inner._ready.extend(there[moved_before:])

    late()
    loop.call_later(0.1, late)


def _loop() -> contextlib.AbstractContextManager[asyncio.AbstractEventLoop]:
    """The loop that runs here, or one of the kind that would."""
    try:
        return contextlib.nullcontext(asyncio.get_running_loop())
    except RuntimeError:
        return contextlib.closing(asyncio.new_event_loop())


def _is_old() -> bool:
    """Whether nest_asyncio, and not its successor, has patched this process."""
    return hasattr(asyncio, "_nest_patched") and not hasattr(asyncio, "_nest_asyncio2")


def _check_kernel() -> None:
    """Refuse to go along with nest_asyncio where it loses cells."""
    version = _kernel_version()
    if version is not None and version[0] >= 7:
        said = ".".join(map(str, version[:2]))
        raise QnbError(
            "nest_asyncio has been applied in this kernel already. With ipykernel "
            f"{said} it loses cells that arrive while a nested loop runs, and it cannot be taken "
            "back: restart the kernel, and call qnb.nest() where nest_asyncio.apply() was called"
        )


def _kernel_version() -> tuple[Any, ...] | None:
    """The version of ipykernel whose kernel this process is, if it is one."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is None:
        return None
    version: tuple[Any, ...] | None = getattr(sys.modules.get("ipykernel"), "version_info", None)
    return version
