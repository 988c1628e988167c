"""Quotes searched for in the texts of documents, as their bytes stream by: exactly, and but for
white space. It holds one window of text, at any size of context.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import re
from collections.abc import Sequence

from orchestrator.contexts.stored_context import StoredDocument
from orchestrator.runs.answers.claims import QUOTE_CHARACTERS_MAX

_OVERLAP = 6 * QUOTE_CHARACTERS_MAX
"""Characters of a window that the next one begins with, for quotes that lie across; JSON may take
six for one."""
_RARE_WORDS = 2
_WORD = re.compile(r"\S+")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|(?:u[dD][89abAB][0-9a-fA-F]{2}\\)?u[0-9a-fA-F]{4})')


@dataclasses.dataclass(frozen=True)
class Hit:
    """Where a quote was found."""

    document: str
    """The document's name."""
    start: int
    """First character; 0 in JSON."""
    end: int
    """After the last character; 0 in JSON."""


class WantedQuote:
    """A quote that is searched for."""

    def __init__(self, quote: str, document: str | None) -> None:
        """Take a quote that has words."""
        self.quote = quote
        self.document = document
        """The only document that it may stand in; None for any."""
        words = quote.split()
        self.spaced = " ".join(words)
        """The quote with single spaces."""
        self.rare = sorted(words, key=len)[-_RARE_WORDS:]
        """Its longest words: where they are not, it is not, with whatever spaces."""
        self.exact: Hit | None = None
        """Where it stands character by character, once found."""
        self.normalised: Hit | None = None
        """Where it stands but for white space, once found."""


class QuoteSearch:
    """Goes through the texts of documents, as their bytes stream by, for several quotes."""

    def __init__(
        self, documents: Sequence[StoredDocument], wanted: Sequence[WantedQuote], *, is_json: bool
    ) -> None:
        self._documents = documents
        self._wanted = wanted
        self._is_json = is_json
        self._number = -1
        self._begin_document()

    @property
    def is_done(self) -> bool:
        """Whether nothing better can be found."""
        return all(each.exact for each in self._wanted)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the documents, cut anywhere."""
        view = memoryview(data)
        while len(view) and self._number < len(self._documents):
            part, view = view[: self._left], view[self._left :]
            self._left -= len(part)
            text = self._decoder.decode(bytes(part), not self._left)
            self._look_in(self._window + text)
            if not self._left:
                self._begin_document()

    def _begin_document(self) -> None:
        """Go on to the next document that has a text."""
        self._left = 0
        while not self._left and self._number < len(self._documents):
            self._number += 1
            if self._number < len(self._documents):
                self._left = self._documents[self._number].size_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._window, self._base = "", 0

    def _look_in(self, window: str) -> None:
        name = self._documents[self._number].name
        shown = _unescaped(window) if self._is_json else window
        spaced: str | None = None
        for each in self._wanted:
            if each.exact or each.document not in (None, name):
                continue
            if not all(word in shown for word in each.rare):
                continue
            at = shown.find(each.quote)
            if at >= 0:
                each.exact = self._hit(name, at, at + len(each.quote))
            elif each.normalised is None:
                spaced = " ".join(shown.split()) if spaced is None else spaced
                at = spaced.find(each.spaced)
                if at >= 0:
                    each.normalised = self._hit(
                        name, *place_in_text(shown, spaced, at, each.spaced)
                    )
        kept = min(len(window), _OVERLAP)
        self._base += len(window) - kept
        self._window = window[len(window) - kept :]

    def _hit(self, name: str, start: int, end: int) -> Hit:
        if self._is_json:
            return Hit("", 0, 0)
        return Hit(name, self._base + start, self._base + end)


def _unescaped(window: str) -> str:
    """Return JSON with the escapes within its strings read, as far as a piece of it shows them."""
    return _ESCAPE.sub(_character, window)


def _character(escape: re.Match[str]) -> str:
    character: str = json.loads(f'"{escape[0]}"')
    return character


def place_in_text(text: str, spaced: str, at: int, found: str) -> tuple[int, int]:
    """Return where something found in a text of single spaces stands in the text itself."""
    first = spaced.count(" ", 0, at)
    last = first + found.count(" ")
    starts = [match.start() for match in _WORD.finditer(text)][first : last + 1]
    # Both may lie within a word: the distance from the word's begin is the same in both.
    start = starts[0] + at - (spaced.rfind(" ", 0, at) + 1)
    end_at = at + len(found)
    return start, starts[-1] + end_at - (spaced.rfind(" ", 0, end_at) + 1)
