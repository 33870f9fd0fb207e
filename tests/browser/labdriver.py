"""Drive a real JupyterLab in a real headless Chromium.

``LabServer`` is a ``jupyter lab`` process on a free loopback port with directories of its own;
``NotebookPage`` is one open notebook. The page is driven through ``window.jupyterapp``, Lab's own
command registry: a command's promise resolves when the cells are done, so that nothing sleeps.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, Route

CHROMIUM = os.environ.get("QNB_CHROMIUM", "/usr/bin/chromium")
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
SETTINGS: dict[str, dict[str, Any]] = {
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    # cells that are scrolled away must be in the page, or no locator finds their output
    "notebook-extension/tracker": {"windowingMode": "none"},
    "docmanager-extension/plugin": {"autosave": False},
}


class LabServer:
    """One JupyterLab process. A context manager."""

    def __init__(self, root: Path, *, python_path: list[Path]) -> None:
        self.notebooks = root / "work"
        self._home = root / "home"
        self._log = root / "lab.log"
        self._python_path = python_path  # where kernels find the tests' modules
        self._token = secrets.token_hex(16)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/"
        self._port = port

    def __enter__(self) -> LabServer:
        self.notebooks.mkdir(parents=True)
        settings = self._home / "settings"
        for name, values in SETTINGS.items():
            file = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"),
                    *(f"--port={self._port}", "--ServerApp.port_retries=0"),
                    *("--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={self._token}"),
                    f"--ServerApp.root_dir={self.notebooks}",
                    "--LabApp.expose_app_in_browser=True",
                    "--JupyterNotebookApp.expose_app_in_browser=True",
                    "--LabApp.extension_manager=readonly",
                ],
                cwd=self.notebooks,
                env=self._environment(settings),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_until_up(timeout=60)
        return self

    def _environment(self, settings: Path) -> dict[str, str]:
        home = self._home
        return {
            **os.environ,
            "HOME": str(home),
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "IPYTHONDIR": str(home / "ipython"),
            "JUPYTERLAB_SETTINGS_DIR": str(settings),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "JUPYTER_PLATFORM_DIRS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, self._python_path)),
        }

    def _wait_until_up(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"JupyterLab did not start:\n{self._tail()}")
            try:
                with urllib.request.urlopen(f"{self.address}api", timeout=1):  # noqa: S310 - ours
                    return
            except urllib.error.HTTPError:
                return  # it answers
            except OSError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no JupyterLab in {timeout} s:\n{self._tail()}") from None
                time.sleep(0.05)

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)  # its own group: server and kernels
                self._process.wait(5)

    def packages(self, kernel: str) -> Path:
        """What that kernel finds before all that is installed."""
        return self._home / "packages" / kernel

    def add_kernel(self, name: str) -> None:
        """Offer a kernel of that name, with its own ``packages``."""
        folder = self._home / "data" / "kernels" / name
        folder.mkdir(parents=True)
        path = os.pathsep.join(map(str, [self.packages(name), *self._python_path]))
        spec = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": name,
            "language": "python",
            "env": {"PYTHONPATH": path},
        }
        (folder / "kernel.json").write_text(json.dumps(spec))

    def write(self, name: str, *cells: str, kernel: str = "python3") -> None:
        """A notebook file with these code cells."""
        notebook = {
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": {
                "kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}
            },
            "cells": [
                {
                    "cell_type": "code",
                    "id": f"c{index}",
                    "metadata": {},
                    "outputs": [],
                    "execution_count": None,
                    "source": source.strip("\n"),
                }
                for index, source in enumerate(cells)
            ],
        }
        (self.notebooks / name).write_text(json.dumps(notebook))

    def url(self, name: str, app: str = "lab/tree") -> str:
        return f"{self.address}{app}/{name}?reset&token={self._token}"


_PANEL = "window.jupyterapp.shell.currentWidget"


class NotebookPage:
    """A notebook open in JupyterLab."""

    def __init__(self, page: Page, server: LabServer) -> None:
        self.page, self.server = page, server
        self.offsite: list[str] = []  # requests that would have left this host
        self.page.route(
            lambda url: not url.startswith((server.address, "data:", "blob:")), self._block
        )

    def _block(self, route: Route) -> None:
        self.offsite.append(route.request.url)
        route.abort()

    def open(self, name: str, *, kernel: bool = True, app: str = "lab/tree") -> None:
        """Load the page anew with this notebook; without a kernel it is only shown.

        ``app="notebooks"`` opens it in Notebook 7 instead of JupyterLab.
        """
        self.page.goto(self.server.url(name, app), wait_until="domcontentloaded")
        self._ready(name, kernel)

    def open_tab(self, name: str) -> None:
        """Open this notebook in the Lab that is loaded, which is far quicker."""
        self.page.evaluate(
            "async (path) => { await window.jupyterapp.commands.execute("
            "'docmanager:open', {path}); }",
            name,
        )
        self._ready(name, True)

    def _ready(self, name: str, kernel: bool) -> None:
        self.page.wait_for_function(
            """([name, kernel]) => {
                const panel = window.jupyterapp?.shell?.currentWidget;
                const it = panel?.sessionContext?.session?.kernel;
                return !document.getElementById('jupyterlab-splash')
                    && panel?.context?.path === name && panel.context.isReady && (!kernel
                    || it?.status === 'idle' && it.connectionStatus === 'connected');
            }""",
            arg=[name, kernel],
            timeout=30_000,
        )

    def run(self, index: int, *, wait: bool = True) -> None:
        """Run one cell; without ``wait``, only start it."""
        self.page.evaluate(
            f"""async ([index, wait]) => {{
                const notebook = {_PANEL}.content;
                notebook.activeCellIndex = index;
                notebook.deselectAll();
                const done = window.jupyterapp.commands.execute('notebook:run-cell');
                if (wait) await done;
            }}""",
            [index, wait],
        )

    def run_all(self) -> None:
        """Queue all cells at once, and wait until they are done."""
        self.page.evaluate(
            "async () => { await window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
        )

    @property
    def busy(self) -> bool:
        return bool(
            self.page.evaluate(f"() => {_PANEL}.sessionContext.session.kernel.status === 'busy'")
        )

    def output(self, index: int) -> Locator:
        """What the cell shows."""
        cell = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell").nth(index)
        return cell.locator(".jp-Cell-outputArea")

    def errors(self) -> list[str]:
        """The errors that cells ended with."""
        found: list[str] = self.page.evaluate(
            f"""() => {{
                const cells = {_PANEL}.content.model.cells, out = [];
                for (let i = 0; i < cells.length; i++)
                    for (const o of cells.get(i).outputs?.toJSON() ?? [])
                        if (o.output_type === 'error') out.push(`${{o.ename}}: ${{o.evalue}}`);
                return out;
            }}"""
        )
        return found

    def save(self) -> list[list[dict[str, Any]]]:
        """Save; the outputs of each cell as the file then has them."""
        self.page.evaluate(f"async () => {{ await {_PANEL}.context.save(); }}")
        path = self.page.evaluate(f"() => {_PANEL}.context.path")
        saved = json.loads((self.server.notebooks / path).read_text())
        return [cell["outputs"] for cell in saved["cells"]]

    def restart_kernel(self) -> None:
        self.page.evaluate(f"async () => {{ await {_PANEL}.sessionContext.restartKernel(); }}")

    def shutdown_kernel(self) -> None:
        self.page.evaluate(f"async () => {{ await {_PANEL}.sessionContext.shutdown(); }}")

    def close(self) -> None:
        """Shut the kernel down and close the tab, without a dialog."""
        self.page.evaluate(
            f"""async () => {{ const panel = {_PANEL};
                await panel.sessionContext.shutdown();
                await panel.context.save();
                panel.close(); }}"""
        )

    def pictures(self, folder: Path, name: str, *, wide: tuple[int, int], narrow: int) -> None:
        """What the page shows, in both themes and ``narrow`` pixels wide; for people to look at."""
        width, height = wide
        self.page.set_viewport_size({"width": width, "height": height})
        for theme in THEMES:
            self.set_theme(theme)
            self.page.screenshot(path=folder / f"{name}-{theme}.png")
        self.page.set_viewport_size({"width": narrow, "height": height})
        self.page.screenshot(path=folder / f"{name}-narrow.png")
        self.page.set_viewport_size({"width": 1280, "height": 1000})

    def set_theme(self, theme: str) -> None:
        self.page.evaluate(
            "async (theme) => { await window.jupyterapp.commands.execute("
            "'apputils:change-theme', {theme}); }",
            THEMES[theme],
        )
        self.page.wait_for_function(
            "(light) => document.body.dataset.jpThemeLight === light"
            " && !document.getElementById('jupyterlab-splash')",
            arg="true" if theme == "light" else "false",
        )
