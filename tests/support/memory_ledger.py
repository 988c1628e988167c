"""The ledger's stores in memory: the same operations, and nothing survives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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


@dataclasses.dataclass
class Row:
    """One call."""

    digest: bytes
    tier: str
    owner: str
    hold: Hold | None
    changed_us: int
    answer: StoredAnswer | None = None
    is_spent: bool = False

    @property
    def state(self) -> CallState:
        if self.is_spent:
            return CallState.SPENT
        return CallState.OPEN if self.answer is None else CallState.ANSWERED


class MemoryCallStore:
    """A CallStore whose content a test can look at."""

    def __init__(self) -> None:
        self.calls: dict[CallKey, Row] = {}
        self.exchanges: dict[str, ExchangeRecord] = {}
        self.leases: dict[str, int] = {}
        self.transactions = 0
        self.failures: list[Exception] = []
        """Raised first, one a transaction."""

    async def apply(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        self.transactions += 1
        if self.failures:
            raise self.failures.pop(0)
        order = {kind: place for place, kind in enumerate(_WORK)}
        positions = sorted(range(len(operations)), key=lambda i: order[type(operations[i])])
        outcomes = {i: _WORK[type(operations[i])](self, operations[i]) for i in positions}
        return [outcomes[i] for i in range(len(operations))]

    def open_call(self, asked: OpenCall) -> bool:
        known = self.calls.get(asked.key)
        if known is not None and not (known.is_spent and asked.is_again):
            return False
        self.calls[asked.key] = Row(asked.digest, asked.tier, asked.owner, asked.hold, asked.now_us)
        return True

    def keep_answer(self, kept: KeepAnswer) -> None:
        self.exchanges[kept.exchange.exchange_id] = kept.exchange
        row = self._own(kept.exchange.key, kept.owner)
        if row is None:
            return
        if kept.answer is None:
            del self.calls[kept.exchange.key]
        else:
            row.answer, row.hold, row.changed_us = kept.answer, None, kept.exchange.ended_us

    def fail(self, failure: Fail) -> None:
        if failure.exchange.is_to_be_booked:
            self.exchanges[failure.exchange.exchange_id] = failure.exchange
        if (row := self._own(failure.exchange.key, failure.owner)) is not None:
            row.hold = None

    def hold_again(self, again: HoldAgain) -> bool:
        if (row := self._own(again.key, again.owner)) is None:
            return False
        row.hold = again.hold
        return True

    def presume(self, presumed: Presume) -> None:
        self.exchanges.setdefault(presumed.exchange.exchange_id, presumed.exchange)

    def release(self, released: Release) -> None:
        if (row := self._own(released.key, released.owner)) is None:
            return
        row.is_spent = released.is_spent
        if not row.is_spent:
            del self.calls[released.key]

    def bury(self, burial: Bury) -> bool:
        if (row := self._own(burial.key, burial.owner)) is None:
            return False
        row.is_spent, row.changed_us = True, burial.now_us
        if row.hold is not None and row.hold.exchange_id not in self.exchanges:
            self.exchanges[row.hold.exchange_id] = _worst(burial, row, row.hold)
        return True

    def keep_lease(self, lease: KeepLease) -> None:
        self.leases[lease.owner] = lease.until_us

    def forget(self, asked: Forget) -> int:
        old = [
            key
            for key, row in self.calls.items()
            if row.state is not CallState.OPEN and row.changed_us < asked.before_us
        ][: asked.rows_max]
        old_exchanges = [
            name for name, each in self.exchanges.items() if each.ended_us < asked.before_us
        ][: asked.rows_max]
        for key in old:
            del self.calls[key]
        for name in old_exchanges:
            del self.exchanges[name]
        return len(old) + len(old_exchanges)

    def look_up(self, asked: LookUp) -> CallEntry | None:
        row = self.calls.get(asked.key)
        if row is None:
            return None
        return CallEntry(
            digest=row.digest,
            state=row.state,
            owner=row.owner,
            lease_until_us=self.leases.get(row.owner, 0),
            answer=row.answer or StoredAnswer(),
        )

    def sum_run(self, asked: SumRun) -> RunSum:
        spends = [
            each.spend
            for each in self.exchanges.values()
            if (each.key.tenant, each.key.run) == (asked.tenant, asked.run)
        ]
        holds = [
            row.hold
            for key, row in self.calls.items()
            if row.hold is not None
            and row.state is CallState.OPEN
            and row.owner != asked.owner
            and (key.tenant, key.run) == (asked.tenant, asked.run)
        ]
        return RunSum(
            tokens=sum(s.tokens.total for s in spends)
            + sum(h.input_tokens + h.output_tokens for h in holds),
            cost_usd_nanos=sum(s.cost_usd_nanos for s in spends)
            + sum(h.cost_usd_nanos for h in holds),
        )

    def sum_call(self, asked: SumCall) -> Booked:
        records = [each for each in self.exchanges.values() if each.key == asked.key]
        return Booked(
            sum((each.spend for each in records), Spend()), sum(each.is_answer for each in records)
        )

    def sum_calls(self, asked: SumCalls) -> CallSums:
        def is_asked(key: CallKey) -> bool:
            is_of_run = (key.tenant, key.run) == (asked.tenant, asked.run)
            return is_of_run and key.request_id.startswith(asked.prefix)

        sums: dict[tuple[str, str, str], list[ExchangeRecord]] = {}
        for each in self.exchanges.values():
            if is_asked(each.key) and not each.is_cached:
                sums.setdefault((each.key.request_id, each.tier, each.model), []).append(each)
        return CallSums(
            calls=tuple(
                CallSum(
                    request_id=request_id,
                    tier=tier,
                    model=model,
                    spend=sum((each.spend for each in records), Spend()),
                    answers=sum(each.is_answer for each in records),
                )
                for (request_id, tier, model), records in sums.items()
            ),
            open_calls=sum(
                row.state is CallState.OPEN for key, row in self.calls.items() if is_asked(key)
            ),
        )

    def find_dead(self, asked: FindDead) -> list[Bury]:
        dead = [
            Bury(key, row.owner, asked.now_us)
            for key, row in self.calls.items()
            if row.state is CallState.OPEN
            and row.owner != asked.owner
            and self.leases.get(row.owner, 0) <= asked.now_us
        ]
        return dead[: asked.calls_max]

    def _own(self, key: CallKey, owner: str) -> Row | None:
        row = self.calls.get(key)
        is_own = row is not None and row.owner == owner and row.state is CallState.OPEN
        return row if is_own else None


class MemoryAnswerStore:
    """An AnswerStore whose content a test can look at."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}

    async def put(self, data: bytes) -> str:
        key = f"{hash(data) & (2**64 - 1):064x}"
        self.answers[key] = data
        return key

    async def get(self, key: str) -> bytes:
        if key not in self.answers:
            raise FileNotFoundError(key)
        return self.answers[key]

    async def forget(self, before_s: float) -> None:
        pass


def _worst(burial: Bury, row: Row, hold: Hold) -> ExchangeRecord:
    return ExchangeRecord(
        exchange_id=hold.exchange_id,
        key=burial.key,
        tier=row.tier,
        model=hold.model,
        ended_us=burial.now_us,
        spend=Spend(
            tokens=Tokens(input=hold.input_tokens, output=hold.output_tokens),
            cost_usd_nanos=hold.cost_usd_nanos,
            is_estimated=True,
        ),
        is_answer=False,
    )


_WORK: dict[type, Any] = {
    OpenCall: MemoryCallStore.open_call,
    KeepAnswer: MemoryCallStore.keep_answer,
    Fail: MemoryCallStore.fail,
    HoldAgain: MemoryCallStore.hold_again,
    Presume: MemoryCallStore.presume,
    Release: MemoryCallStore.release,
    Bury: MemoryCallStore.bury,
    KeepLease: MemoryCallStore.keep_lease,
    Forget: MemoryCallStore.forget,
    LookUp: MemoryCallStore.look_up,
    SumRun: MemoryCallStore.sum_run,
    SumCall: MemoryCallStore.sum_call,
    SumCalls: MemoryCallStore.sum_calls,
    FindDead: MemoryCallStore.find_dead,
}
