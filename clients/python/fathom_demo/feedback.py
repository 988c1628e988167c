"""Customer feedback: the records that the demo asks to be counted by category.

A record names no category: what it is about follows from its prose alone. This module
knows the right answers; the models that are asked never see it.
"""

from __future__ import annotations

from random import Random

MARKER = "FEEDBACK "
"""What each record's line starts with, and no other line."""

CATEGORIES = ("billing", "delivery", "product defect", "account access", "praise")

_WEIGHTS = (30, 24, 20, 15, 11)

_ITEMS = (
    "espresso machine", "desk lamp", "rain jacket", "kettle", "bicycle helmet", "bread knife",
    "office chair", "hand blender", "travel bag", "radio", "garden hose", "wool blanket",
    "toaster", "sewing machine", "tent", "crêpe pan", "coffee grinder", "wall clock",
)  # fmt: skip
_PARTS = ("handle", "lid", "hinge", "base", "zip", "front panel")
_SUMS = ("14.90 euros", "£32.50", "$118", "249 kronor", "89 francs", "$7.25", "63 euros")
_PLACES = (
    "Málaga", "Aarhus", "Leeds", "Zürich", "Göteborg", "Porto", "Besançon", "Carlow",
    "Cork", "Tromsø", "Évora", "Lyon", "Nürnberg", "Den Haag", "La Coruña", "Oulu",
)  # fmt: skip
_PEOPLE = (
    "Ana Ruiz", "Søren Holm", "Zoë Whitaker", "Jürgen Brandt", "Maëlle Girard", "Tom Okafor",
    "Priya Nair", "Åsa Lindqvist", "Inês Duarte", "Piotr Zielak", "Grace Mbeki", "Noah Feld",
    "René Caron", "Hanna Väisänen", "Luis Ibáñez", "Keiko Mori", "Björk Ósk", "Mark Dunne",
)  # fmt: skip
_MONTHS = ("January", "March", "May", "June", "September", "November")

_CORES: dict[str, tuple[str, ...]] = {
    "billing": (
        "my card was charged twice for the {item}, once on Monday and again on Thursday.",
        "the invoice for the {item} says {sum} more than the offer I agreed to.",
        "I sent the {item} back in {month} and the refund of {sum} has still not reached my bank.",
        "the discount was shown in the basket, yet I paid the full price for the {item}.",
        "there is a fee of {sum} on my statement that nobody can explain to me.",
        "you keep taking the monthly subscription from my card although I cancelled in {month}.",
        "the VAT number is missing on the receipt, so my bookkeeper will not take it.",
        "two payments left my bank although I ordered a single {item}.",
        "the price went up by {sum} between the basket and the receipt.",
        "the voucher for {sum} was swallowed and the invoice ignores it.",
        "I was overcharged by {sum}; my bank calls it a pending payment since {month}.",
        "your invoice is made out to a firm in {place} that I have never heard of.",
    ),
    "delivery": (
        "the parcel with the {item} has been sitting in {place} for {days} days.",
        "the courier left the box with the {item} in the rain at the wrong house.",
        "the tracking page says handed over, yet nothing has arrived here in {place}.",
        "the {item} was promised for Friday and the van came {days} days late.",
        "the driver never rang, and the depot in {place} sent the package back.",
        "half of the shipment is missing: only the {item} was in the carton.",
        "I paid extra for express shipping and the {item} still took {days} days to arrive.",
        "the parcel went to my old street in {place} although I gave you the new one.",
        "the tracking number has not moved since {month}, and the courier knows nothing.",
        "somebody else in {place} signed for my package with the {item}.",
        "the carrier wants a signature at ten in the morning, when everybody is at work.",
        "my order left the warehouse in {month} and the carrier has lost it on the way.",
    ),
    "product defect": (
        "the {item} stopped working after {days} days.",
        "a crack runs across the {part} of the {item} and water leaks from it.",
        "the {item} gets so hot that the casing has started to melt.",
        "the battery of the {item} is flat after ten minutes, and charging does not help.",
        "the {part} broke off the {item} the first time I touched it.",
        "the {item} makes a grinding noise and then switches itself off.",
        "the {part} of the {item} is bent and will not close.",
        "sparks came out of the {item}, and since then it is dead.",
        "the stitching on the {item} came apart in the first week.",
        "the {part} is loose, it rattles, and a screw fell out of the {item}.",
        "rust appeared on the {part} of the {item} within {days} days.",
        "the {item} arrived on time, but the {part} is broken and the motor smells burnt.",
    ),
    "account access": (
        "the password reset mail never comes, so I have been locked out for {days} days.",
        "I cannot log in any more: the page says that my user name is unknown.",
        "the two-factor code always reaches my phone after it has expired.",
        "since the update the app signs me out every few minutes.",
        "my profile was blocked after three attempts and nobody can unlock it.",
        "I have a new phone and cannot get past the verification step.",
        "a stranger's e-mail is tied to my login, and I am locked out.",
        "the app rejects my password since {month}, although it works on the web page.",
        "my login is shown as suspended, and the form to unlock it wants the old phone.",
        "I never get the verification mail, so my user name stays inactive.",
        "my sign-in ends in a loop: password, code, password, code.",
        "the login page forgot me when I married and changed my user name.",
    ),
    "praise": (
        "the {item} is the best I have ever owned, thank you so much.",
        "what a pleasure: {person} in your shop solved everything in five minutes.",
        "I am delighted with the {item}; it looks even lovelier than in the pictures.",
        "wonderful service from start to finish, I recommend you to all my friends.",
        "five stars for the {item}, and a big compliment to {person} on the phone.",
        "my mother adores the {item} and smiles each time she uses it.",
        "hats off to {person}, who stayed friendly through all my questions. Brilliant!",
        "excellent quality, the {item} exceeded everything I had hoped for.",
        "I just wanted to say how happy we are with the {item}. Perfect!",
        "you have a fan for life: the {item} is superb and {person} was charming.",
        "compliments to whoever designed the {item}, it is a joy to use.",
        "fantastic advice from {person}; the {item} suits our kitchen perfectly.",
    ),
}
_OPENERS = (
    "Hello,", "Good morning,", "Dear all,", "A short word from {place}:", "Hi there,",
    "As I said to {person}:", "To whom it may concern:", "My second message:", "For your files:",
    "Writing for my father:", "About my last order:", "A customer since 2016 here;",
)  # fmt: skip
_CLOSERS = (
    "Regards, {person}", "Greetings from {place}.", "You can reach me after five.",
    "Thanks for reading.", "Please pass this on.", "Yours, {person}", "No answer needed by phone.",
    "I look forward to hearing from you.", "Sent from the train to {place}.", "",
)  # fmt: skip


def draw_categories(rng: Random, count: int) -> list[str]:
    """Return `count` categories, the first ones of CATEGORIES more often than the last."""
    return rng.choices(CATEGORIES, _WEIGHTS, k=count)


def record_line(rng: Random, number: int, category: str) -> str:
    """Return one record without its line end: marker, id, date, sender and free text."""
    words = {
        "item": _one(rng, _ITEMS),
        "part": _one(rng, _PARTS),
        "sum": _one(rng, _SUMS),
        "place": _one(rng, _PLACES),
        "person": _one(rng, _PEOPLE),
        "month": _one(rng, _MONTHS),
        "days": str(3 + int(rng.random() * 20)),
    }
    day = f"2025-{1 + int(rng.random() * 12):02d}-{1 + int(rng.random() * 28):02d}"
    prose = " ".join((_one(rng, _OPENERS), _one(rng, _CORES[category]), _one(rng, _CLOSERS)))
    return f"{MARKER}F-{number:05d} {day} {_one(rng, _PEOPLE)}: {prose.format(**words)}".rstrip()


def _one(rng: Random, choices: tuple[str, ...]) -> str:
    return choices[int(rng.random() * len(choices))]
