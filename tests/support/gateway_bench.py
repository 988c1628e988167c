"""A gateway over one provider in memory, for tests of the path of a call without sockets."""

from __future__ import annotations

import asyncio
from typing import Any

from llm_gateway.answers import Answer, Completion, Delta
from llm_gateway.calls import Call
from llm_gateway.catalog import Deployment
from llm_gateway.gateway import Gateway
from llm_gateway.offering import Offering
from llm_gateway.outlets import Started
from llm_gateway.prompts import Prompt
from llm_gateway.provider import OnDelta
from llm_gateway.routes import RetryPolicy
from llm_gateway.upstreams import make_upstreams
from tests.support.gateway import (
    ManualClock,
    MemoryProvider,
    MeterInView,
    catalog,
    deployment,
    memory_ledger,
    prompt,
    token,
)


class Bench:
    """A gateway over one provider in memory, with its meter and clock at hand."""

    def __init__(self, *deployments: Deployment, drain_s: float = 5.0, **policy: Any) -> None:
        offered = catalog(*(deployments or (deployment(),)))
        self.provider = MemoryProvider()
        self.meter = MeterInView()
        self.clock = ManualClock()
        self.gateway = Gateway(
            Offering(
                offered,
                make_upstreams(
                    offered, {d.provider.name: self.provider for d in offered.deployments.values()}
                ),
            ),
            self.meter,
            memory_ledger(),
            policy=RetryPolicy(**policy),
            output_tokens_default=4096,
            abandoned_drain_s=drain_s,
            sleep=self.clock.sleep,
        )

    async def ask(self, asked: Prompt | None = None, **changes: Any) -> Answer:
        return await self.gateway.generate(call(asked, **changes))

    async def stream(self, **changes: Any) -> list[Started | Delta | Answer]:
        return [piece async for piece in self.gateway.stream(call(**changes))]


class Held:
    """A behaviour that waits for the test."""

    def __init__(self, then: Completion | Exception) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self._then = then

    async def __call__(
        self, asked: Prompt, output_max: int, on_delta: OnDelta | None
    ) -> Completion:
        self.reached.set()
        await self.opened.wait()
        if isinstance(self._then, Exception):
            raise self._then
        return self._then


def call(asked: Prompt | None = None, **changes: Any) -> Call:
    values: dict[str, Any] = {"prompt": asked or prompt(), "token": token(), "arrived": 0.0}
    return Call(**values | changes)
