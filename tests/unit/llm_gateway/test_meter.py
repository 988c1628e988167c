"""The meter: no set of concurrent calls crosses a run's limits."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.run_token import RunToken, Subtree
from llm_gateway import meter as meter_module
from llm_gateway.accounts.caps import Cap, Holding, Shortage
from llm_gateway.accounts.memory_store import MemoryAccountStore
from llm_gateway.answers import Spend, Tokens
from llm_gateway.demands import Demand
from llm_gateway.errors import RunLimitExceededError
from llm_gateway.meter import Meter
from llm_gateway.prices import FREE, Price
from tests.support.gateway import PRICE, MeterInView, token


def demand(
    input_max: int, output_max: int, output_min: int | None = None, price: Price = FREE
) -> Demand:
    return Demand(
        input_tokens_max=input_max,
        output_tokens_max=output_max,
        output_tokens_min=output_max if output_min is None else output_min,
        price=price,
    )


def spend(sent: int, received: int, price: Price = FREE) -> Spend:
    tokens = Tokens(input=sent, output=received)
    return Spend(tokens=tokens, cost_usd_nanos=price.cost_usd_nanos(tokens))


async def settled() -> None:
    """Let every task that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_call_that_fits_exactly_is_admitted() -> None:
    reservation = await MeterInView().reserve(token(tokens_max=100), demand(60, 40))

    assert (reservation.output_tokens_max, reservation.tokens) == (40, 100)


async def test_a_call_one_token_over_is_refused_with_the_limit() -> None:
    with pytest.raises(RunLimitExceededError) as caught:
        await MeterInView().reserve(token(tokens_max=100, tokens_spent=1), demand(60, 40))

    assert caught.value.reason_name == "ERROR_REASON_RUN_LIMIT_EXCEEDED"
    assert caught.value.metadata == {"limit": "tokens_max", "value": "100", "spent": "1"}


async def test_money_is_limited_to_the_billionth() -> None:
    """60 tokens at 1000 and 40 at 2000 nano-dollars."""
    enough = await MeterInView().reserve(
        token(cost_usd_nanos_max=140_000), demand(60, 40, price=PRICE)
    )
    with pytest.raises(RunLimitExceededError) as caught:
        await MeterInView().reserve(token(cost_usd_nanos_max=139_999), demand(60, 40, price=PRICE))

    assert enough.cost_usd_nanos == 140_000
    assert caught.value.metadata == {
        "limit": "cost_usd_nanos_max",
        "value": "139999",
        "spent": "0",
    }


async def test_no_money_permits_free_models_only() -> None:
    broke = token(cost_usd_nanos_max=0)

    await MeterInView().reserve(broke, demand(60, 40))
    with pytest.raises(RunLimitExceededError):
        await MeterInView().reserve(broke, demand(1, 1, price=PRICE))


async def test_what_was_not_used_is_free_again() -> None:
    meter, limited = MeterInView(), token(tokens_max=100)
    (await meter.reserve(limited, demand(60, 40))).settle(spend(10, 5))

    assert (await meter.reserve(limited, demand(45, 40))).tokens == 85


async def test_settling_twice_books_once() -> None:
    meter, limited = MeterInView(), token(tokens_max=100)
    reservation = await meter.reserve(limited, demand(60, 40))
    reservation.settle(spend(10, 5))
    reservation.settle(spend(10, 5))

    assert meter.spend_of(limited).tokens == 15
    assert meter.spend_of(limited).tokens_held == 0


async def test_a_call_waits_for_others_of_its_run_to_settle() -> None:
    """Worst cases are far above what calls really take; refusing at once would waste limits."""
    meter, limited = MeterInView(), token(tokens_max=100)
    first = await meter.reserve(limited, demand(60, 40))
    second = asyncio.create_task(meter.reserve(limited, demand(50, 30)))
    await settled()
    assert not second.done()

    first.settle(spend(10, 5))

    assert (await second).tokens == 80


async def test_a_waiting_call_is_refused_once_nothing_else_could_make_room() -> None:
    meter, limited = MeterInView(), token(tokens_max=100)
    first = await meter.reserve(limited, demand(60, 40))
    second = asyncio.create_task(meter.reserve(limited, demand(50, 30)))
    await settled()

    first.settle(spend(60, 40))

    with pytest.raises(RunLimitExceededError) as caught:
        await second
    assert caught.value.metadata["spent"] == "100"


async def test_a_small_call_does_not_overtake_a_large_one() -> None:
    """Otherwise a stream of small calls would starve it."""
    meter, limited, order = MeterInView(), token(tokens_max=100), list[str]()

    async def take(name: str, size: int) -> None:
        reservation = await meter.reserve(limited, demand(size, 0))
        order.append(name)
        reservation.settle(spend(0, 0))

    first = await meter.reserve(limited, demand(90, 0))
    tasks = [asyncio.create_task(take("large", 80)), asyncio.create_task(take("small", 5))]
    await settled()
    assert order == []
    first.settle(spend(0, 0))
    await asyncio.gather(*tasks)

    assert order == ["large", "small"]


async def test_a_waiting_call_that_is_cancelled_lets_the_next_one_go() -> None:
    meter, limited = MeterInView(), token(tokens_max=100)
    first = await meter.reserve(limited, demand(50, 0))
    large = asyncio.create_task(meter.reserve(limited, demand(80, 0)))
    small = asyncio.create_task(meter.reserve(limited, demand(50, 0)))
    await settled()

    large.cancel()

    assert (await small).tokens == 50
    first.settle(Spend())


async def test_a_call_cancelled_as_it_is_granted_gives_its_part_back() -> None:
    """Grant and cancellation may come in the same turn of the loop."""
    meter, limited = MeterInView(), token(tokens_max=100)
    first = await meter.reserve(limited, demand(100, 0))
    second = asyncio.create_task(meter.reserve(limited, demand(100, 0)))
    await settled()

    first.settle(Spend())
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)

    assert meter.spend_of(limited).tokens_held == 0


async def test_an_answer_is_shortened_where_nothing_else_is_under_way() -> None:
    reservation = await MeterInView().reserve(token(tokens_max=1000), demand(500, 4096, 256))

    assert reservation.output_tokens_max == 500


async def test_an_answer_is_not_shortened_below_its_least_size() -> None:
    limited = token(tokens_max=755)

    with pytest.raises(RunLimitExceededError):
        await MeterInView().reserve(limited, demand(500, 4096, 256))
    assert (
        await MeterInView().reserve(token(tokens_max=756), demand(500, 4096, 256))
    ).tokens == 756


async def test_an_answer_is_shortened_to_what_the_money_pays() -> None:
    limited = token(cost_usd_nanos_max=1_000_000)  # 500 tokens sent, 250 received

    reservation = await MeterInView().reserve(limited, demand(500, 4096, 100, PRICE))

    assert reservation.output_tokens_max == 250


async def test_a_call_waits_rather_than_be_shortened() -> None:
    meter, limited = MeterInView(), token(tokens_max=6000)
    first = await meter.reserve(limited, demand(500, 1000))
    second = asyncio.create_task(meter.reserve(limited, demand(500, 5000, 256)))
    await settled()
    assert not second.done()

    first.settle(spend(100, 100))

    assert (await second).output_tokens_max == 5000


async def test_near_a_limit_the_prompt_is_counted_once_and_closely() -> None:
    """A token a byte is three to four times what English has."""
    counts = []

    async def count() -> int:
        counts.append(1)
        return 20

    near = dataclasses.replace(demand(60, 40, price=PRICE), count=count)

    plenty = await MeterInView().reserve(token(tokens_max=100), near)
    tight = await MeterInView().reserve(token(tokens_max=60), near)
    with pytest.raises(RunLimitExceededError):
        await MeterInView().reserve(token(tokens_max=59), near)

    assert (plenty.tokens, tight.tokens, tight.cost_usd_nanos) == (100, 60, 20_000 + 80_000)
    assert len(counts) == 2, "and not where there is plenty"


async def test_a_prompt_that_cannot_be_counted_keeps_its_bound() -> None:
    async def unknown() -> None:
        return None

    near = dataclasses.replace(demand(60, 40), count=unknown)

    with pytest.raises(RunLimitExceededError):
        await MeterInView().reserve(token(tokens_max=99), near)


async def test_a_subtree_is_limited_beside_its_run() -> None:
    """Siblings have limits of their own, and the run's for all of them."""
    meter = MeterInView()
    parts = [Subtree(name=f"runs/1-{n}", tokens_max=100) for n in range(3)]
    run = token(tokens_max=250)

    async def take(part: Subtree, tokens: int) -> None:
        of = dataclasses.replace(run, depth=1, subtrees=(part,))
        (await meter.reserve(of, demand(tokens, 0))).settle(spend(tokens, 0))

    await take(parts[0], 100)
    with pytest.raises(RunLimitExceededError) as of_part:
        await take(parts[0], 1)
    await take(parts[1], 100)
    with pytest.raises(RunLimitExceededError) as of_run:
        await take(parts[2], 51)
    await take(parts[2], 50)

    assert (of_part.value.metadata["value"], of_run.value.metadata["value"]) == ("100", "250")
    assert meter.spend_of(run).tokens == 250


async def test_the_tokens_own_figures_are_a_floor() -> None:
    """A gateway that was restarted does not start a run from zero."""
    meter = MeterInView()
    with pytest.raises(RunLimitExceededError):
        await meter.reserve(token(tokens_max=100, tokens_spent=90), demand(11, 0))

    reservation = await meter.reserve(token(tokens_max=100, tokens_spent=0), demand(10, 0))
    assert reservation.tokens == 10


async def test_runs_and_tenants_do_not_share_a_meter() -> None:
    meter = MeterInView()
    await meter.reserve(token(tokens_max=100), demand(100, 0))

    await meter.reserve(token(tokens_max=100, run="runs/2"), demand(100, 0))
    await meter.reserve(token(tokens_max=100, tenant="other"), demand(100, 0))


calls = st.lists(
    st.tuples(
        st.integers(min_value=0, max_value=400),  # input
        st.integers(min_value=1, max_value=400),  # output
        st.booleans(),  # may be shortened
        st.sampled_from(["settles", "is cancelled"]),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(
    calls=calls,
    tokens_max=st.none() | st.integers(min_value=0, max_value=3000),
    cost_max=st.none() | st.integers(min_value=0, max_value=3_000_000),
    seed=st.integers(min_value=0, max_value=2**32),
)
def test_concurrent_calls_never_spend_more_than_the_limits(
    calls: list[tuple[int, int, bool, str]],
    tokens_max: int | None,
    cost_max: int | None,
    seed: int,
) -> None:
    """The promise of the meter, with providers that honour the limit they are given."""
    limited = token(tokens_max=tokens_max, cost_usd_nanos_max=cost_max)

    state = asyncio.run(_spend_all(calls, limited, random.Random(seed)))

    assert tokens_max is None or state[0] <= tokens_max
    assert cost_max is None or state[1] <= cost_max
    assert state[2:] == (0, 0)


async def _spend_all(
    calls: list[tuple[int, int, bool, str]], limited: RunToken, chance: random.Random
) -> tuple[int, int, int, int]:
    meter = MeterInView()

    async def one(sent: int, received: int, shortens: bool, ending: str) -> None:
        await asyncio.sleep(chance.choice([0, 0.0001]))
        wanted = demand(sent, received, min(received, 5) if shortens else received, PRICE)
        try:
            reservation = await meter.reserve(limited, wanted)
        except RunLimitExceededError:
            return
        used = chance.choice([0.0, 0.5, 1.0])
        try:
            await asyncio.sleep(chance.choice([0, 0.0001]))
        finally:
            received_really = int(reservation.output_tokens_max * used)
            reservation.settle(spend(int(sent * used), received_really, PRICE))

    tasks = [asyncio.create_task(one(*call)) for call in calls]
    for task, call in zip(tasks, calls, strict=True):
        if call[3] == "is cancelled":
            await asyncio.sleep(0)
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    spent = meter.spend_of(limited)
    return spent.tokens, spent.cost_usd_nanos, spent.tokens_held, spent.cost_usd_nanos_held


class OneAtATime:
    """A quota: each tenant has one call at a time."""

    async def caps(self, token: RunToken, tier: str) -> list[Cap]:
        account = f"{token.tenant}/quotas/one"
        return [Cap(account=account, concurrency_max=1, quota=f"tenants/{account}")]


async def test_of_many_runs_that_wait_a_few_look_each_time_and_all_get_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thousand runs of one tenant would else keep the gateway from everybody's calls: each look
    is a step of the store."""
    monkeypatch.setattr(meter_module, "_POLL_S", 60.0)
    meter, runs, looks = MeterInView(quotas=OneAtATime()), 100, 0
    reserve = meter.accounts.reserve

    async def counted(holding: Holding) -> Shortage | None:
        nonlocal looks
        looks += 1
        return await reserve(holding)

    monkeypatch.setattr(meter.accounts, "reserve", counted)
    done = list[str]()

    async def take(run: str) -> None:
        reservation = await meter.reserve(token(run=run), demand(60, 40))
        await settled()
        reservation.settle(spend(10, 5))
        done.append(run)

    names = [f"runs/{number}" for number in range(runs)]
    await asyncio.gather(*map(take, names))

    assert sorted(done) == sorted(names)
    assert looks < runs * 15


class DeafStore(MemoryAccountStore):
    """Goes on where it is cancelled, once, as libraries do over `asyncio.wait_for`."""

    def __init__(self) -> None:
        super().__init__()
        self.tended = asyncio.Event()

    async def expire(self, now_us: int) -> int:
        if not self.tended.is_set():
            self.tended.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return await super().expire(now_us)


async def test_a_store_that_swallows_the_cancellation_does_not_keep_the_gateway_from_its_end() -> (
    None
):
    """It would stand still for ever in the middle of its stop."""
    store = DeafStore()

    async with asyncio.timeout(60):
        async with Meter(store=store).living(0.03):
            await store.tended.wait()
