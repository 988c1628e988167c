"""A gateway as a process of its own, for tests that kill it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub

from tests.support.gateway import KEY
from tests.support.service_process import ServiceProcess

_PREFIX = "FATHOM_GATEWAY_"


class GatewayProcess(ServiceProcess):
    """Runs while its block lasts, unless it is killed before."""

    def __init__(
        self, config: Path, database_url: str, *, lease_s: float = 0.5, accounts: str = "database"
    ) -> None:
        """`config` is the file with the models; several processes may share a database, and the
        store of accounts."""
        settings = {
            f"{_PREFIX}CONFIG": str(config),
            f"{_PREFIX}RUN_TOKEN_KEY": KEY.reveal(),
            f"{_PREFIX}OPERATOR_KEY": KEY.reveal(),
            f"{_PREFIX}DATABASE_URL": database_url,
            f"{_PREFIX}ACCOUNTS": accounts,
            f"{_PREFIX}LEDGER_ANSWERS": str(config.parent / "answers"),
            f"{_PREFIX}LEDGER_LEASE_S": str(lease_s),
            "PROVIDER_KEY": "sk-provider-secret",
        }
        super().__init__("llm_gateway", _PREFIX, config.parent, settings)
        self._channel: grpc.aio.Channel | None = None

    @property
    def stub(self) -> Any:
        """The way to it."""
        return GatewayServiceStub(self.channel)

    @property
    def channel(self) -> grpc.aio.Channel:
        """The same."""
        assert self._channel is not None
        return self._channel

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._channel = grpc.aio.insecure_channel(self.address)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        if self._channel is not None:
            await self._channel.close()
