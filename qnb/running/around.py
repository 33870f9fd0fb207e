"""What runs around bodies, where they run: the lifespan and the error hooks of an app."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Mapping

from qnb.errors import InvalidOption
from qnb.models import ErrorContext
from qnb.registry import Registry

__all__ = ["LifespanRun", "fire"]

log = logging.getLogger("qnb.worker")

#: seconds for all hooks of one failure together
HOOKS = 5.0


class LifespanRun:
    """One run of an app's lifespan; its loop is the one that awaits it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._generator: AsyncIterator[object] | None = None

    async def start(self) -> None:
        """Run it up to its ``yield`` and fill ``app.state`` with what it yields."""
        lifespan = self._registry.lifespan
        if lifespan is None:
            return
        if not inspect.isasyncgenfunction(lifespan):
            raise InvalidOption(
                f"@app.lifespan expects an async generator function, not {lifespan!r}: write "
                "`async def lifespan(): ...` with one `yield` between setup and cleanup"
            )
        generator = lifespan()
        try:
            given = await anext(generator)
        except StopAsyncIteration:
            raise InvalidOption(
                f"lifespan {lifespan.__qualname__!r} ended without a yield; give it exactly one"
            ) from None
        if given is not None and not (
            isinstance(given, Mapping) and all(isinstance(name, str) for name in given)
        ):
            raise InvalidOption(
                f"lifespan {lifespan.__qualname__!r} yielded {given!r}: expected a mapping of "
                "names to values, which become attributes of app.state, or nothing"
            )
        vars(self._registry.state).update(given or {})
        self._generator = generator

    async def stop(self) -> None:
        """Run what follows its ``yield``. An error of it is logged."""
        generator, self._generator = self._generator, None
        if generator is None:
            return
        try:
            await anext(generator)
        except StopAsyncIteration:
            pass
        except Exception:
            log.exception("the lifespan's cleanup failed")
        else:
            log.error("the lifespan has more than one yield; what follows the second never runs")
        finally:
            vars(self._registry.state).clear()


async def fire(registry: Registry, failure: ErrorContext) -> None:
    """Tell the app's hooks of a failed attempt. They change nothing, whatever they do."""
    for hook in tuple(registry.error_hooks.values()):
        try:
            async with asyncio.timeout(HOOKS):
                if inspect.iscoroutinefunction(hook):
                    await hook(failure)
                elif inspect.isawaitable(answer := await asyncio.to_thread(hook, failure)):
                    await answer
        except Exception:
            name = getattr(hook, "__qualname__", repr(hook))
            log.exception("error hook %s failed for job %r", name, failure.task_id)
