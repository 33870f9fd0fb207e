"""Writes docs/reference.md from the code: options, keys, scripts, errors.

``python docs/reference.py`` rewrites it; the tests fail while it is not what the code says.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from qnb import errors, options
from qnb.storage import keys

ROOT = Path(__file__).parents[1]


def options_table(cls: type) -> str:
    """The fields of an options class: name, type, default and what their comment says."""
    source = inspect.getsource(cls)
    rows = ["| option | type | default | |", "|---|---|---|---|"]
    lines = source.splitlines()
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(node, ast.AnnAssign) or "ClassVar" in ast.unparse(node.annotation):
            continue
        said = re.search(r"#: ?(.*)", lines[node.lineno - 1])
        annotation = ast.unparse(node.annotation).replace("|", "\\|")
        default = ast.unparse(node.value) if node.value else ""
        words = (said[1] if said else "").replace("|", "\\|").replace("``", "`")
        rows.append(f"| `{ast.unparse(node.target)}` | `{annotation}` | `{default}` | {words} |")
    return "\n".join(rows)


def keys_table() -> str:
    """The table of keys, as Markdown."""
    doc = inspect.getdoc(keys) or ""
    before, table, after = re.split(r"^=[= ]+$\n(?:key .*\n=[= ]+$\n)?", doc, flags=re.M)
    starts = [0, *(match.end() for match in re.finditer(r"=+ +", _ruler(doc)))]
    rows: list[list[str]] = []
    for line in table.splitlines():
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
    lines = ["| key | type | lifetime | what it holds, who writes it |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("``", "`") for cell in row) + " |" for row in rows]
    text = "\n\n".join(part.strip().replace("``", "`") for part in (before, after))
    title, _, rest = text.partition("\n\n")
    return f"{title}\n\n" + "\n".join(lines) + f"\n\n{rest}"


def _ruler(doc: str) -> str:
    found = re.search(r"^=[= ]+$", doc, re.M)
    assert found
    return found[0]


def scripts() -> str:
    """Each script's own head."""
    parts = []
    for script in sorted((ROOT / "qnb/storage/lua").glob("*.lua")):
        head = []
        for line in script.read_text().splitlines():
            if not line.startswith("--"):
                break
            head.append(line.removeprefix("--").removeprefix(" "))
        purpose, _, contract = "\n".join(head).partition("\nKEYS")
        parts.append(f"### {script.stem}\n\n{purpose.strip()}\n\n```text\nKEYS{contract}\n```")
    return "\n\n".join(parts)


def error_tree() -> str:
    """The tree at the top of :mod:`qnb.errors`."""
    doc = inspect.getdoc(errors) or ""
    return inspect.cleandoc(doc.partition("::\n\n")[2])


def page() -> str:
    return f"""\
<!-- written by docs/reference.py from the code: do not edit -->
# Reference

## Options of an app

`qnb.App(redis_url=None, queue_name="default", priorities=["default"], **options)`

{options_table(options.AppOptions)}

## Options of a task, and of one call

`@app.task(...)` takes those of a task; `task.options(...)` all of them.

{options_table(options.TaskOptions)}

## Errors

```text
{error_tree()}
```

## Keys in the store

{keys_table()}

## Scripts

Each transition is one Lua script, atomic on the server. It gets all its keys through `KEYS`, checks
first and then writes, and judges due times and leases by the server's own clock.

{scripts()}
"""


if __name__ == "__main__":
    (ROOT / "docs/reference.md").write_text(page())
