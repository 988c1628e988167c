"""The path of a call, with providers in memory."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from common.errors import ServiceError
from llm_gateway.answers import Answer, Completion, Delta, Spend, Tokens
from llm_gateway.calls import Call
from llm_gateway.failures import FailureKind, ProviderError
from llm_gateway.histories import Histories
from llm_gateway.outlets import Started
from llm_gateway.prices import Price, Rates
from llm_gateway.prompts import Prompt
from llm_gateway.provider import OnDelta
from tests.support.eventually import eventually
from tests.support.gateway import DOLLAR, PRICE, completion, deployment, prompt, token
from tests.support.gateway_bench import Bench, Held, call

SERVER_ERROR = ProviderError(FailureKind.SERVER_ERROR, "HTTP 500", http_status=500)


async def test_retries_are_waited_for_and_counted() -> None:
    bench = Bench()
    bench.provider.plan(SERVER_ERROR, SERVER_ERROR)

    answer = await bench.ask()

    assert answer.attempts == 3
    assert len(bench.clock.slept) == 2


async def test_the_answer_costs_what_all_attempts_took() -> None:
    bench = Bench(deployment(price=PRICE))
    broken = ProviderError(
        FailureKind.BROKEN_REPLY, "no_finish_reason", tokens=Tokens(input=10, output=90)
    )
    bench.provider.plan(broken)

    answer = await bench.ask()

    assert answer.spend == Spend(
        tokens=Tokens(input=20, output=93), cost_usd_nanos=20_000 + 186_000
    )
    assert bench.meter.spend_of(token()).cost_usd_nanos == 206_000


async def test_a_call_that_may_not_be_made_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else whoever may ask nothing could fill what is remembered for those who may."""
    recalled: list[Call] = []
    recall = Histories.recalled

    def noted(self: Histories, call: Call) -> Call:
        recalled.append(call)
        return recall(self, call)

    monkeypatch.setattr(Histories, "recalled", noted)
    bench = Bench()
    for asked in (prompt(tier="unknown"), prompt("x" * (65 << 20))):
        with pytest.raises(ServiceError):
            await bench.ask(asked)
    assert not recalled

    await bench.ask()
    assert len(recalled) == 1


async def test_a_failure_that_nobody_bills_costs_nothing() -> None:
    bench = Bench(deployment(price=PRICE))
    bench.provider.plan(SERVER_ERROR)

    assert (await bench.ask()).spend.tokens == Tokens(input=10, output=3)


async def test_a_retry_that_the_run_cannot_afford_is_refused() -> None:
    """Each attempt is reserved for by itself, so failed ones cannot add up beyond the limit."""
    bench = Bench()
    broken = ProviderError(FailureKind.BROKEN_REPLY, "x", tokens=Tokens(input=10, output=90))
    bench.provider.plan(broken)

    with pytest.raises(ServiceError) as caught:
        await bench.ask(prompt(output_tokens_max=90), token=token(tokens_max=150))

    assert caught.value.metadata == {
        "limit": "tokens_max",
        "value": "150",
        "spent": "100",
        "input_tokens": "10",
        "output_tokens": "90",
        "cost_usd_nanos": "0",
        "usage_estimated": "false",
    }


@pytest.mark.parametrize(("limit", "held"), [(None, 210_000_000), (30_000_000, 21_000_000)])
async def test_as_much_is_held_as_the_dearest_fallback_may_take(
    limit: int | None, held: int
) -> None:
    """A run that can begin a call can have it answered elsewhere, where its limit has room for
    that; where it has not, the cheaper one is asked all the same."""
    asked = prompt("x" * 984, output_tokens_max=10_000)
    dear = Price((Rates(input=10 * DOLLAR, output=20 * DOLLAR, cached_input=DOLLAR),))
    bench = Bench(deployment(price=PRICE), deployment("dear", price=dear))
    waiting = Held(completion())
    bench.provider.plan(waiting)
    of = token(cost_usd_nanos_max=limit)
    asking = asyncio.create_task(bench.ask(asked, token=of))
    await waiting.reached.wait()

    assert bench.meter.spend_of(of).cost_usd_nanos_held == held
    waiting.opened.set()
    assert (await asking).model == "small"
    assert bench.meter.spend_of(of).cost_usd_nanos_held == 0


async def test_a_call_that_fails_tells_what_its_attempts_took() -> None:
    """The caller's books would miss what the provider bills."""
    bench = Bench(deployment(price=PRICE))
    broken = ProviderError(FailureKind.BROKEN_REPLY, "x", tokens=Tokens(input=10, output=90))
    bench.provider.plan(*[broken] * 3)

    with pytest.raises(ServiceError) as caught:
        await bench.ask()

    told = caught.value.metadata
    assert (told["input_tokens"], told["output_tokens"]) == ("30", "270")
    assert told["cost_usd_nanos"] == str(bench.meter.spend_of(token()).cost_usd_nanos)


async def test_a_call_that_fails_for_nothing_tells_of_no_usage() -> None:
    bench = Bench(deployment(price=PRICE))
    bench.provider.plan(*[SERVER_ERROR] * 3)

    with pytest.raises(ServiceError) as caught:
        await bench.ask()

    assert "input_tokens" not in caught.value.metadata


async def test_a_call_over_the_limit_is_refused_before_anything_is_sent() -> None:
    bench = Bench()

    with pytest.raises(ServiceError) as caught:
        await bench.ask(token=token(tokens_max=20))

    assert caught.value.reason_name == "ERROR_REASON_RUN_LIMIT_EXCEEDED"
    assert bench.provider.asked == []


@pytest.mark.parametrize(
    ("wanted", "most", "sent"),
    [(None, 0, 4096), (None, 1000, 1000), (None, 9000, 4096), (50, 1000, 50), (5000, 1000, 1000)],
)
async def test_the_provider_is_always_told_a_limit(
    wanted: int | None, most: int, sent: int
) -> None:
    """Without one no worst case could be reserved."""
    bench = Bench(deployment(output_tokens_max=most))

    await bench.ask(prompt(output_tokens_max=wanted))

    assert bench.provider.asked == [("small", sent)]


async def test_an_answer_is_shortened_to_what_the_run_has_left() -> None:
    bench = Bench()

    await bench.ask(prompt("x" * 84), token=token(tokens_max=1100))

    assert bench.provider.asked == [("small", 1000)]


async def test_a_repeat_is_answered_while_its_deployment_is_left_alone() -> None:
    """The answer is in the ledger: no provider is needed for it."""
    bench = Bench()
    await bench.ask(request_id="a")
    breaker = bench.gateway.offering.upstreams["small"].breaker
    for _ in range(5):
        breaker.note_failure(asyncio.get_running_loop().time())
    assert breaker.is_open

    again = await bench.ask(request_id="a")

    assert (again.attempts, len(bench.provider.asked)) == (0, 1)


async def test_pieces_are_followed_by_the_whole() -> None:
    bench = Bench()

    started, delta, answer = await bench.stream()

    assert (started, delta) == (Started("small"), Delta(text="hello there"))
    assert isinstance(answer, Answer)
    assert answer.completion.text == "hello there"


async def test_a_stream_fails_over_before_its_first_piece() -> None:
    bench = Bench(deployment("a"), deployment("b"), attempts_per_deployment_max=1)
    bench.provider.plan(SERVER_ERROR)

    pieces = await bench.stream()

    assert pieces[0] == Started("b")


@pytest.mark.parametrize("kind", [FailureKind.TIMED_OUT, FailureKind.SERVER_ERROR])
async def test_a_stream_that_broke_after_its_first_piece_does_not_go_on_elsewhere(
    kind: FailureKind,
) -> None:
    """And what it has said is paid, whatever the provider calls the failure."""

    async def break_off(asked: Prompt, output_max: int, on_delta: OnDelta | None) -> Completion:
        assert on_delta is not None
        on_delta(Delta(reasoning="hm"))
        raise ProviderError(kind, "no byte in time")

    bench = Bench(deployment("a", price=PRICE), deployment("b"))
    bench.provider.plan(break_off)

    with pytest.raises(ServiceError) as caught:
        await bench.stream()

    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.reason_name == "ERROR_REASON_PROVIDER_BROKEN_REPLY"
    assert [name for name, _ in bench.provider.asked] == ["a"]
    assert bench.meter.spend_of(token()).cost_usd_nanos == 3_000 + 2_000, "by estimate"


async def test_a_deadline_cuts_a_slow_provider() -> None:
    bench, held = Bench(), Held(completion())
    bench.provider.plan(held)
    soon = asyncio.get_running_loop().time() + 0.02

    with pytest.raises(ServiceError) as caught:
        await bench.ask(deadline=soon)

    assert caught.value.reason_name == "ERROR_REASON_PROVIDER_TIMEOUT"
    held.opened.set()
    await eventually(lambda: bench.meter.spend_of(token()).tokens == 13)


async def test_a_deadline_ends_the_wait_for_room_in_the_limits() -> None:
    bench, held = Bench(), Held(completion())
    bench.provider.plan(held)
    limited = token(tokens_max=5000)
    first = asyncio.create_task(bench.ask(prompt(output_tokens_max=4900), token=limited))
    await held.reached.wait()
    soon = asyncio.get_running_loop().time() + 0.02

    with pytest.raises(ServiceError) as caught:
        await bench.ask(prompt(output_tokens_max=4900), token=limited, deadline=soon)

    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    held.opened.set()
    await first
    assert bench.meter.spend_of(limited).tokens_held == 0


async def test_an_abandoned_exchange_settles_with_its_real_usage() -> None:
    bench, held = Bench(), Held(completion(tokens=Tokens(input=7, output=70)))
    bench.provider.plan(held)
    asking = asyncio.create_task(bench.ask())
    await held.reached.wait()

    asking.cancel()
    held.opened.set()

    await eventually(lambda: bench.meter.spend_of(token()).tokens == 77)
    assert bench.meter.spend_of(token()).tokens_held == 0


async def test_an_abandoned_exchange_is_ended_after_its_time() -> None:
    bench, held = Bench(drain_s=0.0), Held(completion())
    bench.provider.plan(held)
    asking = asyncio.create_task(bench.ask(prompt("x" * 39)))
    await held.reached.wait()

    asking.cancel()

    await eventually(lambda: bench.meter.spend_of(token()).tokens_held == 0)
    assert bench.meter.spend_of(token()).tokens == 10 + 1, "what was sent, by estimate"


async def test_closing_the_gateway_ends_abandoned_exchanges() -> None:
    bench, held = Bench(drain_s=60.0), Held(completion())
    bench.provider.plan(held)
    asking = asyncio.create_task(bench.ask())
    await held.reached.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    await bench.gateway.close()

    assert bench.meter.spend_of(token()).tokens_held == 0


async def test_a_stream_left_in_the_middle_is_drained() -> None:
    """What was begun is paid, so its usage is wanted."""

    async def say_much(asked: Prompt, output_max: int, on_delta: OnDelta | None) -> Completion:
        assert on_delta is not None
        for _ in range(1000):
            on_delta(Delta(text="x"))
        return completion(tokens=Tokens(input=5, output=1000))

    bench = Bench()
    bench.provider.plan(say_much)
    stream = bench.gateway.stream(call())
    await anext(stream)

    await stream.aclose()  # type: ignore[attr-defined]

    await eventually(lambda: bench.meter.spend_of(token()).tokens == 1005)


async def test_no_more_exchanges_are_under_way_than_a_deployment_takes() -> None:
    bench = Bench(deployment(concurrency_max=2))
    held = [Held(completion()) for _ in range(3)]
    bench.provider.plan(*held)
    asking = [asyncio.create_task(bench.ask()) for _ in range(3)]
    await held[1].reached.wait()

    assert not held[2].reached.is_set()
    held[0].opened.set()
    await held[2].reached.wait()
    held[1].opened.set()
    held[2].opened.set()
    await asyncio.gather(*asking)


async def test_a_call_that_gives_up_waiting_for_a_slot_holds_nothing() -> None:
    bench, held = Bench(deployment(concurrency_max=1)), Held(completion())
    bench.provider.plan(held)
    first = asyncio.create_task(bench.ask())
    await held.reached.wait()
    held_by_first = bench.meter.spend_of(token()).tokens_held
    soon = asyncio.get_running_loop().time() + 0.02

    with pytest.raises(ServiceError):
        await bench.ask(deadline=soon)

    assert bench.meter.spend_of(token()).tokens_held == held_by_first
    held.opened.set()
    await first


async def test_a_defect_of_a_provider_leaves_nothing_held() -> None:
    bench = Bench(deployment(concurrency_max=1))
    bench.provider.plan(RuntimeError("a defect"))

    with pytest.raises(RuntimeError):
        await bench.ask()

    assert bench.meter.spend_of(token()).tokens_held == 0
    assert (await bench.ask()).attempts == 1


@pytest.mark.parametrize(("said", "sent"), [(None, 77), (50, 50), (200, 200)])
async def test_a_deployment_has_its_own_usual_length_of_an_answer(
    said: int | None, sent: int
) -> None:
    """Reasoning models need more than the gateway's default; a prompt's own wish goes first."""
    bench = Bench(deployment("a", output_tokens_default=77))

    await bench.ask(prompt(output_tokens_max=said))

    assert bench.provider.asked == [("a", sent)]
