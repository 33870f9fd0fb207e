"""The widgets that live views are made of: one model a thing, two traits, no logic.

The only file that imports anywidget; it is imported when the first view is shown.
"""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets

__all__ = ["JobWidget", "SweepWidget", "ViewWidget"]

_STATIC = Path(__file__).parent / "static"


def _script(name: str) -> str:
    # a widget's script is one module, so what the views share is put in front of each
    parts = ("view.js", name)
    return "\n".join((_STATIC / part).read_text(encoding="utf-8") for part in parts)


class ViewWidget(anywidget.AnyWidget):
    """What every view has: the words to show, and the class of the static card it stands for."""

    _css = _STATIC / "view.css"
    state = traitlets.Dict().tag(sync=True)
    card = traitlets.Unicode().tag(sync=True)


class JobWidget(ViewWidget):
    """One job."""

    _esm = _script("job.js")


class SweepWidget(ViewWidget):
    """One sweep of any size: a byte a job."""

    _esm = _script("sweep.js")
    cells = traitlets.Bytes().tag(sync=True)
