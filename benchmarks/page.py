"""``docs/performance.md``: its prose stands there, the figures between its marks come from here."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from rows import Contender

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
_VERSIONS = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"


def machine(server: str, peers: str | None, contenders: Sequence[Contender], turn: float) -> str:
    """What it was measured on, in a line; ``turn``: ns of one turn of a plain loop."""
    from importlib.metadata import version

    others = {one.package: one.name for one in contenders if not one.is_ours}
    versions = [f"qnb {version('qnb')}"]
    if peers and others:
        told = subprocess.run(
            [peers, "-c", _VERSIONS, *others], capture_output=True, text=True, check=True
        )
        versions += map(" ".join, zip(others.values(), told.stdout.split(), strict=True))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB, {platform.system()} "
        f"{platform.release().partition('-')[0]}; CPython {platform.python_version()} "
        f"({turn:.0f} ns a turn of a plain loop); {server}, "
        f"append-only file on; {', '.join(versions)}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write(parts: Mapping[str, str]) -> None:
    """Put each part between its marks ``<!-- name -->`` and ``<!-- end -->``."""
    text = PAGE.read_text()
    for name, part in parts.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert mark, f"{PAGE} has no place for {name!r}"
        assert end, f"{PAGE}: the place for {name!r} has no end"
        text = f"{before}{mark}{part}\n{end}{after}"
    PAGE.write_text(text)
    print(f"written: {PAGE}")
