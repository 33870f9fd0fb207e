"""Which code counts line by line, and which by its name and version.

A project installed in editable mode is *installed* for :mod:`qnb.wire.origins`, since workers find
it by name; but its user edits it, and its version stays. So it is *own* code here, as are
notebooks, scripts and the files beside them.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from contextlib import suppress
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from qnb.wire.environment import describe, reached
from qnb.wire.origins import installed

__all__ = ["find_file", "installs", "is_own", "module_of", "versions"]

#: distributions that run the cells, and do not compute
_STAGE = frozenset({"qnb", "ipython", "ipykernel"})


def is_own(thing: Any) -> bool:
    """Whether the code of a function, class or module is its user's, and may be edited."""
    home = _home(thing)
    return not (isinstance(home, str) and _is_released(home))


def module_of(thing: Any) -> str | None:
    """The installed module that has ``thing``, or its type; None for own code."""
    home = _home(thing)
    return home if isinstance(home, str) and _is_released(home) else None


def _home(thing: Any) -> Any:
    if isinstance(thing, ModuleType):
        return thing.__name__
    if isinstance(thing, FunctionType):
        return thing.__globals__.get("__name__")  # a wrapper bears the module of what it wraps
    named = thing if isinstance(thing, type | BuiltinFunctionType) else type(thing)
    return getattr(named, "__module__", None)


def _is_released(name: str) -> bool:
    if name.partition(".")[0] == "qnb":
        return True
    if not installed(name):
        return False
    module = sys.modules[name]
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return not isinstance(file, str) or _is_settled(file)


@lru_cache(maxsize=4096)
def _is_settled(file: str) -> bool:
    """Whether an installer put the file where it is, or it is of the standard library."""
    path = Path(file)
    library = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or any(
        path.is_relative_to(folder) for folder in library
    )


def find_file(name: str) -> str | None:
    """The file of a module that is own code, loaded or not; nothing is imported to find it."""
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
        return file if isinstance(file, str) and name != "__main__" and is_own(module) else None
    found = ""
    folders: Any = None
    parts = name.split(".")
    for at in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: at + 1]), folders)
        if spec is None:
            return None
        found, folders = spec.origin or "", spec.submodule_search_locations or []
    return found if found and not _is_settled(found) else None


def installs() -> tuple[int, ...]:
    """Other numbers whenever a package has been installed or removed. Some 10 µs."""
    found = []
    for folder in sys.path:
        if folder.endswith("-packages"):
            with suppress(OSError, ValueError):  # a folder that is gone
                found.append(os.stat(folder).st_mtime_ns)  # noqa: PTH116 - a Path takes longer
    return tuple(found)


@lru_cache(maxsize=256)
def versions(modules: frozenset[str], _: tuple[int, ...]) -> tuple[tuple[str, str], ...]:
    """Name and version of the distributions that bring ``modules``, sorted.

    Not those of the standard library, of qnb and of the notebook's kernel. Remembered until the
    second argument, that of :func:`installs`, is another one.
    """
    needed: set[str] = set()
    for name in modules:
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names:
            module: Any = sys.modules.get(name)
            needed |= reached(module) if module else {top.replace("_", "-").lower()}
    needed -= _STAGE
    packages = describe()["packages"] if needed else {}
    return tuple((name, packages.get(name, "not installed")) for name in sorted(needed))
