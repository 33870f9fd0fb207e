"""What a function was when a job was submitted, part by part, and what has changed since.

A :class:`Code` is what :func:`qnb.content.walk.code_of` finds: the digest that decides whether a
result may be used again, and the parts that it was made of, so that the next submit can say which
of them is another one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import msgpack

from qnb.errors import EncodingError

__all__ = ["Change", "Code", "Kind", "Part", "changes", "explain"]

Kind: TypeAlias = Literal[
    "function", "class", "module", "package", "global", "outer variable", "default", "attribute"
]
_KINDS = frozenset(get_args(Kind))

_ROOM = 200_000  #: bytes that the texts of one packed code may take …
_MOST = 1_000  #: … and parts that are kept of it
_LONGEST = 16_000  #: characters of one text
_NAME = 200  #: characters of a name, a place or a reason
_SHOWN = 40  #: lines of all differences together that are shown …
_TOLD = 12  #: … and changes that are told


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that a function reaches. Only ``kind`` and ``digest`` decide whether it changed."""

    kind: Kind
    digest: bytes
    text: str = ""  #: its source, a short repr, or the version of a package; empty if not known
    where: str = ""  #: ``"Cell In[7], line 2"``


@dataclass(frozen=True, slots=True)
class Code:
    """What a function is: equal digests, equal code.

    ``reason`` says why nothing is equal to it, not even itself a moment later, when the function
    reaches something that has no content to compare, as an open file.
    """

    digest: str  #: 32 hex digits
    parts: Mapping[str, Part]  #: by name, the function itself first
    reason: str = ""

    @property
    def comparable(self) -> bool:
        """Whether what it computes may be used again."""
        return not self.reason

    def pack(self) -> bytes:
        """It as msgpack of at most 512 kB, usually some kB: texts that do not fit are left out."""
        left = _ROOM
        rows = []
        for name, part in list(self.parts.items())[:_MOST]:
            text = part.text[:_LONGEST]
            size = len(text.encode("utf-8", "surrogatepass"))
            text, left = (text, left - size) if size <= left else ("", left)
            rows.append([name[:_NAME], part.kind, part.digest, text, part.where[:_NAME]])
        packed = msgpack.packb(
            [1, self.digest, self.reason[:_NAME], rows], unicode_errors="surrogatepass"
        )
        return bytes(packed)

    @classmethod
    def unpack(cls, packed: bytes) -> Code:
        """What :meth:`pack` wrote; EncodingError for anything else."""
        try:
            version, digest, reason, rows = msgpack.unpackb(packed, unicode_errors="surrogatepass")
            if version != 1 or not (_is_text(digest) and _is_text(reason)):
                raise ValueError(f"version {version!r}")
            return cls(digest, dict(map(_part, rows)), reason)
        except Exception as error:  # noqa: BLE001 - whatever a stranger wrote
            raise EncodingError(
                f"what the store keeps of a function cannot be read: {error}. Submit again: it is "
                "then written anew"
            ) from None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _part(row: list[object]) -> tuple[str, Part]:
    name, kind, digest, text, where = row
    texts = (name, kind, text, where)
    if not (all(map(_is_text, texts)) and kind in _KINDS and isinstance(digest, bytes)):
        raise ValueError(f"part {name!r}")
    return str(name), Part(kind, digest, str(text), str(where))  # type: ignore[arg-type]


# --- what has changed --------------------------------------------------------------------------


class Change(NamedTuple):
    """One part that differs: ``old`` is None if it was not reached before, ``new`` if not now."""

    name: str
    old: Part | None
    new: Part | None
    is_root: bool  #: it is the function itself

    def __str__(self) -> str:
        """One line, and the difference of the sources below it."""
        part = self.new or self.old
        assert part is not None
        if part.kind == "package":
            return f"{self.name} {self.old.text if self.old else 'not used'} → " + (
                self.new.text if self.new else "not used"
            )
        kind = "helper" if part.kind == "function" and not self.is_root else part.kind
        what = f"{kind} `{self.name}`"
        if self.old is None or self.new is None:
            return f"{what} is {'not' if self.new is None else 'newly'} reached" + (
                " any more" if self.new is None else _place(part)
            )
        if part.kind in ("function", "class", "module"):
            return "\n".join(
                [f"{what} changed{_place(part)}", *_difference(self.old.text, self.new.text)]
            )
        if self.old.text == self.new.text:
            return f"{what}: another {part.text}"
        return f"{what}: {self.old.text} → {self.new.text}"


def _difference(old: str, new: str) -> Iterator[str]:
    if not (old and new):
        yield "  (its source is not known)"
        return
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), "before", "now", lineterm="", n=2
    )
    yield from (f"  {line}" for line in lines)


def _place(part: Part) -> str:
    return f" ({part.where})" if part.where else ""


def changes(old: Code, new: Code) -> list[Change]:
    """What differs, the function itself first. Empty where nothing does, or it is not known what.

    A function that only reaches something else is left out where the something is listed.
    """
    roots = {next(iter(code.parts), "") for code in (old, new)}
    found = [
        Change(name, old.parts.get(name), new.parts.get(name), name in roots)
        for name in dict.fromkeys([*new.parts, *old.parts])
        if _differ(old.parts.get(name), new.parts.get(name))
    ]
    told = [change for change in found if not _is_only_of_others(change)]
    return told or found


def _differ(old: Part | None, new: Part | None) -> bool:
    return old is None or new is None or (old.kind, old.digest) != (new.kind, new.digest)


def _is_only_of_others(change: Change) -> bool:
    old, new = change.old, change.new
    return (
        old is not None
        and new is not None
        and old.kind == new.kind
        and old.kind in ("function", "class")
        and bool(old.text)
        and old.text == new.text
    )


def explain(old: Code, new: Code) -> str:
    """What differs, as text for a person; empty where nothing does."""
    if old.digest == new.digest:
        return ""
    found, told, room = changes(old, new), list[str](), _SHOWN
    for change in found[:_TOLD]:
        head, *lines = str(change).splitlines()
        told += [head, *lines[:room], *["  …"] * (len(lines) > room > 0)]
        room = max(0, room - len(lines))
    told += [f"and {len(found) - _TOLD:,} more"] if len(found) > _TOLD else []
    told += [f"it cannot be compared: {new.reason}"] if new.reason else []
    return "\n".join(told) or "something changed that it reaches, of which no record was kept"
