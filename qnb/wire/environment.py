"""Python and packages here and on a worker: where they differ in what a function needs.

A worker describes its environment once (:func:`describe`). A client finds which packages a
function reaches (:func:`reached`) and says what differs between the two (:func:`report`), before
a missing package or another numpy is met as a failed job.
"""

from __future__ import annotations

import dis
import functools
import os
import platform
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgpack

from qnb.wire.origins import installed, is_handle

__all__ = [
    "Description", "Difference", "describe", "differences", "digest", "pack", "reached", "report",
    "unpack",
]  # fmt: skip

#: ``python``, ``implementation`` and ``platform``, and ``packages``: name → version
Description: TypeAlias = dict[str, Any]

Severity = Literal["error", "warning", "note"]
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

_Path: TypeAlias = tuple[tuple[str, int], ...]

#: most objects that a search for packages looks at
_MOST = 2000


# --- what is here ------------------------------------------------------------------------------


def describe() -> Description:
    """Python, the platform and every installed distribution of this process. Some 0.5 ms."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": f"{sys.platform} {platform.machine()}",
        "packages": dict(_distributions(_path())),
    }


@lru_cache(maxsize=1)
def _distributions(path: _Path) -> dict[str, str]:
    """Names and versions as folder names tell them: 100 × faster than to read the metadata."""
    found: dict[str, str] = {}
    for folder, _ in path:
        for name in os.listdir(folder or "."):  # noqa: PTH208 - a Path for each name takes longer
            stem, _, kind = name.rpartition(".")
            package, dash, version = stem.partition("-")
            if dash and kind in ("dist-info", "egg-info"):
                found.setdefault(_normal(package), version.partition("-")[0])
    return dict(sorted(found.items()))


def _path() -> _Path:
    """The folders that Python imports from, each with the time when something was installed."""
    folders = []
    for folder in sys.path:
        with suppress(OSError):  # a zip file, a folder that is gone
            if Path(folder).is_dir():
                folders.append((folder, Path(folder).stat().st_mtime_ns))
    return tuple(folders)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pack(description: Description) -> bytes:
    """``description`` as msgpack, the same bytes for the same environment."""
    packages = dict(sorted(description["packages"].items()))
    return bytes(msgpack.packb({**dict(sorted(description.items())), "packages": packages}))


def unpack(packed: bytes) -> Description | None:
    """What :func:`pack` wrote; None for anything else, since anyone may have written it."""
    try:
        found = msgpack.unpackb(packed)
        texts = [found[name] for name in ("python", "implementation", "platform")]
        texts += [text for item in found["packages"].items() for text in item]
    except Exception:  # noqa: BLE001 - whatever a stranger wrote
        return None
    sound = all(isinstance(text, str) and len(text) <= 200 and text.isprintable() for text in texts)
    return found if sound else None


def digest(description: Description) -> str:
    """A name for the environment: the same for all workers that have the same one."""
    return blake2b(pack(description), digest_size=16).hexdigest()


# --- what a function needs ---------------------------------------------------------------------


def reached(fn: Callable[..., Any]) -> frozenset[str]:
    """The installed distributions that ``fn`` mentions, itself or through code of its own.

    That is local code, which travels along, and the package that ``fn`` is in. Imports inside
    such bodies count; the standard library and qnb itself do not.
    """
    root = _root(fn)
    own = (_home(root) or "").partition(".")[0]
    names: set[str] = set()
    waiting: list[tuple[Any, frozenset[str]]] = [(fn, frozenset())]
    seen: set[tuple[int, frozenset[str]]] = set()
    while waiting and len(seen) < _MOST:
        thing, mentioned = waiting.pop()
        # Of a local module, other code may mention other attributes.
        key = id(thing), mentioned if isinstance(thing, types.ModuleType) else frozenset()
        if key in seen:
            continue
        seen.add(key)
        home = _home(thing)
        if home is not None:
            names.add(home)
        if home is None or home.partition(".")[0] == own:
            # Deep in a package, such imports are of what it can do without.
            if isinstance(thing, types.FunctionType) and (home is None or thing is root):
                names |= _imports(thing.__code__)
            waiting += _next(thing, mentioned)
    return _providers(names)


def _root(fn: Any) -> Any:
    """The function inside a partial, a method or a task."""
    if isinstance(fn, functools.partial):
        return _root(fn.func)
    if isinstance(fn, types.MethodType) or is_handle(fn):
        return _root(getattr(fn, "__func__", None) or getattr(fn, "__wrapped__", None))
    return fn


def _home(thing: Any) -> str | None:
    """The module that a worker imports to have ``thing``; None where its parts have to be seen."""
    if isinstance(thing, _SEEN_THROUGH) or is_handle(thing):
        return None
    if isinstance(thing, types.ModuleType):
        return thing.__name__ if installed(thing.__name__) else None
    name = getattr(thing if isinstance(thing, _NAMED) else type(thing), "__module__", None)
    return name if isinstance(name, str) and installed(name) else None


_NAMED = (type, types.FunctionType, types.BuiltinFunctionType)
_CONTAINERS = (list, tuple, set, frozenset)
_SEEN_THROUGH = (
    *_CONTAINERS, dict, functools.partial, types.MethodType, classmethod, staticmethod, property,
)  # fmt: skip


def _next(thing: Any, mentioned: frozenset[str]) -> Iterator[tuple[Any, frozenset[str]]]:
    """What ``thing`` takes along, each with the names by which code may ask for more of it."""
    if isinstance(thing, types.FunctionType):
        mentioned = frozenset(_names(thing.__code__))
    for part in _parts(thing, mentioned):
        if part is not None:
            yield part, mentioned


def _parts(thing: Any, mentioned: frozenset[str]) -> Iterable[Any]:
    if isinstance(thing, types.FunctionType):
        return _parts_of_function(thing, mentioned)
    if isinstance(thing, types.ModuleType):
        return [vars(thing).get(name) for name in mentioned]
    if isinstance(thing, type):
        return (*thing.__mro__[1:], *vars(thing).values())
    if isinstance(thing, functools.partial):
        return (thing.func, *thing.args, *thing.keywords.values())
    if isinstance(thing, types.MethodType):
        return (thing.__func__, thing.__self__)
    if isinstance(thing, classmethod | staticmethod) or is_handle(thing):
        return (getattr(thing, "__wrapped__", None),)
    if isinstance(thing, property):
        return (thing.fget, thing.fset, thing.fdel)
    if isinstance(thing, dict):
        return islice(thing.values(), 100)
    if isinstance(thing, _CONTAINERS):
        return islice(thing, 100)
    return (type(thing), *getattr(thing, "__dict__", {}).values())


def _parts_of_function(fn: types.FunctionType, mentioned: frozenset[str]) -> Iterator[Any]:
    yield from (fn.__globals__.get(name) for name in mentioned)
    for cell in fn.__closure__ or ():
        with suppress(ValueError):  # not assigned yet
            yield cell.cell_contents
    yield from fn.__defaults__ or ()
    yield from (fn.__kwdefaults__ or {}).values()
    yield getattr(fn, "__wrapped__", None)


def _names(code: types.CodeType) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _imports(code: types.CodeType) -> set[str]:
    """The modules that the body imports by their full name."""
    found: set[str] = set()
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for at, step in enumerate(steps):
        if step.opname == "IMPORT_NAME" and steps[at - 2].argval == 0:  # how many dots
            found.add(step.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _imports(constant)
    return found


def _providers(modules: Iterable[str]) -> frozenset[str]:
    """The distributions that bring ``modules``, as far as they are installed."""
    path = _path()
    known = _distributions(path)
    found: set[str] = set()
    for module in modules:
        top = module.partition(".")[0]
        if top in sys.stdlib_module_names or top in ("qnb", "__main__"):
            continue
        if (name := _normal(top)) in known:
            found.add(name)
            continue
        owners = _owners(path).get(top, [])
        dashed = _normal(module) + "-"
        # Of a namespace that many share, google.cloud.storage is google-cloud-storage.
        found |= {name for name in owners if dashed.startswith(name + "-")} or set(owners)
    return frozenset(found)


@lru_cache(maxsize=1)
def _owners(_: _Path) -> dict[str, list[str]]:
    """Module → distributions. Reads what every one of them installed: some 100 ms."""
    return {
        module: [_normal(name) for name in names]
        for module, names in metadata.packages_distributions().items()
    }


# --- what differs ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that a worker has otherwise: ``there`` is None where it has not got it."""

    package: str
    here: str
    there: str | None
    severity: Severity

    def __str__(self) -> str:
        there = "not installed" if self.there is None else self.there
        return f"{self.package} {self.here} here, {there} there"


def differences(
    here: Description, there: Description, needs: Iterable[str], *, by_value: bool
) -> list[Difference]:
    """What of Python and the packages ``needs`` differs, the worst first.

    ``by_value`` is whether the function travels as compiled code, which only the same Python runs.
    """
    found = []

    def differ(name: str, ours: str, theirs: str | None, severity: Severity) -> None:
        if ours != theirs:
            found.append(Difference(name, ours, theirs, severity))

    other = here["implementation"] != there["implementation"]
    if other or _release(here["python"]) != _release(there["python"]):
        ours, theirs = (
            f"{said['implementation']} {said['python']}" if other else said["python"]
            for said in (here, there)
        )
        differ("Python", ours, theirs, "error" if by_value else "warning")
    else:
        differ("Python", here["python"], there["python"], "note")
    differ("platform", here["platform"], there["platform"], "note")
    for name in sorted(needs):
        ours, theirs = here["packages"].get(name), there["packages"].get(name)
        if ours is not None:
            differ(name, ours, theirs, _severity(ours, theirs))
    return sorted(found, key=lambda difference: _SEVERITIES.index(difference.severity))


def _severity(ours: str, theirs: str | None) -> Severity:
    if theirs is None:
        return "error"
    ours_, theirs_ = _release(ours), _release(theirs)
    if ours_ is None or theirs_ is None:
        return "warning"
    # Until 1.0, it is the second number that says what may break.
    same = ours_[:2] == theirs_[:2] and (ours_[1] > 0 or ours_[2] == theirs_[2])
    return "note" if same else "warning"


def _release(version: str) -> tuple[int, int, int] | None:
    """Epoch, major and minor of a version; None where they cannot be told."""
    match = re.match(r"(?:(\d+)!)?(\d+)(?:\.(\d+))?", version)
    return (int(match[1] or 0), int(match[2]), int(match[3] or 0)) if match else None


def report(name: str, worker: str, found: Iterable[Difference]) -> str | None:
    """What to tell the user of the function ``name``; None where nothing is worse than a note."""
    listed = sorted(found, key=lambda difference: _SEVERITIES.index(difference.severity))
    if not listed or listed[0].severity == "note":
        return None
    lines = [f"  {difference.severity}: {difference}" for difference in listed]
    return "\n".join(
        [
            f"task {name!r} meets another environment on worker {worker}:",
            *lines,
            "Install there what is here, or start workers of this environment with "
            "app.start_workers()",
        ]
    )
