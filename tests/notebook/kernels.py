"""Real kernels, and cells executed in them."""

from __future__ import annotations

import contextvars
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import zmq
from jupyter_client.manager import KernelManager
from jupyter_core.utils import ensure_event_loop

import qnb

T = TypeVar("T")


class Kernel:
    """One kernel; all that is asked of it goes by way of ``within``."""

    def __init__(self, context: zmq.Context[Any], within: Callable[[Callable[[], Any]], Any]):
        self._within = within
        self._manager = KernelManager(kernel_name="python3", context=context)
        environment = {**os.environ, "PYTHONPATH": str(Path(qnb.__file__).parents[1])}
        within(lambda: self._manager.start_kernel(env=environment))
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        within(lambda: self._client.wait_for_ready(timeout=20))

    @property
    def pid(self) -> int:
        provisioner: Any = self._manager.provisioner
        return int(provisioner.pid)

    def is_alive(self) -> bool:
        return bool(self._within(self._manager.is_alive))

    def interrupt(self) -> None:
        """As the button of a notebook does."""
        self._within(self._manager.interrupt_kernel)

    def execute(self, cell: str) -> dict[str, Any]:
        """Execute a cell; what the kernel answers."""
        reply: dict[str, Any] = self._within(
            lambda: self._client.execute_interactive(cell, timeout=60, output_hook=lambda _: None)
        )
        content: dict[str, Any] = reply["content"]
        return content

    def run(self, cell: str, **names: str) -> None:
        """Execute a cell; its error is this test's."""
        content = self.execute(textwrap.dedent(cell).format(**names))
        assert content["status"] == "ok", "\n".join(content.get("traceback", []))

    def run_all(self, cells: list[str]) -> list[dict[str, Any]]:
        """Send all cells at once, as "Run All" does; what the kernel answers, in their order."""

        def work() -> list[dict[str, Any]]:
            sent = [self._client.execute(textwrap.dedent(cell)) for cell in cells]
            answers = {}
            while len(answers) < len(sent):
                reply = self._client.get_shell_msg(timeout=20)
                answers[reply["parent_header"]["msg_id"]] = reply["content"]
            return [answers[message] for message in sent]

        answers: list[dict[str, Any]] = self._within(work)
        return answers

    def end(self) -> None:
        self._client.stop_channels()
        self._within(lambda: self._manager.shutdown_kernel(now=True))


class Kernels:
    """Starts kernels, and ends them."""

    def __init__(self) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._within = contextvars.copy_context()  # jupyter_client keeps a loop in a variable
        self._started: list[Kernel] = []

    def start(self) -> Kernel:
        kernel = Kernel(self._context, self._within.run)
        self._started.append(kernel)
        return kernel

    def end(self) -> None:
        for kernel in self._started:
            kernel.end()
        self._within.run(lambda: ensure_event_loop().close())
        self._context.destroy(linger=0)
