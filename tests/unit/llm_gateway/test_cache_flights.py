"""Calls that join one that is under way, through the whole gateway with a provider in memory."""

from __future__ import annotations

import asyncio

import pytest

from common.errors import ServiceError
from llm_gateway.answers import Completion, Delta, FinishReason
from llm_gateway.failures import FailureKind, ProviderError
from llm_gateway.outlets import Started
from llm_gateway.prompts import Prompt
from llm_gateway.provider import OnDelta
from tests.support.cached_gateway import Bench, call
from tests.support.gateway import completion, token
from tests.support.gateway_bench import Held

REJECTED = ProviderError(FailureKind.REJECTED, "HTTP 400", http_status=400)


async def test_litellm_portkey_cache_not_scoped_by_tenant_at_the_same_time() -> None:
    """Identical calls of two tenants that come together are two calls."""
    bench = Bench()
    held = [Held(completion("one's")), Held(completion("other's"))]
    bench.provider.plan(*held)
    asking = [asyncio.create_task(bench.ask(token=token(tenant=name))) for name in ("a", "b")]
    for each in held:
        await each.reached.wait()
        each.opened.set()

    answers = await asyncio.gather(*asking)

    assert [answer.completion.text for answer in answers] == ["one's", "other's"]


async def test_identical_calls_at_the_same_time_make_one_exchange() -> None:
    bench, held = Bench(), Held(completion("shared"))
    bench.provider.plan(held)
    asking = [asyncio.create_task(bench.ask()) for _ in range(200)]
    await held.reached.wait()
    held.opened.set()

    answers = await asyncio.gather(*asking)

    assert bench.asked == 1
    assert {answer.completion.text for answer in answers} == {"shared"}
    assert sum(answer.spend.cost_usd_nanos > 0 for answer in answers) == 1


async def test_followers_survive_the_leaders_cancellation() -> None:
    """And nothing is asked a second time."""
    bench, held = Bench(drain_s=0.0), Held(completion("late"))
    bench.provider.plan(held)
    leader = asyncio.create_task(bench.ask())
    await held.reached.wait()
    follower = asyncio.create_task(bench.ask())
    await asyncio.sleep(0)

    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    held.opened.set()

    assert leader.cancelled()
    assert (await follower).completion.text == "late"
    assert bench.asked == 1


async def test_a_slow_reader_of_a_stream_keeps_nobody_else_from_its_answer() -> None:
    """Who joined its call would else wait at its pace, and for ever where it stands still."""
    bench = Bench()

    async def say_much(asked: Prompt, output_max: int, on_delta: OnDelta | None) -> Completion:
        assert on_delta is not None
        for _ in range(1000):
            on_delta(Delta(text="x"))
        return completion("x" * 1000)

    bench.provider.plan(say_much)
    slow = bench.gateway.stream(call(is_streamed=True))
    first = await anext(slow)

    answer = await bench.ask()

    assert (first, answer.completion.text, bench.asked) == (Started("small"), "x" * 1000, 1)
    rest = [piece async for piece in slow]
    assert "".join(each.text for each in rest if isinstance(each, Delta)) == "x" * 1000


async def test_a_call_that_comes_after_the_last_has_gone_asks_anew() -> None:
    """It must not join what is being ended."""
    bench, held = Bench(drain_s=0.0), Held(completion("never seen"))
    bench.provider.plan(held, completion("fresh"))
    only = asyncio.create_task(bench.ask())
    await held.reached.wait()

    only.cancel()
    await asyncio.gather(only, return_exceptions=True)

    assert (await bench.ask()).completion.text == "fresh"


async def test_a_leaders_error_is_its_own() -> None:
    """It may be about the leader's limits, and the follower has others."""
    bench, held = Bench(), Held(REJECTED)
    bench.provider.plan(held, completion("mine"))
    leader = asyncio.create_task(bench.ask())
    await held.reached.wait()
    follower = asyncio.create_task(bench.ask())
    await asyncio.sleep(0)
    held.opened.set()

    with pytest.raises(ServiceError):
        await leader

    assert (await follower).completion.text == "mine"
    assert bench.asked == 2


async def test_an_answer_cut_short_by_the_leaders_limits_is_its_own() -> None:
    bench, held = Bench(), Held(completion("cut", finish_reason=FinishReason.LENGTH))
    bench.provider.plan(held, completion("whole"))
    leader = asyncio.create_task(bench.ask())
    await held.reached.wait()
    follower = asyncio.create_task(bench.ask())
    await asyncio.sleep(0)
    held.opened.set()

    assert (await leader).completion.text == "cut"
    assert (await follower).completion.text == "whole"


async def test_a_followers_deadline_holds_while_it_waits() -> None:
    bench, held = Bench(), Held(completion())
    bench.provider.plan(held)
    leader = asyncio.create_task(bench.ask())
    await held.reached.wait()
    soon = asyncio.get_running_loop().time() + 0.02

    with pytest.raises(ServiceError) as caught:
        await bench.ask(deadline=soon)

    assert caught.value.reason_name == "ERROR_REASON_PROVIDER_TIMEOUT"
    held.opened.set()
    await leader


async def test_closing_ends_an_asking() -> None:
    bench, held = Bench(), Held(completion())
    bench.provider.plan(held)
    asking = asyncio.create_task(bench.ask())
    await held.reached.wait()

    await bench.gateway.close()
    outcome = await asyncio.gather(asking, return_exceptions=True)

    assert isinstance(outcome[0], asyncio.CancelledError)
