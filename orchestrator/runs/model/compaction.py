"""Keeps the conversation within the root model's window: near its end the oldest turns are
summarised by the sub tier, and the notes take their place.

The log keeps every turn whole. What was done once is told by its event, and done again from it:
a run that is driven again makes the same conversation, whatever window is known by then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.generation_pb2 import Message
from fathom.orchestrator.v1.run_event_pb2 import HistoryCompacted, VariableSummary

from common.errors import ReceivedError
from orchestrator.model_catalog import TierFacts
from orchestrator.runs.budget import usage_in, usage_of
from orchestrator.runs.model.history import History
from orchestrator.runs.model.prompt_book import PromptBook
from orchestrator.runs.ports import Model, ModelCall

_ANSWER_TOKENS = 4_096
"""What the gateway lets a model answer with where nothing else is said."""
_ANSWER_PART = 4
"""An answer takes one part in this many of a small window."""
_BYTES_PER_TOKEN = 3.0
"""To plan with, where no count is known: prose has more, code and dense numbers have fewer."""
_BYTES_PER_TOKEN_LEAST = 2.0
"""What fits at so many is not even counted."""
_FREE_BYTES_MIN = 1_000
"""With less room beside the question, notes would say nothing."""
_KEPT_SHARE, _NOTES_SHARE, _VARIABLES_SHARE = 0.4, 0.25, 0.1
"""Of the room beside the question: for the newest turns, notes and the list of variables. The
rest is for turns to come."""
_SUB_WINDOW_TOKENS = 16_384
"""Taken where the sub tier's window is unknown."""
_NOTES_TOKENS_MIN, _NOTES_TOKENS_MAX = 256, 2_048
_SUMMARY_TIME_MAX_S = 120.0
_ELLIPSIS = " [...] "


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompactionParts:
    """What a compaction works with; the history belongs to one run."""

    history: History
    """The conversation."""
    root: TierFacts
    """The root model's window."""
    root_tier: str
    """Tier or deployment of the root model."""
    sub: TierFacts
    """The window of whoever writes notes."""
    sub_tier: str
    """Tier or deployment of who writes notes."""
    model: Model
    """Asked for notes, and for exact counts."""
    prompts: PromptBook
    """What is said."""
    variables_shown_max: int = 60
    """Variables that are listed beside the notes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Permit:
    """What a compaction may do just then."""

    request_id: str
    """Names the call for notes."""
    turn: int
    """Turn that it is made in."""
    run_token: str
    """Permits root and sub tier."""
    timeout_s: float
    """Of the run's time."""


class Compaction:
    """Compacts one run's conversation."""

    def __init__(self, parts: CompactionParts) -> None:
        self._parts = parts
        self._bytes_per_token = _BYTES_PER_TOKEN

    @property
    def window_tokens(self) -> int:
        """The root model's window; 0 where it is unknown."""
        return self._parts.root.window_tokens

    @property
    def output_tokens_max(self) -> int | None:
        """Tokens that a reply may have, where the window is too small for the gateway's default."""
        tokens = self._parts.root.window_tokens // _ANSWER_PART
        return tokens if 0 < tokens < _ANSWER_TOKENS else None

    @property
    def room_tokens(self) -> int:
        """Tokens that the conversation may have; 0 where the window is unknown."""
        window = self._parts.root.window_tokens
        return window - min(max(_ANSWER_TOKENS, window // 8), window // _ANSWER_PART)

    @property
    def is_near(self) -> bool:
        """Whether the conversation is so long that it may have more tokens than the room."""
        room = self.room_tokens
        return room > 0 and self._parts.history.size_bytes > room * _BYTES_PER_TOKEN_LEAST

    async def tokens_over(self, permit: Permit) -> int:
        """Return the conversation's tokens where they are more than the room, else 0.

        Only near the limit is the gateway asked to count.
        """
        if not self.is_near:
            return 0
        room, size_bytes = self.room_tokens, self._parts.history.size_bytes
        try:
            tokens = await self._parts.model.count_tokens(
                self._parts.root_tier,
                self._parts.history.messages,
                run_token=permit.run_token,
                timeout_s=permit.timeout_s,
            )
        except ReceivedError as error:
            tokens = int(size_bytes / _BYTES_PER_TOKEN)
            if is_window_exceeded(error):
                tokens = max(tokens, room + 1)
        if tokens > room:
            self._bytes_per_token = size_bytes / tokens
            return tokens
        return 0

    def helps(self, *, refused: bool = False) -> bool:
        """Whether notes can be shorter than what they would stand for, and say something."""
        return bool(self._parts.history.turns) and (
            self._free_bytes(refused=refused) >= _FREE_BYTES_MIN
        )

    async def compact(
        self,
        permit: Permit,
        variables: Sequence[VariableSummary],
        *,
        tokens: int = 0,
        refused: bool = False,
    ) -> HistoryCompacted:
        """Return what a compaction comes to, without changing the history. Only where it helps.

        `tokens` are those of the conversation where they are known. A conversation that a
        provider has `refused` is to become half as long.
        """
        history = self._parts.history
        tokens = tokens or int(history.size_bytes / self._bytes_per_token)
        free_bytes = self._free_bytes(refused=refused)
        kept = history.newest_within(int(free_bytes * _KEPT_SHARE))
        turns = history.turns[: len(history.turns) - kept]
        made = HistoryCompacted(
            turns=history.turns_noted + len(turns), refused=refused, tokens_before=tokens
        )
        notes_bytes = int(free_bytes * _NOTES_SHARE)
        notes = await self._notes(turns, notes_bytes, permit, made)
        made.text = self._parts.prompts.text(
            "compacted",
            turns=made.turns,
            notes=shortened(notes, notes_bytes),
            variables=listed(
                variables[: self._parts.variables_shown_max],
                len(variables),
                int(free_bytes * _VARIABLES_SHARE),
            ),
            newest="" if kept or not turns else _newest(turns[-1], notes_bytes),
        )
        kept_turns = history.turns[len(turns) :]
        kept_bytes = sum(len(message.text.encode()) for turn in kept_turns for message in turn)
        bytes_after = history.first_bytes + len(made.text.encode()) + kept_bytes
        made.tokens_after = int(bytes_after / self._bytes_per_token)
        return made

    def apply(self, made: HistoryCompacted) -> None:
        """Change the history as an event tells."""
        self._parts.history.compact(made.text, turns_noted=made.turns)

    def _free_bytes(self, *, refused: bool) -> int:
        """Return what there is to be beside the system message and the question."""
        history = self._parts.history
        room_bytes = int(self.room_tokens * self._bytes_per_token)
        if refused:
            room_bytes = min(room_bytes or history.size_bytes, history.size_bytes) // 2
        return room_bytes - history.first_bytes

    async def _notes(
        self,
        turns: Sequence[Sequence[Message]],
        notes_bytes: int,
        permit: Permit,
        made: HistoryCompacted,
    ) -> str:
        """Return notes of some turns and of the notes before them; `made` is told who wrote them
        and what that took."""
        tokens = int(notes_bytes / self._bytes_per_token)
        tokens = min(max(tokens, _NOTES_TOKENS_MIN), _NOTES_TOKENS_MAX)
        window = self._parts.sub.window_tokens or _SUB_WINDOW_TOKENS
        system = self._parts.prompts.text("compaction_system", words=tokens // 2)
        room_bytes = int((window - tokens) * _BYTES_PER_TOKEN_LEAST) - len(system.encode())
        told = self._transcript(turns, room_bytes)
        if room_bytes < _FREE_BYTES_MIN:
            made.mechanical = True
            return self._transcript(turns, notes_bytes)
        call = ModelCall(
            tier=self._parts.sub_tier,
            messages=[
                Message(role=Message.ROLE_SYSTEM, text=system),
                Message(role=Message.ROLE_USER, text=told),
            ],
            request_id=permit.request_id,
            turn=permit.turn,
            run_token=permit.run_token,
            timeout_s=min(permit.timeout_s, _SUMMARY_TIME_MAX_S),
            output_tokens_max=tokens,
        )
        try:
            generation = await self._parts.model.generate(call)
        except ReceivedError as error:
            made.usage.CopyFrom(usage_in(error))
        else:
            made.usage.CopyFrom(usage_of(generation))
            made.model = generation.model
            if generation.text.strip():
                return generation.text.strip()
        made.mechanical = True
        return self._transcript(turns, notes_bytes)

    def _transcript(self, turns: Sequence[Sequence[Message]], bytes_max: int) -> str:
        """Return what was said, the longest pieces shortened until all fits."""
        pieces = [("Notes of the turns before:", self._parts.history.notes)] * bool(
            self._parts.history.notes
        )
        for number, turn in enumerate(turns, start=self._parts.history.turns_noted + 1):
            titles = (f"Turn {number}, the reply:", f"Turn {number}, what came of it:")
            pieces += [(title, message.text) for title, message in zip(titles, turn, strict=False)]
        frame = sum(len(title.encode()) + 4 for title, _ in pieces)
        cap = _fair_share([len(text.encode()) for _, text in pieces], bytes_max - frame)
        return "\n\n".join(f"{title}\n{shortened(text, cap)}" for title, text in pieces)


def is_window_exceeded(error: ReceivedError) -> bool:
    """Whether a call failed because its messages do not fit the model's window."""
    return (
        error.code is grpc.StatusCode.FAILED_PRECONDITION
        and error.reason == ErrorReason.ERROR_REASON_CONTEXT_WINDOW_EXCEEDED
    )


def _fair_share(sizes: Sequence[int], total: int) -> int:
    """Return the largest size that each may have, so that all together have `total`."""
    left, count = max(total, 0), len(sizes)
    for size in sorted(sizes):
        if size * count > left:
            return left // count
        left -= size
        count -= 1
    return max(sizes, default=0)


def shortened(text: str, bytes_max: int) -> str:
    """Return a text of at most so many bytes: two thirds of it from the head, the rest from the
    tail."""
    data = text.encode()
    if len(data) <= bytes_max:
        return text
    room = max(bytes_max - len(_ELLIPSIS), 0)
    tail = room // 3
    head = data[: room - tail].decode(errors="ignore")
    return head + _ELLIPSIS + data[len(data) - tail :].decode(errors="ignore") * (tail > 0)


def _newest(turn: Sequence[Message], bytes_max: int) -> str:
    """Return the end of a turn that is too long to be kept whole."""
    return "\n\nThe newest of these turns ended with:\n" + shortened(turn[-1].text, bytes_max)


def listed(variables: Sequence[VariableSummary], count: int, bytes_max: int) -> str:
    """Return the variables, one a line, as many as there is room for."""
    lines: list[str] = []
    for variable in variables:
        size = f", length {variable.length:,}" if variable.HasField("length") else ""
        line = f"- {variable.name}: {variable.type}{size}"
        bytes_max -= len(line.encode()) + 1
        if bytes_max < 0:
            break
        lines.append(line)
    if len(lines) < count:
        lines.append(f"- and {count - len(lines):,} more: see SHOW_VARS()")
    return "\n".join(lines) or "- none of your own"
