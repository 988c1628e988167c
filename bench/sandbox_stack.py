"""The sandbox service alone, as a process of its own: no orchestrator, and no gateway to ask."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from fathom.sandbox.v1 import sandbox_service_pb2_grpc
from fathom_client.local_stack import environment_of
from fathom_client.processes import ServiceProcess

from bench.blobs import Blobs
from bench.processes import thread_count, worker_pids
from bench.sandbox_client import Sandbox
from common.channel import open_channel

_EMPTIED_TIMEOUT_S = 30.0
_POLL_S = 0.005


@dataclasses.dataclass(frozen=True)
class SandboxStack:
    """A running sandbox service."""

    sandbox: Sandbox
    """A client of it."""
    blobs: Blobs
    """Puts contexts where it finds them."""
    pid: int
    """Process id of the service; its workers are its children."""

    threads: int
    """Threads of all workers together while they have no session."""

    @property
    def workers(self) -> list[int]:
        """Process ids of its workers."""
        return worker_pids(self.pid)

    async def emptied(self) -> None:
        """Wait until the workers have given back what deleted sessions had: a thread each."""
        async with asyncio.timeout(_EMPTIED_TIMEOUT_S):
            while _threads(self.pid) > self.threads:  # noqa: ASYNC110  # the kernel tells nobody
                await asyncio.sleep(_POLL_S)


@contextlib.asynccontextmanager
async def sandbox_stack() -> AsyncIterator[SandboxStack]:
    """Run the service inside the block; a folder that it keeps things in goes with it.

    Walls that cannot be raised on this host are named on standard error, since a figure without
    them is another figure.
    """
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as name:
        folder = Path(name)
        blobs = Blobs(folder / "objects")
        address_file = folder / "sandbox.address"
        settings = {
            "FATHOM_SANDBOX_LISTEN": "127.0.0.1:0",
            "FATHOM_SANDBOX_ADDRESS_FILE": str(address_file),
            "FATHOM_SANDBOX_OBJECT_STORE": str(blobs.folder),
            "FATHOM_SANDBOX_REQUIRE_JAIL": "false",
        }
        process = ServiceProcess(
            "sandbox",
            "sandbox_service",
            environment=environment_of("sandbox", os.environ, settings),
            address_file=address_file,
            log=folder / "sandbox.log",
        )
        await process.start()
        try:
            address = await process.wait_ready()
            async with open_channel(address) as channel:
                sandbox = Sandbox(sandbox_service_pb2_grpc.SandboxServiceStub(channel))
                await _name_missing_walls(sandbox)
                yield SandboxStack(sandbox, blobs, process.pid, _threads(process.pid))
        finally:
            await process.stop()


def _threads(service_pid: int) -> int:
    return sum(thread_count(pid) for pid in worker_pids(service_pid))


async def _name_missing_walls(sandbox: Sandbox) -> None:
    for wall in (await sandbox.info()).walls:
        if not wall.raised:
            print(f"without the wall {wall.name}: {wall.detail}", file=sys.stderr)
