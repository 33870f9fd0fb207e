"""A kernel that is not there: its comms and its outputs are lists."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import comm
import IPython
import IPython.display
import pytest
from comm.base_comm import BaseComm

from qnb.notebook import live
from qnb.notebook.audience import Cells
from qnb.notebook.publisher import Publisher
from tests.notebook.kernels import Kernels


@dataclass
class Channel:
    """What the kernel would have sent."""

    updates: list[dict[str, Any]] = field(default_factory=list)  #: states sent to widgets
    opened: int = 0
    outputs: list[tuple[str, dict[str, Any], bool]] = field(default_factory=list)
    after_cell: list[Callable[..., None]] = field(default_factory=list)
    broken: bool = False

    @property
    def messages(self) -> int:
        return self.opened + len(self.updates) + len(self.outputs)

    def output(self, part: str) -> dict[str, Any]:
        """The newest content of a display's ``live`` or ``card`` part."""
        return [data for ident, data, _ in self.outputs if f"-{part}-" in ident][-1]


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Channel]:
    """A kernel's side of the channel, with no views yet."""
    sent = Channel()

    class Recorded(BaseComm):
        def publish_msg(self, msg_type: str, data: Any = None, **_: Any) -> None:
            if sent.broken:
                raise ConnectionError("no channel")
            if msg_type == "comm_open":
                sent.opened += 1
            elif msg_type == "comm_msg":
                names = [
                    path[0] for path in data.get("buffer_paths", ())
                ]  # bytes go beside the state
                sent.updates.append({**data["state"], **dict.fromkeys(names)})

    def publish(data: Any, metadata: Any = None, *, transient: Any, update: bool = False) -> None:
        sent.outputs.append((transient["display_id"], data, update))

    events = types.SimpleNamespace(register=lambda _, hook: sent.after_cell.append(hook))
    shell = types.SimpleNamespace(kernel=object(), events=events)
    monkeypatch.setattr(comm, "create_comm", lambda **options: Recorded(**options))
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.setattr(IPython.display, "publish_display_data", publish)
    monkeypatch.setattr(live, "_views", {})
    monkeypatch.setattr(live, "_cells", Cells())
    monkeypatch.setattr(live, "_publisher", Publisher())
    yield sent
    # what still waits must not be published into the next test's channel
    live._publisher.settle(list(live._views.values()))


@pytest.fixture
def kernels() -> Iterator[Kernels]:
    """Starts real kernels; what is left of them ends with the test."""
    kernels = Kernels()
    yield kernels
    kernels.end()
