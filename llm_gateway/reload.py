"""Takes over a changed configuration while calls are under way: a new offering is built whole and
swapped in, or refused whole. Connections that the new one does not use are closed once the last
call that may use them has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NoReturn

from common import telemetry_names as names
from common.config import ConfigError
from common.telemetry import meter
from llm_gateway.catalog import Catalog
from llm_gateway.credentials import refreshed
from llm_gateway.gateway import Gateway
from llm_gateway.offering import Offering
from llm_gateway.openai_provider import OpenAIProvider
from llm_gateway.upstreams import Upstream, make_upstreams

_log = logging.getLogger(__name__)


class Connections:
    """The ways to the providers of a catalog, and those that calls of an earlier one still use."""

    def __init__(self, *, grace_s: float) -> None:
        """Exchanges may outlast their calls by `grace_s`."""
        self._grace_s = grace_s
        self._providers: dict[str, OpenAIProvider] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def offering(self, catalog: Catalog, before: Mapping[str, Upstream] | None = None) -> Offering:
        """Return the offering of a catalog, with what was known `before` of its deployments."""
        endpoints = {d.provider.name: d.provider for d in catalog.deployments.values()}
        kept = {
            name: provider
            for name, provider in self._providers.items()
            if provider.endpoint == endpoints.get(name)
        }
        self._providers = {
            name: kept.get(name) or OpenAIProvider(endpoint) for name, endpoint in endpoints.items()
        }
        return Offering(catalog, make_upstreams(catalog, self._providers, before))

    def present(self) -> set[OpenAIProvider]:
        """Return those of the newest offering."""
        return set(self._providers.values())

    def retire(self, providers: set[OpenAIProvider], users: list[Offering]) -> None:
        """Close connections when the calls of `users` have ended."""
        task = asyncio.create_task(self._close_later(providers, users))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all, also those that are still in use."""
        closing = [*self._closing]
        for task in closing:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)
        for provider in self._providers.values():
            await provider.close()

    async def _close_later(self, providers: set[OpenAIProvider], users: list[Offering]) -> None:
        try:
            for offering in users:
                await offering.until_idle()
            await asyncio.sleep(self._grace_s)
        finally:
            for provider in providers:
                await provider.close()


class Reloads:
    """Brings a gateway up to date, one change at a time."""

    def __init__(
        self, load: Callable[[], Catalog], gateway: Gateway, connections: Connections
    ) -> None:
        """`load` reads the configuration file, in a thread; it raises ConfigError."""
        self._load = load
        self._gateway = gateway
        self._connections = connections
        self._past: list[Offering] = []
        self._one = asyncio.Lock()
        self._requested: set[asyncio.Task[bool]] = set()
        self._subscribers: list[Callable[[Catalog], None]] = []
        self._count = meter(__name__).create_counter(names.METRIC_GATEWAY_RELOADS)

    def subscribe(self, subscriber: Callable[[Catalog], None]) -> None:
        """Have a function called with each new catalog."""
        self._subscribers.append(subscriber)

    async def reload(self) -> bool:
        """Read the file again; returns whether it was taken over. A bad one changes nothing."""
        return await self._change(lambda _: self._load())

    def request(self) -> None:
        """Have the file read again, soon: for a signal's handler."""
        task = asyncio.create_task(self.reload())
        self._requested.add(task)
        task.add_done_callback(self._requested.discard)

    async def watch_files(self, interval_s: float) -> NoReturn:
        """Look for changed keys and certificates, again and again."""
        while True:
            await asyncio.sleep(interval_s)
            await self._change(refreshed)

    async def _change(self, make: Callable[[Catalog], Catalog]) -> bool:
        async with self._one:
            present = self._gateway.catalog
            try:
                # In a thread: files may be slow, and prices of a whole table take a while.
                catalog = await asyncio.to_thread(make, present)
                if catalog is not present:
                    self._swap(catalog)
            except ConfigError as error:
                self._refuse(str(error))
                return False
            except Exception as error:  # a defect in here must not end the watching of files
                _log.exception("a configuration could not be taken over")
                self._refuse(type(error).__name__)
                return False
            return True

    def _refuse(self, problem: str) -> None:
        self._count.add(1, {names.STATUS: "refused"})
        facts = {"problem": problem}
        _log.error("the configuration is refused, the one before holds", extra=facts)

    def _swap(self, catalog: Catalog) -> None:
        before = self._gateway.offering
        old = self._connections.present()
        self._gateway.offer(self._connections.offering(catalog, before.upstreams))
        for subscriber in self._subscribers:
            subscriber(catalog)
        # Calls of any earlier offering may still use a connection that is given up only now.
        self._past = [offering for offering in [*self._past, before] if not offering.is_idle]
        unused = old - self._connections.present()
        if unused:
            self._connections.retire(unused, self._past)
        self._count.add(1, {names.STATUS: "ok"})
        _log.info("the configuration is taken over", extra={"deployments": [*catalog.deployments]})
