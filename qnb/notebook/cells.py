"""The text of a cell as a function that a worker can run."""

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

__all__ = ["MagicInCell", "cell_of", "needed", "number_of"]

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
    file = shell.compile.cache(raw, number_of(shell), raw_code=raw)
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
        _compiled(ast.Module(body, []), file),
        _compiled(ast.Expression(last), file) if last else None,
        secrets.token_hex(8),
    )


def number_of(shell: Any) -> int:
    """The number of the running cell: where it is in ``In``."""
    return len(shell.history_manager.input_hist_raw) - 1


def _compiled(node: ast.Module | ast.Expression, file: str = "") -> CodeType:
    mode = "exec" if isinstance(node, ast.Module) else "eval"
    code: CodeType = compile(node, file, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return code


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
                found |= _in(item.optional_vars, ast.Load) - known
                known |= _in(item.optional_vars, ast.Store)
            found |= _reads(statement.body, known)
        elif isinstance(statement, ast.For | ast.AsyncFor):
            found |= (_loads(statement.iter) | _in(statement.target, ast.Load)) - known
            found |= _reads(statement.body, known | _in(statement.target, ast.Store))
            found |= _reads(statement.orelse, set(known))
        elif isinstance(statement, ast.If | ast.While):
            found |= _loads(statement.test) - known
            found |= _reads(statement.body, set(known)) | _reads(statement.orelse, set(known))
        elif isinstance(statement, ast.Try | ast.TryStar):
            found |= _tried(statement, known)
        elif not isinstance(statement, ast.Break | ast.Continue):
            code = _compiled(ast.Module([statement], []))
            found |= {name for op, name in _names(code) if op in _READS} - known
            if not isinstance(statement, ast.Match):  # of which one case runs, or none
                known |= {name for op, name in _names(code, inner=False) if op == "STORE_NAME"}
    return found


def _tried(statement: ast.Try | ast.TryStar, known: set[str]) -> set[str]:
    found = _reads(statement.body, set(known))
    for handler in statement.handlers:
        found |= (_loads(handler.type) if handler.type else set()) - known
        found |= _reads(handler.body, known | {handler.name or ""})
    return found | _reads(statement.orelse, set(known)) | _reads(statement.finalbody, set(known))


def _loads(expression: ast.expr) -> set[str]:
    return {name for op, name in _names(_compiled(ast.Expression(expression))) if op in _READS}


def _in(target: ast.expr | None, use: type[ast.expr_context]) -> set[str]:
    """The names in a target that are stored; or that are loaded, as of ``table[row]``."""
    return {
        node.id
        for node in (ast.walk(target) if target else ())
        if isinstance(node, ast.Name) and isinstance(node.ctx, use)
    }


def _names(code: CodeType, *, inner: bool = True) -> Iterator[tuple[str, str]]:
    """What the code does with names, those apart that Python itself has made."""
    for instruction in dis.get_instructions(code):
        name = instruction.argval
        if isinstance(name, str) and not name.startswith("__"):
            yield instruction.opname, name
    for part in code.co_consts if inner else ():
        if isinstance(part, CodeType):
            yield from _names(part)
