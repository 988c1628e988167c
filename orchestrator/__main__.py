"""The orchestrator as a process."""

from __future__ import annotations

from common.server import run_service
from orchestrator.assembly import open_orchestrator
from orchestrator.config import PREFIX, OrchestratorConfig


async def serve(config: OrchestratorConfig) -> None:
    """Serve until SIGTERM or SIGINT."""
    async with open_orchestrator(config) as server:
        await server.wait_for_signal()


def main() -> None:
    """Run the service."""
    run_service("fathom-orchestrator", OrchestratorConfig, PREFIX, serve)


if __name__ == "__main__":
    main()
