"""The `fathom` command as a process, and an orchestrator's servicers for it on a real port."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fathom.errors.v1 import error_reason_pb2
from grpc import StatusCode

from common.config import ServerConfig
from common.errors import ServiceError
from common.server import Server
from tests.support.fake_orchestrator import FakeOrchestrator

COMMAND = (sys.executable, "-P", "-m", "fathom_client.command.main")
TIMEOUT_S = 60
NOBODY = "127.0.0.1:1"


class RunCancelledError(ServiceError):
    """What a cancelled run carries."""

    code = StatusCode.ABORTED
    reason = error_reason_pb2.ERROR_REASON_RUN_CANCELLED


class ProviderCredentialError(ServiceError):
    """What a run carries whose provider refused the key."""

    code = StatusCode.FAILED_PRECONDITION
    reason = error_reason_pb2.ERROR_REASON_PROVIDER_CREDENTIAL


@dataclass(frozen=True)
class Ended:
    """A command that ended."""

    status: int
    stdout: str
    stderr: str


@asynccontextmanager
async def serving(orchestrator: FakeOrchestrator) -> AsyncIterator[str]:
    server = Server("test", ServerConfig(drain_s=1.0))
    orchestrator.register(server)
    async with server:
        yield server.address


async def start(
    folder: Path,
    *arguments: str,
    stdout: int = asyncio.subprocess.PIPE,
    environ: dict[str, str] | None = None,
) -> asyncio.subprocess.Process:
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FATHOM_", "OPENAI_"))
    }
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        cwd=folder,
        env=own | {"FATHOM_HOME": str(folder / "home")} | (environ or {}),
        stdin=asyncio.subprocess.PIPE,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )


async def end_of(process: asyncio.subprocess.Process, stdin: bytes | None = None) -> Ended:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            stdout, stderr = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ended(process.returncode or 0, (stdout or b"").decode(), stderr.decode())


async def run(folder: Path, *arguments: str, stdin: bytes | None = None, **environ: str) -> Ended:
    return await end_of(await start(folder, *arguments, environ=environ), stdin)
