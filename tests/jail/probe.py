"""A process that raises walls around children of its own and has each make one attempt.

`python -I -m tests.jail.probe REQUEST` takes what to do as JSON and writes, for each attempt, the
walls and the outcome: how the attempt ended, or `killed by SIGSYS`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import sys
import traceback
from typing import Any

from sandbox_service.jail import privileges
from sandbox_service.jail.walls import JailOptions, raise_walls
from tests.jail.attempts import Surroundings, outcome_of

ORDINARY_USER = 54_321
_PR_SET_DUMPABLE = 4


def main() -> None:
    """Answer the request on standard output."""
    request = json.loads(sys.argv[1])
    around = Surroundings(**request["around"])
    json.dump(
        [
            _tried(request["start"], request["walls"], name, around, request["niceness"])
            for name in request["attempts"]
        ],
        sys.stdout,
    )


def _tried(
    start: str, walls: list[str], attempt: str, around: Surroundings, niceness: int
) -> dict[str, Any]:
    reading, writing = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if not child:
        # Whatever happens, this copy of the process must not go on as the original would.
        try:
            outcome = _from_inside(start, walls, attempt, around, niceness, writing, parent)
            os.write(writing, json.dumps(outcome).encode())
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        lines = pipe.read().splitlines()
    status = os.waitpid(child, 0)[1]
    answer: dict[str, Any] = {"walls": json.loads(lines[0]) if lines else [], "outcome": "nothing"}
    if len(lines) > 1:
        answer["outcome"] = json.loads(lines[1])
    if os.WIFSIGNALED(status):
        answer["outcome"] = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
        answer["dumped"] = os.WCOREDUMP(status)
    return answer


def _from_inside(
    start: str,
    walls: list[str],
    attempt: str,
    around: Surroundings,
    niceness: int,
    writing: int,
    parent: int,
) -> str:
    _become(start)
    options = JailOptions(
        keep_fds=(writing,), parent_pid=parent, socket_fd=writing, niceness=niceness
    )
    raised = raise_walls(options, walls)
    os.write(writing, json.dumps([dataclasses.asdict(wall) for wall in raised]).encode() + b"\n")
    return outcome_of(attempt, around)


def _become(start: str) -> None:
    """Be the kind of process that the service is started as."""
    if start == "bare root":
        privileges._set_capabilities(0)
    if start == "user":
        os.setgroups([])
        os.setresgid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
        os.setresuid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
        # As after executing a program, which an ordinary user's process has done.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


if __name__ == "__main__":
    main()
