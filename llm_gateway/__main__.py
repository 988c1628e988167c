"""The gateway's process: read the configuration, build the objects, serve."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import logging
import os
from collections.abc import AsyncIterator

from common.server import Server, run_service
from llm_gateway.catalog import Catalog
from llm_gateway.catalog_file import load_catalog
from llm_gateway.config import PREFIX, GatewayConfig
from llm_gateway.gateway import Gateway
from llm_gateway.ledger.assembly import LedgerSettings, open_ledger
from llm_gateway.ledger.usage import UsageReports
from llm_gateway.meter import Meter
from llm_gateway.openai_provider import OpenAIProvider
from llm_gateway.operators import OperatorGate
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
    async with open_gateway(catalog, config) as opened:
        server = Server(_NAME, config, message_bytes_max=_MESSAGE_BYTES_MAX)
        register(server, opened, catalog, config)
        async with server:
            await server.wait_for_signal()


@dataclasses.dataclass(frozen=True)
class OpenGateway:
    """What the servicers serve."""

    gateway: Gateway
    """Answers calls."""
    usage: UsageReports
    """Tells what they took."""


@contextlib.asynccontextmanager
async def open_gateway(catalog: Catalog, config: GatewayConfig) -> AsyncIterator[OpenGateway]:
    """Give a gateway with its ledger and connections to the catalog's providers; they end with
    the block."""
    endpoints = {d.provider.name: d.provider for d in catalog.deployments.values()}
    async with contextlib.AsyncExitStack() as stack:
        books = await stack.enter_async_context(open_ledger(_ledger_settings(config)))
        providers = {name: OpenAIProvider(endpoint) for name, endpoint in endpoints.items()}
        for provider in providers.values():
            stack.push_async_callback(provider.close)
        meter = Meter(books=books.ledger)
        books.ledger.on_unknown(meter.read_again)
        gateway = Gateway(
            catalog,
            make_upstreams(catalog, providers),
            meter,
            books.ledger,
            policy=RetryPolicy(attempts_max=config.attempts_max, backoff_s=config.retry_backoff_s),
            output_tokens_default=config.output_tokens_default,
            abandoned_drain_s=config.abandoned_drain_s,
        )
        stack.push_async_callback(gateway.close)
        yield OpenGateway(gateway, UsageReports(books.database))


def register(server: Server, opened: OpenGateway, catalog: Catalog, config: GatewayConfig) -> None:
    """Add both services to a server."""
    gate = Gate(config.run_token_key, catalog, token_required=config.run_token_required)
    GatewayServicer(opened.gateway, gate, catalog).register(server)
    QuotaServicer(OperatorGate(config.operator_key), opened.usage).register(server)


def _ledger_settings(config: GatewayConfig) -> LedgerSettings:
    return LedgerSettings(
        database_url=config.database_url.reveal(),
        answers=config.ledger_answers,
        answer_bytes_inline_max=config.ledger_answer_bytes_inline_max,
        retention_days=config.ledger_retention_days,
        lease_s=config.ledger_lease_s,
    )


if __name__ == "__main__":
    main()
