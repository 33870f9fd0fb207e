"""What is told of a failed attempt: frames, causes, and whether it is tried again."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pickle
from typing import Any

import msgpack
import pytest

from qnb.errors import Retry
from qnb.models import Ending, Failure, Frame, JobSpec, Outcome, Policy, Report
from qnb.running.attempt import Attempt, failure_of, retry_delay
from qnb.running.executors import run_to_end
from qnb.running.failures import LONGEST
from qnb.running.messages import (
    attempt_of,
    attempt_to,
    outcome_of,
    outcome_to,
    report_of,
    report_to,
)


def _caught(body: Any) -> BaseException:
    try:
        body()
    except BaseException as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError("it raised nothing")


def inner() -> None:
    json.loads("{")


def test_a_failure_has_the_users_own_frames() -> None:
    failure = failure_of(_caught(inner))
    assert failure.type == "JSONDecodeError"
    assert [frame.function for frame in failure.frames] == ["_caught", "inner"]
    assert failure.frames[-1].text == 'json.loads("{")'
    assert failure.frames[-1].file == __file__
    assert failure.frames[-1].line == inner.__code__.co_firstlineno + 1
    assert "decoder.py" in failure.traceback  # the whole way, for reading


def test_causes_are_chained_as_python_prints_them() -> None:
    def body() -> None:
        try:
            try:
                inner()
            except ValueError as error:
                raise KeyError("middle") from error
        except KeyError:
            raise RuntimeError("outer")  # noqa: B904 - the context is the point

    failure = failure_of(_caught(body))
    [middle] = failure.causes
    [first] = middle.causes
    assert (failure.type, middle.type, first.type) == (
        "RuntimeError", "KeyError", "JSONDecodeError",
    )  # fmt: skip
    assert first.frames[-1].function == "inner"
    text = failure.traceback
    order = [
        "JSONDecodeError", "direct cause of the following", "KeyError: 'middle'",
        "During handling of the above", "RuntimeError: outer",
    ]  # fmt: skip
    assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)

    def hidden() -> None:
        try:
            inner()
        except ValueError:
            raise KeyError("alone") from None

    assert failure_of(_caught(hidden)).causes == ()


def test_a_group_has_its_members_as_causes() -> None:
    failure = failure_of(ExceptionGroup("two", [ValueError("a"), KeyError("b")]))
    assert [cause.type for cause in failure.causes] == ["ValueError", "KeyError"]
    assert "ValueError: a" in failure.traceback


def test_no_chain_is_too_long_and_no_exception_too_hostile() -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    error: BaseException = Rude()
    for n in range(50):
        following = ValueError(n)
        following.__cause__ = error
        error = following
    depth, failure = 0, failure_of(error)
    while failure.causes:
        depth, failure = depth + 1, failure.causes[0]
    assert depth == 8
    ring = ValueError("ring")
    ring.__cause__ = KeyError("ring")
    ring.__cause__.__cause__ = ring
    assert [cause.type for cause in failure_of(ring).causes] == ["KeyError"]
    rude = failure_of(Rude())
    assert (rude.type, rude.message, rude.text) == ("Rude", "", "Rude(…)")
    assert len(failure_of(ValueError("x" * 10_000_000)).text) < 2 * LONGEST
    assert failure_of(ValueError("\udcff")).message == "\\udcff"


def test_a_deep_recursion_is_told_briefly() -> None:
    def down(n: int) -> int:
        return down(n + 1) + 1

    failure = failure_of(_caught(lambda: down(0)))
    assert failure.type == "RecursionError"
    assert len(failure.frames) <= 60
    assert len(failure.traceback) < 20_000


@pytest.mark.parametrize(
    "policy, tries, asked, delay",
    [
        (Policy(), 1, None, None),
        (Policy(max_retries=1), 1, None, 0),
        (Policy(max_retries=1), 2, None, None),
        (Policy(max_retries=9, backoff_ms=100), 4, None, 800),
        (Policy(max_retries=9, backoff_ms=100), 4, 7, 7),
        (Policy(max_retries=1000, backoff_ms=100), 999, None, 24 * 3600 * 1000),
        (Policy(), 1, 7, None),
    ],
)
def test_the_pause_before_another_attempt(
    policy: Policy, tries: int, asked: int | None, delay: int | None
) -> None:
    assert retry_delay(policy, tries, asked) == delay


def again() -> None:
    raise Retry("rate limited", delay_ms=30)


def fails() -> None:
    raise ValueError("no")


def unsendable() -> Any:
    import threading

    return threading.Lock()


def test_what_is_tried_again_and_what_is_final(bench: Any) -> None:
    async def main() -> None:
        async with bench.inline():
            run = bench.run
            assert (await run(fails, max_retries=2, backoff_ms=10, tries=2)).retry_in_ms == 20
            assert (await run(fails, max_retries=2, tries=3)).retry_in_ms is None
            assert (await run(again, max_retries=1)).retry_in_ms == 30
            assert (await run(unsendable, max_retries=3)).retry_in_ms is None
            spent = await run(again, max_retries=1, tries=2)
            assert spent.retry_in_ms is None
            assert spent.failure.message.startswith("rate limited (the task asked")
            assert "max_retries=1 are used up" in spent.failure.message

            lost = bench.attempt(fails, max_retries=1)
            lost = Attempt(lost.spec, 3, 3, lost.call, lost.code, lost=2)
            assert (await run_to_end(bench.executor, lost, print)).retry_in_ms == 0

            spec = JobSpec("x", "missing", "default", policy=Policy(max_retries=3))
            call = bench.codec.pack_call("x", (), {}, binding=spec.binding())
            unknown = await run_to_end(bench.executor, Attempt(spec, 1, 1, call), print)
            assert (unknown.failure.type, unknown.retry_in_ms) == ("UnknownTask", None)
            forged = bench.attempt(fails, max_retries=3)
            forged = Attempt(forged.spec, 1, 1, pickle.dumps("anything"), forged.code)
            refused = await run_to_end(bench.executor, forged, print)
            assert (refused.ending, refused.retry_in_ms) == (Ending.REFUSED, None)

    asyncio.run(main())


def test_a_failure_in_a_child_travels_whole(bench: Any) -> None:
    def outer() -> None:
        try:
            inner()
        except ValueError as error:
            raise KeyError("middle") from error

    async def main() -> None:
        async with bench.processes():
            failure = (await bench.run(outer)).failure
            assert [frame.function for frame in failure.frames] == ["outer"]
            [cause] = failure.causes
            assert (cause.type, cause.frames[-1].text) == ("JSONDecodeError", 'json.loads("{")')
            assert "direct cause" in failure.traceback

    asyncio.run(main())


def _sample(field: dataclasses.Field[Any], number: int) -> Any:
    """A value of the field's type that no other field has."""
    kind = str(field.type)
    named = {
        "Policy": lambda: _filled(Policy), "Failure | None": lambda: _filled(Failure),
        "Ending": lambda: Ending.FAILED, "tuple[Frame, ...]": lambda: (_filled(Frame),),
        "tuple[Failure, ...]": lambda: (Failure("T", "m", "x"),), "bool": lambda: True,
    }  # fmt: skip
    if kind in named:
        return named[kind]()
    if "bytes" in kind:
        return b"%d" % number
    return number if "int" in kind else f"text {number}"


def _filled(kind: type[Any]) -> Any:
    fields = dataclasses.fields(kind)
    return kind(**{field.name: _sample(field, n) for n, field in enumerate(fields, 1)})


def test_every_field_of_an_attempt_and_its_outcome_reaches_the_other_process() -> None:
    def carried(message: Any) -> Any:
        return msgpack.unpackb(msgpack.packb(message), strict_map_key=False)

    spec = _filled(JobSpec)
    for policy in (spec.policy, Policy()):
        attempt = Attempt(dataclasses.replace(spec, policy=policy), 1, 5, b"call", b"code", 3)
        assert attempt_of(carried(attempt_to(attempt))) == attempt
    assert attempt_of(carried(attempt_to(attempt, code=False))).code is None
    outcome = _filled(Outcome)
    assert outcome_of(carried(outcome_to(outcome))) == outcome
    report = Report(1.5, 3, "text", {"loss": 0.5})
    assert report_of(carried(report_to(report))) == report


@pytest.mark.parametrize("where", ["inline", "processes"])
def test_a_hook_or_a_text_that_exits_leaves_the_jobs_own_error(bench: Any, where: str) -> None:
    class Loud(Exception):
        def __str__(self) -> str:
            raise SystemExit(3)

        __repr__ = __str__

    def fails() -> None:
        raise ValueError("own")

    def loud() -> None:
        raise Loud

    def hook(failure: Any) -> None:
        raise SystemExit(1)

    async def ahook(failure: Any) -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        bench.registry.add_error_hook(hook)
        bench.registry.add_error_hook(ahook)
        async with getattr(bench, where)():
            for fn, kind in ((fails, "ValueError"), (loud, "Loud")):
                assert (await bench.run(fn)).failure.type == kind
            assert await bench.value(int, "4") == 4

    asyncio.run(main())


@pytest.mark.parametrize("where", ["inline", "processes"])
@pytest.mark.parametrize("isolation", [None, "loop", "process"])
def test_a_body_that_cancels_itself_fails_as_by_any_other_error(
    bench: Any, where: str, isolation: str | None
) -> None:
    async def cancels(then: float | None) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if then is not None:
            await asyncio.sleep(then)
        return "done"

    async def main() -> None:
        async with getattr(bench, where)(**({"config": True} if where == "inline" else {})):
            outcome = await bench.run(cancels, 5, isolation=isolation, max_retries=1)
            assert (outcome.failure.type, outcome.retry_in_ms) == ("CancelledError", 0)
            assert await bench.value(cancels, None, isolation=isolation) == "done"
            assert await bench.value(int, "4") == 4

    asyncio.run(main())
