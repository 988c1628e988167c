"""Answers that are given again, through the whole gateway with a provider in memory."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import ServiceError
from llm_gateway.answers import Completion, Delta, FinishReason, Spend
from llm_gateway.cache.place import place_of
from llm_gateway.cache.rules import CacheRules
from llm_gateway.cache.store import MemoryCacheStore
from llm_gateway.failures import FailureKind, ProviderError
from llm_gateway.outlets import Started
from llm_gateway.prompts import CacheUse, Prompt
from tests.support.cached_gateway import Bench, call
from tests.support.eventually import eventually
from tests.support.gateway import completion, deployment, endpoint, prompt, token

REJECTED = ProviderError(FailureKind.REJECTED, "HTTP 400", http_status=400)


async def test_the_same_question_at_temperature_0_is_asked_once_and_paid_once() -> None:
    bench = Bench()
    first = await bench.ask()

    again = await bench.ask()

    assert bench.asked == 1
    assert again.completion.text == first.completion.text
    assert (again.spend, again.attempts, again.model) == (Spend(), 0, "small")


async def test_litellm_portkey_cache_not_scoped_by_tenant() -> None:
    """There, one tenant was given what another one's prompt had been answered with."""
    bench = Bench()
    bench.provider.plan(completion("acme's answer"), completion("rival's answer"))
    await bench.ask(token=token(tenant="acme"))

    answer = await bench.ask(token=token(tenant="rival"))

    assert answer.completion.text == "rival's answer"
    assert bench.asked == 2


async def test_runs_of_one_tenant_share_answers() -> None:
    bench = Bench()
    await bench.ask(token=token(run="runs/1"))

    await bench.ask(token=token(run="runs/2"))

    assert bench.asked == 1


@pytest.mark.parametrize(
    ("rules", "asked", "exchanges"),
    [
        ({}, prompt(), 2),
        ({}, prompt(temperature=0.5), 2),
        ({}, prompt(temperature=0.5, cache_use=CacheUse.ALLOWED), 1),
        ({}, prompt(temperature=0.0, cache_use=CacheUse.NEVER), 2),
        ({"every_temperature": True}, prompt(), 1),
        ({"every_temperature": True}, prompt(cache_use=CacheUse.NEVER), 2),
        ({"is_on": False}, prompt(cache_use=CacheUse.ALLOWED), 2),
    ],
)
async def test_only_temperature_0_or_a_wish_for_it_is_answered_from_the_cache(
    rules: dict[str, Any], asked: Prompt, exchanges: int
) -> None:
    bench = Bench(**rules)

    await bench.ask(asked)
    await bench.ask(asked)

    assert bench.asked == exchanges


async def test_a_model_that_is_not_told_the_temperature_is_asked_each_time() -> None:
    """It samples as it likes, whatever the prompt says."""
    bench = Bench(deployment(omit_parameters=frozenset({"temperature"})))

    await bench.ask()
    await bench.ask()

    assert bench.asked == 2


@pytest.mark.parametrize(
    "other",
    [
        prompt("another", temperature=0.0),
        prompt(temperature=0.0, seed=1),
        prompt(temperature=0.0, stop=("a",)),
        prompt(temperature=0.0, output_tokens_max=7),
        prompt(temperature=0.0, response_schema="{}"),
    ],
)
async def test_whatever_changes_the_answer_makes_it_another_question(other: Prompt) -> None:
    bench = Bench()
    await bench.ask()

    await bench.ask(other)

    assert bench.asked == 2


async def test_tiers_that_lead_to_the_same_models_share_answers() -> None:
    bench = Bench()
    await bench.ask(prompt(temperature=0.0, tier="root"))

    await bench.ask(prompt(temperature=0.0, tier="models/small"))

    assert bench.asked == 1


def test_a_name_that_is_given_to_another_model_finds_nothing_of_the_old_one() -> None:
    """A reload may do that while answers of the old one are kept."""
    places = [
        place_of(call(), [each], CacheRules())
        for each in (
            deployment(),
            deployment(model="another"),
            deployment(provider=endpoint(base_url="http://127.0.0.1:2/v1")),
            deployment(omit_parameters=frozenset({"seed"})),
            deployment(structured_output=True),
        )
    ]

    assert len({place.key for place in places if place is not None}) == len(places)


@pytest.mark.parametrize(
    "of_little_use",
    [
        completion(finish_reason=FinishReason.LENGTH),
        completion(finish_reason=FinishReason.FILTERED),
        completion(""),
    ],
)
async def test_a_truncated_withheld_or_empty_answer_is_not_kept(of_little_use: Completion) -> None:
    bench = Bench()
    bench.provider.plan(of_little_use, completion("better"))
    await bench.ask()

    assert (await bench.ask()).completion.text == "better"


async def test_an_error_is_not_kept() -> None:
    bench = Bench()
    bench.provider.plan(REJECTED, completion("better"))
    with pytest.raises(ServiceError):
        await bench.ask()

    assert (await bench.ask()).completion.text == "better"


async def test_what_a_fallback_said_is_not_kept() -> None:
    """It would outlast the failure that it stood in for."""
    bench = Bench(deployment("a"), deployment("b", provider=endpoint("other")))
    bench.provider.plan(ProviderError(FailureKind.CREDENTIAL, "HTTP 401", http_status=401))
    stood_in = await bench.ask()

    again = await bench.ask()

    assert (stood_in.model, again.model) == ("b", "a")
    assert again.attempts == 1


async def test_an_answer_expires() -> None:
    bench = Bench(ttl_s=60)
    await bench.ask()
    bench.clock.advance(59)
    await bench.ask()
    bench.clock.advance(1)

    await bench.ask()

    assert bench.asked == 2


@pytest.mark.parametrize(("bytes_max", "exchanges"), [(200, 1), (100, 2)])
async def test_an_answer_that_is_too_large_is_not_kept(bytes_max: int, exchanges: int) -> None:
    bench = Bench(answer_bytes_max=bytes_max)

    await bench.ask()
    await bench.ask()

    assert bench.asked == exchanges


@pytest.mark.parametrize("request_id", ["", "1/1/1"])
async def test_a_hit_is_in_the_ledger_at_no_cost(request_id: str) -> None:
    bench = Bench()
    await bench.ask()

    await bench.ask(token=token(run="runs/2"), request_id=request_id)

    def hits() -> list[Spend]:
        return [each.spend for each in bench.store.exchanges.values() if each.is_cached]

    await eventually(lambda: hits() == [Spend()])
    assert not any(row.hold for row in bench.store.calls.values())


async def test_a_repeat_of_a_hit_gets_the_same_answer() -> None:
    """Also when the cache has forgotten it meanwhile: the request id promises that."""
    bench = Bench(ttl_s=60)
    bench.provider.plan(completion("first"), completion("second"))
    await bench.ask()
    await bench.ask(request_id="1/1/1")
    bench.clock.advance(61)

    repeated = await bench.ask(request_id="1/1/1")

    assert (repeated.completion.text, bench.asked) == ("first", 1)


async def test_another_prompt_under_the_request_id_of_a_hit_is_refused() -> None:
    bench = Bench()
    await bench.ask()
    await bench.ask(request_id="1/1/1")

    with pytest.raises(ServiceError) as caught:
        await bench.ask(prompt("another", temperature=0.0), request_id="1/1/1")

    assert caught.value.reason_name == "ERROR_REASON_REQUEST_ID_REUSED"


async def test_a_run_without_money_is_still_answered_from_the_cache() -> None:
    """A hit costs nothing."""
    bench = Bench()
    await bench.ask()

    answer = await bench.ask(token=token(run="runs/2", cost_usd_nanos_max=0))

    assert answer.attempts == 0


async def test_a_stream_gets_a_cached_answer_in_one_piece() -> None:
    bench = Bench()
    await bench.ask()

    pieces = [piece async for piece in bench.gateway.stream(call(is_streamed=True))]

    assert pieces[:2] == [Started("small"), Delta(text="hello there")]
    assert bench.asked == 1


async def test_another_process_finds_what_is_shared() -> None:
    shared = MemoryCacheStore(100_000)
    first, second = (Bench(shared=shared, in_database=True) for _ in range(2))
    await first.ask()

    answer = await second.ask()

    assert (answer.completion.text, second.asked) == ("hello there", 0)


async def test_damage_in_the_shared_store_is_no_answer() -> None:
    class Damaged(MemoryCacheStore):
        async def get(self, key: bytes) -> bytes | None:
            return b"{}"

    bench = Bench(shared=Damaged(1000), in_database=True)

    assert (await bench.ask()).attempts == 1


async def test_rules_can_be_changed_while_it_runs() -> None:
    bench = Bench()
    await bench.ask()

    bench.cache.apply(CacheRules(is_on=False))
    await bench.ask()

    assert bench.asked == 2
