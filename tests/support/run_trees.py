"""Orchestrator and sandbox as they are, with real guests, over a gateway that plays models."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from common.channel import open_channel
from common.server import Server
from sandbox_service.audit import AuditTrail
from sandbox_service.cell_requests import Carriers
from sandbox_service.config import SandboxConfig
from sandbox_service.gateway_client import MESSAGE_BYTES_MAX, GatewaySubModels
from sandbox_service.memory_watch import MemoryGauge, MemoryWatch
from sandbox_service.objects import FolderObjects
from sandbox_service.orchestrator_client import OrchestratorClient
from sandbox_service.pool import WorkerPool
from sandbox_service.servicer import SandboxServicer
from sandbox_service.session_table import SessionTable
from tests.support.orchestrator import Stack, orchestrator, serve_on_address
from tests.support.plan_sandbox import PlanSandbox
from tests.support.sandbox import guest
from tests.support.tree_gateway import TreeGateway


class RealSandbox:
    """The sandbox service with its workers; register it with a server."""

    def __init__(self, servicer: SandboxServicer, table: SessionTable) -> None:
        self._servicer = servicer
        self.table = table

    def register(self, server: Server) -> None:
        """Add it to a server."""
        self._servicer.register(server)


@contextlib.asynccontextmanager
async def trees(
    folder: Path, gateway: TreeGateway, **settings: Any
) -> AsyncIterator[tuple[Stack, RealSandbox]]:
    """Serve both, with their state in a folder."""
    address_file = folder / "orchestrator.address"
    config = SandboxConfig(object_store=str(folder / "objects"), drain_s=1.0)
    gauge = MemoryGauge(config.memory_bytes_bound)
    (folder / "objects").mkdir(exist_ok=True)
    with AuditTrail(None) as audit:
        async with (
            WorkerPool(guest(), 1, niceness=0, require_jail=config.require_jail) as pool,
            serve_on_address(gateway) as gateway_address,
            open_channel(gateway_address, message_bytes_max=MESSAGE_BYTES_MAX) as channel,
            SessionTable(
                pool,
                FolderObjects(folder / "objects"),
                config.sessions_max,
                lazy_bytes_min=config.lazy_context_bytes_min,
                gauge=gauge,
            ) as table,
            MemoryWatch(table, gauge),
            OrchestratorClient("", address_file) as child_runs,
        ):
            sub_models = GatewaySubModels(channel, call_timeout_s=60.0, concurrency_max=16)
            carriers = Carriers(sub_models=sub_models, child_runs=child_runs)
            sandbox = RealSandbox(SandboxServicer(table, carriers, config, audit, gauge), table)
            async with orchestrator(
                folder,
                gateway=gateway,
                sandbox=sandbox,
                address_file=address_file,
                **settings,
            ) as stack:
                yield stack, sandbox


@contextlib.asynccontextmanager
async def plan_trees(
    folder: Path, gateway: TreeGateway, **settings: Any
) -> AsyncIterator[tuple[Stack, PlanSandbox]]:
    """Serve the orchestrator over a sandbox that executes plans."""
    address_file = folder / "orchestrator.address"
    async with serve_on_address(gateway) as gateway_address:
        sandbox = PlanSandbox(gateway_address, address_file)
        try:
            async with orchestrator(
                folder, gateway=gateway, sandbox=sandbox, address_file=address_file, **settings
            ) as stack:
                yield stack, sandbox
        finally:
            await sandbox.close()
