"""The service says at its start which walls stand, and does not start where one is missing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub

from sandbox_service.jail.walls import REMEDIES, WALLS
from tests.support.child_processes import end_with_parent
from tests.support.eventually import eventually
from tests.support.sandbox import guest

pytestmark = pytest.mark.guest
SERVICE = "sandbox_service"
ON_AN_OLD_KERNEL = "tests.jail.old_kernel"


@asynccontextmanager
async def service(module: str, tmp_path: Path, **settings: str) -> AsyncIterator[Process]:
    """Start a sandbox service as a process of its own."""
    environment = {
        **{name: os.environ[name] for name in ("HOME", "XDG_CACHE_HOME") if name in os.environ},
        "FATHOM_SANDBOX_GUEST_CACHE": str(guest().compiled.parent),
        "FATHOM_SANDBOX_OBJECT_STORE": str(tmp_path),
        "FATHOM_SANDBOX_LISTEN": "127.0.0.1:0",
        "FATHOM_SANDBOX_ADDRESS_FILE": str(tmp_path / "address"),
        "FATHOM_SANDBOX_WORKERS": "1",
        **{f"FATHOM_SANDBOX_{name}": value for name, value in settings.items()},
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", module),
        env=environment,
        stderr=PIPE,
        preexec_fn=end_with_parent,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


async def walls_of(process: Process, tmp_path: Path) -> dict[str, Any]:
    """Ask a service for its walls, once it serves."""
    file = tmp_path / "address"
    await eventually(lambda: file.exists() and bool(file.read_text()))
    async with grpc.aio.insecure_channel(file.read_text().strip()) as channel:
        stub = SandboxServiceStub(channel)
        info = await stub.GetSandboxInfo(wire.GetSandboxInfoRequest(), timeout=30)
    return {wall.name: wall for wall in info.walls}


async def logged(process: Process) -> list[dict[str, Any]]:
    """End a service and return its log."""
    process.terminate()
    _, errors = await process.communicate()
    return [json.loads(line) for line in errors.splitlines() if line.startswith(b"{")]


async def test_the_log_tells_of_every_wall(tmp_path: Path) -> None:
    async with service(SERVICE, tmp_path) as process:
        walls = await walls_of(process, tmp_path)
        messages = [line["message"] for line in await logged(process)]

    assert list(walls) == ["wasm", "process", *WALLS]
    for name in WALLS:
        assert [message for message in messages if f"the wall `{name}`" in message], messages


async def test_a_missing_wall_keeps_the_service_from_starting(tmp_path: Path) -> None:
    """The message has to be of use to who reads it: which wall, why, and what to do."""
    async with service(ON_AN_OLD_KERNEL, tmp_path) as process:
        _, errors = await process.communicate()

    assert process.returncode == 2
    last = errors.decode().splitlines()[-1]
    assert "`landlock`" in last
    assert "built without Landlock" in last
    assert "Linux 5.13" in last
    assert "FATHOM_SANDBOX_REQUIRE_JAIL=false" in last
    assert not (tmp_path / "address").exists()


async def test_a_service_that_may_start_without_a_wall_says_so(tmp_path: Path) -> None:
    async with service(ON_AN_OLD_KERNEL, tmp_path, REQUIRE_JAIL="false") as process:
        walls = await walls_of(process, tmp_path)
        log = await logged(process)

    assert not walls["landlock"].raised
    assert "built without Landlock" in walls["landlock"].detail
    assert walls["seccomp"].raised
    warnings = [line["message"] for line in log if line["level"] == "WARNING"]
    assert [text for text in warnings if "`landlock` does not stand" in text], log


def test_the_walls_of_a_machine_can_be_tried_without_a_service() -> None:
    """What `fathom doctor` asks: a process that raises them around itself and says which stand."""
    command = [sys.executable, "-P", "-m", "sandbox_service.jail"]

    tried = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    said = dict(line.split(": ", 1) for line in tried.stdout.splitlines())
    assert list(said)[: len(WALLS)] == list(WALLS)
    assert (tried.returncode == 0) is all(said[name] == "stands" for name in REMEDIES)
    assert not tried.stderr
