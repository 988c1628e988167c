"""The sub-model's policy: written rules in the place of a language model.

It sorts records into categories, answers questions with the sentence that fits them best, and
shortens texts to their weightiest sentences; always from the prompt's own text alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from fathom_demo.scripted_model.openai_wire import ChatRequest, Reply
from fathom_demo.scripted_model.topics import TopicTable
from fathom_demo.scripted_model.words import keywords_of, stem_of, words_of

NOT_FOUND = "NOT FOUND"
UNCLEAR = "unclear"

_CATEGORIES = re.compile(r"^\s*categories[^:\n]*:\s*(.+)$", re.IGNORECASE | re.MULTILINE)
_RECORDS = re.compile(r"^\s*(?:records|items|texts?)[^:\n]*:\s*\n", re.IGNORECASE | re.MULTILINE)
_NUMBERED = re.compile(r"^\s*(\d+)[.):]\s+(.+)$", re.MULTILINE)
_QUESTION = re.compile(r"^\s*(?:question|query)\s*:\s*(.+)$", re.IGNORECASE | re.MULTILINE)
_SUMMARY = re.compile(r"\b(summari[sz]e|summary|shorten|main points)\b", re.IGNORECASE)
_FINDINGS_ASKED = re.compile(r"\bone finding a line\b", re.IGNORECASE)
_FINDINGS_GIVEN = re.compile(r"^\s*findings\s*:", re.IGNORECASE | re.MULTILINE)
_WRAPPED = re.compile(r"(?<=[^\s.!?:;}\])>])\n(?=[a-zà-ÿ(])|(?<=[^\W\d_])\n(?=\d)")
_WRAPPED_LONG = re.compile(r"^(.{60,}[^\W\d_])\n(?=\w)", re.MULTILINE)
"""Line ends inside a sentence; before a capital letter only after a long line of prose."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'(A-ZÀ-Þ])|\n+")
_VALUE = re.compile(r"\b(?=[\w./:-]*\d)[\w]+(?:[-./:][\w]+)*")
_PASSAGE_NUMBER = re.compile(r"^\[\d+\] ", re.MULTILINE)
_DATE_OR_TIME = re.compile(r"\d{4}-\d\d-\d\d\S*|\d\d?:\d\d(:\d\d)?")
_WANTS_DATE_OR_TIME = re.compile(r"\b(date|day|time|when)\b", re.IGNORECASE)
_WANTS_VALUE = re.compile(
    r"\b(code|number|pin|port|id|version|amount|price|how (?:many|much)|key|date)\b", re.IGNORECASE
)

_COVERED_MIN = 0.6
"""Share of the question's weight that a sentence must cover to count as an answer."""
_FINDING_FIT_MIN = 0.25
_WORDS_OF_A_WHOLE_SENTENCE = 6
_SENTENCES_TOLD = 3


class SubPolicy:
    """Answers as a sub-model that is given its data in the prompt, by rules."""

    description = "A written policy in the place of a sub-model. Not a language model."

    def __call__(self, request: ChatRequest) -> Reply:
        """Return what the rules make of the newest message from the user."""
        asked = [message.content for message in request.messages if message.role == "user"]
        return Reply(_answer(asked[-1] if asked else request.messages[-1].content))


def _answer(prompt: str) -> str:
    categories, question = _CATEGORIES.search(prompt), _QUESTION.search(prompt)
    if categories and (question is None or categories.start() < question.start()):
        return _sorted_records(prompt, categories.group(1))
    if question:
        return _told_from(prompt[question.end() :], question.group(1), prompt[: question.start()])
    first, _, rest = prompt.partition("\n")
    if _SUMMARY.search(first):
        return _summary(rest or first)
    return _told_from(rest or first, first, "")


def _sorted_records(prompt: str, listed: str) -> str:
    categories = tuple(name.strip(" .\"'`") for name in re.split(r"[,;|]", listed))
    start = _RECORDS.search(prompt)
    body = prompt[start.end() :] if start else prompt
    table = _table(categories)
    return "\n".join(
        f"{number}: {table.best_category(_prose_of(record)) or UNCLEAR}"
        for number, record in _NUMBERED.findall(body)
    )


@lru_cache(maxsize=64)
def _table(categories: tuple[str, ...]) -> TopicTable:
    return TopicTable(categories)


def _prose_of(record: str) -> str:
    """Return what a record says, without the head that tells who wrote it and when."""
    head, separator, prose = record.partition(": ")
    return prose if separator and len(head) < len(record) // 2 else record


def _told_from(body: str, question: str, instruction: str) -> str:
    """Answer a question from a text, as one value and its sentence or as a few sentences."""
    keywords = [stem_of(word) for word in keywords_of(question)]
    sentences = _sentences_of(body)
    weights = _weights(keywords, sentences)
    whole = sum(weights.values()) or 1.0
    covered = [
        sum(weights[word] for word in weights.keys() & stems) / whole for _, stems in sentences
    ]
    if _WANTS_VALUE.search(question) and not _FINDINGS_ASKED.search(instruction):
        takes_dates = bool(_WANTS_DATE_OR_TIME.search(question))
        answer = _value_and_sentence(sentences, covered, weights, takes_dates=takes_dates)
        if answer != NOT_FOUND or not _FINDINGS_GIVEN.search(body):
            return answer
    return _listed(sentences, covered)


_Sentence = tuple[str, frozenset[str]]
"""A sentence and the stems of its words."""


def _listed(sentences: list[_Sentence], covered: list[float]) -> str:
    """Return the sentences that fit best in their order, whole ones before scraps of code."""
    fit = [
        share * min(1.0, len(stems) / _WORDS_OF_A_WHOLE_SENTENCE)
        for share, (_, stems) in zip(covered, sentences, strict=True)
    ]
    told: dict[str, int] = {}
    for number in sorted(range(len(sentences)), key=lambda number: (-fit[number], number)):
        if len(told) == _SENTENCES_TOLD or fit[number] < _FINDING_FIT_MIN:
            break
        told.setdefault(sentences[number][0], number)
    return "\n".join(f"- {text}" for text in sorted(told, key=told.__getitem__)) or NOT_FOUND


def _value_and_sentence(
    sentences: list[_Sentence],
    covered: list[float],
    weights: dict[str, float],
    *,
    takes_dates: bool,
) -> str:
    """Return the value nearest to the question's words in the best sentence that has one."""
    for number in sorted(range(len(sentences)), key=lambda number: (-covered[number], number)):
        if covered[number] < _COVERED_MIN:
            return NOT_FOUND
        text = sentences[number][0]
        values = [
            value
            for value in _VALUE.finditer(text)
            if takes_dates or not _DATE_OR_TIME.fullmatch(value.group())
        ]
        if values:
            nearest = min(values, key=lambda value: _distance(text, value, weights))
            return f"{nearest.group()}\n{text}"
    return NOT_FOUND


def _distance(text: str, value: re.Match[str], weights: dict[str, float]) -> float:
    """Return how far a value stands from the words of the question, in characters."""
    gaps = [
        min(abs(value.start() - word.end()), abs(word.start() - value.end()))
        for word in re.finditer(r"\w+", text)
        if stem_of(word.group()) in weights and word.group() not in value.group()
    ]
    return sum(sorted(gaps)[:2]) if gaps else math.inf


def _weights(keywords: Sequence[str], sentences: list[_Sentence]) -> dict[str, float]:
    """Return a weight for each keyword: the rarer among the sentences, the heavier."""
    seen = Counter(word for _, stems in sentences for word in stems.intersection(keywords))
    return {word: 1 / math.log(2 + seen[word]) for word in dict.fromkeys(keywords)}


def _sentences_of(text: str) -> list[_Sentence]:
    """Return the sentences of prose, and the lines of what is none."""
    unnumbered = _PASSAGE_NUMBER.sub("", text)
    joined = _WRAPPED.sub(" ", _WRAPPED_LONG.sub(r"\1 ", unnumbered))
    parts = (part.strip(" \t-*") for part in _SENTENCE.split(joined))
    return [(part, frozenset(map(stem_of, words_of(part)))) for part in parts if len(part) > 1]


def _summary(text: str) -> str:
    """Return the weightiest sentences of a text in their order."""
    sentences = _sentences_of(text)
    counted = Counter(word for _, stems in sentences for word in stems if len(word) > 3)
    ranked = sorted(
        range(len(sentences)),
        key=lambda number: (
            -sum(counted[word] for word in sentences[number][1]) / (8 + len(sentences[number][1])),
            number,
        ),
    )
    return " ".join(sentences[number][0] for number in sorted(ranked[:_SENTENCES_TOLD]))
