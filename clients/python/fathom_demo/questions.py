"""The two questions that the demo asks of its corpus, and how an answer is judged.

The questions say how the text looks and what is wanted; they hold no part of the answer.
"""

from __future__ import annotations

import re

from fathom_demo.corpus import CorpusTruth
from fathom_demo.feedback import CATEGORIES, MARKER

_CITED = re.compile(r"\[cite:[^\]\n]*\]")


def search_question(truth: CorpusTruth) -> str:
    """Return the question whose answer stands in one sentence of the whole text."""
    return f"What is the vault code of the {truth.needle_place}?"


COUNT_QUESTION = (
    "Customer feedback is spread through the text, one record a line, each line starting with"
    f' "{MARKER.strip()}". No record names its category: it follows from what the customer writes.'
    f" How many records are there in each of these categories: {', '.join(CATEGORIES)}?"
)


def search_is_right(answer: str, truth: CorpusTruth) -> bool:
    """Tell whether an answer gives the right code and no other."""
    told = _CITED.sub("", answer)  # whose numbers are places
    return set(re.findall(r"\b\d{4}-\d{4}\b", told)) == {truth.needle_code}


def count_is_right(answer: str, truth: CorpusTruth) -> bool:
    """Tell whether an answer gives the right number beside each category's name.

    Any layout will do in which the number is the first one after the name.
    """
    return all(_number_after(name, answer) == count for name, count in truth.counts.items())


def _number_after(name: str, answer: str) -> int | None:
    found = re.search(rf"{re.escape(name)}\D*?(\d[\d,]*)", answer, re.IGNORECASE)
    return int(found.group(1).replace(",", "")) if found else None
