"""A gateway with a cache of answers over one provider in memory."""

from __future__ import annotations

from typing import Any

from llm_gateway.answers import Answer
from llm_gateway.cache.answer_cache import AnswerCache
from llm_gateway.cache.rules import CacheRules
from llm_gateway.cache.store import MemoryCacheStore
from llm_gateway.calls import Call
from llm_gateway.catalog import Deployment
from llm_gateway.gateway import Gateway
from llm_gateway.ledger.ledger import Ledger
from llm_gateway.meter import Meter
from llm_gateway.offering import Offering
from llm_gateway.prompts import Prompt
from llm_gateway.routes import RetryPolicy
from llm_gateway.upstreams import make_upstreams
from tests.support.gateway import (
    PRICE,
    ManualClock,
    MemoryProvider,
    catalog,
    deployment,
    memory_books,
    prompt,
    token,
)
from tests.support.memory_ledger import MemoryCallStore

ZERO = prompt(temperature=0.0)


class Bench:
    """A gateway with a cache over one provider in memory, with its clock and ledger at hand."""

    def __init__(
        self,
        *deployments: Deployment,
        shared: MemoryCacheStore | None = None,
        drain_s: float = 5.0,
        **rules: Any,
    ) -> None:
        offered = catalog(*(deployments or (deployment(price=PRICE),)))
        self.provider = MemoryProvider()
        self.clock = ManualClock()
        self.store = MemoryCallStore()
        self.cache = AnswerCache(
            CacheRules(**rules),
            lambda _: shared,
            make_memory=lambda size: MemoryCacheStore(size, now=self.clock.now),
        )
        providers = {d.provider.name: self.provider for d in offered.deployments.values()}
        self.gateway = Gateway(
            Offering(offered, make_upstreams(offered, providers)),
            Meter(),
            Ledger(memory_books(self.store), lease_s=15.0),
            policy=RetryPolicy(),
            output_tokens_default=4096,
            abandoned_drain_s=drain_s,
            cache=self.cache,
            sleep=self.clock.sleep,
        )

    async def ask(self, asked: Prompt = ZERO, **changes: Any) -> Answer:
        return await self.gateway.generate(call(asked, **changes))

    @property
    def asked(self) -> int:
        """Exchanges with the provider so far."""
        return len(self.provider.asked)


def call(asked: Prompt = ZERO, **changes: Any) -> Call:
    values: dict[str, Any] = {"prompt": asked, "token": token(), "arrived": 0.0}
    return Call(**values | changes)
