"""The text of a cell as a function that a worker can run. Pure, but for the shell's own compiler."""

from __future__ import annotations

import ast
import dis
import io
import secrets
import tokenize
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType
from typing import Any

from qnb.errors import QnbError
from qnb.notebook.background import Cell

__all__ = ["MagicInCell", "cell_of", "needed"]

_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_READS = {"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS", "DELETE_NAME", "DELETE_GLOBAL"}


class MagicInCell(QnbError):
    """A cell for a worker has magics or shell commands, which only a notebook runs."""


def cell_of(shell: Any, line: str, text: str, title: str) -> Cell:
    """The cell below ``%%qnb line``, with what it needs of the names of the shell.

    Its tracebacks say ``Cell In[3]`` and its lines, as those of any cell.
    """
    raw = f"%%qnb {line}".rstrip() + f"\n{text}"
    source = shell.transform_cell(text)
    blank = len(text) - len(text.lstrip("\r\n"))  # the shell takes leading lines away
    file = shell.compile.cache(raw, shell.execution_count, raw_code=raw)
    tree = ast.parse(source, file)
    ast.increment_lineno(tree, 1 + text[:blank].count("\n"))
    found = needed(tree.body)
    if "get_ipython" in found:
        raise MagicInCell(
            f"{title} has magics or shell commands (%, !), which only the notebook itself can "
            "run: put them into a cell of their own; subprocess.run() runs a program anywhere"
        )
    body, last = _split(tree, source)
    return Cell(
        title,
        _holding(_of_user(shell, found), shell.user_ns, file),
        compile(ast.Module(body, []), file, "exec", _FLAGS, dont_inherit=True),
        last and compile(ast.Expression(last), file, "eval", _FLAGS, dont_inherit=True),
        secrets.token_hex(8),
    )


def _split(tree: ast.Module, source: str) -> tuple[list[ast.stmt], ast.expr | None]:
    """The statements, and apart the last expression, unless a semicolon says to drop its value."""
    if tree.body and isinstance(last := tree.body[-1], ast.Expr) and not _is_quiet(source):
        return tree.body[:-1], last.value
    return tree.body, None


def _is_quiet(source: str) -> bool:
    words = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type != tokenize.COMMENT and token.string.strip()
    ]
    return words[-1:] == [";"]


def _of_user(shell: Any, names: set[str]) -> list[str]:
    """Those of ``names`` that are the user's: not what the shell has put beside them."""
    space, hidden = shell.user_ns, shell.user_ns_hidden
    return sorted(
        name
        for name in names & space.keys()
        if not (callable(space[name]) and hidden.get(name) is space[name])
    )


def _holding(names: Sequence[str], space: dict[str, Any], file: str) -> FunctionType:
    """A function in ``space`` that mentions ``names``: by value, it takes them along."""
    mentions = ast.parse(f"lambda: ({''.join(f'{name}, ' for name in names)})", file, "eval")
    [code] = [
        part for part in compile(mentions, file, "eval").co_consts if isinstance(part, CodeType)
    ]
    return FunctionType(code, space)


# -- which names it needs -----------------------------------------------------------------------


def needed(body: Sequence[ast.stmt]) -> set[str]:
    """The names that the statements may read before they have given them a value themselves.

    What a cell assigns first is not among them: an old value of it, perhaps large or an open file,
    stays at home. In doubt, a name is.

    >>> sorted(needed(ast.parse("with open(path) as file: data = file.read()\\nprint(data)").body))
    ['open', 'path', 'print']
    """
    return _reads(body, set())


def _reads(body: Sequence[ast.stmt], known: set[str]) -> set[str]:
    """What is read in order, outside of ``known``, to which what is surely assigned is added."""
    found: set[str] = set()
    for statement in body:
        if isinstance(statement, ast.With | ast.AsyncWith):
            for item in statement.items:
                found |= _loads(item.context_expr) - known
                found |= _loads(*_targets(item.optional_vars)) - known
                known |= _bound(item.optional_vars)
            found |= _reads(statement.body, known)
        elif isinstance(statement, ast.For | ast.AsyncFor):
            found |= _loads(statement.iter, *_targets(statement.target)) - known
            found |= _reads(statement.body, known | _bound(statement.target))
            found |= _reads(statement.orelse, set(known))
        elif isinstance(statement, ast.If | ast.While):
            found |= _loads(statement.test) - known
            found |= _reads(statement.body, set(known)) | _reads(statement.orelse, set(known))
        elif isinstance(statement, ast.Try | ast.TryStar):
            found |= _tried(statement, known)
        elif not isinstance(statement, ast.Break | ast.Continue):
            code = compile(ast.Module([statement], []), "", "exec", _FLAGS, dont_inherit=True)
            found |= {name for op, name in _names(code) if op in _READS} - known
            known |= {name for op, name in _names(code, inner=False) if op == "STORE_NAME"}
    return found


def _tried(statement: ast.Try | ast.TryStar, known: set[str]) -> set[str]:
    found = _reads(statement.body, set(known))
    for handler in statement.handlers:
        found |= _loads(*filter(None, [handler.type])) - known
        found |= _reads(handler.body, known | {handler.name or ""})
    return found | _reads(statement.orelse, set(known)) | _reads(statement.finalbody, set(known))


def _loads(*expressions: ast.expr) -> set[str]:
    return {
        name
        for expression in expressions
        for op, name in _names(
            compile(ast.Expression(expression), "", "eval", _FLAGS, dont_inherit=True)
        )
        if op in _READS
    }


def _targets(target: ast.expr | None) -> Iterator[ast.expr]:
    """What is read of a target: ``table`` and ``row`` of ``table[row]``."""
    for node in ast.walk(target) if target else ():
        if isinstance(node, ast.Attribute | ast.Subscript):
            yield node.value
            if isinstance(node, ast.Subscript):
                yield node.slice


def _bound(target: ast.expr | None) -> set[str]:
    return {
        node.id
        for node in (ast.walk(target) if target else ())
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _names(code: CodeType, *, inner: bool = True) -> Iterator[tuple[str, str]]:
    """What the code does with names: operation and name."""
    for instruction in dis.get_instructions(code):
        if isinstance(instruction.argval, str):
            yield instruction.opname, instruction.argval
    for part in code.co_consts if inner else ():
        if isinstance(part, CodeType):
            yield from _names(part)
