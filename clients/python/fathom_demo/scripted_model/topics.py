"""What everyday category names stand for: the words by which people speak of such things.

A language model knows this; the sub-model's policy has `topics.json` instead. That is written
from the meaning of the categories, and a category that is not in it is told by its own words.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import orjson

from fathom_demo.scripted_model.words import stem_of, words_of

_WEIGHTS = {"strong": 3, "weak": 1}
"""What a cue that settles a topic counts for, and one that only hints at it."""


class TopicTable:
    """Cues of a given set of categories, ready to look up."""

    def __init__(self, categories: Sequence[str]) -> None:
        self._weights: dict[str, list[tuple[str, int]]] = {}
        for category in categories:
            for cue, weight in _cues_of(category):
                self._weights.setdefault(cue, []).append((category, weight))

    def best_category(self, text: str) -> str | None:
        """Return the category with the most cues in a text; None for none or a draw."""
        words = [word.lower() for word in words_of(text)]
        pairs = [f"{first} {second}" for first, second in itertools.pairwise(words)]
        scores: dict[str, int] = {}
        for cue in {*words, *pairs, *map(stem_of, words)}:
            for category, weight in self._weights.get(cue, ()):
                scores[category] = scores.get(category, 0) + weight
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
            return None
        return ranked[0][0]


def _cues_of(category: str) -> list[tuple[str, int]]:
    """Return the words and pairs of words that speak for a category, with their weights."""
    named = {word.lower() for word in words_of(category)}
    for topic in _topics().values():
        if named.intersection(topic["names"]):
            return [(cue, weight) for kind, weight in _WEIGHTS.items() for cue in topic[kind]]
    return [(stem_of(word), _WEIGHTS["strong"]) for word in named]


@cache
def _topics() -> dict[str, Any]:
    data = resources.files(__package__).joinpath("topics.json").read_bytes()
    topics: dict[str, Any] = orjson.loads(data)
    return topics
