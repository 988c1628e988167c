"""Which deployment answers: shared steps, tiers by depth, larger windows, soft budgets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.generation_pb2 import Generation

from common.errors import received
from tests.support.gateway import config_file, gateway_service, generate, metadata
from tests.support.played_model import PlayedModel, answers, fails

TOO_LONG = fails(400, {"code": "context_length_exceeded", "message": "too long"})


class Scene:
    """A gateway with a deployment at each of three providers, `m0` to `m2`."""

    def __init__(self, stub: Any, providers: list[PlayedModel]) -> None:
        self.stub = stub
        self.providers = providers

    async def ask(self, tier: str = "sub", **token: Any) -> Generation:
        carried = metadata(**token)
        response = await self.stub.Generate(generate(tier=tier), metadata=carried, timeout=30)
        generation: Generation = response.generation
        return generation

    @property
    def calls(self) -> list[int]:
        """Requests that each provider got."""
        return [len(provider.bodies) for provider in self.providers]


@contextlib.asynccontextmanager
async def scene(path: Path, tiers: str, *, first_window: int = 0) -> AsyncIterator[Scene]:
    """Serve with the tiers, and the tables after them, that a test gives."""
    async with contextlib.AsyncExitStack() as stack:
        providers = [
            await stack.enter_async_context(PlayedModel(answers(f"by m{number}")))
            for number in range(3)
        ]
        file = config_file(path / "c.toml", [provider.base_url for provider in providers])
        text = file.read_text().split("[tiers]")[0]
        if first_window:
            text = text.replace('"id-0"', f'"id-0"\ncontext_tokens_max = {first_window}')
        file.write_text(f"{text}\n[tiers]\n{tiers}")
        yield Scene(await stack.enter_async_context(gateway_service(file)), providers)


async def test_deployments_of_one_step_share_the_calls(tmp_path: Path) -> None:
    """Two servers of one model are for twice the load, not for its failures."""
    async with scene(tmp_path, 'root = ["m2"]\nsub = [["m0", "m1"], "m2"]') as played:
        for _ in range(40):
            await played.ask()

    first, second, third = played.calls
    assert first + second == 40
    assert min(first, second) >= 5
    assert third == 0


async def test_the_other_of_a_step_answers_for_one_that_fails(tmp_path: Path) -> None:
    async with scene(tmp_path, 'root = ["m2"]\nsub = [["m0", "m1"], "m2"]') as played:
        played.providers[0].usual = fails(401)
        said = {(await played.ask()).text for _ in range(10)}

    assert said == {"by m1"}
    assert played.calls[2] == 0


@pytest.mark.parametrize(
    ("depth", "tier", "model"), [(0, "root", "m0"), (1, "mid", "m1"), (2, "sub", "m2")]
)
async def test_a_prompt_that_names_no_tier_gets_that_of_its_depth(
    depth: int, tier: str, model: str, tmp_path: Path
) -> None:
    tiers = 'root = ["m0"]\nmid = ["m1"]\nsub = ["m2"]\n'
    routing = '[routing]\ntiers_by_depth = ["root", "mid", "sub"]'
    async with scene(tmp_path, tiers + routing) as played:
        answer = await played.ask("", depth=depth, tiers=("root", "mid", "sub"))

    assert (answer.tier, answer.model) == (tier, f"models/{model}")
    assert answer.tier_served == ""


async def test_a_tier_of_ones_depth_must_be_permitted_too(tmp_path: Path) -> None:
    """A name that was left out is no way around the run token."""
    async with scene(tmp_path, 'root = ["m0"]\nsub = ["m1"]') as played:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await played.ask("", depth=0, tiers=("sub",))

    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


LARGER = '[routing]\nlarger_window_tier = "long"'


async def test_messages_that_do_not_fit_go_to_the_tier_of_larger_windows(tmp_path: Path) -> None:
    """And the answer says who gave it."""
    tiers = f'root = ["m0"]\nsub = ["m0", "m1"]\nlong = ["m2"]\n{LARGER}'
    async with scene(tmp_path, tiers, first_window=1000) as played:
        for provider in played.providers[:2]:
            provider.usual = TOO_LONG
        answer = await played.ask()

    assert (answer.text, answer.model, answer.tier) == ("by m2", "models/m2", "sub")
    assert answer.tier_served == "long"
    assert answer.attempts == 3


async def test_the_tier_of_larger_windows_is_for_nothing_else(tmp_path: Path) -> None:
    """A provider that is down must not send everything to the dearest models."""
    async with scene(tmp_path, f'root = ["m0"]\nsub = ["m0"]\nlong = ["m2"]\n{LARGER}') as played:
        played.providers[0].usual = fails(401)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await played.ask()

    assert received(caught.value).reason == ErrorReason.ERROR_REASON_PROVIDER_CREDENTIAL
    assert played.calls[2] == 0


async def test_a_tenant_whose_prompts_may_not_leave_for_it_gets_no_larger_window(
    tmp_path: Path,
) -> None:
    """What stands in for a tier is no way around the tenant's rules."""
    egress = '[egress.tenants.acme]\ntiers = ["sub"]'
    tiers = f'root = ["m0"]\nsub = ["m0"]\nlong = ["m2"]\n{LARGER}\n{egress}'
    async with scene(tmp_path, tiers) as played:
        played.providers[0].usual = TOO_LONG
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await played.ask()

    assert received(caught.value).reason == ErrorReason.ERROR_REASON_CONTEXT_WINDOW_EXCEEDED
    assert played.calls[2] == 0


COSTLY = {"prompt_tokens": 16_000, "completion_tokens": 0}
DOWNGRADE = 'root = ["m0"]\nsub = ["m1"]\n[routing]\ndowngrade = { root = "sub" }\n'


@pytest.mark.parametrize(("spent", "model", "served"), [(79_999, "m0", ""), (80_000, "m1", "sub")])
async def test_past_its_soft_budget_a_run_is_answered_by_the_cheaper_tier(
    spent: int, model: str, served: str, tmp_path: Path
) -> None:
    """It ends with what money it has left instead of in the middle."""
    async with scene(tmp_path, DOWNGRADE) as played:
        limits = {"tokens_max": 100_000, "tokens_spent": spent}
        answer = await played.ask("root", **limits)

    assert (answer.model, answer.tier, answer.tier_served) == (f"models/{model}", "root", served)


async def test_what_the_gateway_itself_has_counted_reaches_the_soft_budget(tmp_path: Path) -> None:
    """Each answer costs 16 millionths of a dollar: the sixth call finds 80 of 100 gone."""
    async with scene(tmp_path, DOWNGRADE) as played:
        played.providers[0].usual = answers("by m0", usage=COSTLY)
        served = [
            (await played.ask("root", cost_usd_nanos_max=100_000_000)).tier_served for _ in range(6)
        ]

    assert served == ["", "", "", "", "", "sub"]


async def test_a_run_without_limits_and_a_tier_without_a_substitute_are_never_downgraded(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, DOWNGRADE) as played:
        unlimited = await played.ask("root", tokens_spent=1_000_000)
        other = await played.ask("sub", run="runs/2", tokens_max=100_000, tokens_spent=90_000)

    assert (unlimited.model, unlimited.tier_served) == ("models/m0", "")
    assert (other.model, other.tier_served) == ("models/m1", "")
