"""Where a function comes from: can a worker import it by name, or must it travel by value?

What is *installed* (the standard library, site-packages, an editable install) is found by every
worker of the same environment and goes by name, ``"module:qualname"``. A notebook, a script and
the files beside it exist only here.
"""

from __future__ import annotations

import importlib
import json
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from qnb.errors import EncodingError

__all__ = ["here", "installed", "is_handle", "reference", "resolve"]


def reference(fn: Callable[..., Any]) -> str | None:
    """``"module:qualname"`` of ``fn`` if workers can import it, or None if it must be shipped."""
    module_name = getattr(fn, "__module__", None)
    name = getattr(fn, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(name, str):
        return None
    if "<" in name or module_name not in sys.modules or not installed(module_name):
        return None
    try:
        found = _attribute(sys.modules[module_name], name)
    except AttributeError:
        return None
    if found is fn or _function_of(found) is fn or _same_class_method(found, fn):
        return f"{module_name}:{name}"
    return None


def resolve(reference: str) -> Callable[..., Any]:
    """The function that :func:`reference` named, imported here."""
    module_name, _, name = reference.partition(":")
    try:
        found = _attribute(importlib.import_module(module_name), name)
    except ImportError as error:
        missing = getattr(error, "name", None) or module_name
        raise EncodingError(
            f"the task's function {reference!r} cannot be imported: {error}. Install {missing!r} "
            f"here ({here()}), in the version that the client has"
        ) from error
    except AttributeError:
        raise EncodingError(
            f"the task's function {reference!r} is not in that module here ({here()}): install "
            "the version that the client has"
        ) from None
    found = _function_of(found) or found
    if not callable(found):
        raise EncodingError(f"{reference!r} names no function but a {type(found).__name__} here")
    return found  # type: ignore[no-any-return]


def here() -> str:
    """This interpreter, as an error message names it."""
    version = ".".join(map(str, sys.version_info[:3]))
    return f"host {os.uname().nodename!r}, Python {version} at {sys.executable!r}"


def is_handle(thing: object) -> bool:
    """Whether ``thing`` is one of qnb's own handles (a task): immutable, and known to workers."""
    return str(type(thing).__module__).partition(".")[0] == "qnb"


def _function_of(thing: Any) -> Any:
    """The function inside a task; a decorator of somebody else's stays on."""
    return getattr(thing, "__wrapped__", None) if is_handle(thing) else None


def _attribute(module: ModuleType, qualname: str) -> Any:
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _same_class_method(found: Any, fn: Any) -> bool:
    """A classmethod is bound anew at each access."""
    return (
        isinstance(getattr(fn, "__self__", None), type)
        and not isinstance(fn, FunctionType)
        and type(found) is type(fn)
        and getattr(found, "__func__", None) is getattr(fn, "__func__", fn)
        and found.__self__ is fn.__self__
    )


# --- installed or local ----------------------------------------------------------------------


def installed(module_name: str) -> bool:
    """Whether a fresh interpreter of this environment, in any folder, could import it."""
    top = module_name.partition(".")[0]
    if top in ("__main__", "__mp_main__"):
        return False
    if top == "qnb":
        return True
    module = sys.modules.get(module_name)
    if module is None:
        return False
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if isinstance(file, str):
        return _importable(module_name, file)
    parent = module_name.rpartition(".")[0]  # compiled packages make submodules without a file
    return installed(parent) if parent else getattr(module, "__spec__", None) is not None


@lru_cache(maxsize=4096)
def _importable(module_name: str, file: str) -> bool:
    path = Path(file)
    if not path.is_absolute():
        path = Path.cwd() / path
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    if any(path.is_relative_to(root) for root in _roots()):
        return True
    names = module_name.split(".")
    depth = len(names) if path.stem == "__init__" or path.suffix == "" else len(names) - 1
    container = path.parents[depth] if path.suffix else path.parents[depth - 1]
    if container.resolve() in _linked_folders():
        return True
    return any(
        names[0] in project.modules and path.resolve().is_relative_to(project.folder)
        for project in _editable_projects()
    )


@lru_cache(maxsize=1)
def _roots() -> tuple[Path, ...]:
    """The folders of the standard library and of installed packages."""
    paths = sysconfig.get_paths()
    roots = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return tuple(Path(root) for root in roots | {str(folder) for folder in _site_folders()})


def _site_folders() -> Iterator[Path]:
    yield from map(Path, site.getsitepackages())
    if site.ENABLE_USER_SITE:
        yield Path(site.getusersitepackages())


@lru_cache(maxsize=1)
def _linked_folders() -> frozenset[Path]:
    """Folders that ``.pth`` files put on every interpreter's path: most editable installs."""
    lines = (
        folder / line.strip()
        for folder in _site_folders()
        if folder.is_dir()
        for link in folder.glob("*.pth")
        for line in _text(link).splitlines()
        if line.strip() and not line.startswith(("#", "import ", "import\t"))
    )
    return frozenset(path.resolve() for path in lines if path.is_dir())


class _Project(NamedTuple):
    folder: Path
    modules: frozenset[str]


@lru_cache(maxsize=1)
def _editable_projects() -> tuple[_Project, ...]:
    """Editable installs that go through an import hook instead of a ``.pth`` line."""
    return tuple(filter(None, map(_editable, metadata.distributions())))


def _editable(distribution: metadata.Distribution) -> _Project | None:
    with suppress(ValueError, OSError, KeyError, AttributeError):
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        url = origin.get("url", "")
        if origin.get("dir_info", {}).get("editable") and url.startswith("file://"):
            folder = Path(unquote(urlsplit(url).path)).resolve()
            listed = (distribution.read_text("top_level.txt") or "").split()
            modules = listed or [distribution.metadata["Name"].replace("-", "_")]
            return _Project(folder, frozenset(modules))
    return None


def _text(file: Path) -> str:
    with suppress(OSError, ValueError):
        return file.read_text()
    return ""
