"""The gateway's process: read the configuration, build the objects, serve."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import datetime as dt
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from common.config import ConfigError
from common.server import Server, run_service
from llm_gateway.accounts.assembly import make_meter, make_quota_book
from llm_gateway.accounts.quotas import QuotaBook
from llm_gateway.cache.answer_cache import AnswerCache
from llm_gateway.cache.assembly import shared_stores
from llm_gateway.catalog import Catalog
from llm_gateway.catalog_file import load_catalog
from llm_gateway.config import PREFIX, GatewayConfig
from llm_gateway.gateway import Gateway
from llm_gateway.ledger.assembly import LedgerSettings, open_ledger
from llm_gateway.ledger.usage import UsageReports
from llm_gateway.meter import Meter
from llm_gateway.operators import OperatorGate
from llm_gateway.permissions import Gate
from llm_gateway.quota_servicer import QuotaServicer
from llm_gateway.reload import Connections, Reloads
from llm_gateway.routes import RetryPolicy
from llm_gateway.servicer import GatewayServicer

_NAME = "fathom-gateway"
_MESSAGE_BYTES_MAX = 32 << 20
_QUIET = ("openai", "httpx2", "httpcore2")
"""Libraries that log a line or more for each request, with its URL."""


def main() -> None:
    """Run until SIGTERM, or check a file and end."""
    parser = argparse.ArgumentParser(
        prog=_NAME, description="Serves models. Its settings are environment variables."
    )
    parser.add_argument(
        "--check-config",
        metavar="FILE",
        type=Path,
        help="say whether a file with providers, deployments and tiers is valid, and end",
    )
    file = parser.parse_args().check_config
    if file is None:
        run_service(_NAME, GatewayConfig, PREFIX, serve)
    else:
        check_config(file)


def check_config(file: Path) -> None:
    """Say whether a file is valid with the present environment; exits with 2 where it is not."""
    try:
        catalog = load_catalog(file, os.environ, dt.datetime.now(dt.UTC))
    except ConfigError as error:
        print(f"{_NAME}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{file} is valid: deployments {', '.join(catalog.deployments)}")


async def serve(config: GatewayConfig) -> None:
    """Serve until SIGTERM; calls under way get `drain_s` to end."""
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    catalog = _catalog_of(config)
    async with open_gateway(catalog, config) as opened:
        server = Server(_NAME, config, message_bytes_max=_MESSAGE_BYTES_MAX)
        register(server, opened, config)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, opened.reloads.request)
        async with server:
            await server.wait_for_signal()


@dataclasses.dataclass(frozen=True)
class OpenGateway:
    """What the servicers serve."""

    gateway: Gateway
    """Answers calls."""
    usage: UsageReports
    """Tells what they took."""
    quotas: QuotaBook
    """What they may take."""
    meter: Meter
    """What is taken of that."""
    reloads: Reloads
    """Takes over a changed configuration."""


@contextlib.asynccontextmanager
async def open_gateway(catalog: Catalog, config: GatewayConfig) -> AsyncIterator[OpenGateway]:
    """Give a gateway with its ledger and connections to the catalog's providers; they end with
    the block."""
    async with contextlib.AsyncExitStack() as stack:
        books = await stack.enter_async_context(open_ledger(_ledger_settings(config)))
        connections = Connections(grace_s=config.abandoned_drain_s)
        stack.push_async_callback(connections.close)
        accounts = config.accounts.reveal()
        quotas = make_quota_book(accounts, books)
        meter = make_meter(accounts, books, quotas)
        await stack.enter_async_context(meter.living(config.ledger_lease_s))
        make_shared = shared_stores(config.cache_url.reveal(), books.commits)
        cache = AnswerCache(catalog.cache, await stack.enter_async_context(make_shared))
        gateway = Gateway(
            connections.offering(catalog),
            meter,
            books.ledger,
            policy=RetryPolicy(attempts_max=config.attempts_max, backoff_s=config.retry_backoff_s),
            output_tokens_default=config.output_tokens_default,
            abandoned_drain_s=config.abandoned_drain_s,
            cache=cache,
            newer_metric_names=config.newer_metric_names,
        )
        stack.push_async_callback(gateway.close)
        reloads = Reloads(lambda: _catalog_of(config), gateway, connections)
        reloads.subscribe(lambda changed: cache.apply(changed.cache))
        watching = asyncio.create_task(reloads.watch_files(config.credentials_check_s))
        stack.callback(watching.cancel)
        usage = UsageReports(books.database, books.clock.now)
        yield OpenGateway(gateway, usage, quotas, meter, reloads)


def register(server: Server, opened: OpenGateway, config: GatewayConfig) -> None:
    """Add both services to a server."""
    gate = Gate(
        config.run_token_key,
        opened.gateway.catalog,
        token_required=config.run_token_required,
        previous_key=config.run_token_previous_key,
        audience=config.run_token_audience,
        lifetime_s_max=config.run_token_lifetime_max_s,
    )
    opened.reloads.subscribe(gate.offer)
    knows_callers = config.tls_client_ca_file is not None
    GatewayServicer(opened.gateway, gate, knows_callers=knows_callers).register(server)
    operators = OperatorGate(config.operator_key)
    QuotaServicer(operators, opened.usage, opened.quotas, opened.meter).register(server)


def _catalog_of(config: GatewayConfig) -> Catalog:
    return load_catalog(config.config, os.environ, dt.datetime.now(dt.UTC))


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
