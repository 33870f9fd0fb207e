"""A worker whose packages differ in what a function needs is told of before its jobs fail."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import redis

import qnb
from qnb.storage.keys import KeySpace
from qnb.wire import environment


def _another(said: dict[str, Any], **packages: str | None) -> bytes:
    theirs = {**said["packages"], **packages}
    kept = {name: version for name, version in theirs.items() if version is not None}
    return environment.pack({**said, "packages": kept})


def test_the_first_submit_of_a_function_warns_once_of_what_it_needs_and_workers_lack(
    app: qnb.App, server_url: str, queue: str
) -> None:
    @app.task
    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    @app.task
    def plain(x: int) -> int:
        return x

    said = environment.describe()
    with app.start_workers(1), redis.Redis.from_url(server_url) as link:
        key = KeySpace(queue).environment(environment.digest(said))
        link.set(key, _another(said, numpy="1.0", pandas=None), px=60_000)
        assert plain.submit(1).get(timeout=10) == 1  # needs neither: no warning, or this fails
        with pytest.warns(qnb.EnvironmentMismatch) as told:
            assert mean.submit([1, 3]).get(timeout=10) == 2
        [one] = told
        assert f"warning: numpy {said['packages']['numpy']} here, 1.0 there" in str(one.message)
        assert "pandas" not in str(one.message)
        assert one.filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert mean.submit([2, 4]).get(timeout=10) == 3


def test_what_a_stranger_wrote_as_an_environment_is_nothing_to_tell(
    app: qnb.App, server_url: str, queue: str
) -> None:
    @app.task
    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    with app.start_workers(1), redis.Redis.from_url(server_url) as link:
        key = KeySpace(queue).environment(environment.digest(environment.describe()))
        link.set(key, b"\xc1\x1b[2J", px=60_000)
        assert mean.submit([1, 3]).get(timeout=10) == 2
