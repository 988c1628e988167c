"""What a worker writes to its standard error: in the service's log, as its own, and in part."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sandbox_service.errors import CapacityError
from tests.support.eventually import eventually
from tests.support.posing_worker import GREET, OPTIONS, table

SAY = "import os\ndef say(data):\n    while data:\n        data = data[os.write(2, data) :]\n"


async def test_what_a_worker_says_is_marked_as_its_own_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a worker that was taken over could forge lines of the service, and of the audit."""
    program = SAY + 'say(b\'{"logger":"fathom.audit"}\\n\\x1b[2Jand more\')\n' + GREET
    async with table(program + "receive()\n", tmp_path) as sessions:
        (worker,) = sessions.pool.workers

        await eventually(lambda: len(said(caplog)) == 1)

    assert said(caplog) == [
        f'worker {worker.pid} says: \'{{"logger":"fathom.audit"}}\'',
        f"worker {worker.pid} says: '\\x1b[2Jand more'",
    ]


async def test_a_worker_cannot_wipe_the_log(tmp_path: Path) -> None:
    """The service's own standard error may be a file."""
    attempt = """
receive()
import os
try:
    os.ftruncate(2, 0)
except OSError as error:
    send(frames.Lost(session=1, cause=error.strerror))
receive()
"""
    async with table(GREET + attempt, tmp_path) as sessions:
        with pytest.raises(CapacityError, match="Invalid argument"):
            await asyncio.wait_for(sessions.create(OPTIONS), 30)


async def test_a_worker_that_never_stops_talking_is_heard_in_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of the service is not the worker's to fill."""
    monkeypatch.setattr("sandbox_service.worker_log._BYTES_MAX", 100)
    monkeypatch.setattr("sandbox_service.worker_log._PAUSE_S", 0.001)
    program = SAY + GREET + "say(b'x' * 9 + b'\\n' + b'y' * 1_000_000)\nsend(b'\\xff' * 4)\n"
    async with table(program, tmp_path) as sessions:
        (worker,) = sessions.pool.workers
        await eventually(lambda: bool(worker.death))

    heard = [line for line in said(caplog) if line.startswith(f"worker {worker.pid} ")]
    assert heard[0].endswith("'xxxxxxxxx'")
    assert heard[1:] == [f"worker {worker.pid} says: '(no more of what it says is kept)'"]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "sandbox_service.worker_log"]
