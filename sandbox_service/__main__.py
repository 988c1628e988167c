"""Starts the sandbox service: the guest, the workers, then gRPC."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys

from common.channel import open_channel
from common.config import ConfigError
from common.peers import admitting
from common.run_token import ORCHESTRATOR
from common.server import Server, run_service
from common.tls import channel_credentials
from sandbox_service.audit import AuditTrail
from sandbox_service.cell_requests import Carriers
from sandbox_service.config import PREFIX, SandboxConfig
from sandbox_service.gateway_client import MESSAGE_BYTES_MAX, GatewaySubModels
from sandbox_service.guest_build import GuestBuild, GuestNotPreparedError
from sandbox_service.memory_watch import MemoryGauge, MemoryWatch
from sandbox_service.object_store import open_object_store
from sandbox_service.orchestrator_client import OrchestratorClient
from sandbox_service.pool import WorkerPool
from sandbox_service.prepare import prepare_guest
from sandbox_service.progress import Progress
from sandbox_service.servicer import SandboxServicer
from sandbox_service.session_table import SessionTable
from sandbox_service.worker_process import WorkerStartError

_MESSAGE_BYTES_MAX = 16 << 20
"""A context of many documents is described in one CreateSession."""


def main() -> None:
    """Run the service until SIGTERM."""
    run_service("fathom-sandbox", SandboxConfig, PREFIX, serve)


async def serve(config: SandboxConfig) -> None:
    """Serve until a signal ends it; SIGHUP opens the audit log anew, by its name."""
    _allow_open_files()
    try:
        build = prepare_guest(config.guest_cache, config.guest_wheel, Progress(sys.stderr))
        # The trail outlives the sessions: they end their executions on the way out.
        with _audit_trail(config) as audit:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, audit.reopen)
            await _serve(config, build, audit)
    except (GuestNotPreparedError, WorkerStartError) as error:
        raise ConfigError(str(error)) from error


def _allow_open_files() -> None:
    """Raise our own limit as far as it goes: each layer of a session's memory is an open file."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _audit_trail(config: SandboxConfig) -> AuditTrail:
    try:
        return AuditTrail(config.audit_log)
    except OSError as error:
        raise ConfigError(f"audit_log: {error}") from error


async def _serve(config: SandboxConfig, build: GuestBuild, audit: AuditTrail) -> None:
    pool = WorkerPool(
        build,
        config.worker_count,
        niceness=config.worker_niceness,
        require_jail=config.require_jail,
        worker_sessions_max=config.worker_sessions_max,
    )
    gauge = MemoryGauge(config.memory_bytes_bound)
    async with (
        # Workers first: no process is started from one that serves gRPC already, but for
        # the replacement of a dead worker.
        pool,
        open_object_store(config) as objects,
        SessionTable(
            pool,
            objects,
            config.sessions_max,
            lazy_bytes_min=config.lazy_context_bytes_min,
            gauge=gauge,
        ) as sessions,
        MemoryWatch(sessions, gauge),
        open_channel(
            config.gateway_address,
            message_bytes_max=MESSAGE_BYTES_MAX,
            credentials=channel_credentials(config),
        ) as channel,
        OrchestratorClient(
            config.orchestrator_address,
            config.orchestrator_address_file,
            channel_credentials(config),
        ) as orchestrator,
    ):
        sub_models = GatewaySubModels(
            channel,
            call_timeout_s=config.sub_call_timeout_s,
            concurrency_max=config.sub_call_concurrency_max,
        )
        server = Server(
            "fathom-sandbox",
            config,
            message_bytes_max=_MESSAGE_BYTES_MAX,
            admit=admitting({ORCHESTRATOR}),
        )
        carriers = Carriers(sub_models=sub_models, child_runs=orchestrator, host_tools=orchestrator)
        SandboxServicer(sessions, carriers, config, audit, gauge).register(server)
        async with server:
            await server.wait_for_signal()


if __name__ == "__main__":
    main()
