"""The gateway's process: read the configuration, build the objects, serve."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
from collections.abc import AsyncIterator

from common.server import Server, run_service
from llm_gateway.catalog import Catalog
from llm_gateway.catalog_file import load_catalog
from llm_gateway.config import PREFIX, GatewayConfig
from llm_gateway.gateway import Gateway
from llm_gateway.meter import Meter
from llm_gateway.openai_provider import OpenAIProvider
from llm_gateway.permissions import Gate
from llm_gateway.quota_servicer import QuotaServicer
from llm_gateway.routes import RetryPolicy
from llm_gateway.servicer import GatewayServicer
from llm_gateway.upstreams import make_upstreams

_NAME = "fathom-gateway"
_MESSAGE_BYTES_MAX = 32 << 20
_QUIET = ("openai", "httpx2", "httpcore2")
"""Libraries that log a line or more for each request, with its URL."""


def main() -> None:
    """Run until SIGTERM."""
    run_service(_NAME, GatewayConfig, PREFIX, serve)


async def serve(config: GatewayConfig) -> None:
    """Serve until SIGTERM; calls under way get `drain_s` to end."""
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    catalog = load_catalog(config.config, os.environ, dt.datetime.now(dt.UTC))
    async with open_gateway(catalog, config) as gateway:
        server = Server(_NAME, config, message_bytes_max=_MESSAGE_BYTES_MAX)
        register(server, gateway, catalog, config)
        async with server:
            await server.wait_for_signal()


@contextlib.asynccontextmanager
async def open_gateway(catalog: Catalog, config: GatewayConfig) -> AsyncIterator[Gateway]:
    """Give a gateway with connections to the catalog's providers, which end with the block."""
    endpoints = {d.provider.name: d.provider for d in catalog.deployments.values()}
    providers = {name: OpenAIProvider(endpoint) for name, endpoint in endpoints.items()}
    gateway = Gateway(
        catalog,
        make_upstreams(catalog, providers),
        Meter(),
        policy=RetryPolicy(attempts_max=config.attempts_max, backoff_s=config.retry_backoff_s),
        output_tokens_default=config.output_tokens_default,
        abandoned_drain_s=config.abandoned_drain_s,
    )
    try:
        yield gateway
    finally:
        await gateway.close()
        for provider in providers.values():
            await provider.close()


def register(server: Server, gateway: Gateway, catalog: Catalog, config: GatewayConfig) -> None:
    """Add both services to a server."""
    gate = Gate(config.run_token_key, catalog, token_required=config.run_token_required)
    GatewayServicer(gateway, gate, catalog).register(server)
    QuotaServicer().register(server)


if __name__ == "__main__":
    main()
