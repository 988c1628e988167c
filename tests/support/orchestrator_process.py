"""An orchestrator as a process of its own, for tests that kill it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from fathom.orchestrator.v1 import context_service_pb2_grpc, orchestrator_service_pb2_grpc

from common.channel import open_channel
from tests.support.child_processes import end_with_parent
from tests.support.eventually import eventually
from tests.support.fake_gateway import TOKEN_KEY

_START_S = 60.0


class OrchestratorProcess:
    """Runs while its block lasts, unless it is killed before."""

    def __init__(
        self, folder: Path, database_url: str, *, gateway: str, sandbox: str, **settings: object
    ) -> None:
        """`folder` holds the object store and the logs; several processes may share it, and the
        database. `gateway` and `sandbox` are addresses."""
        self._folder = folder
        values = {
            "listen": "127.0.0.1:0",
            "drain_s": 1,
            "gateway_address": gateway,
            "sandbox_address": sandbox,
            "database_url": database_url,
            "object_store": folder / "objects",
            "run_token_key": TOKEN_KEY,
            "executor_lease_s": 1,
        }
        self._environ = {
            f"FATHOM_ORCHESTRATOR_{name.upper()}": str(value)
            for name, value in (values | settings).items()
        }
        self._environ |= {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Any = None
        self._grpc: grpc.aio.Channel | None = None

    @property
    def runs(self) -> orchestrator_service_pb2_grpc.OrchestratorServiceAsyncStub:
        """Runs."""
        assert self._grpc is not None
        return orchestrator_service_pb2_grpc.OrchestratorServiceStub(self._grpc)

    @property
    def contexts(self) -> context_service_pb2_grpc.ContextServiceAsyncStub:
        """Contexts."""
        assert self._grpc is not None
        return context_service_pb2_grpc.ContextServiceStub(self._grpc)

    @property
    def log(self) -> str:
        """What all processes of the folder have logged."""
        return (self._folder / "orchestrator.log").read_text()

    async def __aenter__(self) -> Self:
        address = self._folder / f"address-{id(self)}"
        address.unlink(missing_ok=True)
        with (self._folder / "orchestrator.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "orchestrator"),
                stderr=log,
                env=self._environ | {"FATHOM_ORCHESTRATOR_ADDRESS_FILE": str(address)},
                preexec_fn=end_with_parent,
            )
        running = self._process
        await eventually(
            lambda: address.exists() or running.returncode is not None, within_s=_START_S
        )
        assert running.returncode is None, self.log
        self._channel = open_channel(address.read_text().strip())
        self._grpc = await self._channel.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.end(signal.SIGKILL)
        await self._channel.__aexit__(None, None, None)

    async def end(self, number: int) -> None:
        """Send it a signal and wait for its end."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        await asyncio.wait_for(self._process.wait(), 30)
