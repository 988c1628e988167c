"""The answers that the runs of a storm must end with, whatever is killed."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from tests.chaos.marks import Mark
from tests.chaos.scripts import (
    BIG,
    DRAWN,
    INVENTED,
    LETTERS,
    MINUTE,
    NOTE,
    PART,
    SENTENCE,
    VALUE,
    said,
    script_of,
    typed_number,
    uploaded_text,
)

_SUM = sum(range(100_000))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is known of a run that has ended."""

    mark: Mark
    """Which run."""
    printed: Mapping[int, Any]
    """What its cells have printed, by turn."""
    before: Any = None
    """The answer of the run that it goes on from."""


def what_is_wrong(outcome: Outcome, answer: str) -> str:
    """Return what is wrong with a run's answer; empty for the right one."""
    try:
        right = _ANSWERS[outcome.mark.kind](outcome)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        return f"printed {outcome.printed}: {error!r}"
    try:
        given = json.loads(answer)
    except ValueError:
        return f"no answer: {answer[:300]!r}"
    return "" if given == right else f"answered {given} in place of {right}"


def _answers(mark: Mark, count: int) -> list[str]:
    return [said(prompt) for prompt in mark.prompts(count)]


def _draws(outcome: Outcome) -> Any:
    mark, first = outcome.mark, outcome.printed[1]
    found = _answers(mark, 12)
    found[6:6] = [said(f"{mark}{DRAWN}{first}")]
    return [found, [*first, outcome.printed[2][-1], _SUM]]


def _tree(outcome: Outcome) -> Any:
    a, b, c, d = outcome.mark.children("abcd")
    sizes = {a: len(NOTE), b: len(NOTE), c: 200, d: len(VALUE)}
    found = _answers(outcome.mark, 6) + [_child_answer(child, sizes[child]) for child in sizes]
    return [found, outcome.printed[1]]


def _child_answer(mark: Mark, size: int) -> str:
    script = script_of(mark)
    below = [_child_answer(child, size) for child in mark.children(script.children)]
    return "-".join([*_answers(mark, script.prompts), *below, str(size)])


def _orders(outcome: Outcome) -> Any:
    mark = outcome.mark
    receipts = [said(f"{mark} {number}") for number in range(3)]
    found = [*receipts[:2], *_answers(mark, 3), receipts[2], "HostToolError"]
    return [found, ",".join(receipts)]


def _talk(outcome: Outcome) -> Any:
    return [_answers(outcome.mark, 6), outcome.printed[1]]


def _talk_on(outcome: Outcome) -> Any:
    found, drawn = outcome.before
    return [found + _answers(outcome.mark, 4), drawn, outcome.printed[1]]


def _fork(outcome: Outcome) -> Any:
    origin = Mark("draws", outcome.mark.number)
    found = _answers(origin, 6) + _answers(outcome.mark, 4)
    return [found, [*outcome.printed[1], outcome.printed[2][-1]]]


def _typed(outcome: Outcome) -> Any:
    found = [*_answers(outcome.mark, 4), str(typed_number(outcome.mark))]
    return {"found": found, "count": len(found)}


def _cited(outcome: Outcome) -> Any:
    at = LETTERS["letter.txt"].index(SENTENCE)
    marker = f"[cite:letter.txt:{at}-{at + len(SENTENCE)}]"
    words = f"It is said {marker}. “{MINUTE}”, and “{INVENTED}”."
    return [*_answers(outcome.mark, 4), words]


def _big(outcome: Outcome) -> Any:
    mark = outcome.mark
    matches = [BIG.index(f"line 00{number}0000") for number in range(1, 6)]
    places = [len(BIG), BIG.find("line 0050000"), BIG.count("little"), matches]
    (child,) = mark.children("b")
    size = PART.stop - PART.start
    sliced = said(f"sub {mark} 4 {BIG[PART]}")
    return [[*_answers(mark, 4), sliced, _child_answer(child, size)], places]


def _uploaded(outcome: Outcome) -> Any:
    text = uploaded_text(outcome.mark)
    return [_answers(outcome.mark, 6), len(text), zlib.crc32(text.encode())]


_ANSWERS: dict[str, Callable[[Outcome], Any]] = {
    "draws": _draws,
    "tree": _tree,
    "orders": _orders,
    "talk": _talk,
    "talked": _talk_on,
    "forked": _fork,
    "typed": _typed,
    "cited": _cited,
    "big": _big,
    "uploaded": _uploaded,
}
