"""A worker for the sweeps of these tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

import qnb


@pytest.fixture
def serving(app: qnb.App) -> Iterator[qnb.App]:
    """The app with a worker in a thread of this process."""
    thread = threading.Thread(target=lambda: asyncio.run(app.run()), daemon=True)
    thread.start()
    yield app
    app.stop()
    thread.join(20)
    assert not thread.is_alive(), "its worker has not ended"


@pytest.fixture
def elsewhere(app: qnb.App, server_url: str, queue: str) -> Iterator[qnb.App]:
    """The same queue as another kernel has it: no task is known there."""
    other = qnb.App(server_url, queue)
    yield other
    other.close()
