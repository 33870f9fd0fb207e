"""What the code of one function says, whoever compiled it: its source without what has no meaning.

The source is that of ``linecache``, so cells have one too. It is the function's own only if it
compiles to the very code that the function runs: a file that was edited after its import is not.
What is left of it is the syntax tree: no comments, no blank lines, no layout, docstrings with
their common indentation taken off, and nothing that differs between minor versions of Python.

Code without such a source, as that of ``exec``, is its bytecode, which another minor version of
Python writes differently.
"""

from __future__ import annotations
import __future__

import ast
import dis
import inspect
import linecache
import sys
import textwrap
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from types import CodeType
from typing import Any, NamedTuple, TypeAlias

from qnb.content.values import Writer
from qnb.wire.sources import label

__all__ = ["Decorator", "Import", "Text", "file_text", "text_of"]


class Import(NamedTuple):
    """``from name import taken`` inside a body, with as many dots before it as ``level``."""

    name: str
    level: int
    taken: tuple[str, ...]


class Decorator(NamedTuple):
    """A line above a function."""

    root: str  #: the name that it begins with
    digest: bytes
    names: frozenset[str]  #: all that it mentions


class Text(NamedTuple):
    """What the code of one function says, and what it speaks of."""

    digest: bytes
    source: str  #: as the user wrote it; empty if it is not known
    where: str
    decorators: tuple[Decorator, ...] = ()
    names: frozenset[str] = frozenset()  #: globals and builtins that it uses
    mentions: frozenset[str] = frozenset()  #: every name in it, attributes and short texts too
    imports: frozenset[Import] = frozenset()


_KEPT = 4096  #: functions whose text is remembered
_FILES = 32  #: files whose syntax tree is remembered
_texts: OrderedDict[int, tuple[CodeType, Text]] = OrderedDict()
_files: OrderedDict[str, _File] = OrderedDict()


def text_of(code: CodeType) -> Text:
    """What ``code`` says. Read once, as code objects never change."""
    known = _texts.get(id(code))
    if known is None:
        with warnings.catch_warnings():  # those of the compiler have been shown once
            warnings.simplefilter("ignore")
            known = _texts[id(code)] = code, _read(code)
        while len(_texts) > _KEPT:
            _texts.popitem(last=False)
    return known[1]


def _read(code: CodeType) -> Text:
    names, imports = set[str](), set[Import]()
    for each in _all_codes(code):
        _collect(each, names, imports)
    facts: dict[str, Any] = {
        "where": f"{label(code.co_filename)}, line {code.co_firstlineno}",
        "names": frozenset(names),
        "mentions": frozenset(_mentions(code)),
        "imports": frozenset(imports),
    }
    with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        file = _file(code.co_filename)
        node = file.node(code) if file else None
        if file and node:
            above = getattr(node, "decorator_list", [])
            inside = [each for line in above for each in ast.walk(line)]
            facts["mentions"] |= {each.attr for each in inside if isinstance(each, ast.Attribute)}
            return Text(
                _digest(node),
                file.source(node, code.co_firstlineno),
                decorators=tuple(map(_decorator, above)),
                **facts,
            )
    return Text(_hash(Writer().write(_bare(code))), "", **facts)


def _hash(written: bytes) -> bytes:
    return blake2b(written, digest_size=16, person=b"qnb text 1").digest()


# --- from code to its syntax tree --------------------------------------------------------------

_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda

#: the one ``from __future__ import`` that makes other code of the same source
_FUTURE = __future__.annotations.compiler_flag


_Place: TypeAlias = tuple[str, int]  #: name and first line of a function, decorators included


class _File:
    """A source file, parsed. A statement is compiled when a function of it is looked for."""

    def __init__(self, filename: str, lines: list[str]) -> None:
        self.lines = lines
        self._name = filename
        self._text = "".join(lines)
        self._tree = _parse(self._text, filename)
        self._nodes: dict[_Place, list[tuple[int, _Function]]] = {}
        for at, statement in enumerate(self._tree.body):
            for node in ast.walk(statement):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                    self._nodes.setdefault(_place(node), []).append((at, node))
        self._compiled: dict[tuple[int | None, int], dict[_Place, list[CodeType]]] = {}

    def node(self, code: CodeType) -> _Function | None:
        """The function that ``code`` was compiled from, if this is still what it says."""
        place, flags = (code.co_name, code.co_firstlineno), code.co_flags & _FUTURE
        there = self._nodes.get(place, [])
        found = _matching([node for _, node in there], code)
        # A cell is compiled statement by statement, a file as a whole; there, a call of what it
        # has imported is compiled in another way.
        for at in (*(at for at, node in there if node is found), None):
            if found and code in self._codes(at, flags).get(place, ()):
                return found
        return None

    def _codes(self, at: int | None, flags: int) -> dict[_Place, list[CodeType]]:
        """All code of one statement, or of all, with the ``__future__`` that the function has."""
        if (at, flags) not in self._compiled:
            tree = self._tree if at is None else ast.Module([self._tree.body[at]], [])
            flags_ = flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            made = compile(tree, self._name, "exec", flags_, dont_inherit=True)
            codes: dict[_Place, list[CodeType]] = {}
            for code in _all_codes(made):
                codes.setdefault((code.co_name, code.co_firstlineno), []).append(code)
            self._compiled[at, flags] = codes
        return self._compiled[at, flags]

    def source(self, node: _Function, first: int) -> str:
        if isinstance(node, ast.Lambda):
            return ast.get_source_segment(self._text, node) or ""
        return textwrap.dedent("".join(self.lines[first - 1 : node.end_lineno]))


def _file(filename: str) -> _File | None:
    linecache.checkcache(filename)
    lines = linecache.getlines(filename)
    if not lines:
        return None
    known = _files.get(filename)
    if known is None or known.lines is not lines:
        known = _files[filename] = _File(filename, lines)
        while len(_files) > _FILES:
            _files.popitem(last=False)
    return known


def _parse(text: str, filename: str) -> ast.Module:
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree: ast.Module = compile(text, filename, "exec", flags, dont_inherit=True)
    return tree


def _place(node: _Function) -> _Place:
    if isinstance(node, ast.Lambda):
        return "<lambda>", node.lineno
    return node.name, min([node.lineno, *(above.lineno for above in node.decorator_list)])


def _matching(nodes: list[_Function], code: CodeType) -> _Function | None:
    """The one of ``nodes``, which begin on one line under one name, that can be ``code``."""
    lambdas = [node for node in nodes if isinstance(node, ast.Lambda)]
    if len(lambdas) < 2:
        return nodes[0] if len(nodes) == 1 else None
    spans = [
        (start, column, end, end_column)
        for start, end, column, end_column in code.co_positions()
        if None not in (start, end, column, end_column) and (start, column) != (end, end_column)
    ]
    around = [
        node
        for node in lambdas
        if all(_span(node)[:2] <= span[:2] and span[2:] <= _span(node)[2:] for span in spans)
    ]
    if not spans:  # Python 3.12 has none where a constant is returned
        around = [node for node in around if _constant(node, code)][:1]
    # Those around it hold it too: it is the one that begins last.
    return max(around, key=lambda node: _span(node)[:2], default=None)


def _constant(node: ast.Lambda, code: CodeType) -> bool:
    """Whether a lambda is ``code``, which returns a constant."""
    constants = compile(ast.Expression(node), "", "eval").co_consts
    made = [each for each in constants if isinstance(each, CodeType)][-1]  # after its defaults
    return Writer().write(_returns(made)) == Writer().write(_returns(code))


def _returns(code: CodeType) -> tuple[Any, ...]:
    """What a lambda takes and does, wherever it stands."""
    _, _, (*counts, flags), *rest = _bare(code)
    return (*counts, flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS), *rest)


def _span(node: ast.Lambda) -> tuple[int, int, int, int]:
    body = node.body
    return body.lineno, body.col_offset, body.end_lineno or 0, body.end_col_offset or 0


def _all_codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all_codes(constant)


# --- from a syntax tree to its digest ----------------------------------------------------------

_WITH_DOCSTRING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)

#: what says nothing, or nothing that the rest does not say
_SKIPPED = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


def _digest(node: ast.AST) -> bytes:
    pieces: list[bytes] = []
    _write(node, Writer(), pieces, frozenset({*_SKIPPED, "decorator_list"}))
    return _hash(b"".join(pieces))


def _write(
    node: Any, writer: Writer, pieces: list[bytes], skipped: frozenset[str] = _SKIPPED
) -> None:
    if isinstance(node, list):
        pieces.append(b"[")
        for item in node:
            _write(item, writer, pieces)
        pieces.append(b"]")
    elif not isinstance(node, ast.AST):
        pieces.append(writer.write(node))
    else:
        pieces += [b"(", writer.write(type(node).__name__)]
        for name in node._fields:
            value = getattr(node, name, None)
            # What is empty may be a field that an older version does not have.
            if name not in skipped and value is not None and value != []:
                pieces.append(writer.write(name))
                _write(_plain(node, name, value), writer, pieces)
        pieces.append(b")")


def _plain(node: ast.AST, name: str, value: Any) -> Any:
    """A field, without what the versions of Python and the indentation make of it."""
    if isinstance(node, ast.JoinedStr) and name == "values":
        return list(_joined(value))
    if name == "body" and isinstance(node, _WITH_DOCSTRING):
        first = value[0]
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            return [inspect.cleandoc(first.value.value), *value[1:]]
    return value


def _joined(values: list[ast.expr]) -> Iterator[Any]:
    """The parts of an f-string, the texts that follow each other as one."""
    text = ""
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            text += value.value
            continue
        if text:
            yield text
        text = ""
        yield value
    if text:
        yield text


def _decorator(node: ast.expr) -> Decorator:
    names = frozenset(each.id for each in ast.walk(node) if isinstance(each, ast.Name))
    root: ast.expr = node
    while isinstance(root, ast.Call | ast.Attribute):
        root = root.func if isinstance(root, ast.Call) else root.value
    return Decorator(root.id if isinstance(root, ast.Name) else "", _digest(node), names)


# --- from bytecode -----------------------------------------------------------------------------

_GLOBAL = frozenset({"LOAD_GLOBAL", "DELETE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS", "LOAD_NAME"})


def _collect(code: CodeType, names: set[str], imports: set[Import]) -> None:
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for at, step in enumerate(steps):
        if step.opname in _GLOBAL and not (
            step.opname == "LOAD_NAME" and step.argval.startswith("__")
        ):
            names.add(step.argval)
        elif step.opname == "IMPORT_NAME":
            level, taken = steps[at - 2].argval, steps[at - 1].argval
            imports.add(Import(step.argval, level, taken or ()))


def _mentions(code: CodeType) -> Iterator[str]:
    for each in _all_codes(code):
        yield from each.co_names
        yield from (
            constant
            for constant in each.co_consts
            if isinstance(constant, str) and constant.isidentifier()
        )


def _bare(code: CodeType) -> tuple[Any, ...]:
    """All that a code object does, without where it was written."""
    return (
        sys.implementation.cache_tag,
        code.co_name,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags),
        (code.co_names, code.co_varnames, code.co_cellvars, code.co_freevars),
        code.co_code,
        code.co_exceptiontable,
        tuple(
            _bare(constant) if isinstance(constant, CodeType) else constant
            for constant in code.co_consts
        ),
    )


# --- of a whole file ---------------------------------------------------------------------------


def file_text(filename: str, text: str) -> Text:
    """What a Python file says: all of it, and what it imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = _parse(text, filename)
    imports = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {Import(alias.name, 0, ()) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            taken = tuple(alias.name for alias in node.names)
            imports.add(Import(node.module or "", node.level, taken))
    return Text(_digest(tree), text, filename, imports=frozenset(imports))
