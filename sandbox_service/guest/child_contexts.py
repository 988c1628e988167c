"""What a child run works on: all of `context`, a part of it, or values that the code gives.

A part is named here and found outside, so that it may be larger than this interpreter.
"""

import json
import operator
from collections.abc import Mapping
from typing import Any

from .lazy_documents import LazyDocuments
from .lazy_json import LazyItems, LazyMapping
from .lazy_text import LazyText

_VALUE_CHARACTERS_MAX = 8 << 20
_WHOLE = 0
"""Number of the context that a run is about among those of its session."""
_TOO_LARGE = (
    "a context given by value has at most 8 MiB: leave it out for the whole of `context`, or give "
    "part(start, stop), or part(start, stop, document=name), which stays where it is"
)


class ContextPart:
    """A part of `context` to give to a child run: it is named here, and not copied."""

    def __init__(self, start: int, stop: int | None, document: str) -> None:
        self.start = start
        self.stop = stop
        self.document = document

    def __repr__(self) -> str:
        stop = "end" if self.stop is None else f"{self.stop:,}"
        of = f" of {self.document!r}" if self.document else ""
        return f"<part of context{of}, characters {self.start:,} to {stop}, for rlm_query>"


def part(start: int = 0, stop: int | None = None, *, document: str = "") -> ContextPart:
    """Name a part of `context` for a child run, by characters, however large it is.

    Where `context` is documents, name the one that is meant. The child's own `context` is that
    part alone.

        rlm_query("List every complaint.", part(0, 5_000_000))
    """
    start = operator.index(start)
    stop = None if stop is None else operator.index(stop)
    if start < 0 or (stop is not None and stop < start):
        raise ValueError("part: start is 0 or more, and stop is not before it")
    if not isinstance(document, str):
        raise TypeError(f"document is a str, not {type(document).__name__}")
    return ContextPart(start, stop, document)


def given_context(context: Any) -> dict[str, Any] | None:
    """Return a child's context as the host takes it; None for the whole of the parent's."""
    if context is None or (isinstance(context, LazyDocuments) and context.is_of(_WHOLE)):
        return None
    if type(context) in (LazyItems, LazyMapping):
        raise TypeError(
            "lazy JSON cannot be given: take real items, context[a:b], or leave the context out "
            "for the whole of yours"
        )
    if _is_text(context):
        return {"kind": "text", "text": _text(context)}
    if isinstance(context, Mapping) and context and all(map(_is_text, context.values())):
        if not all(issubclass(type(name), str) and name for name in context):
            raise TypeError("the documents of a context have names, which are str and not empty")
        documents = [{"name": name, "text": _text(text)} for name, text in context.items()]
        given = {"kind": "documents", "documents": documents}
    else:
        given = {"kind": "json", "json": json.dumps(context, ensure_ascii=False, allow_nan=False)}
    if characters_given(given) > _VALUE_CHARACTERS_MAX:
        raise ValueError(_TOO_LARGE)
    return given


def _is_text(value: Any) -> bool:
    return issubclass(type(value), (str, LazyText, ContextPart))


def _text(value: Any) -> dict[str, Any]:
    if isinstance(value, ContextPart):
        return {"by": "slice", "document": value.document, "start": value.start, "stop": value.stop}
    if type(value) is LazyText:
        if value.is_of(_WHOLE):
            return {"by": "slice", "document": value.document, "start": 0, "stop": None}
        value = str(value)
    if len(value) > _VALUE_CHARACTERS_MAX:
        raise ValueError(_TOO_LARGE)
    if not value:
        raise ValueError("a child run's context must not be empty")
    return {"by": "value", "text": str(value)}


def characters_given(context: dict[str, Any] | None) -> int:
    """Return the size of what a context holds by value."""
    if context is None:
        return 0
    if context["kind"] == "json":
        return len(context["json"])
    if context["kind"] == "text":
        return len(context["text"].get("text", ""))
    return sum(
        len(item["name"]) + len(item["text"].get("text", "")) for item in context["documents"]
    )
