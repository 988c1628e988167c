"""An orchestrator as a process of its own, for tests that kill it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from fathom.orchestrator.v1 import context_service_pb2_grpc, orchestrator_service_pb2_grpc

from common.channel import open_channel
from tests.support.fake_gateway import TOKEN_KEY
from tests.support.service_process import ServiceProcess

_PREFIX = "FATHOM_ORCHESTRATOR_"


class OrchestratorProcess(ServiceProcess):
    """Runs while its block lasts, unless it is killed before."""

    def __init__(
        self, folder: Path, database_url: str, *, gateway: str, sandbox: str, **settings: object
    ) -> None:
        """`folder` holds the object store and the logs; several processes may share it, and the
        database. `gateway` and `sandbox` are addresses."""
        values = {
            "gateway_address": gateway,
            "sandbox_address": sandbox,
            "database_url": database_url,
            "object_store": folder / "objects",
            "run_token_key": TOKEN_KEY,
            "executor_lease_s": 1,
        } | settings
        environ = {f"{_PREFIX}{name.upper()}": str(value) for name, value in values.items()}
        super().__init__("orchestrator", _PREFIX, folder, environ)
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

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._channel = open_channel(self.address)
        self._grpc = await self._channel.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        await self._channel.__aexit__(None, None, None)
