"""What the gateway offers: asked seldom, and told in figures that are on the safe side."""

from __future__ import annotations

import pytest
from fathom.gateway.v1.gateway_service_pb2 import Model

from common.config import Secret
from common.run_token import RunTokenSigner
from orchestrator.errors import ModelNotOfferedError
from orchestrator.model_catalog import ModelCatalog, TierFacts
from tests.support.fake_gateway import TOKEN_KEY


def model(name: str, tier: str, window: int, price: int) -> Model:
    return Model(
        name=f"models/{name}",
        tiers=[tier],
        context_tokens_max=window,
        input_usd_nanos_per_million_tokens=price,
        output_usd_nanos_per_million_tokens=2 * price,
    )


class Source:
    """A gateway's list."""

    def __init__(self) -> None:
        self.calls = 0
        self.models = [
            model("a", "root", 100, 5),
            model("b", "sub", 0, 7),
            model("c", "sub", 50, 1),
            model("d", "sub", 80, 2),
        ]

    async def list_models(self, run_token: str) -> list[Model]:
        self.calls += 1
        return self.models


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def catalog(source: Source, clock: Clock) -> ModelCatalog:
    return ModelCatalog(source, RunTokenSigner(Secret(TOKEN_KEY)), clock=clock)


async def test_a_tier_is_as_small_as_its_smallest_window_and_as_dear_as_its_dearest() -> None:
    """Any deployment of the pool may answer."""
    made = catalog(Source(), Clock())

    root, sub = await made.facts("t", root_tier="root", sub_tier="sub")

    assert root == TierFacts(100, 5, 10)
    assert sub == TierFacts(50, 7, 14)


async def test_the_list_is_asked_for_again_after_ten_seconds() -> None:
    source, clock = Source(), Clock()
    made = catalog(source, clock)

    for clock.now_s in (0.0, 9.9, 10.0):
        await made.facts("t", root_tier="root", sub_tier="sub")

    assert source.calls == 2


async def test_a_tier_without_deployments_names_the_field_and_the_offer() -> None:
    made = catalog(Source(), Clock())

    with pytest.raises(ModelNotOfferedError) as caught:
        await made.facts("t", root_tier="root", sub_tier="models/x")

    assert caught.value.metadata == {"tier": "models/x", "offered": "root, sub"}
    assert "spec.sub_tier" in caught.value.message
