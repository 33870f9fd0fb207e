"""What a class statement has made, without what Python makes of it in its own way each version.

A dataclass is its fields and not the ``__init__`` that was generated from them, an enumeration its
members, a named tuple its fields and defaults.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from functools import cached_property
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any

__all__ = ["attributes"]

#: what every class has, what is seen otherwise, and what follows from the rest
_SKIPPED = frozenset(
    [
        "__module__", "__qualname__", "__dict__", "__weakref__", "__firstlineno__",
        "__static_attributes__", "__annotations__", "__annotations_cache__", "__annotate__",
        "__annotate_func__", "__parameters__", "__orig_bases__", "__type_params__",
        "__abstractmethods__", "_abc_impl", "__match_args__", "__classcell__",
        "__dataclass_params__", "__dataclass_fields__", "_fields", "_field_defaults",
        "_is_protocol", "_is_runtime_protocol", "__protocol_attrs__",
        "__non_callable_proto_members__",
        "__slotnames__",  # copyreg leaves it there when it has pickled an instance
    ]
)  # fmt: skip

#: modules whose functions in a class follow from what else it has
_MAKERS = frozenset({"collections", "dataclasses", "enum", "typing", "abc"})

_PARAMETERS = ("init", "repr", "eq", "order", "unsafe_hash", "frozen")


def attributes(cls: type) -> dict[str, Any]:
    """Name → value of all that makes ``cls`` what it is, its bases and metaclass apart."""
    found = dict(_own(cls))
    found |= _annotations(cls)
    if "__dataclass_fields__" in vars(cls):
        found |= _fields(cls)
    if issubclass(cls, Enum):
        found |= {name: member.value for name, member in cls.__members__.items()}
        boundary = getattr(cls, "_boundary_", None)  # of flags
        found["@members"] = [*cls.__members__, getattr(boundary, "name", "")]  # in their order
    elif "_field_defaults" in vars(cls):
        found |= {"_fields": vars(cls)["_fields"], "_field_defaults": vars(cls)["_field_defaults"]}
    return dict(sorted(found.items()))


def _own(cls: type) -> Iterator[tuple[str, Any]]:
    is_made = {"__dataclass_fields__", "_field_defaults"} & vars(cls).keys()
    is_enum = issubclass(cls, Enum)
    for name, value in vars(cls).items():
        if name in _SKIPPED or isinstance(value, GetSetDescriptorType | MemberDescriptorType):
            continue
        if name == "__doc__":
            if isinstance(value, str) and not (is_made and value.startswith(f"{cls.__name__}(")):
                yield name, inspect.cleandoc(value)
            continue
        if name == "__hash__" and value is None:  # since it has an __eq__
            continue
        function = _function(value)
        if function is None:
            if is_enum and (name[0] == name[-1] == "_" or type(value).__module__ == "enum"):
                continue  # what Python notes of its members
            if type(value).__name__ == "_tuplegetter":
                continue  # a field of a named tuple
        elif name.startswith("_") and _is_made(function, cls):
            continue
        yield name, value


def _function(value: Any) -> FunctionType | None:
    """The function in a method, a property and the like."""
    for way in ("__func__", "fget", "func"):
        if isinstance(value, classmethod | staticmethod | property | cached_property):
            value = getattr(value, way, None) or value
    return value if isinstance(value, FunctionType) else None


def _is_made(function: FunctionType, cls: type) -> bool:
    """Whether Python, and not the user, wrote this method."""
    home = function.__globals__.get("__name__")
    if home in _MAKERS or home == f"namedtuple_{cls.__name__}":
        return True
    made: str = inspect.unwrap(function).__code__.co_qualname
    return made.startswith("__create_fn__.")  # by a dataclass


def _annotations(cls: type) -> dict[str, Any]:
    listed = [
        (name, note if isinstance(note, str) else inspect.formatannotation(note))
        for name, note in inspect.get_annotations(cls).items()
    ]
    plain = [(name, re.sub(r" at 0x[0-9a-fA-F]+", "", note)) for name, note in listed]
    return {"__annotations__": plain} if plain else {}


def _fields(cls: type) -> dict[str, Any]:
    parameters = vars(cls)["__dataclass_params__"]
    found: dict[str, Any] = {
        "@dataclass": [(name, getattr(parameters, name, None)) for name in _PARAMETERS],
    }
    for name, field in vars(cls)["__dataclass_fields__"].items():
        chosen = [field.init, field.repr, field.hash, field.compare, field.kw_only]
        values = [
            ... if value is dataclasses.MISSING else value
            for value in (field.default, field.default_factory)
        ]
        kind = str(getattr(field, "_field_type", ""))
        found[name] = (*values, chosen, kind, dict(field.metadata))
    return found
