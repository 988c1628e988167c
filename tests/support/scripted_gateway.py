"""The real gateway, with its ledger, in front of the scripted model, to be served where a fake one
would be.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from fathom_demo.scripted_model import ScriptedModel
from fathom_demo.scripted_model.scripts import Policy

from common.config import Secret
from common.server import Server
from llm_gateway.__main__ import OpenGateway, open_gateway, register
from llm_gateway.catalog_file import load_catalog
from llm_gateway.config import GatewayConfig
from tests.support.fake_gateway import TOKEN_KEY
from tests.support.gateway import config_file


class ScriptedGateway:
    """Register it with a server."""

    def __init__(self, gateway: OpenGateway, config: GatewayConfig) -> None:
        self._gateway = gateway
        self._config = config

    def register(self, server: Server) -> None:
        """Add it to a server."""
        register(server, self._gateway, self._config)


@contextlib.asynccontextmanager
async def scripted_gateway(folder: Path, *policies: Policy) -> AsyncIterator[ScriptedGateway]:
    """Open one with its state in a folder, and a deployment `m0`, `m1`... for each policy; both
    tiers have all of them, in order."""
    names: Mapping[str, Policy] = {f"id-{n}": policy for n, policy in enumerate(policies)}
    async with ScriptedModel(policies=names) as model:
        path = config_file(folder / "gateway.toml", [model.base_url] * len(policies))
        config = GatewayConfig(
            config=path,
            database_url=Secret(f"sqlite+aiosqlite:///{folder}/gateway.sqlite"),
            ledger_answers=folder / "answers",
            run_token_key=Secret(TOKEN_KEY),
        )
        offered = load_catalog(path, {"PROVIDER_KEY": "sk-provider"}, dt.datetime.now(dt.UTC))
        async with open_gateway(offered, config) as gateway:
            yield ScriptedGateway(gateway, config)
