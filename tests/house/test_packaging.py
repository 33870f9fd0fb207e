"""What others install: the wheel, and the image that Binder builds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import unavailable

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what git would commit, in a folder of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        unavailable("the git checkout")
    copy = tmp_path / "checkout"
    for name in filter(None, listed.stdout.split("\0")):
        if (source := ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy / name)
    return copy


def _run(*command: str | Path, cwd: Path, **environment: str) -> str:
    ran = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def test_the_wheel_carries_every_file_of_the_package(checkout: Path, tmp_path: Path) -> None:
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ".", cwd=checkout)
    (wheel,) = tmp_path.glob("qnb-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("qnb/")}
    source = {
        file.relative_to(checkout).as_posix()
        for file in (checkout / "qnb").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert packed == source
    assert {Path(name).suffix for name in packed} >= {".py", ".lua", ".js", ".css", ".typed"}


#: what a visitor's first cells do
CELL = """
import qnb

app = qnb.App()

@app.task
def double(x):
    return 2 * x

with app.start_workers(1):
    print(double.map([1, 2, 3]).wait().frame()["value"].tolist())
"""


def test_binder_sets_up_a_clean_environment_in_which_the_embedded_server_works(
    checkout: Path, tmp_path: Path
) -> None:
    """The steps of repo2docker, in its order, from the root of the repository."""
    home = tmp_path / "home"
    home.mkdir()
    _run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=checkout)
    path = f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    # Folders of its own: neither the kernels nor the trust of who runs the tests are touched.
    environment = {"PATH": path, "HOME": str(home), "PYTHONPATH": ""}
    _run("python", "-m", "pip", "install", "-q", "-r", "binder/requirements.txt",
         cwd=checkout, **environment)  # fmt: skip
    shutil.rmtree(checkout / "qnb")  # what is imported below has been installed
    _run("bash", "binder/postBuild", cwd=checkout, **environment)
    cell = tmp_path / "cell.py"
    cell.write_text(CELL)
    data = {"QNB_DATA_DIR": str(tmp_path / "server")}
    try:
        shown = _run("bash", "binder/start", "python", cell, cwd=checkout, **environment, **data)
    finally:
        _run("qnb", "server", "stop", cwd=checkout, **environment, **data)
    assert shown.splitlines()[-1] == "[2, 4, 6]"
