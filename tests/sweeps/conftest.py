"""What the tests of sweeps share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import qnb


@pytest.fixture
def elsewhere(app: qnb.App, server_url: str, queue: str) -> Iterator[qnb.App]:
    """The same queue as another kernel has it: no task is known there."""
    other = qnb.App(server_url, queue)
    yield other
    other.close()
