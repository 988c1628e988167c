"""Words of a question or a text: which ones carry meaning, and when two of them are the same."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*|\d[\w.:-]*")
_SUFFIXES = ("ings", "ing", "edly", "ies", "ed", "es", "s", "ly", "e")
_STEM_LETTERS_MIN = 3

_EMPTY_WORDS = """
a about above after all also am an and answer any anything are as at be been before below
between both but by called can context could describe did do does each either every
everything explain few find for from give had happen happens has have he her here his how i
if in into is it its just know like list many may me more most much must my name named no
not nothing of on one only or other our out over part please question say says see she
should show so some something such summarise summarize summary tell text than that the their
them then there these they this those through to too under up use used uses using was we
were what when where whether which while who whom whose why will with work works would you
your
"""
_EMPTY = frozenset(_EMPTY_WORDS.split())


def words_of(text: str) -> list[str]:
    """Return the words and numbers of a text as they are written, in order."""
    return _WORD.findall(text)


def keywords_of(question: str) -> list[str]:
    """Return the words of a question that carry its meaning, each once, in order."""
    seen: dict[str, str] = {}
    for word in words_of(question):
        if len(word) > 1 and word.lower() not in _EMPTY:
            seen.setdefault(word.lower(), word)
    return list(seen.values())


def trunk_of(word: str) -> str:
    """Return the beginning of a word that its singular and plural share, to be searched for."""
    is_plural = len(word) > _STEM_LETTERS_MIN + 1 and word.endswith("s") and word[-2] != "s"
    return word[:-1] if is_plural else word


def stem_of(word: str) -> str:
    """Return a rough stem, the same for most forms of an English word."""
    lowered = word.lower()
    for suffix in _SUFFIXES:
        if lowered.endswith(suffix) and len(lowered) - len(suffix) >= _STEM_LETTERS_MIN:
            return lowered[: -len(suffix)]
    return lowered
