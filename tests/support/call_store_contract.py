"""What every store of calls does, in memory as in SQL: tests inherit these facts and say which
store they hold for.
"""

from __future__ import annotations

import asyncio
from typing import Any

from llm_gateway.answers import Booked, Spend, Tokens
from llm_gateway.ledger.entries import (
    CallEntry,
    CallKey,
    CallState,
    CallSum,
    CallSums,
    ExchangeRecord,
    Hold,
    StoredAnswer,
)
from llm_gateway.ledger.operations import (
    Bury,
    CallStore,
    Fail,
    FindDead,
    Forget,
    HoldAgain,
    KeepAnswer,
    KeepLease,
    LookUp,
    OpenCall,
    Operation,
    Presume,
    Release,
    RunSum,
    SumCall,
    SumCalls,
    SumRun,
)

KEY = CallKey("acme", "runs/1", "runs/1/1/1/1")
OTHERS = [CallKey("acme", "runs/1", f"other-{number}") for number in range(3)]
DIGEST = b"d" * 32
ANSWER = StoredAnswer(data=b"\0an answer\xff")
SPEND = Spend(tokens=Tokens(input=10, output=3, cached_input=2, reasoning=1), cost_usd_nanos=16_000)


def hold(number: int = 1, **changes: Any) -> Hold:
    values: dict[str, Any] = {
        "exchange_id": f"here-{number}",
        "model": "small",
        "input_tokens": 100,
        "output_tokens": 50,
        "cost_usd_nanos": 200_000,
    }
    return Hold(**values | changes)


def opening(key: CallKey = KEY, **changes: Any) -> OpenCall:
    values: dict[str, Any] = {
        "key": key,
        "digest": DIGEST,
        "tier": "sub",
        "owner": "here",
        "hold": hold(),
        "now_us": 1_000,
    }
    return OpenCall(**values | changes)


def exchange(key: CallKey = KEY, **changes: Any) -> ExchangeRecord:
    values: dict[str, Any] = {
        "exchange_id": "here-1",
        "key": key,
        "tier": "sub",
        "model": "small",
        "ended_us": 2_000,
        "spend": SPEND,
        "is_answer": True,
    }
    return ExchangeRecord(**values | changes)


def presumed() -> Presume:
    worst = Spend(tokens=Tokens(input=100, output=50), cost_usd_nanos=200_000, is_estimated=True)
    return Presume(exchange(spend=worst, is_answer=False))


def answering(key: CallKey = KEY, **changes: Any) -> KeepAnswer:
    return KeepAnswer(owner="here", exchange=exchange(key, **changes), answer=ANSWER)


class CallStoreContract:
    """Inherit it and give a `store` fixture."""

    async def test_a_free_key_has_no_entry(self, store: CallStore) -> None:
        assert await one(store, LookUp(KEY)) is None

    async def test_the_first_writer_wins(self, store: CallStore) -> None:
        assert await one(store, opening()) is True
        assert await one(store, opening(owner="there", digest=b"x" * 32)) is False

        assert await one(store, LookUp(KEY)) == CallEntry(
            digest=DIGEST,
            state=CallState.OPEN,
            owner="here",
            lease_until_us=0,
            answer=StoredAnswer(),
        )

    async def test_of_many_writers_at_once_one_wins(self, store: CallStore) -> None:
        """Also where they come in transactions of their own, in different orders."""
        keys = [KEY, *OTHERS]
        batches = [
            [opening(key, owner=f"o{n}") for key in (keys if n % 2 else keys[::-1])]
            for n in range(8)
        ]

        outcomes = await asyncio.gather(*(store.apply(batch) for batch in batches))

        won = sum(sum(outcome) for outcome in outcomes)
        assert won == len(keys)

    async def test_of_two_that_come_together_one_wins(self, store: CallStore) -> None:
        assert await store.apply([opening(), opening(owner="there")]) == [True, False]

        assert (await one(store, LookUp(KEY))).owner == "here"

    async def test_keys_of_other_runs_and_tenants_are_others(self, store: CallStore) -> None:
        same = KEY.request_id
        keys = [KEY, CallKey("acme", "runs/2", same), CallKey("zeta", "runs/1", same)]

        assert await store.apply([opening(key) for key in keys]) == [True, True, True]

    async def test_an_answer_stays_and_ends_its_hold(self, store: CallStore) -> None:
        await store.apply([opening()])
        await store.apply([answering()])

        entry = await one(store, LookUp(KEY))

        assert (entry.state, entry.answer, entry.digest) == (CallState.ANSWERED, ANSWER, DIGEST)
        assert await booked(store) == (13, 16_000)
        assert await one(store, opening()) is False

    async def test_an_answer_elsewhere_is_told_by_its_key(self, store: CallStore) -> None:
        kept = KeepAnswer(owner="here", exchange=exchange(), answer=StoredAnswer(key="f" * 64))
        await store.apply([opening()])
        await store.apply([kept])

        assert (await one(store, LookUp(KEY))).answer == StoredAnswer(key="f" * 64)

    async def test_a_call_that_nobody_can_repeat_leaves_its_spend_alone(
        self, store: CallStore
    ) -> None:
        await store.apply([opening()])
        await store.apply([KeepAnswer(owner="here", exchange=exchange(), answer=None)])

        assert await one(store, LookUp(KEY)) is None
        assert await booked(store) == (13, 16_000)

    async def test_a_failure_is_paid_and_leaves_the_call_open(self, store: CallStore) -> None:
        await store.apply([opening()])
        await store.apply([Fail("here", exchange(is_answer=False))])

        assert (await one(store, LookUp(KEY))).state is CallState.OPEN
        assert await booked(store) == (13, 16_000)
        assert await one(store, HoldAgain(KEY, "here", hold(2))) is True
        assert await booked(store) == (13 + 150, 16_000 + 200_000)

    async def test_a_failure_for_nothing_books_nothing(self, store: CallStore) -> None:
        await store.apply([opening()])
        await store.apply([Fail("here", exchange(spend=Spend(), is_answer=False))])

        assert await booked(store) == (0, 0)

    async def test_a_released_key_is_free(self, store: CallStore) -> None:
        await store.apply([opening()])
        await store.apply([Release(KEY, "here")])

        assert await one(store, opening(owner="there")) is True

    async def test_an_answer_is_never_released(self, store: CallStore) -> None:
        await store.apply([opening()])
        await store.apply([answering()])
        await store.apply([Release(KEY, "here")])

        assert (await one(store, LookUp(KEY))).answer == ANSWER

    async def test_a_call_is_opened_before_it_is_released_in_one_transaction(
        self, store: CallStore
    ) -> None:
        """A caller may go away while its call is being opened."""
        await store.apply([Release(KEY, "here"), opening()])

        assert await one(store, LookUp(KEY)) is None

    async def test_only_its_owner_changes_a_call(self, store: CallStore) -> None:
        """A process that was thought dead and goes on must not undo another's work."""
        await store.apply([opening(owner="there")])
        await store.apply([Release(KEY, "here"), answering()])

        assert await one(store, HoldAgain(KEY, "here", hold(2))) is False
        assert (await one(store, LookUp(KEY))).state is CallState.OPEN

    async def test_a_buried_call_is_booked_at_worst_and_free(self, store: CallStore) -> None:
        await store.apply([opening()])

        assert await one(store, Bury(KEY, "here", 3_000)) is True

        assert await booked(store) == (150, 200_000)
        assert (await one(store, LookUp(KEY))).state is CallState.SPENT
        assert await one(store, Bury(KEY, "here", 3_000)) is False
        assert await one(store, opening(owner="there", is_again=True)) is True

    async def test_who_takes_a_key_that_was_spent_under_has_to_know(self, store: CallStore) -> None:
        """Else it would tell its caller of its own spend alone."""
        await store.apply([opening(), opening(OTHERS[0])])
        await store.apply([Release(KEY, "here", is_spent=True), Bury(OTHERS[0], "here", 3_000)])

        for key in (KEY, OTHERS[0]):
            assert await one(store, opening(key, owner="there")) is False
            assert await one(store, HoldAgain(key, "here", hold(2))) is False
            assert await one(store, opening(key, owner="there", is_again=True)) is True
            assert await one(store, opening(key, is_again=True)) is False, "it is taken"

    async def test_a_call_is_summed_up_by_its_key(self, store: CallStore) -> None:
        """Whatever was spent under it, by whomever, and of no other call."""
        await store.apply([opening(), opening(OTHERS[0], owner="there")])
        await store.apply([Bury(KEY, "here", 3_000)])
        await store.apply([opening(hold=hold(2), is_again=True)])
        await store.apply(
            [
                answering(exchange_id="here-2"),
                KeepAnswer(
                    owner="there", exchange=exchange(OTHERS[0], exchange_id="x"), answer=ANSWER
                ),
            ]
        )

        first, second, third = await store.apply([SumCall(key) for key in (KEY, *OTHERS[:2])])

        tokens = Tokens(input=110, output=53, cached_input=2, reasoning=1)
        worst = Spend(tokens=tokens, cost_usd_nanos=216_000, is_estimated=True)
        assert first == Booked(worst, answers=1)
        assert second == Booked(SPEND, answers=1)
        assert third == Booked(Spend(), answers=0)

    async def test_calls_are_summed_up_whose_ids_begin_alike(self, store: CallStore) -> None:
        """Each by itself, and those under way are counted."""
        await store.apply([opening(), *(opening(key, owner="there") for key in OTHERS)])
        await store.apply([answering()])
        kept = exchange(OTHERS[1], exchange_id="x")
        await store.apply([KeepAnswer(owner="there", exchange=kept, answer=ANSWER)])

        sums = await one(store, SumCalls("acme", "runs/1", "other-"))

        told = CallSum(request_id="other-1", tier="sub", model="small", spend=SPEND, answers=1)
        assert sums == CallSums(calls=(told,), open_calls=2)
        nothing = CallSums(calls=(), open_calls=0)
        for asked in (("acme", "runs/2", "other-"), ("b", "runs/1", "o"), ("acme", "runs/1", "_t")):
            assert await one(store, SumCalls(*asked)) == nothing

    async def test_an_answered_call_is_not_buried(self, store: CallStore) -> None:
        await store.apply([opening()])
        await store.apply([answering()])

        assert await one(store, Bury(KEY, "here", 3_000)) is False
        assert await booked(store) == (13, 16_000)

    async def test_what_an_exchange_really_took_replaces_the_worst_case(
        self, store: CallStore
    ) -> None:
        """Its owner was only late: the money must not be booked twice."""
        await store.apply([opening()])
        await store.apply([Bury(KEY, "here", 3_000)])
        await store.apply([answering()])

        assert await booked(store) == (13, 16_000)
        assert (await one(store, LookUp(KEY))).state is CallState.SPENT

    async def test_what_is_presumed_of_an_exchange_counts_until_it_ends(
        self, store: CallStore
    ) -> None:
        """Of two at a time a call holds for one; the other is in the books at its worst case."""
        await store.apply([opening(), HoldAgain(KEY, "here", hold(2)), presumed()])
        both = await store.apply([SumRun("acme", "runs/1", "there")])
        await store.apply([Fail("here", exchange(is_answer=False, is_presumed=True))])

        one = await store.apply([presumed(), SumRun("acme", "runs/1", "there")])

        assert both == [RunSum(tokens=300, cost_usd_nanos=400_000)]
        assert one[1] == RunSum(tokens=13, cost_usd_nanos=16_000), "once settled it stays so"

    async def test_what_was_presumed_and_took_nothing_is_nothing(self, store: CallStore) -> None:
        await store.apply([opening(), presumed()])

        await store.apply([Fail("here", exchange(spend=Spend(), is_presumed=True))])

        assert await store.apply([SumRun("acme", "runs/1", "here")]) == [
            RunSum(tokens=0, cost_usd_nanos=0)
        ]

    async def test_a_burial_between_two_exchanges_books_neither_again(
        self, store: CallStore
    ) -> None:
        await store.apply([opening()])
        await store.apply([Fail("here", exchange(is_answer=False))])
        await store.apply([Bury(KEY, "here", 3_000)])

        assert await booked(store) == (13, 16_000)

    async def test_a_transaction_that_is_repeated_books_once(self, store: CallStore) -> None:
        """After a lost connection nobody knows whether it was committed."""
        await store.apply([opening()])
        await store.apply([answering()])
        await store.apply([answering()])

        assert await booked(store) == (13, 16_000)

    async def test_holds_of_others_count_and_ones_own_do_not(self, store: CallStore) -> None:
        await store.apply([opening(), opening(OTHERS[0], owner="there")])

        sums = await store.apply([SumRun("acme", "runs/1", who) for who in ("here", "x")])

        assert [each.tokens for each in sums] == [150, 300]

    async def test_the_dead_are_found_by_their_leases(self, store: CallStore) -> None:
        await store.apply(
            [
                KeepLease("late", 5_000),
                KeepLease("alive", 5_001),
                KeepLease("gone", 9_000),
                opening(KEY, owner="late"),
                opening(OTHERS[0], owner="alive"),
                opening(OTHERS[1], owner="gone"),
                opening(OTHERS[2], owner="unknown"),
                opening(CallKey("acme", "runs/1", "own"), owner="asking"),
            ]
        )
        await store.apply([KeepLease("gone", 0)])

        found = await one(store, FindDead("asking", 5_000, 10))

        assert {burial.owner for burial in found} == {"late", "gone", "unknown"}
        assert len(await one(store, FindDead("asking", 5_000, 2))) == 2

    async def test_a_lease_is_told_with_the_call(self, store: CallStore) -> None:
        await store.apply([opening(), KeepLease("here", 4_000)])
        await store.apply([KeepLease("here", 7_000)])

        assert (await one(store, LookUp(KEY))).lease_until_us == 7_000

    async def test_old_answers_are_forgotten_and_open_calls_are_not(self, store: CallStore) -> None:
        old, young = OTHERS[0], OTHERS[1]
        spent = OTHERS[2]
        await store.apply([opening(KEY), opening(old), opening(young), opening(spent)])
        await store.apply(
            [
                answering(old, exchange_id="a", ended_us=1_999),
                answering(young, exchange_id="b", ended_us=2_000),
                Release(spent, "here", is_spent=True),
            ]
        )

        assert await one(store, Forget(2_000, 10)) == 3

        entries = await store.apply([LookUp(key) for key in (KEY, old, young, spent)])
        assert [entry is None for entry in entries] == [False, True, False, True]
        assert await booked(store) == (150 + 13, 200_000 + 16_000)

    async def test_outcomes_come_in_the_order_of_the_operations(self, store: CallStore) -> None:
        outcomes = await store.apply(
            [LookUp(OTHERS[0]), opening(), LookUp(KEY), SumRun("acme", "runs/1", "here")]
        )

        assert outcomes[0] is None
        assert outcomes[1] is True
        assert outcomes[2].owner == "here"
        assert outcomes[3] == RunSum(tokens=0, cost_usd_nanos=0)

    async def test_text_of_any_kind_is_kept_apart(self, store: CallStore) -> None:
        ids = ["a'b", "%s", "ключ", "a b", '"', "x" * 256]
        keys = [CallKey("acme", "runs/1", each) for each in ids]

        assert await store.apply([opening(key) for key in keys]) == [True] * len(ids)
        entries = await store.apply([LookUp(key) for key in keys])
        assert all(entry is not None for entry in entries)


async def one(store: CallStore, operation: Operation[Any]) -> Any:
    """Do one operation and return its outcome."""
    (outcome,) = await store.apply([operation])
    return outcome


async def booked(store: CallStore) -> tuple[int, int]:
    """Return tokens and money of the run, holds with them."""
    total = await one(store, SumRun("acme", "runs/1", "nobody"))
    return total.tokens, total.cost_usd_nanos
