"""Compaction: when the conversation is too long, and what takes the place of its oldest turns."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.generation_pb2 import Generation, Message, Usage
from fathom.orchestrator.v1.run_event_pb2 import HistoryCompacted, VariableSummary
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ReceivedError, ServiceError
from orchestrator.model_catalog import TierFacts
from orchestrator.runs.model.compaction import (
    Compaction,
    CompactionParts,
    Permit,
    is_window_exceeded,
)
from orchestrator.runs.model.history import History
from orchestrator.runs.model.prompt_book import PromptBook
from orchestrator.runs.ports import ModelCall

PROMPTS = PromptBook.packaged()
PERMIT = Permit(request_id="r/5/compact/0", turn=5, run_token="t", timeout_s=10.0)


class WindowExceededError(ServiceError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_CONTEXT_WINDOW_EXCEEDED


class BilledError(ServiceError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_PROVIDER_BROKEN_REPLY


class NoteWriter:
    """A gateway that writes notes and counts a token for so many bytes."""

    def __init__(self, notes: str | ServiceError = "found 42", bytes_per_token: float = 3) -> None:
        self.notes = notes
        self.bytes_per_token = bytes_per_token
        self.calls: list[ModelCall] = []
        self.counts = 0
        self.count_failure: ServiceError | None = None

    async def generate(self, call: ModelCall) -> Generation:
        self.calls.append(call)
        if isinstance(self.notes, ServiceError):
            raise ReceivedError(self.notes.to_status())
        usage = Usage(input_tokens=100, output_tokens=10, cost_usd_nanos=7, calls=1)
        return Generation(text=self.notes, usage=usage, model="models/small")

    async def count_tokens(
        self, tier: str, messages: Sequence[Message], *, run_token: str, timeout_s: float
    ) -> int:
        self.counts += 1
        if self.count_failure is not None:
            raise ReceivedError(self.count_failure.to_status())
        return int(sum(len(m.text.encode()) for m in messages) / self.bytes_per_token)


def facts(window: int) -> TierFacts:
    return TierFacts(window, 1, 1)


def history(turns: int, *, size: int = 1_000, first: int = 500) -> History:
    made = History(system="s" * first, question="why?")
    for turn in range(1, turns + 1):
        made.add_reply(f"reply {turn} " + "r" * size)
        made.add_feedback(f"feedback {turn} " + "f" * size)
    return made


def compaction(
    talk: History, writer: NoteWriter | None = None, *, window: int = 8_000, sub: int = 20_000
) -> Compaction:
    writer = writer or NoteWriter()
    return Compaction(
        CompactionParts(
            history=talk,
            root=facts(window),
            root_tier="root",
            sub=facts(sub),
            sub_tier="sub",
            model=writer,
            prompts=PROMPTS,
        )
    )


async def compacted(made: Compaction, **options: bool) -> HistoryCompacted:
    assert made.helps(**options)
    done = await made.compact(PERMIT, [], **options)
    made.apply(done)
    return done


async def test_a_short_conversation_is_not_even_counted() -> None:
    """Counting is a call; most turns need none."""
    writer = NoteWriter()

    assert await compaction(history(2), writer).tokens_over(PERMIT) == 0
    assert writer.counts == 0


@pytest.mark.parametrize(("bytes_per_token", "is_over"), [(3.4, False), (3.2, True)])
async def test_the_gateway_decides_near_the_limit(bytes_per_token: float, is_over: bool) -> None:
    """Bytes are a poor measure of tokens; one turn too early costs a summary."""
    writer = NoteWriter(bytes_per_token=bytes_per_token)
    made = compaction(history(0, first=19_996), writer)
    assert made.room_tokens == 6_000

    assert bool(await made.tokens_over(PERMIT)) is is_over
    assert writer.counts == 1


async def test_without_a_count_bytes_decide() -> None:
    writer = NoteWriter()
    writer.count_failure = BilledError("away")

    assert await compaction(history(8), writer).tokens_over(PERMIT) == 0
    assert await compaction(history(9), writer).tokens_over(PERMIT) > 6_000


async def test_a_conversation_that_cannot_be_counted_for_its_length_is_too_long() -> None:
    writer = NoteWriter()
    writer.count_failure = WindowExceededError("too long")

    assert await compaction(history(7), writer).tokens_over(PERMIT) > 0


async def test_an_unknown_window_is_left_to_the_provider() -> None:
    assert await compaction(history(500), window=0).tokens_over(PERMIT) == 0


async def test_the_oldest_turns_become_notes_and_the_newest_stay_whole() -> None:
    talk = history(20)
    before = list(talk.messages)

    done = await compacted(compaction(talk))

    after = list(talk.messages)
    assert after[:2] == before[:2]
    assert "found 42" in after[3].text
    kept = len(after) - 4
    assert kept >= 2
    assert after[4:] == before[-kept:]
    assert done.turns == 20 - kept // 2
    assert not done.mechanical
    assert (done.usage.calls, done.model) == (1, "models/small")


async def test_the_writer_of_notes_gets_the_turns_that_go() -> None:
    """A fact that nobody reads is lost."""
    writer = NoteWriter()
    done = await compacted(compaction(history(20), writer))

    (call,) = writer.calls
    told = call.messages[-1].text
    assert all(f"reply {turn} " in told for turn in range(1, done.turns + 1))
    assert f"reply {done.turns + 1} " not in told
    assert (call.tier, call.request_id, call.turn) == ("sub", PERMIT.request_id, 5)


async def test_later_notes_are_made_of_the_earlier_ones_too() -> None:
    talk, writer = history(20), NoteWriter("found 42")
    made = compaction(talk, writer)
    first = await compacted(made)
    for turn in range(21, 40):
        talk.add_reply(f"reply {turn} " + "r" * 1_000)
        talk.add_feedback(f"feedback {turn} " + "f" * 1_000)

    second = await compacted(made)

    assert "found 42" in writer.calls[-1].messages[-1].text
    assert second.turns > first.turns
    assert talk.turns_noted == second.turns


async def test_a_narrow_writer_is_told_as_much_as_it_can_read() -> None:
    writer = NoteWriter()
    await compacted(compaction(history(40), writer, sub=4_000))

    told = sum(len(m.text.encode()) for m in writer.calls[0].messages)
    assert 4_500 < told <= 4_000 * 2
    assert "reply 1 " in writer.calls[0].messages[-1].text


@pytest.mark.parametrize("notes", ["  ", BilledError("broken", input_tokens=30, cost_usd_nanos=5)])
async def test_without_notes_the_beginnings_of_the_turns_stand_in(
    notes: str | ServiceError,
) -> None:
    """A sub tier that is down must not end a run that only needs room."""
    talk = history(20)

    done = await compacted(compaction(talk, NoteWriter(notes)))

    assert done.mechanical
    assert "reply 1 " in done.text
    assert "feedback 10 " in done.text
    assert done.usage.cost_usd_nanos == (5 if isinstance(notes, ServiceError) else 7)


async def test_variables_are_listed_with_types_and_sizes() -> None:
    made = compaction(history(20))
    variables = [
        VariableSummary(name="rows", type="list", length=1234),
        VariableSummary(name="total", type="float"),
    ]

    done = await made.compact(PERMIT, variables)

    assert "- rows: list, length 1,234\n- total: float" in done.text


async def test_more_variables_than_fit_are_counted() -> None:
    variables = [VariableSummary(name=f"v{n}" * 50, type="str") for n in range(100)]

    done = await compaction(history(20)).compact(PERMIT, variables)

    assert "more: see SHOW_VARS()" in done.text
    assert len(done.text) < 8_000


async def test_a_newest_turn_that_is_too_long_is_kept_by_its_ends() -> None:
    talk = history(3, size=30_000)

    done = await compacted(compaction(talk))

    assert done.turns == 3
    assert "feedback 3 " in done.text
    assert talk.size_bytes < 6_000 * 3


async def test_a_refused_conversation_becomes_half_as_long() -> None:
    """What the provider counts is what holds, whatever the catalog says of its window."""
    talk = history(10)
    before = talk.size_bytes

    done = await compacted(compaction(talk, window=1_000_000), refused=True)

    assert done.refused
    assert talk.size_bytes <= before // 2 + 100


async def test_nothing_is_gained_where_the_question_fills_the_window() -> None:
    talk = history(2, first=18_000)

    assert not compaction(talk).helps()
    assert not compaction(history(0)).helps(refused=True)


def test_a_reply_leaves_a_small_window_to_the_conversation() -> None:
    assert compaction(history(0), window=8_000).output_tokens_max == 2_000
    assert compaction(history(0), window=128_000).output_tokens_max is None
    assert compaction(history(0), window=0).output_tokens_max is None


def test_only_a_window_that_is_exceeded_is_one() -> None:
    assert is_window_exceeded(ReceivedError(WindowExceededError("no").to_status()))
    assert not is_window_exceeded(ReceivedError(BilledError("no").to_status()))


@dataclasses.dataclass
class Told:
    """One turn."""

    reply: str
    feedback: str


turns = st.lists(
    st.builds(Told, st.text(min_size=1, max_size=4_000), st.text(min_size=1, max_size=4_000)),
    max_size=25,
)


@given(turns, st.integers(4_000, 30_000), st.text(max_size=3_000))
async def test_what_is_sent_is_well_formed_and_fits(
    told: list[Told], window: int, notes: str
) -> None:
    """Roles alternate, the beginning never changes, and the room is kept wherever the question
    leaves any."""
    talk = History(system="s" * 500, question="why?")
    made = compaction(talk, NoteWriter(notes), window=window)
    first = list(talk.messages)
    for turn in told:
        talk.add_reply(turn.reply)
        talk.add_feedback(turn.feedback)
        tokens = await made.tokens_over(PERMIT)
        if tokens:
            done = await made.compact(PERMIT, [], tokens=tokens)
            made.apply(done)
        messages = list(talk.messages)
        roles = [message.role for message in messages[1:]]
        assert messages[:2] == first
        assert all(message.text for message in messages[:-1])
        assert roles[0] == roles[-1] == Message.ROLE_USER
        assert all(one != other for one, other in itertools.pairwise(roles))
        assert sum(len(m.text.encode()) for m in messages) / 3 <= made.room_tokens
