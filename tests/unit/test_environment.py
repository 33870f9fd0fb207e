"""The environment check: what a function needs, and where a worker differs in that."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dateutil.parser
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

import qnb
from qnb.wire.environment import (
    Difference,
    describe,
    differences,
    digest,
    pack,
    reached,
    report,
    unpack,
)

HERE: dict[str, Any] = {
    "python": "3.11.7",
    "implementation": "CPython",
    "platform": "linux x86_64",
    "packages": {"numpy": "2.5.1", "scikit-learn": "1.4.0", "young": "0.3.1", "odd": "r12"},
}


def _there(python: str = "3.11.7", **packages: str | None) -> dict[str, Any]:
    theirs = {**HERE["packages"], **packages}
    kept = {name: version for name, version in theirs.items() if version is not None}
    return {**HERE, "python": python, "packages": kept}


def test_an_environment_describes_what_is_installed_as_the_metadata_does() -> None:
    said = describe()
    assert said["python"] == ".".join(map(str, sys.version_info[:3]))
    for name in ("numpy", "scikit-learn", "typing-extensions", "qnb"):
        assert said["packages"][name] == importlib.metadata.version(name)


def test_a_package_installed_meanwhile_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    before = describe()
    (tmp_path / "Fresh_Thing-2.1.dist-info").mkdir()
    os.utime(tmp_path, ns=(0, 1))  # the clock of a file system may be coarse
    assert "fresh-thing" not in before["packages"]
    assert describe()["packages"]["fresh-thing"] == "2.1"
    assert digest(describe()) != digest(before)


def test_a_description_travels_and_its_digest_names_it() -> None:
    said = describe()
    assert unpack(pack(said)) == said
    turned = {**said, "packages": dict(reversed(said["packages"].items()))}
    assert digest(turned) == digest(said)


@given(st.binary(max_size=40) | st.just(pack({**HERE, "packages": {"a\x1b[2J": "1"}})))
def test_bytes_of_a_stranger_are_no_description(packed: bytes) -> None:
    assert unpack(packed) is None


# -- what a function reaches ---------------------------------------------------------------------


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _calls_a_helper(values: list[float]) -> float:
    return _mean(values)


def _imports_inside() -> object:
    def inner() -> object:
        import sklearn.linear_model as models

        return models

    return inner


class _Model:
    def start(self) -> object:
        return np.zeros(1)


def _uses_a_class() -> object:
    return _Model()


def _by_default(regression: object = LinearRegression) -> object:
    return regression


def _closure() -> Callable[[], object]:
    model = {"model": [LinearRegression()]}
    return lambda: model


@pytest.mark.parametrize(
    "fn, needs",
    [
        (_calls_a_helper, {"numpy"}),
        (_imports_inside, {"scikit-learn"}),
        (_uses_a_class, {"numpy"}),
        (_by_default, {"scikit-learn"}),
        (_closure(), {"scikit-learn"}),
        (functools.partial(_mean, values=[]), {"numpy"}),
        (functools.wraps(_mean)(lambda: None), {"numpy"}),
        (lambda text: dateutil.parser.parse(text), {"python-dateutil"}),
        (lambda text: textwrap.dedent(text), set()),
        (lambda: qnb.__version__, set()),
        (lambda: exec("import numpy"), set()),  # noqa: S102 - no one can see into a text
        (_Model().start, {"numpy"}),
        (print, set()),
    ],
)  # fmt: skip
def test_a_function_reaches_the_packages_that_its_code_mentions(
    fn: Callable[..., Any], needs: set[str]
) -> None:
    assert reached(fn) == needs


def test_a_local_module_is_looked_into_for_what_is_used_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "localhelpers.py").write_text(
        "import numpy\nimport dateutil\nimport sklearn as unused\n"
        "def total(x): return numpy.sum(x)\ndef when(x): return dateutil.parser.parse(x)\n"
    )
    import localhelpers  # type: ignore[import-not-found]

    assert reached(lambda x: localhelpers.total(x)) == {"numpy"}
    assert reached(lambda x: (localhelpers.total(x), localhelpers.when(x))) == {
        "numpy", "python-dateutil",
    }  # fmt: skip
    monkeypatch.delitem(sys.modules, "localhelpers")


def test_a_task_reaches_what_its_function_reaches(app: qnb.App) -> None:
    @app.task
    def task(x: float) -> float:
        return _mean([x])

    assert reached(task) == {"numpy"}
    assert reached(lambda x: task(x)) == {"numpy"}


def test_code_that_goes_round_in_circles_is_seen_once() -> None:
    things: list[Any] = []
    things.append(things)

    def ping() -> object:
        return pong, things

    def pong() -> object:
        return ping, np

    assert reached(ping) == {"numpy"}


# -- what differs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "there, by_value, severity, text",
    [
        (_there("3.12.1"), True, "error", "Python 3.11.7 here, 3.12.1 there"),
        (_there("3.12.1"), False, "warning", "Python 3.11.7 here, 3.12.1 there"),
        (_there("3.11.9"), True, "note", "Python 3.11.7 here, 3.11.9 there"),
        (_there() | {"implementation": "PyPy"}, True, "error",
         "Python CPython 3.11.7 here, PyPy 3.11.7 there"),
        (_there() | {"platform": "darwin arm64"}, True, "note",
         "platform linux x86_64 here, darwin arm64 there"),
        (_there(numpy=None), False, "error", "numpy 2.5.1 here, not installed there"),
        (_there(numpy="1.26.4"), False, "warning", "numpy 2.5.1 here, 1.26.4 there"),
        (_there(numpy="1!2.5.1"), False, "warning", "numpy 2.5.1 here, 1!2.5.1 there"),
        (_there(numpy="2.4.0"), False, "note", "numpy 2.5.1 here, 2.4.0 there"),
        (_there(young="0.4.0"), False, "warning", "young 0.3.1 here, 0.4.0 there"),
        (_there(young="0.3.9"), False, "note", "young 0.3.1 here, 0.3.9 there"),
        (_there(odd="r13"), False, "warning", "odd r12 here, r13 there"),
    ],
)  # fmt: skip
def test_a_difference_is_as_grave_as_what_it_may_break(
    there: dict[str, Any], by_value: bool, severity: str, text: str
) -> None:
    needs = set(HERE["packages"])
    [found] = differences(HERE, there, needs, by_value=by_value)
    assert (found.severity, str(found)) == (severity, text)


def test_what_the_function_does_not_need_may_differ() -> None:
    there = _there(numpy="1.0", young=None, stranger="9")
    assert differences(HERE, there, {"odd", "not-even-here"}, by_value=True) == []


def test_a_report_names_the_worst_first_and_ends_with_the_remedy() -> None:
    there = _there("3.11.9", numpy="1.26.4", **{"scikit-learn": None})
    found = differences(HERE, there, {"numpy", "scikit-learn"}, by_value=True)
    assert report("fit", "h:1", found) == (
        "task 'fit' meets another environment on worker h:1:\n"
        "  error: scikit-learn 1.4.0 here, not installed there\n"
        "  warning: numpy 2.5.1 here, 1.26.4 there\n"
        "  note: Python 3.11.7 here, 3.11.9 there\n"
        "Install there what is here, or start workers of this environment with "
        "app.start_workers()"
    )


def test_notes_alone_are_not_reported() -> None:
    assert report("fit", "h:1", [Difference("numpy", "2.5.1", "2.5.0", "note")]) is None
    assert report("fit", "h:1", []) is None
