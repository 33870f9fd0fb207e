"""A desk of one's own, on each kind of server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import leaks
from tests.storage.desk import Desk, opened


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def desk(any_url: str, queue: str) -> AsyncIterator[Desk]:
    """One lane, ``default``."""
    async with opened(any_url, queue) as desk:
        yield desk
    assert leaks(any_url, queue) == []


@pytest.fixture
async def two_lanes(any_url: str, queue: str) -> AsyncIterator[Desk]:
    """The lanes ``low`` and ``high``."""
    async with opened(any_url, queue, ("low", "high")) as desk:
        yield desk
    assert leaks(any_url, queue) == []
