"""Who is seen to live and to be dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from llm_gateway.ledger.lives import Lives

DIES = """
import os, pathlib, signal, sys
from llm_gateway.ledger.lives import Lives
with Lives(pathlib.Path(sys.argv[1])).living("a"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_who_lives_is_not_dead_and_leaves_nothing_behind(tmp_path: Path) -> None:
    lives = Lives(tmp_path)

    with lives.living("a"):
        assert not Lives(tmp_path).is_dead("a")
        assert Lives(tmp_path).dead() == []

    assert not any(tmp_path.iterdir())


def test_of_who_is_not_there_nothing_is_known(tmp_path: Path) -> None:
    """It may live on another machine: its lease decides."""
    assert not Lives(tmp_path).is_dead("elsewhere")


def test_of_who_was_started_by_another_kernel_nothing_is_known(tmp_path: Path) -> None:
    """Its lock may be one that this machine does not see."""
    (tmp_path / "elsewhere").write_text("another boot\n")

    assert not Lives(tmp_path).is_dead("elsewhere")
    assert Lives(tmp_path).dead() == []


def test_who_is_killed_is_dead_at_once_until_it_is_forgotten(tmp_path: Path) -> None:
    environ = {"PYTHONPATH": os.pathsep.join(sys.path)}
    died = subprocess.run([sys.executable, "-c", DIES, tmp_path], env=environ, check=False)
    assert died.returncode == -signal.SIGKILL
    lives = Lives(tmp_path)

    assert lives.is_dead("a")
    assert lives.dead() == ["a"]
    lives.forget("a")
    assert lives.dead() == []
