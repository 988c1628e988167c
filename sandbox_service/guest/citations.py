"""`cite`: what a cell says that its answer rests on. Whether it stands there is looked up by
others, after the answer.
"""

import operator
from collections.abc import Mapping
from typing import Any

from .lazy_documents import LazyDocuments
from .lazy_text import LazyText
from .matches import Match

COUNT_MAX = 500
QUOTE_CHARACTERS_MAX = 2_000
CHARACTERS_MAX = 256 << 10
"""Of all quotes, and the names of their documents."""
_NAME = "context"


class Citations:
    """What the cells of a session have cited, over the namespace that they share."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        self._cited: dict[str, dict[str, Any]] = {}
        """By the text that stands for it in an answer."""
        self._characters = 0
        self._run = ""
        self._earlier: dict[str, dict[str, Any]] = {}
        """What the run before cited: an answer of this one rests on it where it names it."""

    def provided(self) -> dict[str, Any]:
        """Return the functions by the names that cells call them by."""
        return {"cite": self.cite}

    def begin(self, run: str) -> None:
        """Take what follows as citations of this run; one after another may have the session."""
        if run != self._run:
            self._run = run
            self._earlier, self._cited, self._characters = self._cited, {}, 0

    def cite(self, document: Any, start: Any = None, end: Any = None) -> str:
        """Cite a place of `context`, and return a marker to put into the answer beside it.

        Takes a document's name with start and end, or start and end alone where `context` is one
        text, or a match of grep, or a text that stands in `context` word by word. Places are
        checked after your answer and shown to the reader: cite sentences, at most 2,000
        characters each.

            at = context["a.txt"].find("paid in full")
            FINAL("It was paid " + cite("a.txt", at, at + 12))
        """
        if isinstance(document, Match):
            document, start, end = document.document or "", document.start, document.end
        elif start is not None and end is None:  # cite(10, 20)
            document, start, end = "", document, start
        if start is None:
            return self._cite_quote(document)
        name = self._name(document)
        start, end = operator.index(start), operator.index(end)
        text = self._text(name)
        length = text.characters if type(text) is LazyText else len(text)
        if not 0 <= start < end <= length:
            raise ValueError(f"cite: {start} to {end} is no place of a text of {length:,}")
        if end - start > QUOTE_CHARACTERS_MAX:
            raise ValueError(
                f"cite: {end - start:,} characters; cite the sentences that matter, at most "
                f"{QUOTE_CHARACTERS_MAX:,} each"
            )
        marker = f"[cite:{name}:{start}-{end}]" if name else f"[cite:{start}-{end}]"
        place = {"document": name, "start": start, "end": end, "quote": str(text[start:end])}
        return self._note(marker, place)

    def in_answer(self, text: str) -> list[dict[str, Any]]:
        """Return what an answer cites: that whose marker is in its text, else all that was cited
        for it."""
        known = self._cited | self._earlier
        named = [place for marker, place in known.items() if marker in text]
        return _as_many_as_fit(named) or list(self._cited.values())

    def _cite_quote(self, quote: Any) -> str:
        if not issubclass(type(quote), str) or not quote.strip():
            raise TypeError("cite(document, start, end), cite(start, end) or cite(quote)")
        if len(quote) > QUOTE_CHARACTERS_MAX:
            raise ValueError(f"cite: a quote has at most {QUOTE_CHARACTERS_MAX:,} characters")
        quote = str(quote)
        place = {"document": "", "start": None, "end": None, "quote": quote}
        return self._note(f"“{quote}”", place)

    def _note(self, marker: str, place: dict[str, Any]) -> str:
        if marker in self._cited:
            return marker
        size = self._characters + _characters(place)
        if len(self._cited) >= COUNT_MAX or size > CHARACTERS_MAX:
            raise ValueError(
                f"cite: at most {COUNT_MAX} places and {CHARACTERS_MAX:,} characters together; "
                "cite what the answer rests on"
            )
        self._cited[marker] = place
        self._characters = size
        return marker

    def _name(self, document: Any) -> str:
        """Return the name of the document that is meant; empty for the only text."""
        context = self._namespace.get(_NAME)
        if isinstance(context, Mapping) or type(context) is LazyDocuments:
            if issubclass(type(document), str) and document in context:
                return str(document)
            known = ", ".join(repr(name) for name in list(context)[:5])
            raise KeyError(f"cite: there is no document {document!r}; there are {known}, ...")
        is_named = issubclass(type(document), str) and document in ("", _NAME)
        if document is context or is_named:
            return ""
        raise ValueError("cite: `context` is one text, without a name: cite(start, end)")

    def _text(self, name: str) -> Any:
        context: Any = self._namespace.get(_NAME)
        if name:
            context = context.lazy(name) if type(context) is LazyDocuments else context[name]
        if issubclass(type(context), (str, LazyText)):
            return context
        raise TypeError("cite: `context` has no characters to count here: cite(quote)")


def _characters(place: dict[str, Any]) -> int:
    return len(place["document"]) + len(place["quote"])


def _as_many_as_fit(places: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what one answer may cite: two runs together can have cited twice that."""
    kept: list[dict[str, Any]] = []
    room = CHARACTERS_MAX
    for place in places[:COUNT_MAX]:
        room -= _characters(place)
        if room < 0:
            break
        kept.append(place)
    return kept
