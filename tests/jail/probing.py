"""Starts the probe and gives its answers; and a surrounding for its attempts to reach for."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sandbox_service.jail.walls import WALLS
from tests.jail.attempts import Surroundings
from tests.support.child_processes import end_with_parent

STARTS = ("root", "bare root", "user") if os.geteuid() == 0 else ("as the tests",)
"""The kinds of process that a service may be started as, of those that can be made here."""
KILLED = "killed by SIGSYS"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one attempt gave."""

    outcome: str
    walls: dict[str, str]
    """Name of a wall that was to be raised, to why it does not stand."""
    dumped_core: bool = False

    def stands(self, wall: str) -> bool:
        return wall in self.walls and not self.walls[wall]


def probe(
    attempts: Sequence[str],
    around: Surroundings,
    walls: Sequence[str] = WALLS,
    start: str = STARTS[0],
    niceness: int = 0,
    **options: Any,
) -> dict[str, Answer]:
    """Make each attempt in a process of its own that has the walls around it."""
    request = {
        "start": start,
        "walls": list(walls),
        "attempts": list(attempts),
        "around": dataclasses.asdict(around),
        "niceness": niceness,
    }
    result = subprocess.run(
        [sys.executable, "-I", "-m", "tests.jail.probe", json.dumps(request)],
        input="typed",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=end_with_parent,
        **options,
    )
    assert result.returncode == 0, result.stderr
    answers = [
        Answer(
            answer["outcome"],
            {
                wall["name"]: "" if wall["raised"] else wall["detail"] or "no reason given"
                for wall in answer["walls"]
            },
            answer.get("dumped", False),
        )
        for answer in json.loads(result.stdout)
    ]
    return dict(zip(attempts, answers, strict=True))


@contextlib.contextmanager
def surroundings() -> Iterator[Surroundings]:
    """Yield files, a folder, a neighbour and listening sockets that are there to be reached."""
    name = f"fathom-{secrets.token_hex(8)}"
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.create_server(("127.0.0.1", 0)) as server,
        _neighbour() as neighbour,
    ):
        secret, private = Path(folder, "secret"), Path(folder, "private")
        for path, mode in ((secret, 0o666), (private, 0o600)):
            path.write_text("secret")
            path.chmod(mode)
        Path(folder).chmod(0o777)
        abstract.bind(f"\0{name}")
        abstract.listen()
        yield Surroundings(
            secret_file=str(secret),
            private_file=str(private),
            folder=folder,
            parent=os.getpid(),
            neighbour=neighbour.pid,
            abstract_socket=name,
            port=server.getsockname()[1],
        )


@contextlib.contextmanager
def _neighbour() -> Iterator[subprocess.Popen[bytes]]:
    # It waits for an input that never comes, and ends with the input's other end.
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", "input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=end_with_parent,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
