"""FINAL(...) and FINAL_VAR(...) written in a reply's text, outside of fences.

A directive stands at the start of a line. Its parentheses balance; those in quoted strings do not
count. As functions in a cell they are the sandbox's business, not this module's.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import re
from collections.abc import Iterable

_START = re.compile(r"^[ \t]{0,3}(FINAL_VAR|FINAL)[ \t]*\(", re.MULTILINE)
_CONFIDENCE = re.compile(
    r",[ \t]*confidence[ \t]*=[ \t]*([0-9]{1,3}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})$"
)
_UNFINISHED_MAX = 20
"""Each costs a walk to the text's end, so a reply of nothing else is given up early."""
_QUOTE_CHARACTERS_MAX = 500
_PLACEHOLDERS = frozenset({"...", "…"})


class Problem(enum.Enum):
    """Why a directive gives no answer."""

    EMPTY = "it was empty"
    UNFINISHED = "its closing parenthesis is missing"
    CODE = "in plain text it is not evaluated, and it held an f-string: call it in a cell"
    NOT_A_NAME = "FINAL_VAR takes the name of one variable"
    NOT_A_CONFIDENCE = "confidence must be a number from 0 to 1"


@dataclasses.dataclass(frozen=True)
class Directive:
    """One directive."""

    text: str = ""
    """The answer given; for FINAL_VAR empty."""
    variable: str = ""
    """The variable named by FINAL_VAR, else empty."""
    bare_name: str = ""
    """For FINAL, the argument where it is an unquoted Python name: maybe a variable is meant."""
    problem: Problem | None = None
    """Set where the directive gives no answer."""
    confidence: float | None = None
    """How sure it says that it is, 0 to 1; None where it says nothing."""


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A stretch of a reply's text that has no cell in it."""

    text: str
    """As written."""
    search: str
    """The same with code blanked out: where directives may begin."""


def last_directive(stretches: Iterable[Stretch]) -> Directive | None:
    """Return the last directive of several stretches; none reaches from one to the next.

    A directive inside of another's parentheses is part of that one's argument.
    """
    found: Directive | None = None
    unfinished = 0
    for stretch in stretches:
        text, position = stretch.text, 0
        while match := _START.search(stretch.search, position):
            end = _closing(text, match.end())
            if end is None:
                found = Directive(problem=Problem.UNFINISHED)
                position = match.end()
                unfinished += 1
                if unfinished == _UNFINISHED_MAX:
                    return found
            else:
                found = _read(match[1], text[match.end() : end].strip())
                position = end + 1
    return found


def _read(name: str, argument: str) -> Directive:
    confidence: float | None = None
    if stated := _CONFIDENCE.search(argument):
        argument = argument[: stated.start()].rstrip()
        confidence = float(stated[1])
        if confidence > 1:
            return Directive(problem=Problem.NOT_A_CONFIDENCE)
    read = _read_final(argument) if name == "FINAL" else _read_final_var(argument)
    return dataclasses.replace(read, confidence=confidence)


def _read_final(argument: str) -> Directive:
    literal = _literal(argument)
    if literal is _CODE:
        return Directive(problem=Problem.CODE)
    answer = literal.strip() if isinstance(literal, str) else argument
    if not answer or answer in _PLACEHOLDERS:
        return Directive(problem=Problem.EMPTY)
    return Directive(text=answer, bare_name=argument if argument.isidentifier() else "")


def _read_final_var(argument: str) -> Directive:
    name = argument.strip("\"'`").strip()
    if not name:
        return Directive(problem=Problem.EMPTY)
    if not name.isidentifier():
        return Directive(problem=Problem.NOT_A_NAME)
    return Directive(variable=name)


_CODE = object()


def _literal(argument: str) -> object:
    """Return the text of a Python string literal, _CODE for an f-string, None for prose."""
    if not argument.endswith(('"', "'")):
        return None
    try:
        body = ast.parse(argument, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    if isinstance(body, ast.JoinedStr):
        return _CODE
    return body.value if isinstance(body, ast.Constant) and isinstance(body.value, str) else None


def _closing(text: str, start: int) -> int | None:
    """Return where the parenthesis opened before `start` closes.

    Prose has smileys and apostrophes, so a balanced parenthesis at a line's end is preferred to
    an earlier one, and a quote counts only where it is closed on its line.
    """
    balanced: int | None = None
    depth = 1
    position = start
    while position < len(text):
        character = text[position]
        if character in "\"'`":
            position = _quote_end(text, position)
        elif character == "(":
            depth += 1
        elif character == "\n" and balanced is not None:
            break
        elif character == ")":
            depth -= 1
            if depth == 0:
                if _ends_line(text, position):
                    return position
                balanced = position if balanced is None else balanced
                depth = 1
        position += 1
    return balanced


def _ends_line(text: str, position: int) -> bool:
    end = text.find("\n", position)
    rest = text[position + 1 : len(text) if end < 0 else end]
    return not rest.strip(" \t.;*`")


def _quote_end(text: str, position: int) -> int:
    """Return the index of the quote that closes the one at `position`, or `position` itself."""
    quote = text[position]
    if text.startswith(quote * 3, position):
        end = text.find(quote * 3, position + 3)
        return position + 2 if end < 0 else end + 2
    if quote == "'" and position and text[position - 1].isalnum():
        return position  # an apostrophe
    line_end = text.find("\n", position)
    line_end = len(text) if line_end < 0 else line_end
    line_end = min(line_end, position + _QUOTE_CHARACTERS_MAX)
    index = position + 1
    while index < line_end:
        if text[index] == "\\":
            index += 1
        elif text[index] == quote and not (quote == "'" and text[index + 1 : index + 2].isalnum()):
            return index
        index += 1
    return position
