"""Reads the catalog from its TOML file, strictly: every message names the key and the remedy.

Keys to providers never stand in the file: it names an environment variable or another file.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from common.config import ConfigError
from common.toml_table import Table
from llm_gateway.cache.rules import cache_rules_from
from llm_gateway.catalog import MODEL_PREFIX, Catalog, Deployment, Provider, Steps
from llm_gateway.egress.egress_table import egress_from
from llm_gateway.prices import (
    FREE,
    Price,
    Rates,
    UnknownPriceError,
    price_from_table,
    usd_nanos_per_million,
)
from llm_gateway.provider_table import ProviderTables
from llm_gateway.routing_table import routing_from
from llm_gateway.tokens import VOCABULARIES

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_TIERS_NEEDED = ("root", "sub")
_OMITTABLE = ("temperature", "stop", "seed")
_CONCURRENCY_MAX = 256


def load_catalog(path: Path, environ: Mapping[str, str], now: dt.datetime) -> Catalog:
    """Read the file; raises ConfigError. `now` chooses among prices that change with time."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, ArithmeticError, RecursionError) as error:
        # Beside what the parser says itself: numbers too large for anything, tables too deep.
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    return _CatalogFile(path, environ, now).read(document)


class _CatalogFile:
    """The reading of one file; keeps what messages and prices need."""

    def __init__(self, path: Path, environ: Mapping[str, str], now: dt.datetime) -> None:
        self._path = path
        self._environ = environ
        self._now = now

    def read(self, document: dict[str, Any]) -> Catalog:
        """Return the whole catalog."""
        top = Table(str(self._path), document)
        tables = ProviderTables(self._environ, Path(top.text("secrets_dir", "")))
        providers: dict[str, Provider] = {}
        for name, table in top.tables("providers").items():
            _check_name(table, "", name)
            providers[name] = tables.read(name, table)
        deployments: dict[str, Deployment] = {}
        for table in top.table_list("deployments"):
            deployment = self._deployment(table, providers)
            if deployment.name in deployments:
                table.fail("name", f"{deployment.name!r} is used twice; choose another")
            deployments[deployment.name] = deployment
        tiers = self._tiers(top.table("tiers"), deployments)
        offered = [*tiers, *(MODEL_PREFIX + name for name in deployments)]
        egress = egress_from(top.sub_table("egress", top.pop("egress", {})), offered)
        cache = cache_rules_from(top.sub_table("cache", top.pop("cache", {})))
        routing = routing_from(top.sub_table("routing", top.pop("routing", {})), [*tiers])
        top.end()
        return Catalog(
            deployments=deployments, tiers=tiers, egress=egress, cache=cache, routing=routing
        )

    def _deployment(self, table: Table, providers: Mapping[str, Provider]) -> Deployment:
        name = table.text("name")
        _check_name(table, "name", name)
        provider = providers.get(table.text("provider"))
        if provider is None:
            table.fail("provider", f"is not one of the providers: {', '.join(providers)}")
        model = table.text("model")
        price, window = self._price(table, provider, model)
        deployment = Deployment(
            name=name,
            provider=provider,
            model=model,
            context_tokens_max=table.count("context_tokens_max", window),
            output_tokens_max=table.count("output_tokens_max", 0),
            output_tokens_default=table.count("output_tokens_default", 0),
            concurrency_max=table.count("concurrency_max", _CONCURRENCY_MAX),
            requests_per_minute=table.count("requests_per_minute", 0),
            tokens_per_minute=table.count("tokens_per_minute", 0),
            weight=table.count("weight", 1),
            price=price,
            omit_parameters=frozenset(table.text_list("omit_parameters", _OMITTABLE)),
            structured_output=table.flag("structured_output", False),
            vocabulary=table.choice("vocabulary", ("", *VOCABULARIES), ""),
        )
        table.end()
        return deployment

    def _price(self, table: Table, provider: Provider, model: str) -> tuple[Price, int]:
        given = table.pop("price", None)
        if given == "free":
            return FREE, 0
        if given is None:
            try:
                price, window = price_from_table(model, provider.base_url, self._now)
            except UnknownPriceError:
                table.fail(
                    "price",
                    f"the price table does not know {model!r}; give price = "
                    '{ input_usd_per_million = …, output_usd_per_million = … } or price = "free"',
                )
            _log.info("price of %s is taken from the price table", model)
            return price, window
        prices = table.sub_table("price", given)
        input_rate = usd_nanos_per_million(prices.usd("input_usd_per_million"))
        rates = Rates(
            input=input_rate,
            output=usd_nanos_per_million(prices.usd("output_usd_per_million")),
            cached_input=usd_nanos_per_million(
                prices.usd("cached_input_usd_per_million", Decimal(input_rate) / 1_000_000_000)
            ),
        )
        prices.end()
        return Price((rates,)), 0

    def _tiers(self, table: Table, deployments: Mapping[str, Deployment]) -> dict[str, Steps]:
        tiers = {}
        for tier in [*table.names()]:
            _check_name(table, tier, tier)
            tiers[tier] = table.steps(tier, tuple(deployments))
            if not all([tiers[tier], *tiers[tier]]):
                table.fail(tier, "needs at least one deployment")
        for tier in _TIERS_NEEDED:
            if tier not in tiers:
                table.fail(tier, f'is missing; add {tier} = ["name of a deployment"]')
        return tiers


def _check_name(table: Table, key: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        table.fail(key, f"{name!r} is not a name: letters, digits and . _ : -, at most 64")
