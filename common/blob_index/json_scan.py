"""Finds the items of a large JSON document without holding it in memory.

It goes by in windows of text. Python's own parser says where each item ends, and so that it is
JSON; an array or object that does not fit a window is walked item by item.
"""

from __future__ import annotations

import codecs
import json
import re

from common.blob_index.json_index import TABLES_MAX, TOO_LARGE, WHOLE, Kind, Table, write
from common.blob_index.source import Source, StoredSource, UnindexableError

WINDOW_BYTES = 4 << 20
"""An item larger than this is not parsed as a whole."""
_ITEMS_MAX = 20_000_000
_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\]*')
_CLOSING: dict[Kind, str] = {"array": "]", "object": "}"}
_OPENING: dict[str, Kind] = {"[": "array", "{": "object"}


def build(fd: int, size_bytes: int, target: int) -> None:
    """Write the index of a JSON blob to an empty file; raises UnindexableError for what is none."""
    index_stream(StoredSource(fd, size_bytes), target)


def index_stream(source: Source, target: int) -> None:
    """Write the index of JSON that is read once to an empty file; raises UnindexableError."""
    try:
        scan = _Scan(source)
        tables = scan.tables()
        write(tables, scan.read_bytes, target)
    except UnicodeDecodeError as error:
        raise UnindexableError("not JSON: it is not UTF-8") from error
    except RecursionError as error:
        raise UnindexableError("not JSON: it is nested too deeply") from error


class _Scan:
    """One walk through a document, from its first byte to its last."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._parse = json.JSONDecoder(parse_constant=_refuse).raw_decode
        self.read_bytes = 0
        """Bytes of the blob that have been read."""
        self._text = ""
        self._at = 0
        self._known = (0, 0)
        """A position in the text and the byte of the blob that it stands for."""
        self._items = 0
        start = source.read(len(codecs.BOM_UTF8))
        self.read_bytes = len(start)
        if start == codecs.BOM_UTF8:
            self._known = (0, len(start))
        else:
            self._text = self._decoder.decode(start, final=source.is_at_end)

    def tables(self) -> list[Table]:
        """Return the tables of all containers that are too large, that of the document first."""
        root = Table("array")
        tables, walked = [root], [root]
        self._item(tables, walked, key=None)
        while len(walked) > 1:
            table = walked[-1]
            character = self._next()
            if character == _CLOSING[table.kind]:
                self._at += 1
                walked.pop()
                walked[-1].entries[-2] = self._byte()
                continue
            if table.entries:
                self._expect(",")
            key = self._key() if table.kind == "object" else None
            self._item(tables, walked, key)
        if self._next():
            raise self._error("more after its end")
        return tables

    def _item(self, tables: list[Table], walked: list[Table], key: int | None) -> None:
        """Note the next item; begin to walk through it where it is too large."""
        opening = self._next()
        start = self._byte()
        child = WHOLE
        if not self._has_parsed():
            if opening in _OPENING:
                child = len(tables)
                self._at += 1
            elif opening == '"':
                child = TOO_LARGE
                self._skip_string()
            else:
                raise self._error("no value")
        self._items += 1
        if self._items > _ITEMS_MAX or len(tables) == TABLES_MAX:
            raise UnindexableError(
                f"its large parts are more than {TABLES_MAX:,}, or their items {_ITEMS_MAX:,}"
            )
        key = start if key is None else key
        walked[-1].entries.extend((key, start, self._byte(), child))
        if opening in _OPENING and child:
            tables.append(Table(_OPENING[opening]))
            walked.append(tables[-1])

    def _has_parsed(self) -> bool:
        """Go beyond the value that begins here; tell whether it could be parsed as a whole."""
        while True:
            try:
                _, end = self._parse(self._text, self._at)
            except ValueError:
                end = -1
            # A number that ends with the window may go on behind it, as in "1e+" and "5".
            if end >= 0 and (self._source.is_at_end or end < len(self._text) - len("e+")):
                self._at = end
                return True
            if not self._has_refilled():
                return False

    def _key(self) -> int:
        if self._next() != '"':
            raise self._error("no key")
        key = self._byte()
        if not self._has_parsed():
            raise self._error("a key that ends nowhere near")
        self._expect(":")
        return key

    def _skip_string(self) -> None:
        self._at += 1
        while True:
            plain = _PLAIN.match(self._text, self._at)
            self._at = plain.end() if plain else self._at
            character = self._peek()
            if not character:
                raise self._error("a string that does not end")
            self._at += 1
            if character == '"':
                return
            if character == "\\" and self._peek():
                self._at += 1

    def _next(self) -> str:
        """Return the next character that is no space, or nothing at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._has_refilled():
                return ""

    def _peek(self) -> str:
        if self._at == len(self._text):
            self._has_refilled()
        return self._text[self._at : self._at + 1]

    def _expect(self, character: str) -> None:
        if self._next() != character:
            raise self._error(f"no {character!r}")
        self._at += 1
        self._next()

    def _has_refilled(self) -> bool:
        """Let the window begin here and be full; tell whether that has made it longer."""
        kept = self._text[self._at :]
        self._known = (0, self._byte())
        wanted = WINDOW_BYTES - len(kept)
        more = ""
        if wanted > 0 and not self._source.is_at_end:
            data = self._source.read(wanted)
            self.read_bytes += len(data)
            more = self._decoder.decode(data, final=self._source.is_at_end)
        self._text, self._at = kept + more, 0
        return bool(more)

    def _byte(self) -> int:
        """Return the byte of the blob that this place stands for."""
        position, byte = self._known
        part = self._text[position : self._at]
        byte += len(part) if part.isascii() else len(part.encode("utf-8"))
        self._known = (self._at, byte)
        return byte

    def _error(self, problem: str) -> UnindexableError:
        return UnindexableError(f"not JSON: {problem} at byte {self._byte():,}")


def _refuse(constant: str) -> None:
    """Refuse NaN and the infinities, which Python's parser takes and JSON does not have."""
    raise ValueError(constant)
