"""``%load_ext qnb``: the magics ``%qnb`` and ``%%qnb``."""

from __future__ import annotations

import secrets
from typing import Any

from IPython.core.error import UsageError

from qnb import bridge, status
from qnb.app import App
from qnb.client import Client
from qnb.display import tidy
from qnb.errors import InvalidOption, QnbError, UnknownSweep
from qnb.models import UNFINISHED, SweepInfo
from qnb.notebook.cell_view import CellJob
from qnb.notebook.cells import cell_of, number_of
from qnb.options import TaskOptions, check_task_id, hint
from qnb.sweeps.listing import infos
from qnb.task import Task

__all__ = ["Line", "register"]

#: what jobs of cells are called in the queue: no function has such a name
CELL = "%%qnb"

_USAGE = "%qnb · %qnb show NAME · %qnb cancel NAME · %%qnb [NAME]"

_own: list[App] = []  # the app of a notebook that has none


class Line(str):
    """A line of text that a cell shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def register(shell: Any) -> None:
    """Add the magics to an IPython shell."""

    def magic(line: str, cell: str | None = None) -> Any:
        return _magic(shell, line, cell)

    magic.__doc__ = _magic.__doc__
    shell.register_magic_function(magic, "line_cell", "qnb")


def _magic(shell: Any, line: str, cell: str | None) -> Any:
    """%qnb: the queue in one line. %qnb cancel NAME, %qnb show NAME: a sweep, or a job by its id.

    %%qnb [NAME]: run the cell on a worker. The names it uses go along by value, those it assigns
    stay there; the value of its last expression is the job's. What it prints and displays is shown
    below the job. The app is the one that is called ``app``, or the only one there is.
    """
    app, words = _app(shell), line.strip()
    if cell is not None:
        return _run(shell, app, words, cell)
    command, _, name = words.partition(" ")
    commands = {"cancel": _cancel, "show": _show}
    if not words:
        return _status(app)
    if command not in commands:
        raise UsageError(f"%qnb has no {command!r}.{hint(command, commands)} Usage: {_USAGE}")
    if not name.strip():
        raise UsageError(f"%qnb {command} needs a name: of a sweep, or the id of a job")
    return commands[command](app, name.strip())


def _app(shell: Any) -> App:
    """The app of the notebook."""
    space = shell.user_ns
    apps = {id(value): name for name, value in space.items() if isinstance(value, App)}
    if isinstance(app := space.get("app"), App):
        return app
    if len(apps) > 1:
        raise UsageError(
            f"this notebook has several apps: {', '.join(sorted(apps.values()))}. %qnb takes the "
            "one that is called app: app = ..."
        )
    for name in apps.values():
        return space[name]  # type: ignore[no-any-return]
    if not _own:
        _own.append(App())
    return _own[0]


# -- looking and commanding ---------------------------------------------------------------------


def _status(app: App) -> Line:
    overview, sweeps = bridge.run(_look(app._client))
    busy = [_progress(sweep) for sweep in sweeps if sweep.state not in ("finished", "stopped")]
    facts = [status.summary(overview), *([f"sweeps: {', '.join(busy)}"] if busy else [])]
    return Line("; ".join(facts))


async def _look(client: Client) -> tuple[dict[str, Any], list[SweepInfo]]:
    return await (await client.link()).store.overview(), await infos(client)


def _progress(sweep: SweepInfo) -> str:
    ended = sweep.total - sweep.counts["queued"] - sweep.counts["running"]
    state = "" if sweep.state == "running" else f" ({sweep.state})"
    return tidy(f"{sweep.name} {ended:,} of {sweep.total:,}{state}")


def _cancel(app: App, name: str) -> Line:
    try:
        sweep = app.sweep(name)
    except (UnknownSweep, InvalidOption):
        job = app.job(check_task_id(name))
        if job.abort().result():
            return Line(f"job {name!r} is aborted")
        raise _unknown(app, name, "waits or runs") from None
    return Line(f"sweep {name!r} is cancelled: {sweep.cancel().result():,} jobs had not ended")


def _show(app: App, name: str) -> Any:
    try:
        return app.sweep(name)
    except (UnknownSweep, InvalidOption):
        job = app.job(check_task_id(name))
        record = bridge.run(app._client.record(name))
        if record is None:
            raise _unknown(app, name, "is known") from None
        return CellJob(job) if record.fn_name == CELL else job


def _unknown(app: App, name: str, what: str) -> UsageError:
    return UsageError(
        f"no sweep and no job {name!r} {what} in queue {app.queue_name!r}: app.sweeps_frame() and "
        "app.jobs_frame() list what there is"
    )


# -- a cell in the background -------------------------------------------------------------------


def _run(shell: Any, app: App, name: str, text: str) -> CellJob[Any]:
    client = app._client
    if len(name.split()) > 1 or name.startswith("-"):
        raise UsageError(f"%%qnb takes one name at most, not {name!r}. Usage: {_USAGE}")
    if client.options.codec == "msgpack":
        raise UsageError(
            "%%qnb sends code, and an app with codec='msgpack' sends none: define a task in a "
            "module that its workers serve"
        )
    if name and bridge.run(client.status(check_task_id(name))) in UNFINISHED:
        print(f"job {name!r} has not ended yet; this is it. %qnb cancel {name} ends it")
        return CellJob(app.job(name))
    try:
        cell = cell_of(shell, name, text, f"{CELL} {name}".rstrip())
    except QnbError as error:
        raise UsageError(str(error)) from None
    id_ = name or f"cell-{number_of(shell)}-{secrets.token_hex(4)}"
    task = Task(client, CELL, cell, TaskOptions(task_id=id_))
    job = CellJob(task.submit())
    if not (overview := bridge.run(_look(client))[0])["workers"]:
        print(f"no worker serves queue {overview['queue']!r} yet: app.start_workers() starts some")
    return job
