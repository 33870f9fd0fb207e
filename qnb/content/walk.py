"""What a function *is*: its own code, and all code and values that it reaches.

Two functions have one :class:`~qnb.content.code.Code` if they compute the same for the same
reasons, in this kernel or another. The rules, where one had to be chosen:

- **Local code** (a notebook, a script, files beside it, a project installed in editable mode) is
  followed to the end: helpers, globals by value, closures, defaults, attributes of functions,
  classes with all that they have, the attributes of local modules that the code mentions.
- **Installed code** is its name and the version of its distribution; the standard library, qnb
  and IPython are their names alone.
- Only what a person may change without a thought is left out: comments, blank lines, layout,
  the order of cells, where the code is, and qnb's own decorators. A renamed variable, another
  annotation or another docstring is another function.
- Other decorators are part of the function, with what they mention; so are the wrappers that they
  make. One that an installed package made is what it holds, or its line where that is unclear.
- Of annotations, only their text counts.
- A local module that is imported inside a body counts whole, as its file is now.
- Code without source (of ``exec``, of a cell under ``%%time``) is its bytecode: another minor
  version of Python makes another function.
- What is found by a text alone (``eval``, ``globals()["a"]``, ``import_module``), files, the
  environment, and what was changed in an installed package are not seen.
- What has no content to compare (an open file, a generator) makes a code that equals nothing.
  Locks are all alike.

Aliasing is not seen: two globals that are one list look like two equal lists.
"""

from __future__ import annotations

import builtins
import re
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from importlib.util import resolve_name
from pathlib import Path
from reprlib import Repr
from types import BuiltinFunctionType, CellType, FunctionType, ModuleType
from typing import Any, NamedTuple

from qnb.content.classes import attributes
from qnb.content.code import Code, Kind, Part
from qnb.content.packages import find_file, installs, is_own, module_of, versions
from qnb.content.reached import METHODS, node_of
from qnb.content.text import Import, Text, file_text, text_of
from qnb.content.values import (
    MADE_BY_CLASS,
    Node,
    Unknown,
    Writer,
    call_digest,
    value_digest,
)
from qnb.wire.blame import type_name
from qnb.wire.byvalue import Watch
from qnb.wire.origins import is_handle, reference

__all__ = ["code_of", "content_of", "value_content"]

_KEPT = 64  #: functions whose code is kept for the next submit


class _Known(NamedTuple):
    fn: Any  #: kept, so that its id stays its own
    watch: Watch
    installs: tuple[int, ...]
    code: Code


_known: dict[int, _Known] = {}


def code_of(fn: Callable[..., Any]) -> Code:
    """What ``fn`` is: a function, a task, a class, a partial, a bound method.

    Cheap for a function seen before of which nothing has changed since: neither its code nor a
    helper or global it reaches.
    """
    fn = _inside(fn)
    now = installs()
    known = _known.get(id(fn))
    if known is not None and known.watch.unchanged() and known.installs == now:
        return known.code
    walk = _Walk()
    code = walk.code(fn, now)
    _known.pop(id(fn), None)
    if code.comparable:
        while len(_known) >= _KEPT:
            _known.pop(next(iter([*_known]), 0), None)  # a list: other threads change it
        _known[id(fn)] = _Known(fn, walk.watch, now, code)
    return code


def content_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """32 hex digits that equal arguments always have; local functions and classes by their code.

    EncodingError names an argument that cannot be compared.
    """
    return call_digest("", args, kwargs, _by_code)


def value_content(value: Any) -> bytes:
    """16 bytes that say what ``value`` is, as :func:`content_of` says it of arguments."""
    return value_digest(value, _by_code)


def _by_code(value: Any) -> Node | None:
    value = _inside(value)
    if not _is_walked(value):
        return None
    code = code_of(value)
    if code.reason:
        raise Unknown(f"reaches what cannot be compared: {code.reason}")
    return Node("code", (code.digest,))


def _inside(thing: Any) -> Any:
    """The function of a task."""
    return getattr(thing, "__wrapped__", thing) if is_handle(thing) else thing


def _is_walked(thing: Any) -> bool:
    """Whether it counts by what it has: own code, and classes that others made for this place."""
    if isinstance(thing, type):
        return is_own(thing) or (bool(thing.__flags__ & MADE_BY_CLASS) and not reference(thing))
    return isinstance(thing, FunctionType) and is_own(thing)


class _Walk:
    """One walk from a function through all that it reaches, breadth first."""

    def __init__(self) -> None:
        self.watch = Watch()
        self._parts: dict[str, Part | None] = {}  #: in the order in which they were met
        self._names: dict[Any, str] = {}  #: identity → name of the part
        self._alive: list[Any] = []  #: so that the identities stay their own
        self._waiting: deque[tuple[str, Any]] = deque()
        self._modules: set[str] = set()  #: installed ones
        self._local: dict[int, ModuleType] = {}  #: those of own code
        self._mentions: set[str] = {"__getattr__"}  #: what code may take from them
        self._reason = ""

    def code(self, fn: Any, now: tuple[int, ...]) -> Code:
        if _is_walked(fn):
            self._name(fn)
        else:
            self.watch.complete = reference(fn) is not None
            self._value("function", _title(fn), fn)
        taken, known = list[Any](), -1
        while known != len(self._parts) + len(self._local):  # what is taken may take more
            known = len(self._parts) + len(self._local)
            self._drain()
            taken = [(each.__name__, *self._taken(each)) for each in [*self._local.values()]]
        for module in self._local.values():
            self.watch.names(vars(module), self._mentions)
        for package, version in versions(frozenset(self._modules), now):
            self._parts[self._free(package)] = Part("package", _hash(version), version)
        parts = {name: part for name, part in self._parts.items() if part is not None}
        listed = [(name, part.kind, part.digest) for name, part in sorted(parts.items())]
        return Code(_hash([next(iter(parts)), *listed, *taken]).hex(), parts, self._reason)

    def _drain(self) -> None:
        while self._waiting:
            name, thing = self._waiting.popleft()
            if isinstance(thing, FunctionType):
                self._function(name, thing)
            elif isinstance(thing, type):
                self._class(name, thing)
            else:
                self._file(name, thing)

    # -- naming --------------------------------------------------------------------------------

    def _free(self, name: str) -> str:
        """``name``, or with a number if another thing has it; its place among the parts."""
        at, free = 1, name
        while free in self._parts:
            at += 1
            free = f"{name} ({at})"
        self._parts[free] = None
        return free

    def _name(self, thing: FunctionType | type) -> str:
        """The name of the part that ``thing`` is; it will be walked."""
        return self._later(id(thing), _title(thing), thing)

    def _later(self, identity: Any, title: str, thing: Any) -> str:
        name = self._names.get(identity)
        if name is None:
            name = self._names[identity] = self._free(title)
            self._alive.append(thing)
            self._waiting.append((name, thing))
        return name

    # -- what is used under a name ---------------------------------------------------------------

    def _use(self, kind: Kind, name: str, value: Any, identity: Any) -> tuple[str, str]:
        """The part that ``value`` is; a local module is what the code takes of it."""
        value = _inside(value)
        if _is_walked(value):
            return ("code", self._name(value))
        if isinstance(value, ModuleType) and is_own(value):
            self._local[id(value)] = value
            return ("module", value.__name__)
        if identity not in self._names:
            self._names[identity] = self._value(kind, name, value)
        return ("value", self._names[identity])

    def _taken(self, module: ModuleType) -> Iterator[tuple[Any, ...]]:
        """What any code mentions of a local module, since it may be handed from one to another."""
        space = vars(module)
        for name in sorted(self._mentions & space.keys() - _OF_IMPORT):
            title = _shorter(f"{module.__name__}.{name}")
            yield name, self._use("global", title, space[name], (id(space), name))

    def _value(self, kind: Kind, title: str, value: Any) -> str:
        name = self._free(title)
        self._alive.append(value)
        try:
            digest = _digest(Writer(self._look).write(value))
        except (Unknown, RecursionError) as error:
            what = f"{error.path} {error.what}" if isinstance(error, Unknown) else " is too deep"
            digest = self._unlike(f"{kind} `{name}`{what}")
        is_secret = isinstance(value, str | bytes) and _SECRET.search(name)
        shown = type_name(value) if is_secret else _shown(value)
        self._parts[name] = Part(kind, digest, shown)
        return name

    def _unlike(self, reason: str) -> bytes:
        """A digest that equals no other."""
        self._reason = self._reason or reason
        return secrets.token_bytes(16)

    # -- the things that are walked --------------------------------------------------------------

    def _function(self, name: str, fn: FunctionType) -> None:
        self.watch.function(fn)
        text = text_of(fn.__code__)
        space = fn.__globals__
        self._mentions |= text.mentions
        module = _shorter(str(space.get("__name__", "")) + ".")
        uses: list[Any] = [text.digest]

        self.watch.names(space, text.names)
        for used in sorted(text.names):
            value = space.get(used, _MISSING)
            if value is _MISSING:
                uses.append((used, "builtin" if hasattr(builtins, used) else "undefined"))
            else:
                uses.append(
                    (used, self._use("global", f"{module}{used}", value, (id(space), used)))
                )
        uses += self._decorators(text, space, module)
        for outer, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            value = _content(cell)
            if value is _MISSING:
                uses.append((outer, "undefined"))
            else:
                uses.append(
                    (outer, self._use("outer variable", f"{name}.{outer}", value, id(cell)))
                )
        for parameter, value in _defaults(fn):
            title = f"{name}({parameter})"
            uses.append((parameter, self._use("default", title, value, (id(fn), title))))
        for attribute, value in sorted(fn.__dict__.items()):
            title = f"{name}.{attribute}"
            uses.append((attribute, self._use("attribute", title, value, (id(fn), title))))
        uses += self._imports(text, str(space.get("__package__") or ""))
        self._parts[name] = Part("function", _hash(uses), text.source, text.where)

    def _decorators(self, text: Text, space: dict[str, Any], module: str) -> Iterator[Any]:
        """The lines above a function, but for qnb's own, and what they mention."""
        for line in text.decorators:
            self.watch.names(space, line.names)
            root = space.get(line.root, _MISSING)
            if is_handle(root) or getattr(root, "__name__", None) == "qnb":
                continue
            yield line.digest
            for name in sorted(line.names & space.keys()):
                value = space[name]
                # They have run: what they were given matters if it can be told, and only then.
                if _is_walked(value) or isinstance(value, ModuleType) or self._is_clear(value):
                    title = f"{module}{name}"
                    yield name, self._use("global", title, value, (id(space), name))
                else:
                    self._note(value)

    def _class(self, name: str, cls: type) -> None:
        self.watch.class_(cls)
        uses: list[Any] = []
        shown = []
        try:
            heads = [cls.__bases__, type(cls)]
            uses.append([Writer(self._look).write(head) for head in heads])
            for attribute, value in attributes(cls).items():
                inner = _inside(value)
                if _is_walked(inner) or isinstance(inner, METHODS):
                    shown.append(attribute)
                    uses.append((attribute, Writer(self._look).write(inner)))
                else:
                    title = f"{name}.{attribute}"
                    uses.append((attribute, self._value("attribute", title, value)))
        except Unknown as unknown:
            uses.append(self._unlike(f"class `{name}`{unknown.path} {unknown.what}"))
        bases = ", ".join(base.__name__ for base in cls.__bases__)
        text = "\n".join([f"class {cls.__name__}({bases})", *(f"  {method}" for method in shown)])
        self._parts[name] = Part("class", _hash(uses), text)

    def _file(self, name: str, path: str) -> None:
        """A local module that a body imports."""
        self.watch.complete = False  # it may be edited at any time
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            self._parts[name] = Part("module", self._unlike(f"module `{name}`: {error}"))
            return
        try:
            text = file_text(path, content.decode())
        except (SyntaxError, ValueError, RecursionError):  # compiled, or broken
            self._parts[name] = Part("module", _digest(content), "", path)
            return
        package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
        uses = [text.digest, *self._imports(text, package)]
        self._parts[name] = Part("module", _hash(uses), text.source, path)

    def _imports(self, text: Text, package: str) -> Iterator[Any]:
        """The modules that a body imports, those of local files to be walked."""
        for each in sorted(text.imports):
            for module in _imported(each, package):
                path = find_file(module)
                if path is None:
                    self._modules.add(module)
                    yield module
                else:
                    yield module, self._later(("file", module), module, path)

    # -- values ----------------------------------------------------------------------------------

    def _note(self, value: Any) -> None:
        """An installed package matters to what the function does."""
        if module := module_of(value):
            self._modules.add(module)

    def _is_clear(self, value: Any) -> bool:
        """Whether it can be told what ``value`` is."""
        try:
            Writer(self._look).write(value)
        except (Unknown, RecursionError):
            return False
        return True

    def _look(self, value: Any) -> Node | None:
        """What code a value is, for :class:`Writer`."""
        value = _inside(value)
        if _is_walked(value):
            return Node("code", (self._name(value),))
        self._note(value)
        if isinstance(value, FunctionType):
            return None if reference(value) else self._of_package(value)
        if isinstance(value, ModuleType):
            if is_own(value):
                raise Unknown(f"holds the local module {value.__name__!r}: import it as a global")
            return Node("module", (value.__name__,))
        return node_of(value)

    def _of_package(self, fn: FunctionType) -> Node:
        """A function that installed code has made: a wrapper, a closure."""
        self.watch.complete = False
        outer = [_content(cell) for cell in fn.__closure__ or ()]
        known = [... if value is _MISSING else value for value in outer]
        name = f"{fn.__globals__.get('__name__')}:{fn.__code__.co_qualname}"
        extras = {word: value for word, value in vars(fn).items() if word != "__wrapped__"}
        made = Node("made", (name, known, fn.__defaults__, fn.__kwdefaults__, extras))
        # The line above a function need not have made this wrapper of it: only where that is all.
        return made if self._is_clear(made.parts) else node_of(fn) or made


# --- small questions ---------------------------------------------------------------------------

_MISSING = object()
_OF_IMPORT = {*vars(ModuleType("")), "__file__", "__cached__", "__path__", "__builtins__"}
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60
#: names of texts that are not shown, as what is shown is kept in the store and in notebooks
_SECRET = re.compile("token|secret|passw|credential|api_?key", re.IGNORECASE)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return _MISSING


def _defaults(fn: FunctionType) -> Iterator[tuple[str, Any]]:
    code, values = fn.__code__, fn.__defaults__ or ()
    yield from zip(code.co_varnames[code.co_argcount - len(values) :], values, strict=False)
    yield from sorted((fn.__kwdefaults__ or {}).items())


def _imported(each: Import, package: str) -> Iterator[str]:
    """The modules that an import runs, the outermost first."""
    base = each.name
    if each.level:
        try:
            base = resolve_name("." * each.level + each.name, package)
        except ImportError:
            yield base
            return
    steps = base.split(".")
    yield from (".".join(steps[: at + 1]) for at in range(len(steps)))
    yield from filter(find_file, (f"{base}.{name}" for name in each.taken))


def _title(thing: Any) -> str:
    if not hasattr(thing, "__qualname__"):
        return type_name(thing)
    return _shorter(f"{thing.__module__}.{thing.__qualname__}")


def _shorter(name: str) -> str:
    return name.removeprefix("__main__.").replace("<locals>.", "")


def _shown(value: Any) -> str:
    """A value in one line."""
    with suppress(Exception):  # a user's class may raise anything
        if isinstance(value, ModuleType):
            return f"module {value.__name__}"
        if isinstance(value, type | FunctionType | BuiltinFunctionType):
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(shape := getattr(value, "shape", None), tuple) and shape:
            dtype = [str(value.dtype)] if hasattr(type(value), "dtype") else []
            return " ".join([type(value).__name__, *dtype, str(shape)])
        text = " ".join(_SHORT.repr(value).split())
        if " at 0x" in text:  # of no meaning in another kernel
            return type_name(value)
        return text if len(text) <= 100 else f"{text[:99]}…"
    return type_name(value)


def _hash(plain: Any) -> bytes:
    return _digest(Writer().write(plain))


def _digest(written: bytes) -> bytes:
    return blake2b(written, digest_size=16, person=b"qnb code 1").digest()
