"""What an answer claims to stand in the context: markers such as `[cite:NAME:120-180]`, texts in
quotation marks, and places named in JSON. Whether it is true is not looked at here.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

CLAIMS_MAX = 500
QUOTE_CHARACTERS_MAX = 2_000
CLAIMED_CHARACTERS_MAX = 256 << 10
"""Of all quotes, places and names of one answer together: an answer is a part of messages."""
WORDS_MIN = 4
"""A text in quotation marks with fewer words is a name or a turn of speech as often as not."""
_NAME_CHARACTERS_MAX = 1_024
_PLACE_CHARACTERS_MAX = 33
_POSITION_MAX = 10**15
_MARKER = "[cite:"
_BARE_PLACE = re.compile(r"(\d{1,15})-(\d{1,15})\]")
_PLACE = re.compile(r":(\d{1,15})-(\d{1,15})\]")
_QUOTED = re.compile(
    rf"“([^“”]{{1,{QUOTE_CHARACTERS_MAX}}})”"
    rf"|«([^«»]{{1,{QUOTE_CHARACTERS_MAX}}})»"
    rf"|„([^„“”]{{1,{QUOTE_CHARACTERS_MAX}}})[“”]"
    rf'|"((?:[^"\n]|\n(?!\s*\n)){{1,{QUOTE_CHARACTERS_MAX}}})"'
)
_BETWEEN = re.compile(r"[\s.,;:)(]{0,4}")
"""What may stand between a quotation and its marker."""
_AROUND = " \t\r\n.,;:…"
"""Not the quotation's own: a sentence's end is put within the marks where none is in the text."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something that is said to stand in the context."""

    document: str = ""
    """The document's name; empty where none is named."""
    start: int | None = None
    """First character; None where no place is named."""
    end: int | None = None
    """After the last character; None where no place is named."""
    quote: str = ""
    """What is said to stand there; empty where only a place is named."""

    @property
    def has_place(self) -> bool:
        """Whether it names a place."""
        return self.start is not None

    @property
    def place(self) -> tuple[str, int | None, int | None]:
        """The place that it names."""
        return self.document, self.start, self.end


def claims_of(text: str, *, is_json: bool, cited: Iterable[Claim] = ()) -> list[Claim]:
    """Return the claims of an answer in their order, at most CLAIMS_MAX, each once, as far as they
    have CLAIMED_CHARACTERS_MAX together.

    `cited` is what code said with `cite`; of a place that the answer's text names too, the quote
    that stands before it there goes before the one that code gave.
    """
    cited = list(cited)
    known = {claim.place: claim for claim in cited if claim.has_place}
    found: dict[Claim, None] = {}
    for claim in _in_json(text) if is_json else _in_text(text):
        of_code = known.pop(claim.place, None) if claim.has_place else None
        found[claim if claim.quote or of_code is None else of_code] = None
        if len(found) == CLAIMS_MAX:
            return _as_many_as_fit(found)
    quotes = {claim.quote for claim in found}
    for claim in cited:
        if claim.place in known if claim.has_place else claim.quote not in quotes:
            found[claim] = None
    return _as_many_as_fit(found)


def _as_many_as_fit(claims: Iterable[Claim]) -> list[Claim]:
    taken, room = [], CLAIMED_CHARACTERS_MAX
    for claim in itertools.islice(claims, CLAIMS_MAX):
        place = min((claim.end or 0) - (claim.start or 0), QUOTE_CHARACTERS_MAX)
        room -= len(claim.document) + (len(claim.quote) or max(place, 0))
        if room < 0:
            break
        taken.append(claim)
    return taken


def _in_text(text: str) -> Iterator[Claim]:
    """Yield markers, each with the quotation before it, and quotations that have none."""
    markers = dict(itertools.islice(_markers(text), CLAIMS_MAX))
    ends: dict[int, Claim] = {}
    for quotation in _QUOTED.finditer(text):
        gap = _BETWEEN.match(text, quotation.end())
        after = gap.end() if gap else quotation.end()
        quote = next(part for part in quotation.groups() if part).strip()
        if after in markers:
            ends[after] = dataclasses.replace(markers[after], quote=quote)
        elif _MARKER not in quote:
            quote = quote.strip(_AROUND)
            if len(quote.split()) >= WORDS_MIN:
                ends[quotation.start()] = Claim(quote=quote)
    yield from (claim for _, claim in sorted((markers | ends).items(), key=lambda item: item[0]))


def _markers(text: str) -> Iterator[tuple[int, Claim]]:
    position = text.find(_MARKER)
    while position >= 0:
        body = position + len(_MARKER)
        after = text.find(_MARKER, body)
        stop = len(text) if after < 0 else after
        stop = min(stop, body + _NAME_CHARACTERS_MAX + _PLACE_CHARACTERS_MAX)
        # A name may hold brackets and colons: it ends where a place follows.
        place = _BARE_PLACE.match(text, body, stop) or _PLACE.search(text, body, stop)
        if place:
            yield position, Claim(text[body : place.start()], int(place[1]), int(place[2]))
        position = after


def _in_json(text: str) -> Iterator[Claim]:
    """Yield the places that JSON names, and what its other strings claim."""
    try:
        value: Any = orjson.loads(text)
    except orjson.JSONDecodeError:  # code said that it is JSON, and code says what it likes
        yield from _in_text(text)
        return
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield from _in_text(item)
        elif isinstance(item, list):
            waiting.extend(reversed(item))
        elif isinstance(item, dict):
            claim = _of_object(item)
            if claim is not None:
                yield claim
            rest = [part for key, part in item.items() if claim is None or key != "quote"]
            waiting.extend(reversed(rest))


def _of_object(item: dict[str, Any]) -> Claim | None:
    document, quote = item.get("document"), item.get("quote")
    start, end = item.get("start"), item.get("end")
    name = document[:_NAME_CHARACTERS_MAX] if isinstance(document, str) else ""
    has_place = _is_position(start) and _is_position(end)
    said = quote.strip() if isinstance(quote, str) else ""
    if len(said) > QUOTE_CHARACTERS_MAX or not (said or (has_place and isinstance(document, str))):
        return None
    return Claim(name, start if has_place else None, end if has_place else None, said)


def _is_position(value: object) -> bool:
    return type(value) is int and 0 <= value <= _POSITION_MAX
