"""``qnb.report`` and ``qnb.progress``: how far a running task is, said by the task itself."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sized
from types import ModuleType, TracebackType
from typing import Any, Generic, Self, TypeVar

from qnb.errors import InvalidOption, QnbError
from qnb.models import Report
from qnb.running.context import running

__all__ = ["Progress", "progress", "report", "watch_tqdm"]

T = TypeVar("T")

#: characters of a message, and of a metric that is text
LONGEST = 500

#: integers up to here travel as such
_LARGE = 1 << 53


def report(
    done: float,
    total: float | None = None,
    message: str | None = None,
    **metrics: float | int | str,
) -> None:
    """Say how far the running task is: ``qnb.report(3, 10, "fitting", loss=0.2)``.

    Shown where the job is watched, some ten times a second; the last one always arrives.
    """
    body = running()
    if body is None:
        raise QnbError(
            "report() was called outside of a task; call it in a function that a worker runs, or "
            "use qnb.progress(), which runs anywhere"
        )
    given = {"done": done, **({} if total is None else {"total": total}), **metrics}
    for name, value in given.items():
        if _number(value) is None and (name not in metrics or not isinstance(value, str)):
            raise InvalidOption(f"{name}={value!r}: expected a finite number")
    if message is not None and not isinstance(message, str):
        raise InvalidOption(f"message={message!r}: expected text or None")
    body.report(_sendable(done, total, message, metrics))


def _sendable(
    done: Any, total: Any, message: Any, metrics: Mapping[Any, Any] | None = None
) -> Report:
    """Whatever a body or a bar has said, as a report that travels."""
    return Report(
        _number(done) or 0,
        _number(total),
        None if message is None else _text(message),
        {_text(name): _value(value) for name, value in (metrics or {}).items()},
    )


def _number(value: Any) -> float | None:
    """``value`` as a number that travels, None if it is none; numpy's are numbers too."""
    if hasattr(value, "dtype") and hasattr(value, "item"):
        value = value.item() if getattr(value, "size", 0) == 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if type(value) not in (int, float):  # of a subclass, which msgpack refuses
        value = int(value) if isinstance(value, int) else float(value)
    try:
        return value if abs(value) < _LARGE else _finite(float(value))
    except OverflowError:
        return None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _value(value: Any) -> float | str:
    number = _number(value)
    return _text(value) if number is None else number


def _text(text: Any) -> str:
    """``text``, not too long, without what UTF-8 cannot carry."""
    said = str(text)
    said = said if len(said) <= LONGEST else f"{said[: LONGEST - 1]}…"
    return said.encode("utf-8", "replace").decode()


class Progress(Generic[T]):
    """A ``tqdm`` look-alike whose state is shown where the job is watched.

    Outside of a task it only counts, so that the same code runs in a cell.
    """

    def __init__(
        self,
        iterable: Iterable[T] | None = None,
        total: float | None = None,
        desc: str | None = None,
        **_tqdm: Any,
    ) -> None:
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        # inf is what tqdm takes for "nobody knows"
        if total is not None and not isinstance(total, float) and _number(total) is None:
            raise InvalidOption(f"total={total!r}: expected a number")
        self.iterable = iterable
        self.total = total
        self.desc = desc
        self.n: float = _tqdm.get("initial") or 0
        self._postfix: dict[Any, Any] = {}
        self.refresh()

    def __iter__(self) -> Iterator[T]:
        if self.iterable is None:
            raise TypeError(
                "this progress has no iterable: write `for x in qnb.progress(items)`, or call "
                "bar.update(n) yourself"
            )
        try:
            for item in self.iterable:
                yield item
                self.update()
        finally:
            self.close()

    def __len__(self) -> int:
        if self.total is None:
            raise TypeError("this progress has no total: give it one with total=")
        return int(self.total)

    def __bool__(self) -> bool:
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def update(self, n: float | None = 1) -> None:
        """Count ``n`` more as done."""
        self.n += 1 if n is None else n
        self.refresh()

    def reset(self, total: float | None = None) -> None:
        """Start again from 0."""
        self.n = 0
        if total is not None:
            self.total = total
        self.refresh()

    def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
        """Show ``desc`` beside the numbers."""
        self.desc = desc
        if refresh:
            self.refresh()

    set_description_str = set_description

    def set_postfix(
        self, ordered: Mapping[str, Any] | None = None, refresh: bool = True, **values: Any
    ) -> None:
        """Show numbers or short text by name, as metrics of the job."""
        self._postfix = {**(ordered or {}), **values}
        if refresh:
            self.refresh()

    def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
        self.set_postfix({"postfix": text} if text else {}, refresh)

    def refresh(self, *_: Any, **__: Any) -> None:
        """Report the present state."""
        body = running()
        if body is not None:
            body.report(_sendable(self.n, self.total, self.desc, self._postfix))

    def close(self) -> None:
        """Report the last state."""
        self.refresh()

    def clear(self, *_: Any, **__: Any) -> None:
        """Nothing to clear: nothing is drawn here."""

    @staticmethod
    def write(text: str, *, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        """Print, as ``tqdm.write`` does."""
        (file or sys.stdout).write(text + end)

    def __repr__(self) -> str:
        total = "?" if self.total is None else f"{self.total:g}"
        return f"<progress {self.desc or ''} {self.n:g}/{total}>"


progress = Progress


# --- the user's own tqdm ---------------------------------------------------------------------


def watch_tqdm() -> None:
    """From now on ``tqdm`` bars in this process report too, whenever tqdm is or gets imported."""
    if "tqdm.std" in sys.modules:
        _patch(sys.modules["tqdm.std"])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Sees ``tqdm.std`` being imported, once; all of tqdm's faces build on it."""

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "tqdm.std":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _patch(module)


def _patch(module: ModuleType) -> None:
    """Let each drawing of an outermost bar be a report. A bar is never broken by it."""
    bar: Any = getattr(module, "tqdm", None)
    if bar is None or hasattr(bar, "_qnb"):
        return
    refresh, close = bar.refresh, bar.close

    def reported(self: Any) -> None:
        body = running()
        if body is None or getattr(self, "disable", True) or getattr(self, "pos", 0) != 0:
            return
        body.report(_sendable(self.n, self.total, (self.desc or "").rstrip(": ") or None))

    def refresh_and_report(self: Any, *args: Any, **kwargs: Any) -> Any:
        reported(self)
        return refresh(self, *args, **kwargs)

    def close_and_report(self: Any) -> Any:
        reported(self)
        return close(self)

    bar._qnb, bar.refresh, bar.close = True, refresh_and_report, close_and_report
