"""The widgets that live views are made of: one model a thing, few traits, no logic.

The only file that imports anywidget; it is imported when the first view is shown.
"""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets

__all__ = ["AppWidget", "JobWidget", "PoolWidget", "SweepWidget", "ViewWidget"]

_STATIC = Path(__file__).parent / "static"


def _read(*names: str) -> str:
    return "\n".join((_STATIC / name).read_text(encoding="utf-8") for name in names)


def _script(*names: str) -> str:
    # a widget's script is one module, so what the views share is put in front of each
    return _read("view.js", *names)


def _style(*names: str) -> str:
    return _read("view.css", *names)


class ViewWidget(anywidget.AnyWidget):
    """What every view has: the words to show, and the class of the static card it stands for."""

    state = traitlets.Dict().tag(sync=True)
    card = traitlets.Unicode().tag(sync=True)


class JobWidget(ViewWidget):
    """One job."""

    _esm = _script("job.js")
    _css = _style("job.css")


class SweepWidget(ViewWidget):
    """One sweep of any size: a byte a job, deflated."""

    _esm = _script("cells.js", "detail.js", "rows.js", "heat.js", "sweep.js")
    _css = _style("workers.css", "sweep.css")
    cells = traitlets.Bytes().tag(sync=True)


class PoolWidget(ViewWidget):
    """The workers of one queue on this machine."""

    _esm = _script("workers.js", "pool.js")
    _css = _style("workers.css", "pool.css")


class AppWidget(ViewWidget):
    """One queue."""

    _esm = _script("workers.js", "app.js")
    _css = _style("workers.css", "app.css")
