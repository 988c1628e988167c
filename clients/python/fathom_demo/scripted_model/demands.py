"""What a conversation demands of an answer besides the question: a form, a confidence; and what it
offers for it: child runs. It is read from the messages alone.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom_demo.scripted_model.openai_wire import Message

_SCHEMA = re.compile(r"\bJSON Schema:\s*```json\n(.*?)\n```", re.DOTALL)
_CONFIDENCE = re.compile(r"\bconfidence=")
_NOT_SURE_ENOUGH = re.compile(r"\bnot yet taken\b.*\bconfidence\b", re.IGNORECASE)
_CHILDREN = re.compile(r"\brlm_query_batched\(")
_DOCUMENTS = re.compile(r"`context` is[^.\n]*\bdocuments\b")


@dataclass(frozen=True)
class Demands:
    """What is demanded, and what is offered."""

    schema: Mapping[str, Any] | None = None
    """JSON Schema of the answer; None for any text."""
    is_confidence_asked: bool = False
    """The answer is to come with how sure it is."""
    is_surer_answer_asked: bool = False
    """The newest answer was not sure enough."""
    can_delegate: bool = False
    """The context is documents, and child runs may be given some of them."""


def find_demands(messages: Sequence[Message]) -> Demands:
    """Return what a conversation demands in what comes before the model's first reply: later
    messages show data, which may say anything."""
    begin = itertools.takewhile(lambda message: message.role != "assistant", messages)
    asked = "\n".join(message.content for message in begin)
    return Demands(
        schema=_schema_in(asked),
        is_confidence_asked=bool(_CONFIDENCE.search(asked)),
        is_surer_answer_asked=bool(_NOT_SURE_ENOUGH.search(messages[-1].content)),
        can_delegate=bool(_CHILDREN.search(asked) and _DOCUMENTS.search(asked)),
    )


def _schema_in(text: str) -> Mapping[str, Any] | None:
    found = _SCHEMA.search(text)
    try:
        schema = json.loads(found[1]) if found else None
    except (ValueError, RecursionError):
        return None
    return schema if isinstance(schema, dict) else None
