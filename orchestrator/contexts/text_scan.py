"""Measures a UTF-8 text as it streams by: characters, lines, largest code point, malformed
sequences. It keeps no text; the numbers are those of decoding the whole with errors="replace".
"""

from __future__ import annotations

import codecs
import re
import sys

from orchestrator.contexts.stored_context import TextShape

_REPLACEMENT = "\ufffd"
_REPLACEMENT_BYTES = _REPLACEMENT.encode()
_ASCII_MAX = 0x7F
_SEARCHES_MAX = 32


class TextScan:
    """The measure of one text, fed in pieces."""

    def __init__(self, *, counts_line_feeds: bool = True) -> None:
        """Without counting, lines are at most the unfinished last one: counting takes as long as
        all the rest, and somebody else may do it."""
        self._counts_line_feeds = counts_line_feeds
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0
        self._code_point_max = 0
        self._line_feeds = 0
        self._malformed = 0
        self._last = ""

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        self._take(data, final=False)

    def finish(self) -> TextShape:
        """Take the end, and return what the text is."""
        self._take(b"", final=True)
        unfinished = bool(self._last) and self._last != "\n"
        return TextShape(
            characters=self._characters,
            code_point_max=self._code_point_max,
            lines=self._line_feeds + unfinished,
            malformed_sequences=self._malformed,
        )

    def _take(self, data: bytes, *, final: bool) -> None:
        kept_before = self._decoder.getstate()[0]
        if data and not kept_before and data.isascii():
            self._take_ascii(data)
            return
        text = self._decoder.decode(data, final)
        if not text:
            return
        self._characters += len(text)
        if self._counts_line_feeds:
            self._line_feeds += text.count("\n")
        self._last = text[-1]
        self._raise_maximum(text)
        if _REPLACEMENT in text:
            # The text may have U+FFFD of its own: its bytes cannot come from a malformed
            # sequence, since no such sequence holds a byte that begins another character.
            kept_after = self._decoder.getstate()[0]
            decoded = (kept_before + data)[: len(kept_before) + len(data) - len(kept_after)]
            self._malformed += text.count(_REPLACEMENT) - decoded.count(_REPLACEMENT_BYTES)

    def _take_ascii(self, data: bytes) -> None:
        """Take bytes that are characters as they are: most of all data is such."""
        self._characters += len(data)
        if self._counts_line_feeds:
            self._line_feeds += data.count(b"\n")
        self._last = chr(data[-1])
        self._raise_maximum_ascii(data)

    def _raise_maximum_ascii(self, data: bytes) -> None:
        for code_point in range(_ASCII_MAX, self._code_point_max, -1):
            if code_point in data:  # one memchr: much faster than max(data)
                self._code_point_max = code_point
                return

    def _raise_maximum(self, text: str) -> None:
        position = 0
        for _ in range(_SEARCHES_MAX):
            if self._code_point_max == sys.maxunicode:
                return
            above = re.compile(f"[{re.escape(chr(self._code_point_max + 1))}-\U0010ffff]")
            found = above.search(text, position)
            if found is None:
                return
            self._code_point_max = ord(found[0])
            position = found.end()
        # Text that climbs through the code points one by one: slower, and bounded.
        self._code_point_max = max(self._code_point_max, ord(max(text)))
