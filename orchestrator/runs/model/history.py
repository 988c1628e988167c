"""The conversation with the root model. It grows at its end, so that a provider's prefix cache
hits; only a compaction puts notes in the place of its oldest turns.

When that is needed, and what the notes say, is decided elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from fathom.gateway.v1.generation_pb2 import Message

_FIRST = 2
"""The system message and the question."""
_FRAME_BYTES = 16
"""What the gateway reserves for a message besides its text."""
_CUT = "\n[... the middle of the conversation is left out here ...]\n"
_NOTED = "[... the oldest turns are left out here; notes of them follow ...]"


class History:
    """The messages so far."""

    def __init__(self, *, system: str, question: str) -> None:
        self._first = [
            Message(role=Message.ROLE_SYSTEM, text=system),
            Message(role=Message.ROLE_USER, text=question),
        ]
        self._notes: list[Message] = []
        self._turns: list[list[Message]] = []
        self._turns_noted = 0

    @property
    def messages(self) -> Sequence[Message]:
        """All messages that the model is sent, oldest first."""
        return [*self._first, *self._notes, *itertools.chain.from_iterable(self._turns)]

    @property
    def characters(self) -> int:
        """Characters of all messages."""
        return sum(len(message.text) for message in self.messages)

    @property
    def size_bytes(self) -> int:
        """Bytes of all messages, with what stands around each."""
        return sum(map(_bytes, self.messages))

    @property
    def first_bytes(self) -> int:
        """Bytes of the system message and the question, which always stay."""
        return sum(map(_bytes, self._first))

    @property
    def notes(self) -> str:
        """What stands for the turns that are left out; empty where none is."""
        return self._notes[-1].text if self._notes else ""

    @property
    def turns(self) -> Sequence[Sequence[Message]]:
        """The turns that are not left out, oldest first: a reply each, and what was told after
        it, where it has been."""
        return self._turns

    @property
    def turns_noted(self) -> int:
        """How many turns are left out."""
        return self._turns_noted

    def newest_within(self, bytes_max: int) -> int:
        """Return how many of the newest turns have at most so many bytes together."""
        sizes = (sum(map(_bytes, turn)) for turn in reversed(self._turns))
        return sum(total <= bytes_max for total in itertools.accumulate(sizes))

    def add_reply(self, text: str) -> None:
        """Append what the model said, whole. An empty reply is kept as a mark: providers refuse
        empty messages, and two user messages in a row."""
        text = text if text.strip() else "(empty reply)"
        self._turns.append([Message(role=Message.ROLE_ASSISTANT, text=text)])

    def add_feedback(self, text: str) -> None:
        """Append what the model is told after its reply."""
        self._turns[-1].append(Message(role=Message.ROLE_USER, text=text))

    def compact(self, notes: str, *, turns_noted: int) -> None:
        """Put notes in the place of the oldest turns: `turns_noted` from the run's first one on,
        those that earlier notes stood for among them. Each must have been told what came of it."""
        del self._turns[: turns_noted - self._turns_noted]
        self._turns_noted = turns_noted
        self._notes = [
            Message(role=Message.ROLE_ASSISTANT, text=_NOTED),
            Message(role=Message.ROLE_USER, text=notes),
        ]

    def with_last_request(self, text: str, *, bytes_max: int) -> list[Message]:
        """Return the messages with a last request, the middle left out where they are too long.

        The system message, the question and the newest messages are what stays, and without the
        system message where that alone takes half of the room. The history itself does not
        change. A request after feedback joins it, so that roles alternate.
        """
        messages = list(self.messages)
        if messages[-1].role == Message.ROLE_USER:
            text = f"{messages.pop().text}\n\n{text}"
        messages.append(Message(role=Message.ROLE_USER, text=text))
        first = messages[:_FIRST]
        if _bytes(first[0]) > bytes_max // 2:
            del first[0]
        room = bytes_max - sum(_bytes(message) for message in first)
        kept: list[Message] = []
        for message in reversed(messages[_FIRST:]):
            if _bytes(message) > room:
                if not kept:
                    kept.append(_tail(message, max(room, 0)))
                break
            room -= _bytes(message)
            kept.append(message)
        kept.reverse()
        if len(kept) < len(messages) - _FIRST:
            kept = _mark_cut(kept)
        return [*first, *kept]


def _mark_cut(kept: list[Message]) -> list[Message]:
    """Say where messages are left out, in such a way that roles still alternate."""
    if kept[0].role == Message.ROLE_USER:
        return [Message(role=Message.ROLE_ASSISTANT, text=_CUT.strip()), *kept]
    first = Message(role=Message.ROLE_ASSISTANT, text=_CUT.lstrip() + kept[0].text)
    return [first, *kept[1:]]


def _bytes(message: Message) -> int:
    return len(message.text.encode()) + _FRAME_BYTES


def _tail(message: Message, bytes_max: int) -> Message:
    """Return the message's end, where the request stands."""
    data = message.text.encode()[-max(bytes_max - len(_CUT), 1) :]
    return Message(role=message.role, text=_CUT + data.decode(errors="ignore"))
