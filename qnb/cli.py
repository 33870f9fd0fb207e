"""``qnb``: workers, the embedded server, and a look at the queue, from a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import json
import logging
import os
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qnb.errors import BrokerError, InvalidOption, QnbError
from qnb.options import AppOptions, byte_size, hint
from qnb.pool import OPTIONS_VARIABLE, linger_seconds
from qnb.status import as_json, as_line, as_text, is_stuck

if TYPE_CHECKING:
    from qnb.app import App

__all__ = ["main"]

#: seconds after which a server that does not answer is said to be away
ANSWER = 3.0


class _Group(click.Group):
    """Shows qnb's errors as one line, not as a traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except QnbError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qnb")
def main() -> None:
    """A durable queue whose native interface is the notebook.

    \b
    A notebook puts jobs into a queue on a server; workers run them.
      qnb worker                    run what notebooks of this machine send
      qnb worker mypkg.tasks:app    run the tasks of an app
      qnb status --watch            what waits, what runs, and who serves it
      qnb server status             how the embedded server is doing

    \b
    Where the server is, in this order:
      --url URL, the app's own App("rediss://..."), $QNB_REDIS_URL,
      or the embedded server: this user's own, started when first needed.

    \b
    Jobs are signed with a key that each queue has, made on first use in
    ~/.local/share/qnb/keys/<queue>.key. Workers of another user or host are
    given that file: $QNB_KEY_FILE or --key-file.

    In a notebook, start with qnb.App() and app.start_workers().
    """


def _bytes(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return byte_size("size", int(value) if value.isdecimal() else value)
    except InvalidOption as error:
        raise click.BadParameter(str(error)) from None


def _span(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    with contextlib.suppress(InvalidOption):
        if 0 < (span := linger_seconds(value)) < float("inf"):
            return span
    order = "; MODULE:APP comes before it" if ":" in value else ""
    raise click.BadParameter(
        f"{value!r}: expected seconds > 0, or text like '30 s', '10 min'{order}"
    )


_url = click.option(
    "--url",
    metavar="URL",
    help="The server: rediss://user:password@host:port/db, redis://, unix:///path. Default: the "
    "app's, $QNB_REDIS_URL (which no one sees in a list of processes), or the embedded server.",
)
_queue = click.option(
    "--queue", metavar="NAME", help="The queue, where no app names one. Default: default."
)
_lanes = click.option(
    "--lanes",
    callback=lambda _, __, text: text and [lane.strip() for lane in text.split(",")],
    metavar="LOW,...,HIGH",
    help="Its lanes, where no app names them: its priorities=, lowest first. Default: default.",
)


_WORKER = """\
Run the jobs of one queue, each in a child process.

Without MODULE:APP it serves functions that travel with their jobs, as notebooks send them.
With one, importable from this folder, it serves what that app says: its queue, lanes, tasks,
cron, hooks and lifespan. MODULE alone is MODULE:app.

\b
On this machine, for your notebooks, one job a core:
  qnb worker
An app, 8 jobs at once, its highest lane first:
  qnb worker shop.tasks:app --workers 8
In CI: until the lanes are empty, then it leaves with status 0:
  qnb worker shop.tasks:app --burst
On another host, with the key file of whoever sends the jobs:
  export QNB_REDIS_URL=rediss://user:password@host:6380
  QNB_KEY_FILE=default.key qnb worker --idle-timeout '30 min'
In front of a pool (Dask, Slurm, any concurrent.futures.Executor):
  qnb worker --executor cluster:pool --workers 64
  where cluster.py, in this folder, may say
    from distributed import Client
    def pool(): return Client("tcp://scheduler:8786").get_executor()

\b
Signals   A first SIGTERM or Ctrl-C takes nothing new and lets running jobs
          finish; a second one stops them, and they run again elsewhere.
Losses    A child that dies is replaced at once. A worker that falls silent
          loses its jobs to others when their lease ends (15 s). A job that
          loses its worker 3 times fails, saying how.
Server    When it is away the worker waits, and goes on when it is back.
Logs      Go to standard error; those of app.start_workers() to
          ~/.local/state/qnb/workers/<queue>.log. What a job prints is its
          own: job.logs().
"""


@main.command(help=_WORKER)
@click.argument("app", required=False, metavar="[MODULE:APP]")
@click.option(
    "--workers",
    "-n",
    type=click.IntRange(1),
    metavar="N",
    help="Jobs at once. Default: one a core.",
)
@click.option("--burst", is_flag=True, help="Leave when the lanes are empty; delayed jobs stay.")
@click.option(
    "--idle-timeout",
    callback=_span,
    metavar="SECONDS",
    help="Leave after so long without a job; also '10 min'. Default: never.",
)
@click.option(
    "--max-memory",
    callback=_bytes,
    metavar="SIZE",
    help="Renew a child process that holds more than this between two jobs: bytes, or '2 GB'.",
)
@click.option(
    "--executor",
    metavar="MODULE:FACTORY",
    help="Run the jobs in a concurrent.futures.Executor: the one that this function returns.",
)
@_url
@_queue
@_lanes
@click.option(
    "--key-file",
    metavar="FILE",
    help="The queue's signing key. Default: the app's, $QNB_KEY_FILE, or this user's own.",
)
def worker(  # noqa: PLR0913 - one per option of the command
    app: str | None,
    workers: int | None,
    burst: bool,
    idle_timeout: float | None,
    max_memory: int | None,
    executor: str | None,
    url: str | None,
    queue: str | None,
    lanes: list[str] | None,
    key_file: str | None,
) -> None:
    """Run the jobs of one queue; :data:`_WORKER` teaches how."""
    if executor is not None and max_memory is not None:
        raise click.UsageError(
            f"--max-memory is for child processes, and --executor {executor!r} has its own; leave "
            "one of them out"
        )
    if executor is not None and not callable(_found("--executor MODULE:FACTORY", executor)):
        raise click.UsageError(
            f"--executor {executor!r} is no function. Expected MODULE:FACTORY, a function that "
            "returns a concurrent.futures.Executor"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    # what a notebook's pool gave
    pool = json.load(sys.stdin) if os.environ.pop(OPTIONS_VARIABLE, None) else {}
    app = _with_attribute(app)
    found = _app(app, url, queue, lanes, **pool.get("options", {}))
    options = found._client.options
    if key_file is not None:
        options = dataclasses.replace(options, key_file=key_file)
    linger = idle_timeout or pool.get("linger")
    if linger is None and options.idle_timeout_ms is not None:
        linger = options.idle_timeout_ms / 1000
    from qnb.running.serve import serve

    sys.exit(
        asyncio.run(
            serve(
                url or found._client.url,
                options,
                app=app,
                registry=found.registry if app is not None else None,
                slots=workers or os.cpu_count() or 1,
                burst=burst,
                linger=linger,
                says={"pool": bool(pool)},
                setup=bytes.fromhex(pool.get("setup") or "") or None,
                factory=executor,
                max_memory=max_memory or pool.get("max_memory"),
            )
        )
    )


def _with_attribute(app: str | None) -> str | None:
    return app if app is None or ":" in app else f"{app}:app"


def _app(
    name: str | None, url: str | None, queue: str | None, lanes: list[str] | None, **options: Any
) -> App:
    """The app called MODULE:APP, or one made of what the command was given."""
    from qnb.app import App

    if name is None:
        given: dict[str, Any] = {"queue_name": queue or "default"}
        if lanes:
            given["priorities"] = lanes
        return App(url, **{**given, **options})
    for option, value in (("--queue", queue), ("--lanes", lanes)):
        if value is not None:
            raise click.UsageError(
                f"{option} {value!r}: the app {name!r} names its own; leave one of them out"
            )
    found = _found("MODULE:APP", name)
    if not isinstance(found, App):
        raise click.UsageError(f"{name!r} is {found!r}. Expected a qnb.App")
    return found


def _found(what: str, name: str) -> Any:
    """What ``module:attribute`` names, imported from this folder or from what is installed."""
    module_name, _, attribute = name.partition(":")
    expected = f"Expected {what}, importable from {Path.cwd()}"
    if not module_name or not attribute:
        raise click.UsageError(f"{name!r}: expected {what}, such as 'shop.tasks:app'")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        near = ""
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            near = hint(error.name, _modules_beside(error.name))
        raise click.UsageError(f"{name!r}: {error}.{near} {expected}") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise click.UsageError(
                f"{name!r}: {found!r} has no {part!r}.{hint(part, dir(found))} {expected}"
            )
        found = getattr(found, part)
    return found


def _modules_beside(name: str) -> list[str]:
    """The modules that can be imported where ``name`` could not be found."""
    parent = name.rpartition(".")[0]
    path = getattr(sys.modules[parent], "__path__", ()) if parent else [str(Path.cwd())]
    return [found.name for found in pkgutil.iter_modules(path, f"{parent}." if parent else "")]


@main.command()
@click.argument("app", required=False, metavar="[MODULE:APP]")
@_url
@_queue
@_lanes
@click.option("--json", "is_json", is_flag=True, help="One JSON object; with --watch, one a line.")
@click.option(
    "--watch",
    callback=_span,
    metavar="[SECONDS]",
    is_flag=False,
    flag_value="2",
    help="Look again and again, every 2 seconds or so many, until Ctrl-C.",
)
def status(  # noqa: PLR0913 - one per option of the command
    app: str | None,
    url: str | None,
    queue: str | None,
    lanes: list[str] | None,
    is_json: bool,
    watch: float | None,
) -> None:
    """What waits in a queue, what runs, and who serves it.

    The queue is that of MODULE:APP, or --queue and --lanes. Lanes are shown in the order in which
    they are drained. A worker says how it is every few seconds; one that has not been heard for 15
    is gone.

    Exit status 1: jobs wait and no worker serves them, or the server does not answer.
    """
    client = _app(_with_attribute(app), url, queue, lanes)._client
    look = _Look(url or client.url, client.options, is_json)
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(look.once() if watch is None else look.watch(watch)))


class _Look:
    """Reads a queue's overview, and shows it on standard output."""

    def __init__(self, url: str, options: AppOptions, is_json: bool) -> None:
        from qnb.storage.store import Store

        self._store = Store(url, options)
        self._is_json = is_json

    async def once(self) -> int:
        """Show it; the command's exit status."""
        try:
            await self._store.open()
            seen = await self._store.overview()
        finally:
            await self._store.close()
        now = self._store.clock.now_ms()
        click.echo(as_json(seen, now) if self._is_json else as_text(seen, now))
        return int(is_stuck(seen))

    async def watch(self, interval: float) -> int:
        """Show it every ``interval`` seconds; a server that goes away is waited for."""
        await self._store.open()
        away = False
        try:
            while True:
                try:
                    async with asyncio.timeout(max(interval, ANSWER)):
                        seen = await self._store.overview()
                except (BrokerError, TimeoutError):
                    if not away:
                        click.echo("the server does not answer: reconnecting", err=True)
                    away = True
                else:
                    away = False
                    self._show_again(seen)
                await asyncio.sleep(interval)
        finally:
            await self._store.close()

    def _show_again(self, seen: dict[str, Any]) -> None:
        """Over what was shown before on a terminal, else on a line of its own."""
        now = self._store.clock.now_ms()
        if self._is_json:
            click.echo(as_json(seen, now))
        elif sys.stdout.isatty():
            click.clear()
            click.echo(as_text(seen, now))
        else:
            click.echo(as_line(seen, now))


@main.group()
def server() -> None:
    """The embedded server: one per user and data directory, on a unix socket."""


def _server_text() -> str:
    from qnb.storage.server import status

    now = status()
    if not now.running:
        return f"not running; data in {now.data_dir} ({now.disk_bytes:,} bytes)"
    uptime = f"{now.uptime:,.0f} s" if now.uptime is not None else "?"
    return (
        f"{now.version}, process {now.pid}, up {uptime}, {now.clients} clients, "
        f"{(now.memory_bytes or 0) / 1e6:,.1f} MB in memory, {now.disk_bytes / 1e6:,.1f} MB on "
        f"disk\n{now.url}\ndata in {now.data_dir}"
    )


@server.command()
def start() -> None:
    """Start the server if it is not running."""
    from qnb.storage.server import ensure

    ensure()
    click.echo(_server_text())


@server.command("status")
def server_status() -> None:
    """Say how the server is doing; exit status 1 if it is not running."""
    text = _server_text()
    click.echo(text)
    sys.exit(text.startswith("not running"))


@server.command()
def stop() -> None:
    """Stop the server. Its data stays."""
    from qnb.storage.server import stop

    click.echo("stopped" if stop() else "was not running")
