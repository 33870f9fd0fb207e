"""Two worker slots for all tests of a file: starting them takes longer than most of these tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

import qnb


@pytest.fixture(scope="module")
def crew(server_url: str) -> Iterator[qnb.App]:
    """An app whose queue two processes serve."""
    app = qnb.App(server_url, f"t-{secrets.token_hex(6)}", ["bulk", "urgent"])
    with app.start_workers(2, linger="60 s"):
        yield app
    app.close()
