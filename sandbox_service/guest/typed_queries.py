"""`llm_query(..., schema=...)`: answers that are JSON by a schema. One that does not fit is asked
for again with what is wrong, and each time is a sub-call like any other.
"""

from collections.abc import Callable
from typing import Any

from .questions import Question
from .schemas import Schema, parsed

_REPEATS_MAX = 2
_SHOWN_CHARACTERS = 20_000
"""Of an answer that does not fit, when it is asked for again."""
_ASK = "Answer with JSON alone, without any other words, that fits this JSON Schema:\n"
_AGAIN = "That does not fit the schema:\n{}\n\nAnswer again, with the corrected JSON alone."


class TypedQuestion(Question):
    """Prompts whose answers fit a schema. Its outcomes have a `value` where they do, and `errors`
    where they do not, also when asked again."""

    def __init__(
        self,
        request: dict[str, Any],
        give: Callable[[list[dict[str, Any]]], Any],
        schema: Any,
    ) -> None:
        """Take what a question takes, and the schema; raises ValueError for one that is wrong."""
        self._schema = Schema(schema)
        self._prompts = [self._with_schema(messages) for messages in request["prompts"]]
        self._open = list(range(len(self._prompts)))
        """Positions of the prompts that are being asked."""
        self._repeats = 0
        self._settled: list[dict[str, Any]] = [{} for _ in self._prompts]
        super().__init__(request | {"prompts": self._prompts}, give)

    @property
    def asks_again(self) -> bool:
        """Whether there is more to ask before it has its value."""
        return bool(self._open)

    def settle(self, outcomes: list[dict[str, Any]], error: Exception | None = None) -> None:
        """Take the outcomes of the prompts that were asked, and see which to ask again."""
        if error is not None:
            self._open = []
            if not self._repeats:  # else there are answers, which are paid
                super().settle([], error)
            return
        again: dict[int, list[dict[str, str]]] = {}
        for position, outcome in zip(self._open, outcomes, strict=True):
            self._settled[position] = read = self._read(outcome)
            if "errors" in read and self._repeats < _REPEATS_MAX:
                again[position] = _corrected(self._prompts[position], read)
        self._repeats += 1
        self._open = list(again)
        self.request = self.request | {"prompts": list(again.values())}
        super().settle(self._settled)

    def _read(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """Return an outcome with the answer's `value`, or with `errors` where it does not fit."""
        if "text" not in outcome:
            return outcome
        try:
            value = parsed(outcome["text"])
        except ValueError as error:
            return outcome | {"errors": [f"$: {error}"]}
        errors = self._schema.errors(value)
        return outcome | ({"errors": errors} if errors else {"value": value})

    def _with_schema(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        asked = _ASK + self._schema.text
        last = messages[-1]
        if last["role"] != "user":
            return [*messages, {"role": "user", "text": asked}]
        return [*messages[:-1], last | {"text": f"{last['text']}\n\n{asked}"}]


def _corrected(messages: list[dict[str, str]], outcome: dict[str, Any]) -> list[dict[str, str]]:
    """Return a prompt with an answer that does not fit, and what is wrong with it."""
    answer = outcome["text"]
    listed = "\n".join(f"- {error}" for error in outcome["errors"])
    return [
        *messages,
        {"role": "assistant", "text": answer[:_SHOWN_CHARACTERS] if answer.strip() else "(empty)"},
        {"role": "user", "text": _AGAIN.format(listed)},
    ]
