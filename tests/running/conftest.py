"""Executors without a store: real processes, signed jobs, and what they say."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Callable
from typing import Any, Self

import pytest

from qnb.clock import ServerClock
from qnb.models import JobSpec, Outcome, Policy, Report
from qnb.options import AppOptions
from qnb.registry import Registry
from qnb.running.attempt import Attempt, Runner
from qnb.running.executors import Executor, InlineExecutor, ProcessExecutor, run_to_end
from qnb.running.messages import SlotConfig
from qnb.wire.codec import Codec


class Bench:
    """An executor and a source of jobs for it; ``async with`` starts and closes it."""

    def __init__(self, queue: str) -> None:
        self.options = AppOptions(queue_name=queue, concurrency=4)
        self.codec = Codec.of(self.options, None)
        self.registry = Registry()
        self.executor: Executor
        self.news: list[Report | str] = []
        self._ids = itertools.count()

    def processes(self, slots: int = 1, **config: Any) -> Self:
        """On child processes."""
        if self.registry.lifespan or self.registry.error_hooks:
            hooks = list(self.registry.error_hooks.values())
            config["setup"] = self.codec.pack_call("setup", (self.registry.lifespan, hooks), {})
        self.executor = ProcessExecutor(SlotConfig(self.options, **config), ServerClock(), slots)
        return self

    def inline(self, slots: int = 4, config: bool = False) -> Self:
        """In this process."""
        runner = Runner(self.codec, self.registry, ServerClock(), shipped_first=False)
        self.executor = InlineExecutor(runner, slots, SlotConfig(self.options) if config else None)
        return self

    async def __aenter__(self) -> Self:
        await self.executor.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.executor.close()

    def attempt(self, fn: Callable[..., Any], *args: Any, tries: int = 1, **policy: Any) -> Attempt:
        """A job that calls ``fn``: by its name if that is registered, else shipped by value."""
        named = self.registry.get(fn.__name__) is fn
        digest, code = (b"", None) if named else self.codec.pack_function(fn)
        spec = JobSpec(
            f"job-{next(self._ids)}", fn.__name__, "default", function=digest.hex(),
            is_async=inspect.iscoroutinefunction(fn), policy=Policy(**policy),
        )  # fmt: skip
        call = self.codec.pack_call(spec.task_id, args, {}, binding=spec.binding())
        return Attempt(spec, 1, tries, call, code)

    async def run(self, fn: Callable[..., Any], *args: Any, **options: Any) -> Outcome:
        """How one job that calls ``fn`` ends."""
        return await run_to_end(self.executor, self.attempt(fn, *args, **options), self.news.append)

    async def value(self, fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What ``fn`` returns when it runs there."""
        attempt = self.attempt(fn, *args, **options)
        outcome = await run_to_end(self.executor, attempt, self.news.append)
        assert outcome.success, outcome.failure
        return self.codec.unpack_result(attempt.spec.task_id, outcome.result)

    def begin(self, fn: Callable[..., Any], *args: Any, **options: Any) -> asyncio.Task[Outcome]:
        """Start a job and go on."""
        return asyncio.ensure_future(self.run(fn, *args, **options))

    @property
    def output(self) -> str:
        """All text that bodies have put out."""
        return "".join(piece for piece in self.news if isinstance(piece, str))

    @property
    def reports(self) -> list[Report]:
        return [piece for piece in self.news if isinstance(piece, Report)]


@pytest.fixture
def bench(queue: str) -> Bench:
    """Needs no server: only a queue's name, for its key."""
    return Bench(queue)
