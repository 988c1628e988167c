"""The question of a run as the root policy understands it: which kind, and its parts.

It is read from the conversation alone, whatever the orchestrator's prompts say around it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from fathom_demo.scripted_model.openai_wire import Message
from fathom_demo.scripted_model.words import keywords_of

_LABEL = r"^[#*\s]*(?:the |your |user'?s? )?(?:original )?(?:question|query|task)\b[^\n:]{0,40}:"
_ASKED = (
    re.compile(r"<(?:question|query|task)>\s*(.+?)\s*</", re.DOTALL | re.IGNORECASE),
    re.compile(
        _LABEL + r"[* ]*\n\s*(.+?)(?=\n\s*\n(?:the |your )?(?:data|context)\b|\Z)",
        re.DOTALL | re.IGNORECASE | re.MULTILINE,
    ),
    re.compile(_LABEL + r"[* ]*([^\n]+(?:\n[^\n]+)*)", re.IGNORECASE | re.MULTILINE),
)
"""A question in tags, below a label of its own line, and beside a label."""
_MARKER = re.compile(
    r"(?:start(?:s|ing)?|begin(?:s|ning)?)\s+with\s+(?:the\s+\w+\s+)?[\"'`“]([^\"'`”\n]+)[\"'`”]",
    re.IGNORECASE,
)
_CATEGORY_LIST = re.compile(
    r"(?:categor\w+|classes|kinds|labels|one of|is about)"
    r"[^:(.?\n]*?[:(]?\s*([^:().?\n]+,[^:().?\n]+)",
    re.IGNORECASE,
)
_COUNTING = re.compile(r"\b(how many|count|number of|tally)\b", re.IGNORECASE)
_SEARCHING = re.compile(
    r"\b(what(?:'s| is| was| are)? the|which|who|when|where|find)\b.*"
    r"\b(code|number|value|password|pin|date|day|time|name|address|price|amount|id|key|port"
    r"|version|phone|who|when|where)\b",
    re.IGNORECASE | re.DOTALL,
)
_EACH = re.compile(
    r"\b(?:in|of|for|from|by)\s+(?:each|every)(?:\s+one)?(?:\s+of\s+(?:the|these|those|my|our))?"
    r"\s+(?:document|file|report|mail|paper|contract|note|office|letter|text|log)s?\b",
    re.IGNORECASE,
)


class Kind(Enum):
    """What a question asks to be done."""

    COUNT = "count"
    """Count records by a category that a model must decide."""
    SEARCH = "search"
    """Find one fact."""
    DIGEST = "digest"
    """Anything else: gather what bears on it and combine."""


@dataclass(frozen=True)
class Question:
    """A question and what follows from its words."""

    text: str
    """The question as it was asked."""
    kind: Kind
    """What it asks to be done."""
    keywords: tuple[str, ...]
    """Its words that carry meaning."""
    marker: str = ""
    """For COUNT: what the lines of the records start with."""
    categories: tuple[str, ...] = ()
    """For COUNT: the categories it names, two at least."""
    of_each: str = ""
    """The question to ask of each document, where it asks for one answer from each."""


def find_question(messages: Sequence[Message]) -> Question:
    """Return the question of a conversation: tagged, labelled, or the first user message."""
    asked = [message.content for message in messages if message.role == "user"]
    for pattern in _ASKED:
        for content in asked:
            found = pattern.search(content)
            if found:
                return understand(found.group(1))
    return understand(_asking_paragraph(asked[0] if asked else ""))


def understand(text: str) -> Question:
    """Return what a question asks for, judged by its words."""
    text = text.strip()
    keywords = tuple(keywords_of(text))
    marker, listed = _MARKER.search(text), _CATEGORY_LIST.search(text)
    categories = _split_list(listed.group(1)) if listed else ()
    if marker and len(categories) > 1 and _COUNTING.search(text):
        return Question(text, Kind.COUNT, keywords, marker.group(1), categories)
    kind = Kind.SEARCH if _SEARCHING.search(text) else Kind.DIGEST
    of_each = _EACH.sub("here", text) if _EACH.search(text) else ""
    return Question(text, kind, keywords, of_each=of_each)


def _split_list(text: str) -> tuple[str, ...]:
    """Split `a, b and c` into its items."""
    items = re.split(r",\s*(?:and|or)\s+|,\s*|\s+(?:and|or)\s+", text.strip())
    return tuple(item.strip(" \"'`*") for item in items if item.strip(" \"'`*"))


def _asking_paragraph(text: str) -> str:
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    asking = [part for part in paragraphs if "?" in part]
    return (asking or paragraphs or [""])[0]
