"""``qnb``: workers, the embedded server, and a look at the queue, from a terminal."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from qnb.errors import QnbError
from qnb.options import AppOptions
from qnb.pool import OPTIONS_VARIABLE

__all__ = ["main"]


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
    qnb worker                    serve functions that notebooks send
    qnb worker mypkg.tasks:app    serve the tasks of an app
    qnb server status             how the embedded server is doing
    """


@main.command()
@click.argument("app", required=False, metavar="[MODULE:APP]")
@click.option("--workers", "-n", type=click.IntRange(1), help="Jobs at once. Default: one a core.")
@click.option("--burst", is_flag=True, help="Leave when nothing waits any more.")
@click.option(
    "--url",
    metavar="URL",
    help="The store. Default: the app's, $QNB_REDIS_URL, or the embedded server.",
)
@click.option(
    "--queue", metavar="NAME", help="The queue, where no app names one. Default: default."
)
@click.option(
    "--key-file", metavar="FILE", help="The queue's signing key. Default: this user's own."
)
def worker(  # noqa: PLR0913 - one per option of the command
    app: str | None,
    workers: int | None,
    burst: bool,
    url: str | None,
    queue: str | None,
    key_file: str | None,
) -> None:
    """Run jobs, each in a child process of its own.

    Without an app it serves functions that travel with their jobs, as notebooks send them. A first
    SIGTERM or Ctrl-C lets running jobs finish; a second one stops them, and they are repeated
    elsewhere.
    """
    from qnb.app import App

    if app is not None and queue is not None:
        raise click.UsageError("--queue: the app names its queue; leave one of them out")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    linger = None
    pool = os.environ.pop(OPTIONS_VARIABLE, None)
    if app is not None:
        found = _load(app)
    elif pool is not None:
        given = json.loads(pool)
        linger = given.pop("linger")
        found = App(None, **given)
    else:
        found = App(url, queue or "default", key_file=key_file)
    slots = workers or os.cpu_count() or 1
    options = found._client.options
    if key_file is not None:
        options = dataclasses.replace(options, key_file=key_file)
    says = {"pool": pool is not None}
    asyncio.run(_serve(url or found._client.url, options, app, slots, burst, linger, says))


def _load(name: str) -> Any:
    from qnb.app import App

    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute or "app")
    except ImportError as error:
        raise click.UsageError(
            f"{name!r}: {error}. Expected module:app, importable from {Path.cwd()}"
        ) from None
    except AttributeError:
        raise click.UsageError(
            f"{name!r}: module {module!r} has no {attribute or 'app'!r}. Expected module:app"
        ) from None
    if not isinstance(found, App):
        raise click.UsageError(f"{name!r} is {found!r}. Expected a qnb.App")
    return found


async def _serve(  # noqa: PLR0913 - what the command was given
    url: str,
    options: AppOptions,
    app: str | None,
    slots: int,
    burst: bool,
    linger: float | None,
    says: dict[str, Any],
) -> None:
    from qnb.running.executors import ProcessExecutor
    from qnb.running.slot import SlotConfig
    from qnb.running.worker import Worker
    from qnb.storage.connection import masked
    from qnb.storage.store import Store
    from qnb.wire.envelope import Keys

    Keys.load(options.queue_name, options.key_file)  # a missing key is said here, once
    store = Store(url, options)
    where = f"{app.partition(':')[0]}:{app.partition(':')[2] or 'app'}" if app else None
    config = SlotConfig(options.queue_name, options.key_file, options.max_payload, where, sys.path)
    executor = ProcessExecutor(config, store.clock, slots, url)
    serving = Worker(store, executor, options, burst=burst, linger=linger, says=says)
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    signals = 0

    def stop() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            serving.stop()
        elif task is not None:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    logging.getLogger("qnb.worker").info(
        "%s serves queue %r at %s with %d slots", serving.id, options.queue_name, masked(url), slots
    )
    try:
        await serving.run()
    except asyncio.CancelledError:
        raise SystemExit(1) from None
    finally:
        await store.close()


@main.group()
def server() -> None:
    """The embedded server: one per user and data directory, on a unix socket."""


def _describe() -> str:
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
    click.echo(_describe())


@server.command()
def status() -> None:
    """Say how the server is doing; exit status 1 if it is not running."""
    text = _describe()
    click.echo(text)
    sys.exit(text.startswith("not running"))


@server.command()
def stop() -> None:
    """Stop the server. Its data stays."""
    from qnb.storage.server import stop

    click.echo("stopped" if stop() else "was not running")
