"""Conversations: what their limits leave, when they end, and what a run goes on from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1.run_event_pb2 import (
    CellFinished,
    CheckpointStored,
    RunEvent,
    ValueRead,
    VariableSummary,
)
from fathom.orchestrator.v1.run_pb2 import Answer, Limits, Run, RunSpec

from common.errors import NotFoundError
from orchestrator.conversations.conversation import StoredConversation
from orchestrator.conversations.recall import Earlier, Exchange, KeptSession, Recall
from orchestrator.errors import ConversationBusyError, ConversationLimitExceededError
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.model.earlier_words import earlier_words
from orchestrator.runs.model.prompt_book import PromptBook

SECOND_US = 1_000_000


def conversation(**fields: Any) -> StoredConversation:
    values: dict[str, Any] = {
        "tenant": "t",
        "conversation_id": "c",
        "context_id": "x",
        "limits": Limits(),
        "idle_ttl_us": 60 * SECOND_US,
        "created_us": 0,
        "used_us": 0,
    }
    return StoredConversation(**values | fields)


def ended(*, at_s: int = 0, **usage: Any) -> Run:
    run = Run(name="runs/a", state=Run.STATE_ANSWERED, usage=Usage(**usage), sub_calls=2)
    run.end_time.FromSeconds(at_s)
    return run


def test_usage_is_that_of_the_runs_that_have_ended() -> None:
    """What a live run takes is not known, and no other run can begin meanwhile."""
    past = Usage(input_tokens=10, calls=1)

    quiet = conversation(past_usage=past, past_sub_calls=3, newest_run=ended(input_tokens=5))
    live = conversation(
        past_usage=past, past_sub_calls=3, newest_run=Run(state=Run.STATE_RUNNING, name="runs/a")
    )

    assert (quiet.usage.input_tokens, quiet.sub_calls) == (15, 5)
    assert (live.usage.input_tokens, live.sub_calls) == (10, 3)


@pytest.mark.parametrize(
    ("limits", "spent", "left"),
    [
        (Limits(tokens_max=100), {"input_tokens": 60, "output_tokens": 39}, {"tokens_max": 1}),
        (Limits(cost_usd_nanos_max=0), {}, {"cost_usd_nanos_max": 0}),
        (Limits(sub_calls_max=0), {}, {"sub_calls_max": 0}),
        (Limits(), {"input_tokens": 10**9}, {"tokens_max": 1_000}),
    ],
)
def test_limits_are_lowered_to_what_is_left(
    limits: Limits, spent: dict[str, Any], left: dict[str, int]
) -> None:
    spec = RunSpec(limits=Limits(tokens_max=1_000, cost_usd_nanos_max=1_000, sub_calls_max=1_000))

    conversation(limits=limits, past_usage=Usage(**spent)).lower(spec)

    assert {name: getattr(spec.limits, name) for name in left} == left


@pytest.mark.parametrize(
    ("limits", "spent", "limit"),
    [
        (Limits(tokens_max=100), {"input_tokens": 61, "output_tokens": 39}, "tokens_max"),
        (Limits(cost_usd_nanos_max=5), {"cost_usd_nanos": 5}, "cost_usd_nanos_max"),
        (Limits(cost_usd_nanos_max=0), {"cost_usd_nanos": 1}, "cost_usd_nanos_max"),
    ],
)
def test_a_limit_that_leaves_nothing_is_named(
    limits: Limits, spent: dict[str, Any], limit: str
) -> None:
    with pytest.raises(ConversationLimitExceededError) as caught:
        conversation(limits=limits, past_usage=Usage(**spent)).lower(RunSpec())
    assert caught.value.metadata["limit"] == limit


def test_a_seat_is_given_after_the_newest_run_has_ended() -> None:
    live = conversation(newest_run=Run(name="runs/a", state=Run.STATE_QUEUED), newest_run_id="a")

    assert conversation(newest_run=ended(), newest_run_id="a").seat().after_run_id == "a"
    with pytest.raises(ConversationBusyError):
        live.seat()


@pytest.mark.parametrize(("now_s", "is_expired"), [(159, False), (160, True)])
def test_a_conversation_ends_some_time_after_its_last_run(now_s: int, is_expired: bool) -> None:
    """The end of a run counts: a long one is not forgotten as it ends."""
    quiet = conversation(used_us=10 * SECOND_US, newest_run=ended(at_s=100))

    assert quiet.is_expired(now_s * SECOND_US) is is_expired


def test_a_conversation_with_a_live_run_does_not_end() -> None:
    live = conversation(newest_run=Run(name="runs/a", state=Run.STATE_RUNNING))

    assert not live.is_expired(10**18)


class Past:
    """Runs with their events, in memory."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.events: dict[str, list[RunEvent]] = {}

    def add(self, run_id: str, state: Run.State.ValueType, *events: RunEvent) -> None:
        spec, answer = RunSpec(question=f"Q {run_id}"), Answer(text=f"A {run_id}")
        self.runs[run_id] = Run(name=f"runs/{run_id}", state=state, spec=spec, answer=answer)
        self.events[run_id] = list(events)

    async def run_ids(
        self, tenant: str, conversation_id: str, *, before: str = "", count: int
    ) -> list[str]:
        return sorted((each for each in self.events if each < before), reverse=True)[:count]

    async def get(self, tenant: str, run_id: str) -> RunRecord:
        if run_id not in self.runs:
            raise NotFoundError(f"runs/{run_id}")
        return RunRecord(self.runs[run_id], Run())

    async def past(self, run_id: str) -> AsyncIterator[RunEvent]:
        for event in self.events[run_id]:
            yield event

    async def before(self, run_id: str) -> Earlier:
        return await Recall(self, self, self).before("t", "conversations/c", run_id)


def cell(turn: int, number: int, *, kept: bool = True) -> RunEvent:
    finished = CellFinished(state_kept=kept, variables=[VariableSummary(name="n", type="int")])
    return RunEvent(turn=turn, cell=number, cell_finished=finished)


def stored(turn: int, number: int, key: str = "k") -> RunEvent:
    told = CheckpointStored(key=key, turn=turn, cell=number, session_executions=9)
    return RunEvent(turn=turn, checkpoint_stored=told)


ANSWERED, FAILED = Run.STATE_ANSWERED, Run.STATE_FAILED


@pytest.mark.parametrize(
    ("events", "key"),
    [
        ([cell(1, 1), stored(1, 1)], "k"),
        ([cell(1, 1), cell(1, 2, kept=False), stored(1, 1)], "k"),
        ([cell(1, 1), stored(1, 0)], "k"),
        ([cell(1, 1), stored(1, 1, "old"), cell(2, 1), stored(2, 1)], "k"),
        ([cell(1, 1), stored(1, 1), cell(2, 1)], ""),
        ([cell(1, 1), stored(1, 0), cell(2, 1)], ""),
        ([cell(1, 1)], ""),
        ([], ""),
    ],
)
async def test_a_session_is_taken_up_only_as_its_run_left_it(
    events: list[RunEvent], key: str
) -> None:
    """A checkpoint of the middle of a run would be a state that no question ended in."""
    past = Past()
    past.add("a", ANSWERED, *events)

    session = (await past.before("b")).session

    assert (session.checkpoint_key if session else "") == key


async def test_a_variable_that_was_read_counts_as_an_execution() -> None:
    past = Past()
    read = RunEvent(turn=2, cell=1, value_read=ValueRead(state_kept=True))
    past.add("a", ANSWERED, cell(1, 1), stored(1, 1), read)

    assert (await past.before("b")).session is None


async def test_failed_runs_and_those_without_a_session_are_passed_over() -> None:
    past = Past()
    past.add("a", ANSWERED, cell(1, 1), stored(1, 1, "a"))
    past.add("b", FAILED, cell(1, 1), stored(1, 1, "b"))
    past.add("c", ANSWERED)
    past.add("d", ANSWERED, cell(1, 1), stored(1, 1, "d"))

    earlier = await past.before("d")

    assert earlier.session is not None
    assert (earlier.session.checkpoint_key, earlier.session.executions) == ("a", 9)
    assert earlier.exchanges == [Exchange("Q a", "A a"), Exchange("Q c", "A c")]


async def test_runs_that_are_deleted_are_forgotten() -> None:
    past = Past()
    past.add("b", ANSWERED)
    past.events["a"] = []

    assert [each.question for each in (await past.before("c")).exchanges] == ["Q b"]


PROMPTS = PromptBook.packaged()
SESSION = KeptSession(
    checkpoint_key="k",
    executions=1,
    variables=[VariableSummary(name="context", type="str"), VariableSummary(name="n", type="int")],
)


def test_the_newest_exchanges_are_told_and_the_others_counted() -> None:
    exchanges = [Exchange(f"why {n}?", "because " * 300) for n in range(30)]

    words = earlier_words(PROMPTS, Earlier(exchanges=exchanges, session=SESSION))

    assert "why 29?" in words
    assert "why 0?" not in words
    assert "of 30:" in words
    assert len(words) < 10_000
    assert "- n: int" in words
    assert "- context" not in words


def test_a_lost_session_is_told() -> None:
    """A model that expects variables wastes a turn on each."""
    words = earlier_words(PROMPTS, Earlier(exchanges=[Exchange("q", "a")], session=None))

    assert "`context` is all that is in it" in words


def test_nothing_is_told_before_the_first_answer() -> None:
    assert earlier_words(PROMPTS, Earlier(exchanges=[], session=None)) == ""
