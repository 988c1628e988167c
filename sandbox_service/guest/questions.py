"""Questions to sub-models: calls of query functions that are sent together, as one batch."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import host


class Question:
    """A call of a query function: what it asks, and in the end what it gives."""

    def __init__(
        self,
        request: dict[str, Any],
        give: Callable[[list[dict[str, Any]]], Any],
        *,
        items: str = "prompts",
        characters: int | None = None,
    ) -> None:
        """Take the request to the host, and what makes the call's value of its outcomes.

        `items` is the field of the request that has one item for each outcome; `characters` is
        their size where they are no prompts.
        """
        self.request = request
        self.field = items
        self._give = give
        self._characters = characters
        self._outcomes: list[dict[str, Any]] = []
        self._error: Exception | None = None

    @property
    def characters(self) -> int:
        """Size of its items."""
        if self._characters is not None:
            return self._characters
        prompts = self.request["prompts"]
        return sum(len(message["text"]) for prompt in prompts for message in prompt)

    @property
    def items(self) -> list[Any]:
        """What it asks, an item for each outcome."""
        items: list[Any] = self.request[self.field]
        return items

    @property
    def options(self) -> tuple[Any, ...]:
        """What is the same for all of its items: those with equal options can be sent together."""
        apart = (self.field, "is_batch")
        return tuple(value for name, value in self.request.items() if name not in apart)

    @property
    def asks_again(self) -> bool:
        """Whether there is more to ask before it has its value."""
        return False

    def settle(self, outcomes: list[dict[str, Any]], error: Exception | None = None) -> None:
        """Take the outcomes of its prompts, or what kept it from being sent."""
        self._outcomes, self._error = outcomes, error

    def value(self) -> Any:
        """Return what the call gives; raises what it raises."""
        if self._error is not None:
            raise self._error
        return self._give(self._outcomes)


def ask(question: Question) -> Any:
    """Send one question, wait, and return what its call gives."""
    send([question])
    return question.value()


def send(questions: Sequence[Question]) -> None:
    """Send questions together, those with the same options as one batch, and settle them all."""
    # What was printed before the question is seen before the answer.
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    waiting = list(questions)
    while waiting:
        groups: dict[tuple[Any, ...], list[Question]] = {}
        for item in waiting:
            groups.setdefault(item.options, []).append(item)
        for group in groups.values():
            for batch in _by_size(group):
                _send_batch(batch)
        waiting = [item for item in waiting if item.asks_again]


def _by_size(questions: list[Question]) -> Iterable[list[Question]]:
    """Cut what is too large for one call of the host; one alone may still be."""
    room = host.value_bytes_max() // 4  # a character takes up to four bytes
    start = size = 0
    for position, item in enumerate(questions):
        if size + item.characters > room and position > start:
            yield questions[start:position]
            start, size = position, 0
        size += item.characters
    yield questions[start:]


def _send_batch(questions: list[Question]) -> None:
    items = [asked for item in questions for asked in item.items]
    outcomes: list[dict[str, Any]] = []
    try:
        if items:
            is_batch = len(questions) > 1 or questions[0].request["is_batch"]
            request = questions[0].request | {questions[0].field: items, "is_batch": is_batch}
            outcomes = host.ask(request)["outcomes"]
    except (ValueError, OSError, MemoryError) as error:  # too large, or refused by the host
        for item in questions:
            item.settle([], error)
        return
    end = 0
    for item in questions:
        start, end = end, end + len(item.items)
        item.settle(outcomes[start:end])
