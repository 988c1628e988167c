"""What a reply of the root model contains: the cells to run, in order, and the FINAL directive of
its text. Fences are found by a Markdown parser, never by a pattern. Nothing is run here.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token

from orchestrator.runs.answers.directives import Directive, Stretch, last_directive

_LONG_CHARACTERS = 30_000
CELL_LANGUAGES = frozenset({"repl", "python", "py"})
# Without the HTML rule a fence right under a line such as `<think>` is still a fence; the inline
# rules cost time and say nothing about fences.
_THINKING = ("<think>", "</think>")
_MARKDOWN = MarkdownIt("commonmark").disable(["html_block", "inline"])


@dataclasses.dataclass(frozen=True)
class Reply:
    """A parsed reply."""

    cells: tuple[str, ...]
    """Python sources, in order."""
    has_cut_fence: bool
    """True where a cell's fence was opened and not closed: that cell is not among `cells`."""
    directive: Directive | None
    """The last FINAL or FINAL_VAR in the text outside of fences."""
    prose: str
    """The text without its cells."""
    is_empty: bool
    """True where the reply has nothing but white space."""


def parse_reply(text: str) -> Reply:
    """Find the cells and the directive of a reply. What a reasoning model thought aloud before it
    is passed over: drafts are not meant to run."""
    if text.lstrip().startswith(_THINKING[0]):
        text = text.rpartition(_THINKING[1])[2]
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace(_BREAK, "\ufffd").split("\n")
    masked = list(lines)
    cells: list[str] = []
    has_cut_fence = False
    quotes = 0
    for token in _MARKDOWN.parse("\n".join(lines)):
        quotes += (token.type == "blockquote_open") - (token.type == "blockquote_close")
        if token.type not in {"fence", "code_block"} or token.map is None:
            continue
        first, end = token.map
        fenced = lines[first:end]
        is_cell = token.type == "fence" and not quotes and _language(token) in CELL_LANGUAGES
        # A directive cannot begin in code, and cannot reach across a cell.
        masked[first:end] = [_BREAK if is_cell else " " * len(line) for line in fenced]
        if is_cell and not _is_closed(token, fenced):
            has_cut_fence = True
        elif is_cell and token.content.strip():
            cells.append(token.content)
    stretches = list(_stretches(lines, masked))
    return Reply(
        cells=tuple(cells),
        has_cut_fence=has_cut_fence,
        directive=last_directive(stretches),
        prose="\n".join(text for stretch in stretches if (text := stretch.text.strip())),
        is_empty=not text.strip(),
    )


async def parse_reply_aside(text: str) -> Reply:
    """Parse a reply; a long one in a thread, away from the other runs."""
    if len(text) <= _LONG_CHARACTERS:
        return parse_reply(text)
    return await asyncio.to_thread(parse_reply, text)


_BREAK = "\0"
"""Stands for a line of a cell; replies have none of their own left."""


def _stretches(lines: list[str], masked: list[str]) -> Iterator[Stretch]:
    """Yield the text between the cells, each with its form in which code is blank."""
    text: list[str] = []
    search: list[str] = []
    for line, mask in zip([*lines, ""], [*masked, _BREAK], strict=True):
        if mask == _BREAK:
            yield Stretch("\n".join(text), "\n".join(search))
            text, search = [], []
        else:
            text.append(line)
            search.append(mask)


def _language(token: Token) -> str:
    return token.info.split(maxsplit=1)[0].lower() if token.info.strip() else ""


def _is_closed(token: Token, lines: list[str]) -> bool:
    last = lines[-1].strip()
    return len(lines) > 1 and len(last) >= len(token.markup) and set(last) == {token.markup[0]}
