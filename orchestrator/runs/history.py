"""The conversation with the root model. It only grows, so that a provider's prefix cache hits."""

from __future__ import annotations

from collections.abc import Sequence

from fathom.gateway.v1.generation_pb2 import Message

_FIRST = 2
"""The system message and the question."""
_FRAME_BYTES = 16
"""What the gateway reserves for a message besides its text."""
_CUT = "\n[... the middle of the conversation is left out here ...]\n"


class History:
    """The messages so far."""

    def __init__(self, *, system: str, question: str) -> None:
        self._messages = [
            Message(role=Message.ROLE_SYSTEM, text=system),
            Message(role=Message.ROLE_USER, text=question),
        ]

    @property
    def messages(self) -> Sequence[Message]:
        """All messages, oldest first."""
        return self._messages

    @property
    def characters(self) -> int:
        """Characters of all messages."""
        return sum(len(message.text) for message in self._messages)

    def add_reply(self, text: str) -> None:
        """Append what the model said, whole. An empty reply is kept as a mark: providers refuse
        empty messages, and two user messages in a row."""
        text = text if text.strip() else "(empty reply)"
        self._messages.append(Message(role=Message.ROLE_ASSISTANT, text=text))

    def add_feedback(self, text: str) -> None:
        """Append what the model is told."""
        self._messages.append(Message(role=Message.ROLE_USER, text=text))

    def with_last_request(self, text: str, *, bytes_max: int) -> list[Message]:
        """Return the messages with a last request, the middle left out where they are too long.

        The system message, the question and the newest messages are what stays, and without the
        system message where that alone takes half of the room. The history itself does not
        change. A request after feedback joins it, so that roles alternate.
        """
        messages = list(self._messages)
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
