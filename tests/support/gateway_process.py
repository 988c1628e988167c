"""A gateway as a process of its own, for tests that kill it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub

from tests.support.child_processes import end_with_parent
from tests.support.eventually import eventually
from tests.support.gateway import KEY

_START_S = 60.0


class GatewayProcess:
    """Runs while its block lasts, unless it is killed before."""

    def __init__(
        self, config: Path, database_url: str, *, lease_s: float = 0.5, accounts: str = "database"
    ) -> None:
        """`config` is the file with the models; several processes may share a database, and the
        store of accounts."""
        self._folder = config.parent
        self.environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "FATHOM_GATEWAY_CONFIG": str(config),
            "FATHOM_GATEWAY_LISTEN": "127.0.0.1:0",
            "FATHOM_GATEWAY_RUN_TOKEN_KEY": KEY.reveal(),
            "FATHOM_GATEWAY_OPERATOR_KEY": KEY.reveal(),
            "FATHOM_GATEWAY_DATABASE_URL": database_url,
            "FATHOM_GATEWAY_ACCOUNTS": accounts,
            "FATHOM_GATEWAY_LEDGER_ANSWERS": str(self._folder / "answers"),
            "FATHOM_GATEWAY_LEDGER_LEASE_S": str(lease_s),
            "FATHOM_GATEWAY_DRAIN_S": "1",
            "PROVIDER_KEY": "sk-provider-secret",
        }
        """Its settings."""
        self._process: asyncio.subprocess.Process | None = None
        self.address = ""
        """`host:port`."""
        self._channel: grpc.aio.Channel | None = None

    @property
    def stub(self) -> Any:
        """The way to it."""
        assert self._channel is not None
        return GatewayServiceStub(self._channel)

    @property
    def channel(self) -> grpc.aio.Channel:
        """The same."""
        assert self._channel is not None
        return self._channel

    async def __aenter__(self) -> Self:
        address = self._folder / f"address-{id(self)}"
        address.unlink(missing_ok=True)
        log = (self._folder / "gateway.log").open("ab")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "llm_gateway",
            stderr=log,
            env=self.environ | {"FATHOM_GATEWAY_ADDRESS_FILE": str(address)},
            preexec_fn=end_with_parent,
        )
        log.close()
        running = self._process
        await eventually(
            lambda: address.exists() or running.returncode is not None, within_s=_START_S
        )
        assert running.returncode is None, (self._folder / "gateway.log").read_text()
        self.address = address.read_text().strip()
        self._channel = grpc.aio.insecure_channel(self.address)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.kill()
        if self._channel is not None:
            await self._channel.close()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """End it with SIGKILL: nothing of it runs any more."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
