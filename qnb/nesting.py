"""Loops that run inside running loops, for cells that call ``asyncio.run``; only when asked for."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

from qnb.errors import QnbError

__all__ = ["nest"]


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
