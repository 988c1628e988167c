"""Starts the sandbox service: the guest, the workers, then gRPC."""

from __future__ import annotations

import sys

from common.channel import open_channel
from common.config import ConfigError
from common.server import Server, run_service
from sandbox_service.config import PREFIX, SandboxConfig
from sandbox_service.gateway_client import MESSAGE_BYTES_MAX, GatewaySubModels
from sandbox_service.guest_build import GuestNotPreparedError
from sandbox_service.objects import FolderObjects
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
    """Serve until a signal ends it."""
    try:
        build = prepare_guest(config.guest_cache, config.guest_wheel, Progress(sys.stderr))
        pool = WorkerPool(build, config.worker_count)
        async with (
            # Workers first: no process is started from one that serves gRPC already, but for
            # the replacement of a dead worker.
            pool,
            SessionTable(pool, FolderObjects(config.object_store), config.sessions_max) as sessions,
            open_channel(config.gateway_address, message_bytes_max=MESSAGE_BYTES_MAX) as channel,
        ):
            sub_models = GatewaySubModels(
                channel,
                call_timeout_s=config.sub_call_timeout_s,
                concurrency_max=config.sub_call_concurrency_max,
            )
            server = Server("fathom-sandbox", config, message_bytes_max=_MESSAGE_BYTES_MAX)
            SandboxServicer(sessions, sub_models, config).register(server)
            async with server:
                await server.wait_for_signal()
    except (GuestNotPreparedError, WorkerStartError) as error:
        raise ConfigError(str(error)) from error


if __name__ == "__main__":
    main()
