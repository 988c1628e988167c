"""`grep`, `chunks` and `lines`: the same on a `str`, on documents and on lazy texts.

They are put into the namespace once, at the session's start: a cell's own variable of such a
name is kept.
"""

import operator
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .lazy_documents import LazyDocuments
from .lazy_text import LazyText, checked_chunks
from .matches import Match, Matches, pattern_of

_LINE_CHARACTERS = 500
_NAME = "context"


class TextFunctions:
    """The functions over the namespace that the cells share: by default they take `context`."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace

    def provided(self) -> dict[str, Any]:
        """Return the functions by the names that cells call them by."""
        return {"grep": self.grep, "chunks": self.chunks, "lines": self.lines}

    def grep(
        self,
        pattern: Any,
        text: Any = None,
        *,
        ignore_case: bool = False,
        limit: int = 100,
        start: int = 0,
    ) -> Matches:
        """Search `context`, or a text or documents that you name, for a regular expression.

        Returns a list of at most `limit` matches within lines. A match has .line_number
        (counted from 0), .line, .text, .groups(), .start and .end for text[m.start:m.end], and
        .document where there are several. The list's .note says when the limit cut it off, and
        which `start` goes on from there.

            for m in grep(r"invoice \\d+", ignore_case=True): print(m.line_number, m.line)
        """
        text = self._text(text)
        if isinstance(text, LazyText):
            return text.grep(pattern, ignore_case=ignore_case, limit=limit, start=start)
        if isinstance(text, Mapping):
            if start:
                raise ValueError("start is a position in one text: name it, such as context[key]")
            return _over_documents(pattern, text, ignore_case, limit)
        return _over_str(pattern, _as_str(text), ignore_case, limit, start)

    def chunks(
        self, text: Any = None, size: int = 100_000, overlap: int = 0, by: str = "characters"
    ) -> Iterator[str]:
        """Yield `context`, or a text that you name, in parts of `size` characters.

        With by="lines", in parts of `size` lines. Each part begins `overlap` before the end of
        the one before.

            answers = llm_query_batched([question + part for part in chunks(size=50_000)])
        """
        if isinstance(text, int):  # chunks(50_000)
            text, size = None, text
        text = self._text(text)
        if isinstance(text, LazyText):
            return text.chunks(size, overlap, by)
        return _chunks(_as_str(text), *checked_chunks(size, overlap, by))

    def lines(self, text: Any = None, start: int = 0, stop: int | None = None) -> list[str]:
        """Return lines `start` to `stop`, counted from 0, of `context` or a text that you name.

        The numbers are those of grep's matches: lines(context, m.line_number, m.line_number + 3).
        """
        if isinstance(text, int):  # lines(10, 20)
            stop = start or stop
            text, start = None, text
        text = self._text(text)
        if isinstance(text, LazyText):
            return text.lines(start, stop)
        return _as_str(text).split("\n")[start:stop]

    def _text(self, text: Any) -> Any:
        if text is not None:
            return text
        if _NAME not in self._namespace:
            raise NameError("there is no `context`: pass the text to read")
        return self._namespace[_NAME]


def _over_documents(
    pattern: Any, documents: Mapping[str, Any], ignore_case: bool, limit: int
) -> Matches:
    matches = Matches()
    for name in documents:
        left = operator.index(limit) - len(matches)
        if isinstance(documents, LazyDocuments):
            found = documents.lazy(name).grep(pattern, ignore_case=ignore_case, limit=left)
        else:
            found = _over_str(pattern, _as_str(documents[name]), ignore_case, left)
        for match in found:
            match.document = name
        matches += found
        if found.note:
            is_full = len(matches) >= limit
            why = f"stopped at the limit of {limit:,}" if is_full else found.note
            matches.note = f"{why}, in document {name!r}"
            break
    return matches


def _over_str(pattern: Any, text: str, ignore_case: bool, limit: int, start: int = 0) -> Matches:
    source, ignore_case = pattern_of(pattern, ignore_case)
    regex = re.compile(source, re.MULTILINE | (re.IGNORECASE if ignore_case else 0))
    matches = Matches()
    counted = line_number = 0
    position = slice(start, None).indices(len(text))[0]
    while position <= len(text):
        found = regex.search(text, position)
        if found is None:
            return matches
        end = text.find("\n", found.start())
        end = len(text) if end < 0 else end
        if found.end() > end:  # beyond its line: what is there within it?
            found = regex.search(text, found.start(), end)
            if found is None:
                position = end + 1
                continue
        if len(matches) >= limit:
            matches.note = f"stopped at the limit of {limit:,}; go on with start={position}"
            return matches
        line_number += text.count("\n", counted, found.start())
        counted = found.start()
        begin = text.rfind("\n", 0, found.start()) + 1
        matches.append(
            Match(
                start=found.start(),
                stop=found.end(),
                line_number=line_number,
                text=found.group(),
                line=_line(text[begin:end], found.start() - begin),
                groups=found.groups(),
            )
        )
        position = max(found.end(), found.start() + 1)
    return matches


def _line(line: str, position: int) -> str:
    """Return a line, or what is near a position of a long one."""
    if len(line) <= _LINE_CHARACTERS:
        return line
    start = max(position - _LINE_CHARACTERS // 4, 0)
    return line[start : start + _LINE_CHARACTERS]


def _chunks(text: str, size: int, overlap: int, by: str) -> Iterator[str]:
    parts: Any = text if by == "characters" else _whole_lines(text)
    for start in range(0, max(len(parts) - overlap, 1) if parts else 0, size - overlap):
        yield "".join(parts[start : start + size])


def _whole_lines(text: str) -> list[str]:
    """Split a text into lines with their line feeds, and nothing after the last one."""
    *lines, rest = text.split("\n")
    return [line + "\n" for line in lines] + ([rest] if rest else [])


def _as_str(text: Any) -> str:
    if issubclass(type(text), str):  # isinstance would take a lazy text for one
        return text  # type: ignore[no-any-return]
    raise TypeError(f"it takes a text, not {type(text).__name__}: name one, such as context[key]")
