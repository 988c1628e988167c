"""What code gives to a child run to work on: texts and values as they are, and parts of the context
of its own run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from common.errors import InvalidFieldError
from orchestrator.contexts.upload_plan import NAME_CHARACTERS_MAX, check_length

VALUE_BYTES_MAX = 8 << 20
DOCUMENTS_MAX = 10_000


@dataclasses.dataclass(frozen=True)
class Slice:
    """A part of the parent's context."""

    document: str
    """Empty in a context of one text."""
    start: int
    """First character."""
    stop: int | None
    """After the last one; None for the end."""


Text = str | Slice


@dataclasses.dataclass(frozen=True)
class OneText:
    """One text."""

    text: Text


@dataclasses.dataclass(frozen=True)
class JsonValue:
    """A JSON value, as JSON text."""

    text: str


@dataclasses.dataclass(frozen=True)
class NamedTexts:
    """Documents."""

    documents: Sequence[tuple[str, Text]]
    """Name and text."""


Given = OneText | JsonValue | NamedTexts
"""What a child is to work on."""


def check_given(given: Given) -> None:
    """Raise InvalidFieldError for what no context can be made of. Whether its parts are parts of
    the parent's context is not checked here."""
    texts: list[Text] = []
    if isinstance(given, JsonValue | OneText):
        texts = [given.text]
    else:
        names = [name for name, _ in given.documents]
        if not 1 <= len(names) <= DOCUMENTS_MAX:
            raise InvalidFieldError("context.documents", f"must be 1 to {DOCUMENTS_MAX}")
        if len(set(names)) < len(names):
            raise InvalidFieldError("context.documents.name", "must be unique")
        for name in names:
            check_length("context.documents.name", name, NAME_CHARACTERS_MAX, least=1)
        texts = [text for _, text in given.documents]
    if any(not text for text in texts):
        raise InvalidFieldError("context", "must not be empty")
    size = sum(len(text.encode()) for text in texts if isinstance(text, str))
    if size > VALUE_BYTES_MAX:
        raise InvalidFieldError(
            "context", f"has {size} bytes by value; at most {VALUE_BYTES_MAX} are allowed"
        )
