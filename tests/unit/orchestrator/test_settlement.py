"""What a run's calls took that were cut off: what is taken for told, and what where the ledger
cannot be asked.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import grpc
from fathom.gateway.v1.generation_pb2 import CallUsage, Usage
from fathom.orchestrator.v1.run_event_pb2 import (
    CellFinished,
    ModelCallFailed,
    ModelReplied,
    RunEvent,
    SubCallFinished,
    SubCallStarted,
    TurnStarted,
)
from fathom.orchestrator.v1.run_pb2 import RunSpec
from google.rpc.status_pb2 import Status

from common.config import Secret
from common.errors import ReceivedError, status_number
from common.run_token import RunTokenSigner, RunTokenVerifier
from orchestrator.runs.log.journal import RunJournal
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.recorded import RecordedEvents
from orchestrator.runs.ports import SettledCalls
from orchestrator.runs.settlement import Settlement
from tests.support.fake_gateway import TOKEN_KEY

SPEC = RunSpec(root_tier="root", sub_tier="sub")
LARGE, SMALL = "models/large", "models/small"


def usage(cost: int, *, calls: int = 0) -> Usage:
    return Usage(input_tokens=cost // 10, cost_usd_nanos=cost, calls=calls)


@dataclasses.dataclass
class Books:
    """A ledger that says this."""

    answer: SettledCalls | Exception = dataclasses.field(
        default_factory=lambda: SettledCalls((), 0)
    )
    asked: list[Any] = dataclasses.field(default_factory=list)

    async def settle_calls(
        self, prefix: str, *, run_token: str, grace_s: float, timeout_s: float
    ) -> SettledCalls:
        self.asked.append((prefix, run_token, grace_s))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Log:
    """Keeps what is appended."""

    def __init__(self) -> None:
        self.events: list[RunEvent] = []

    def append(self, record: RunRecord, event: RunEvent, *, may_wait: bool = False) -> None:
        self.events.append(event)

    async def stored(self, run_id: str) -> None:
        pass


class Scene:
    """A run whose log has some events."""

    def __init__(self, *events: RunEvent) -> None:
        self.record = RunRecord.queued(SPEC)
        self.log, self.books = Log(), Books()
        self.recorded = RecordedEvents(SPEC)
        for event in events:
            self.recorded.take(event)
        steps: Any = None
        self.journal = RunJournal(self.record, self.log, self.recorded, steps)

    async def settle(self, *calls: tuple[str, str, str, Usage], open_calls: int = 0) -> None:
        """Settle by a ledger with these: place in the run, tier, model and usage."""
        run_id = self.record.run_id
        self.books.answer = SettledCalls(
            [
                CallUsage(request_id=f"{run_id}/{place}", tier=tier, model=model, usage=each)
                for place, tier, model, each in calls
            ],
            open_calls,
        )
        await self.complete()

    async def complete(self) -> None:
        settlement = Settlement(books=self.books, signer=RunTokenSigner(Secret(TOKEN_KEY)))
        await settlement.complete("acme", self.record, self.journal, None, waited_s=0.1)

    @property
    def told(self) -> list[tuple[int, str, str, int]]:
        """What was told: turn, tier, model and cost."""
        return [
            (each.turn, each.tier, each.model, each.usage.cost_usd_nanos)
            for event in self.log.events
            for each in event.usage_settled.usages
        ]

    @property
    def cost(self) -> int:
        return self.record.progress.usage.cost_usd_nanos


def replied(turn: int, cost: int) -> RunEvent:
    return RunEvent(turn=turn, model_replied=ModelReplied(model=LARGE, usage=usage(cost, calls=1)))


def started(number: int, tier: str = "sub") -> RunEvent:
    return RunEvent(turn=1, cell=1, sub_call_started=SubCallStarted(sub_call=number, tier=tier))


def finished(number: int, cost: int, error: grpc.StatusCode | None = None) -> RunEvent:
    told = SubCallFinished(sub_call=number, usage=usage(cost, calls=1), model=SMALL)
    if error is not None:
        told.ClearField("model")
        told.error.code = status_number(error)
    return RunEvent(turn=1, cell=1, sub_call_finished=told)


async def test_what_the_log_does_not_tell_is_added_to_its_turn_tier_and_model() -> None:
    scene = Scene(replied(1, 100), started(1), finished(1, 10), started(2))
    await scene.settle(
        ("1/0/0", "root", LARGE, usage(100, calls=1)),
        ("1/1/1", "sub", SMALL, usage(10, calls=1)),
        ("1/1/2", "sub", SMALL, usage(7)),
        ("2/0/0", "root", LARGE, usage(50)),
    )

    assert scene.told == [(1, "sub", SMALL, 7), (2, "root", LARGE, 50)]
    assert scene.cost == 167
    [event] = scene.log.events
    assert event.usage_settled.run_usage.cost_usd_nanos == 167
    assert not scene.record.progress.usage_incomplete


async def test_what_was_told_before_is_not_added_again() -> None:
    """A run that died before its end was stored is driven again, and settles again."""
    scene = Scene(replied(1, 100))
    calls = (("1/0/0", "root", LARGE, usage(100)), ("2/0/0", "root", LARGE, usage(50)))
    await scene.settle(*calls)
    await scene.settle(*calls)

    assert scene.told == [(2, "root", LARGE, 50)]
    assert scene.cost == 150


async def test_a_failed_call_was_told_without_its_model() -> None:
    """And is not taken for one that was not told."""
    failed = RunEvent(turn=1, model_call_failed=ModelCallFailed(usage=usage(30)))
    scene = Scene(replied(1, 100), failed)
    await scene.settle(
        ("1/0/0", "root", LARGE, usage(30)),
        ("1/0/1", "root", LARGE, usage(100, calls=1)),
        ("1/1/1", "sub", SMALL, usage(5)),
    )

    assert scene.told == [(1, "sub", SMALL, 5)]
    assert scene.cost == 135


async def test_a_call_under_a_name_that_a_worker_made_up_is_of_no_turn() -> None:
    """It is paid, and must not keep the run from its end."""
    scene = Scene(replied(1, 100))
    calls = [(place, "sub", SMALL, usage(7)) for place in ("", "x/1/1", "9" * 10, "-1/1", "²/1")]
    await scene.settle(("1/0/0", "root", LARGE, usage(100)), *calls)

    assert scene.told == [(0, "sub", SMALL, 35)]
    assert scene.cost == 135


async def test_the_ledger_is_asked_for_the_runs_own_calls() -> None:
    """By a token that permits nothing else, and with less patience where some time has gone by."""
    scene = Scene(replied(1, 100))
    await scene.settle()

    [(prefix, text, grace_s)] = scene.books.asked
    token = RunTokenVerifier(Secret(TOKEN_KEY)).verify(text, now=0.0)
    assert prefix == f"{scene.record.run_id}/"
    assert (token.tenant, token.run, token.tiers) == ("acme", scene.record.head.name, ())
    assert (token.tokens_max, token.cost_usd_nanos_max) == (0, 0)
    assert 0.19 < grace_s < 0.21


async def test_what_cannot_be_known_is_told_as_missing() -> None:
    away = Status(code=status_number(grpc.StatusCode.UNAVAILABLE), message="away")
    for answer in (ReceivedError(away), SettledCalls((), 1)):
        scene = Scene(replied(1, 100))
        scene.books.answer = answer
        await scene.complete()

        assert scene.record.progress.usage_incomplete
        assert scene.log.events[0].usage_settled.incomplete
        assert scene.cost == 100


def test_only_what_was_cut_off_is_worth_asking_for() -> None:
    """Runs that end as they should ask the ledger for nothing more."""
    asked = RunEvent(turn=1, turn_started=TurnStarted())
    cell = [replied(1, 1), started(1), finished(1, 1)]
    refused, late = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DEADLINE_EXCEEDED
    failed = ModelCallFailed(error=Status(code=status_number(late)))
    for events, may_have_cut in (
        ([asked], True),
        ([asked, *cell], False),
        ([asked, *cell, started(2)], True),
        ([asked, *cell, started(2), finished(2, 0, refused)], False),
        ([asked, *cell, started(2), finished(2, 0, late)], True),
        ([asked, RunEvent(turn=1, model_call_failed=failed)], True),
        ([asked, RunEvent(turn=1, cell_finished=CellFinished(ending="RAISED"))], True),
        ([asked, *cell, RunEvent(turn=1, cell_finished=CellFinished(ending="RAISED"))], False),
        ([asked, *cell, RunEvent(turn=1, cell_finished=CellFinished(ending="ABORTED"))], True),
    ):
        assert Scene(*events).recorded.may_have_cut is may_have_cut, events
