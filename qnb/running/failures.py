"""An exception as a :class:`~qnb.models.Failure`: text, the user's own frames, what caused it."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from traceback import FrameSummary, StackSummary, TracebackException, extract_tb

from qnb.models import Failure, Frame
from qnb.wire.sources import label

__all__ = ["failure_of"]

#: causes followed from one exception; members of one group
DEEPEST = 8
WIDEST = 20

#: frames kept of one traceback; characters of one text
MOST_FRAMES = 60
LONGEST = 64 * 1024

_HERE = str(Path(__file__).parent.parent) + os.sep
_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep


def failure_of(error: BaseException) -> Failure:
    """``error`` as text; its traceback, causes and frames without qnb's own frames."""
    told = TracebackException.from_exception(error, compact=True)
    _trim(told, DEEPEST)
    return _failure(error, _bounded("".join(told.format())), DEEPEST, {id(error)})


def _failure(error: BaseException, trace: str, depth: int, seen: set[int]) -> Failure:
    causes = []
    if depth > 0:
        for cause in _causes(error):
            if id(cause) not in seen:
                seen.add(id(cause))
                causes.append(_failure(cause, "", depth - 1, seen))
    try:
        text = repr(error)
    except BaseException:  # noqa: BLE001 - a user's __repr__ may do anything
        text = f"{type(error).__name__}(…)"
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001 - likewise
        message = ""
    return Failure(
        _sendable(type(error).__name__), _bounded(message), _bounded(text), trace,
        _own_frames(error), tuple(causes),
    )  # fmt: skip


def _causes(error: BaseException) -> Iterable[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        yield from error.exceptions[:WIDEST]
    if error.__cause__ is not None:
        yield error.__cause__
    elif error.__context__ is not None and not error.__suppress_context__:
        yield error.__context__


def _own_frames(error: BaseException) -> tuple[Frame, ...]:
    """The user's frames; where there are none, those of the libraries she called."""
    frames = [frame for frame in extract_tb(error.__traceback__) if not _is_qnb(frame.filename)]
    own = [frame for frame in frames if not _is_library(frame.filename)] or frames
    return tuple(
        Frame(
            _sendable(label(frame.filename)), frame.lineno or 0,
            _sendable(frame.name), _sendable((frame.line or "")[:500]),
        )
        for frame in own[-MOST_FRAMES:]
    )  # fmt: skip


def _is_qnb(filename: str) -> bool:
    return filename.startswith(_HERE)


def _is_library(filename: str) -> bool:
    if filename.startswith(("<frozen", _STDLIB)):
        return True
    return f"{os.sep}site-packages{os.sep}" in filename or "dist-packages" in filename


def _trim(told: TracebackException, depth: int) -> None:
    """Leave qnb's frames out, name cells as the user knows them, stop after ``depth`` causes."""
    frames = [frame for frame in told.stack if not _is_qnb(frame.filename)]
    kept = StackSummary.from_list(list(map(_labelled, frames[-MOST_FRAMES:])))
    told.stack = kept or None  # type: ignore[assignment] # without frames it needs no heading
    if depth <= 0:
        told.__cause__ = told.__context__ = None
    for cause in (told.__cause__, told.__context__):
        if cause is not None:
            _trim(cause, depth - 1)
    if told.exceptions is not None:
        told.exceptions = told.exceptions[:WIDEST]
        for member in told.exceptions:
            _trim(member, depth - 1)


def _labelled(frame: FrameSummary) -> FrameSummary:
    name = label(frame.filename)
    if name != frame.filename:
        _ = frame.line  # looked up by the file's own name, and kept
        frame.filename = name
    return frame


def _bounded(text: str) -> str:
    if len(text) > LONGEST:
        half = LONGEST // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half:,} characters …\n{text[-half:]}"
    return _sendable(text)


def _sendable(text: str) -> str:
    """``text`` with what UTF-8 cannot carry (lone surrogates) escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
