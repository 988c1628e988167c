"""What every store of accounts does, in memory, in SQL and in Valkey: tests inherit these facts and
say which store they hold for.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from llm_gateway.accounts.caps import NOTHING, Amounts, Cap, Holding, State
from llm_gateway.accounts.store import AccountStore

NOW_US = 1_800_000_000_000_000
MINUTE_US = 60_000_000
SECOND_US = 1_000_000
ONE = Amounts(calls=1, tokens=100, cost_usd_nanos=1_000)


def cap(account: str = "acme/run/1", **changes: Any) -> Cap:
    return Cap(**{"account": account} | changes)


def holding(hold_id: str = "here-1", *caps: Cap, **changes: Any) -> Holding:
    values: dict[str, Any] = {
        "hold_id": hold_id,
        "owner": "here",
        "tenant": "acme",
        "amounts": ONE,
        "caps": caps or (cap(),),
        "now_us": NOW_US,
    }
    return Holding(**values | changes)


class AccountStoreContract:
    """Inherit it and give a `store` fixture."""

    async def test_an_account_that_nobody_used_has_nothing(self, store: AccountStore) -> None:
        assert await store.states([cap()], NOW_US) == [State()]

    async def test_what_fits_exactly_is_held(self, store: AccountStore) -> None:
        exact = cap(calls_max=1, tokens_max=100, cost_usd_nanos_max=1_000, concurrency_max=1)

        assert await store.reserve(holding("here-1", exact)) is None
        assert await store.states([exact], NOW_US) == [State(held=ONE)]

    @pytest.mark.parametrize(
        ("limits", "limit", "value"),
        [
            ({"calls_max": 0}, "calls_max", 0),
            ({"tokens_max": 99}, "tokens_max", 99),
            ({"cost_usd_nanos_max": 999}, "cost_usd_nanos_max", 999),
            ({"concurrency_max": 0}, "concurrency_max", 0),
        ],
    )
    async def test_what_is_one_over_is_not_held(
        self, store: AccountStore, limits: dict[str, Any], limit: str, value: int
    ) -> None:
        shortage = await store.reserve(holding("here-1", cap(**limits)))

        assert shortage is not None
        assert (shortage.limit, shortage.value) == (limit, value)
        assert (await store.states([cap()], NOW_US))[0].held == NOTHING

    async def test_a_hold_is_on_all_accounts_or_on_none(self, store: AccountStore) -> None:
        wide, narrow = cap("acme/wide"), cap("acme/narrow", tokens_max=99)

        shortage = await store.reserve(holding("here-1", wide, narrow))

        assert shortage is not None and shortage.cap == narrow
        assert await store.states([wide, narrow], NOW_US) == [State(), State()]

    async def test_settling_frees_the_hold_and_counts_what_was_taken(
        self, store: AccountStore
    ) -> None:
        caps = (cap("acme/a"), cap("acme/b"))
        await store.reserve(holding("here-1", *caps))
        await store.settle("here-1", Amounts(1, 30, 300), NOW_US)

        assert await store.states(caps, NOW_US) == [State(taken=Amounts(1, 30, 300))] * 2

    async def test_settling_again_or_without_a_hold_does_nothing(self, store: AccountStore) -> None:
        await store.reserve(holding())
        for hold_id in ("here-1", "here-1", "unknown"):
            await store.settle(hold_id, Amounts(1, 30, 300), NOW_US)

        assert await store.states([cap()], NOW_US) == [State(taken=Amounts(1, 30, 300))]

    async def test_the_same_hold_again_changes_nothing(self, store: AccountStore) -> None:
        """After a lost connection nobody knows whether it was held."""
        full = cap(concurrency_max=1)

        assert await store.reserve(holding("here-1", full)) is None
        assert await store.reserve(holding("here-1", full)) is None
        assert (await store.states([full], NOW_US))[0].held == ONE

    async def test_a_shortage_tells_how_the_account_stands(self, store: AccountStore) -> None:
        await store.reserve(holding("here-1"))
        await store.settle("here-1", Amounts(1, 30, 300), NOW_US)
        await store.reserve(holding("here-2"))

        shortage = await store.reserve(holding("here-3", cap(tokens_max=229)))

        assert shortage is not None
        assert shortage.state == State(taken=Amounts(1, 30, 300), held=ONE)

    async def test_caps_of_different_size_may_be_on_one_account(self, store: AccountStore) -> None:
        """A run's work may have less than its last answer."""
        await store.reserve(holding("here-1", cap(tokens_max=100)))

        assert await store.reserve(holding("here-2", cap(tokens_max=100))) is not None
        assert await store.reserve(holding("here-3", cap(tokens_max=200))) is None

    async def test_a_floor_is_counted_once(self, store: AccountStore) -> None:
        known = cap(floor=Amounts(tokens=50), tokens_max=250)
        await store.reserve(holding("here-1", known))
        await store.settle("here-1", Amounts(1, 100, 0), NOW_US)

        assert await store.reserve(holding("here-2", known)) is None
        assert await store.states([cap()], NOW_US) == [State(taken=Amounts(1, 150, 0), held=ONE)]

    async def test_an_opening_counts_for_a_new_account_alone(self, store: AccountStore) -> None:
        opened = cap(opening=Amounts(tokens=50))
        await store.reserve(holding("here-1", opened))
        await store.settle("here-1", NOTHING, NOW_US)
        await store.reserve(holding("here-2", cap(opening=Amounts(tokens=500))))

        assert (await store.states([cap()], NOW_US))[0].taken == Amounts(tokens=50)

    async def test_what_left_the_window_no_longer_counts(self, store: AccountStore) -> None:
        """On either side: it counts for the whole window, and at most a sixtieth longer."""
        a_minute = cap(window_us=MINUTE_US, tokens_max=100)
        await store.reserve(holding("here-1", a_minute))
        await store.settle("here-1", ONE, NOW_US)

        async def try_at(now_us: int) -> Any:
            return await store.reserve(holding("here-2", a_minute, now_us=now_us))

        assert await try_at(NOW_US + MINUTE_US - 1) is not None
        assert await try_at(NOW_US + MINUTE_US + SECOND_US) is None

    async def test_a_shortage_tells_when_it_will_fit(self, store: AccountStore) -> None:
        a_minute = cap(window_us=MINUTE_US, tokens_max=250)
        for second in (0, 20, 40):
            at = NOW_US + second * SECOND_US
            if second < 40:
                await store.reserve(holding(f"here-{second}", a_minute, now_us=at))
                await store.settle(f"here-{second}", ONE, at)
        at = NOW_US + 40 * SECOND_US

        shortage = await store.reserve(holding("here-x", a_minute, now_us=at))

        assert shortage is not None
        assert shortage.retry_after_s == pytest.approx(21)

    async def test_what_can_never_fit_has_no_time_to_wait(self, store: AccountStore) -> None:
        never = await store.reserve(holding("a", cap("acme/x", window_us=MINUTE_US, tokens_max=99)))
        await store.reserve(holding("b", cap("acme/y")))
        await store.settle("b", ONE, NOW_US)
        gone = await store.reserve(holding("c", cap("acme/y", tokens_max=150)))

        assert never is not None and never.retry_after_s is None
        assert gone is not None and gone.retry_after_s is None

    async def test_a_hold_of_the_dead_counts_as_taken_at_worst(self, store: AccountStore) -> None:
        """Nobody knows what it took; with less, a cap could be overspent by being killed often."""
        one_at_a_time = cap(concurrency_max=1, tokens_max=200)
        await store.keep_lease("here", NOW_US + SECOND_US)
        await store.reserve(holding("here-1", one_at_a_time))

        assert await store.expire(NOW_US + SECOND_US - 1) == 0
        assert await store.expire(NOW_US + SECOND_US) == 1

        assert await store.states([cap()], NOW_US) == [State(taken=ONE)]
        assert await store.reserve(holding("there-1", one_at_a_time, owner="there")) is None
        assert await store.expire(NOW_US + SECOND_US) == 1, "an owner nobody knows is dead"

    async def test_a_lease_that_is_kept_keeps_its_holds(self, store: AccountStore) -> None:
        await store.keep_lease("here", NOW_US)
        await store.keep_lease("here", NOW_US + MINUTE_US)
        await store.reserve(holding())

        assert await store.expire(NOW_US + SECOND_US) == 0
        await store.keep_lease("here", 0)
        assert await store.expire(NOW_US + SECOND_US) == 1

    async def test_one_that_was_only_late_takes_its_worst_case_back(
        self, store: AccountStore
    ) -> None:
        await store.reserve(holding())
        await store.expire(NOW_US)
        await store.settle("here-1", Amounts(1, 30, 300), NOW_US + SECOND_US)
        await store.settle("here-1", Amounts(1, 30, 300), NOW_US + SECOND_US)

        assert await store.states([cap()], NOW_US) == [State(taken=Amounts(1, 30, 300))]

    async def test_an_account_is_forgotten_when_nothing_is_held_of_it(
        self, store: AccountStore
    ) -> None:
        """Memory does not grow with the number of runs ever seen."""
        short = cap(forget_us=NOW_US + SECOND_US, opening=Amounts(tokens=5))
        await store.keep_lease("here", NOW_US + MINUTE_US)
        await store.reserve(holding("here-1", short))
        await store.expire(NOW_US + 2 * SECOND_US)
        assert (await store.states([cap()], NOW_US))[0].held == ONE

        await store.settle("here-1", ONE, NOW_US + SECOND_US // 2)
        await store.expire(NOW_US + SECOND_US - 1)
        assert (await store.states([cap()], NOW_US))[0].taken == ONE.plus(Amounts(tokens=5))

        deadline = asyncio.get_running_loop().time() + 5
        while await store.states([cap()], NOW_US) != [State()]:
            assert asyncio.get_running_loop().time() < deadline
            await store.expire(NOW_US + 2 * SECOND_US)

    async def test_a_hold_is_settled_after_a_reserve_that_was_cancelled(
        self, store: AccountStore
    ) -> None:
        """A caller may go away while it is reserved."""
        await store.keep_lease("here", NOW_US + MINUTE_US)
        for number in range(20):
            reserving = asyncio.ensure_future(store.reserve(holding(f"here-{number}")))
            for _ in range(number % 4):
                await asyncio.sleep(0)
            reserving.cancel()
            await asyncio.gather(reserving, return_exceptions=True)
            await store.settle(f"here-{number}", NOTHING, NOW_US)

        assert await store.states([cap()], NOW_US) == [State()]

    async def test_large_sums_of_money_are_exact(self, store: AccountStore) -> None:
        """A million dollars, to the billionth."""
        large = 10**15 - 1
        full = cap(cost_usd_nanos_max=large)
        await store.reserve(holding("here-1", full, amounts=Amounts(1, 0, large - 1)))
        await store.settle("here-1", Amounts(1, 0, large - 1), NOW_US)

        assert await store.reserve(holding("a", full, amounts=Amounts(1, 0, 2))) is not None
        assert await store.reserve(holding("b", full, amounts=Amounts(1, 0, 1))) is None

    async def test_a_thousand_concurrent_calls_at_a_cap_overspend_by_nothing(
        self, store: AccountStore
    ) -> None:
        """As the published failures did: LiteLLM #26672 spent $99 of a $30 cap and #40002 let 4 of
        5 concurrent calls over one."""
        full = cap(cost_usd_nanos_max=30_000, tokens_max=1_000_000)
        chance = random.Random(7)

        async def call(number: int) -> int:
            wanted = holding(f"here-{number}", full)
            if await store.reserve(wanted) is not None:
                return 0
            cost = chance.randrange(1_001)
            await store.settle(wanted.hold_id, Amounts(1, 10, cost), NOW_US)
            return cost

        spent = await asyncio.gather(*(call(number) for number in range(1_000)))

        (state,) = await store.states([full], NOW_US)
        assert (state.held, state.taken.cost_usd_nanos) == (NOTHING, sum(spent))
        assert 0 < sum(spent) <= 30_000
        assert spent.count(0) > 100, "the cap was met"
