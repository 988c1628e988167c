"""The built wheel, installed apart from the checkout, and its services as real processes.

The wheel's environment finds the third-party packages of the environment that runs the tests,
but none of this checkout's code: a file that the wheel lacks is missing here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.child_processes import end_with_parent

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 90


@dataclasses.dataclass(frozen=True)
class Installed:
    """The wheel, installed in an environment of its own."""

    bin: Path
    """Folder of its commands."""

    @property
    def fathom(self) -> str:
        """The command."""
        return str(self.bin / "fathom")

    @property
    def python(self) -> str:
        """The interpreter."""
        return str(self.bin / "python")


@dataclasses.dataclass(frozen=True)
class Stack:
    """Services started by `fathom up --scripted-model`."""

    orchestrator_address: str
    """`host:port`."""
    environ: dict[str, str]
    """Environment in which the command finds these services."""
    home: Path
    """Their state."""
    pid: int
    """Process id of `fathom up`."""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the wheel and install it where the checkout cannot be imported."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [
        *pip,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True, timeout=120, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # A path line is searched for modules, but its own .pth files are not read: the editable
    # install of the checkout, which is one of them, stays out.
    (packages / "third_party.pth").write_text(sysconfig.get_path("purelib") + "\n")
    target = ["--prefix", str(environment), "--ignore-installed", "--no-deps", str(wheel)]
    subprocess.run([*pip, "install", *target], check=True, timeout=120, stdout=subprocess.DEVNULL)
    _use_own_interpreter(environment)
    return Installed(environment / "bin")


def _use_own_interpreter(environment: Path) -> None:
    """Point the installed commands, which pip made for its own interpreter, at this one."""
    for script in (environment / "bin").glob("fathom*"):
        lines = script.read_text().splitlines(keepends=True)
        script.write_text(f"#!{environment / 'bin' / 'python'}\n" + "".join(lines[1:]))


@pytest.fixture(scope="session")
def user_environ() -> dict[str, str]:
    """A user's environment without a key and without settings of fathom's."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FATHOM_", "OPENAI_", "OTEL_", "PYTHON"))
    }


@pytest.fixture(scope="session")
def stack(
    installed: Installed,
    user_environ: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """Run `fathom up --scripted-model` until the tests are done."""
    home = tmp_path_factory.mktemp("home")
    environ = user_environ | {"FATHOM_HOME": str(home)}
    command = [installed.fathom, "up", "--scripted-model", "--listen", "127.0.0.1:0"]
    with (home / "up.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environ, cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=log, text=True, preexec_fn=end_with_parent,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, (home / "up.log").read_text()
        record = json.loads((home / "up.json").read_text())
        yield Stack(record["address"], environ, home, process.pid)
    finally:
        process.terminate()
        process.wait(timeout=60)
        process.stdout.close()
