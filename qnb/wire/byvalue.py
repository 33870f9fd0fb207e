"""Pickles that need nothing of this notebook at the other end: local code travels along.

cloudpickle ships functions and classes of ``__main__`` by value. Here those of local modules (a
file beside the script, see :mod:`qnb.wire.origins`) travel too, and so do module objects: after
``import helpers``, a function that calls ``helpers.f()`` takes a ``helpers`` along that has the
attributes it mentions. Its functions share that module's namespace, as they did at home.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from logging import Logger
from typing import Any, NoReturn, TypeVar
from weakref import WeakSet

import cloudpickle
from cloudpickle import cloudpickle as _cloudpickle

from qnb.wire.envelope import Buffer, too_large
from qnb.wire.origins import installed, is_handle

__all__ = ["Pickled", "Watch", "dump"]

_MISSING = object()
_NOTHING: Mapping[int, Any] = types.MappingProxyType({})


@dataclass(slots=True)
class Pickled:
    """A value as bytes: the pickle in pieces, and large buffers beside it, not copied."""

    pickle: list[Buffer]
    buffers: list[memoryview]
    has_code: bool  #: it holds compiled functions, which only the same Python version runs
    watch: Watch

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.pickle)) + sum(view.nbytes for view in self.buffers)


def dump(value: Any, limit: int, instead: Mapping[int, Any] = _NOTHING) -> Pickled:
    """``value`` and all local code that it needs. Stops as soon as it is above ``limit`` bytes.

    Globals whose ids are in ``instead`` are replaced by what is given there.
    """
    # Which attributes of a local module to take is known when all code that mentions them has
    # been seen, and they may bring more code: so again, until nothing new is mentioned.
    mentioned: frozenset[str] = frozenset()
    while True:
        sink = _Sink(limit)
        pickler = _Pickler(sink, mentioned, instead)
        pickler.dump(value)
        if not pickler.took_modules or pickler.mentioned <= mentioned:
            return Pickled(sink.pieces, sink.buffers, pickler.has_code, pickler.watch)
        mentioned |= pickler.mentioned


class _Sink:
    """Takes what a pickler writes, piece by piece, up to a limit."""

    __slots__ = ("_left", "_limit", "buffers", "pieces")

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self.pieces: list[Buffer] = []
        self.buffers: list[memoryview] = []

    def write(self, piece: Buffer) -> None:
        # The pickler makes a new piece each time; long bytes it hands over uncopied.
        self._take(len(piece))
        self.pieces.append(piece)

    def keep(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        self._take(raw.nbytes)
        self.buffers.append(raw)
        return False  # beside the pickle, not in it

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise too_large(f"this takes at least {self._limit - self._left:,} bytes", self._limit)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc] # it ships no types
    def __init__(
        self, sink: _Sink, mentioned: frozenset[str], instead: Mapping[int, Any] = _NOTHING
    ) -> None:
        super().__init__(sink, protocol=5, buffer_callback=sink.keep)
        self._wanted = mentioned
        self._instead = instead
        self._shells: dict[int, _Shell] = {}
        self.mentioned: set[str] = set()
        self.took_modules = False
        self.has_code = False
        self.watch = Watch()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.FunctionType):
            return self._function(obj)
        if isinstance(obj, type):
            return self._class(obj)
        if isinstance(obj, types.ModuleType):
            return self._module(obj)
        if obj is os.environ:  # the worker has its own; this one may hold secrets
            return getattr, (os, "environ")
        if isinstance(obj, TypeVar) and _is_local(obj):
            return _cloudpickle._make_typevar, _cloudpickle._decompose_typevar(obj)
        return NotImplemented

    def _function(self, fn: types.FunctionType) -> Any:
        if not (home := _local_module(fn)) and _by_reference(fn):
            return NotImplemented
        self.has_code = True
        self.mentioned |= _mentions(fn.__code__)
        self.watch.function(fn)
        if home is not None:
            self.globals_ref.setdefault(id(fn.__globals__), _Namespace(self._shell(home)))
        reduced = self._dynamic_function_reduce(fn)
        if self._instead:
            self._replace(reduced[2][1]["__globals__"])
        return reduced

    def _replace(self, space: dict[str, Any]) -> None:
        for name, value in space.items():
            space[name] = self._instead.get(id(value), value)

    def _class(self, cls: type) -> Any:
        reduced = _cloudpickle._class_reduce(cls)
        if reduced is NotImplemented and _is_local(cls):
            reduced = _cloudpickle._dynamic_class_reduce(cls)
        if reduced is NotImplemented or len(reduced) < 6:
            return reduced
        self.has_code = True
        self.watch.class_(cls)
        if cls not in _rebuilt:
            _own.add(cls)
        return (*reduced[:5], _fill_class)

    def _module(self, module: types.ModuleType) -> Any:
        if installed(module.__name__) or module.__name__ == "__main__":
            return NotImplemented
        self.took_modules = True
        space = vars(module)
        self.watch.names(space, self._wanted)
        taken = {
            name: space[name]
            for name in sorted(self._wanted & space.keys())
            if not (name.startswith("__") and name.endswith("__"))
        }
        self._replace(taken)
        return _itself, (self._shell(module),), taken, None, None, _fill_module

    def _shell(self, module: types.ModuleType) -> _Shell:
        return self._shells.setdefault(id(module), _Shell(module))


def _is_local(thing: Any) -> bool:
    home = getattr(thing, "__module__", None)
    return isinstance(home, str) and home in sys.modules and not installed(home)


def _by_reference(fn: types.FunctionType) -> bool:
    return bool(_cloudpickle._should_pickle_by_reference(fn)) and not _is_local(fn)


def _local_module(fn: types.FunctionType) -> types.ModuleType | None:
    """The local module whose namespace ``fn`` works in; a script or notebook is none."""
    name = fn.__globals__.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is None or vars(module) is not fn.__globals__:
        return None
    return None if name in ("__main__", "__mp_main__") or installed(str(name)) else module


def _mentions(code: types.CodeType) -> set[str]:
    """Every name and short text in ``code``: what it may take from a module, getattr included."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _mentions(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            found.add(constant)
    return found


# --- rebuilding at the other end ---------------------------------------------------------------


class _Shell:
    """Stands for a local module; becomes, at the other end, a module with nothing in it."""

    __slots__ = ("_module",)

    def __init__(self, module: types.ModuleType) -> None:
        self._module = module

    def __reduce__(self) -> tuple[Any, ...]:
        space = vars(self._module)
        facts = {
            name: list(space[name]) if name == "__path__" else space[name]
            for name in ("__package__", "__file__", "__path__", "__doc__")
            if name in space
        }
        return _make_module, (self._module.__name__, facts)


class _Namespace(dict[str, Any]):
    """Stands for the globals of a local module; becomes those of its shell."""

    def __init__(self, shell: _Shell) -> None:
        super().__init__(shell=shell)  # not empty: cloudpickle writes into an empty one
        self._shell = shell

    def __reduce__(self) -> tuple[Any, ...]:
        return vars, (self._shell,)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()


def _make_module(name: str, facts: dict[str, Any]) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(facts)

    def absent(attribute: str) -> NoReturn:
        raise AttributeError(
            f"module {name!r} travelled with the task, with the names that its code mentions; "
            f"{attribute!r} was not among them. Write {name}.{attribute} in the task"
        )

    vars(module)["__getattr__"] = absent
    return module


def _itself(module: types.ModuleType) -> types.ModuleType:
    return module


def _fill_module(module: types.ModuleType, attributes: dict[str, Any]) -> None:
    vars(module).update(attributes)


#: Classes that were defined in this process, and those that came from another.
_own: WeakSet[type] = WeakSet()
_rebuilt: WeakSet[type] = WeakSet()


def _fill_class(cls: type, state: Any) -> type:
    """Fill a class that arrived, unless it is this process's own that has come back.

    cloudpickle would overwrite the methods of the user's class with copies that no longer see
    her globals, whenever a result brings an instance home.
    """
    if cls not in _own:
        _rebuilt.add(cls)
        _cloudpickle._class_setstate(cls, state)
    return cls


# --- has anything changed since? ---------------------------------------------------------------

_SCALARS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, range, type(...), type(NotImplemented)}
)
_BY_NAME = (
    types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type, Logger, re.Pattern,
)  # fmt: skip
#: what a class statement, a dataclass or a generic class leaves, and nobody changes inside
_OF_CLASS = frozenset(
    [
        "__annotations__", "__dataclass_fields__", "__dataclass_params__", "__orig_bases__",
        "__parameters__", "__annotate_func__", "__annotations_cache__", "__type_params__",
    ]
)  # fmt: skip
_DESCRIPTORS = (
    property, classmethod, staticmethod,
    types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType,
    types.MethodDescriptorType, types.ClassMethodDescriptorType,
)  # fmt: skip


@dataclass(slots=True)
class Watch:
    """Everything that a pickle was made of, by identity: :meth:`unchanged` tells whether making
    it again would make the same. ``complete`` is false where only making it again can tell, since
    a list, an array or an object can change inside.
    """

    complete: bool = True
    _names: list[tuple[dict[str, Any], str, object]] = field(default_factory=list)
    _cells: list[tuple[types.CellType, object]] = field(default_factory=list)
    _functions: list[tuple[types.FunctionType, Any, Any, Any, int]] = field(default_factory=list)
    _classes: list[tuple[type, Any, dict[str, Any]]] = field(default_factory=list)
    _modules: int = field(default_factory=lambda: len(sys.modules))

    def function(self, fn: types.FunctionType) -> None:
        """``fn`` travels by value."""
        self._functions.append(
            (fn, fn.__code__, fn.__defaults__, fn.__kwdefaults__, len(fn.__dict__))
        )
        self._see(fn.__defaults__)
        self.names(fn.__kwdefaults__ or {}, fn.__kwdefaults__ or ())
        self.names(fn.__dict__, fn.__dict__)
        self.names(fn.__globals__, _cloudpickle._extract_code_globals(fn.__code__))
        for cell in fn.__closure__ or ():
            value = _content(cell)
            self._cells.append((cell, value))
            self._see(value)

    def class_(self, cls: type) -> None:
        """``cls`` travels by value."""
        if issubclass(cls, Enum):
            self.complete = False
        space = dict(cls.__dict__)
        self._classes.append((cls, cls.__bases__, space))
        for name, value in space.items():
            if not name.startswith("_abc_") and name not in _OF_CLASS:
                self._see(
                    value.__func__ if isinstance(value, classmethod | staticmethod) else value
                )

    def names(self, space: dict[str, Any], names: Iterable[str]) -> None:
        """What ``names`` stand for in ``space`` matters; also that one stands for nothing."""
        for name in names:
            value = space.get(name, _MISSING)
            self._names.append((space, name, value))
            self._see(value)

    def files(self) -> set[str]:
        """The files that the code of its functions comes from."""
        return {code.co_filename for _, code, *_ in self._functions}

    def values(self) -> Iterator[tuple[str, object]]:
        """What its functions reach by name: globals of any module, and outer variables."""
        for _, name, value in self._names:
            yield f"global {name!r}", value
        for fn, *_ in self._functions:
            for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
                yield f"outer variable {name!r}", _content(cell)

    def unchanged(self) -> bool:
        """Whether everything is what it was. Some 50 ns a name."""
        if not self.complete or self._modules != len(sys.modules):  # an import may add submodules
            return False
        return (
            all(space.get(name, _MISSING) is value for space, name, value in self._names)
            and all(
                fn.__code__ is code
                and fn.__defaults__ is defaults
                and fn.__kwdefaults__ is kwdefaults
                and len(fn.__dict__) == extras
                for fn, code, defaults, kwdefaults, extras in self._functions
            )
            and all(_content(cell) is value for cell, value in self._cells)
            and all(
                cls.__bases__ is bases and _same_items(cls.__dict__, space)
                for cls, bases, space in self._classes
            )
        )

    def _see(self, value: object) -> None:
        if self.complete and not _is_fixed(value):
            self.complete = False


def _is_fixed(value: object) -> bool:
    """Whether nothing that a pickle shows of ``value`` changes while it is the same object.

    A function or class that travels by value changes, but is watched itself.
    """
    if value is _MISSING or type(value) in _SCALARS:
        return True
    if isinstance(value, tuple | frozenset) and type(value) in (tuple, frozenset):
        return all(map(_is_fixed, value))
    return isinstance(value, (*_BY_NAME, *_DESCRIPTORS)) or is_handle(value)


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return _MISSING


def _same_items(now: types.MappingProxyType[str, Any], then: dict[str, Any]) -> bool:
    return len(now) == len(then) and all(
        now.get(name, _MISSING) is value for name, value in then.items()
    )
