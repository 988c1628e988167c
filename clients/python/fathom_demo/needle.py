"""The one fact that the demo's search question asks for, and the passages that look like it.

Decoys tell the codes of other places, or speak of the right place and tell no code.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from random import Random

_PLACES = (
    "Halvorsen archive", "Brightwater depot", "Quintero gallery", "Lindgren mill",
    "Ashdown observatory", "Marchetti library", "Tannenhof annex", "Osei pavilion",
    "Kestrel boathouse", "Duval conservatory", "Penhallow lighthouse", "Ravnkilde brewery",
)  # fmt: skip
_LETTERS = (
    (
        "Dear Åse, I am off until the 20th, so here is what is left from the maintenance round."
        " The boiler was bled and the two lamps on the stairs have been replaced. Before I forget:"
        " the vault code of the {place} was changed after the inspection and is {code} from now"
        " on. The keys for the side door hang where they always hang. Everything else can wait."
    ),
    (
        "Notes from the maintenance visit, for whoever comes next. Roof dry, gutters cleared, one"
        " smoke detector without a battery. After the lock was serviced we set the vault code of"
        " the {place} to {code} and tried it three times. The visitor book is full, bring another"
        " one. The heating runs on the winter timetable."
    ),
    (
        "Hi Jérôme, the locksmith has been and gone. He oiled the hinges, billed two hours and"
        " was right about the draught. You asked, so I write it down only here: {code} is the"
        " vault code of the {place} since his visit. The alarm company knows. See you at the fête."
    ),
)
_OTHER_CODES = (
    "For the file: the vault code of the {place} is {code} until the next inspection.",
    "The locksmith set the vault code of the {place} to {code}; the janitor has it as well.",
)
_NO_CODES = (
    "Somebody asked again for the vault code of the {place}. Please never send codes by mail.",
    "The {place} stays closed on Friday, the vault is being painted and the code will change.",
    "The tour of the {place} now ends in front of the vault, which nobody may open.",
)


@dataclass(frozen=True)
class Needle:
    """What the search question is about."""

    place: str
    """Name of the place whose vault code is asked for."""
    code: str
    """The code, eight digits in two groups; it stands once in the whole text."""
    block: tuple[str, ...]
    """The lines that tell it, without line ends."""
    decoys: tuple[tuple[str, ...], ...]
    """Blocks of lines that are easily mistaken for it."""


def draw_needle(rng: Random) -> Needle:
    """Return a needle and its decoys; every code differs from every other."""
    order = sorted(_PLACES, key=lambda _: rng.random())
    codes = _distinct_codes(rng, 1 + 2 * (len(order) - 1))
    place, code = order[0], codes.pop()
    letter = _LETTERS[int(rng.random() * len(_LETTERS))]
    decoys = [_wrapped(text.format(place=place)) for text in _NO_CODES]
    for other in order[1:]:
        decoys += [_wrapped(text.format(place=other, code=codes.pop())) for text in _OTHER_CODES]
    return Needle(place, code, _wrapped(letter.format(place=place, code=code)), tuple(decoys))


def _distinct_codes(rng: Random, count: int) -> list[str]:
    codes: dict[str, None] = {}
    while len(codes) < count:
        digits = f"{int(rng.random() * 10**8):08d}"
        codes[f"{digits[:4]}-{digits[4:]}"] = None
    return list(codes)


def _wrapped(text: str) -> tuple[str, ...]:
    return tuple(textwrap.wrap(text, 92, break_on_hyphens=False))
