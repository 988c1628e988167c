"""What an answer claims of the context, found in its text or JSON."""

from __future__ import annotations

import json
import time

import pytest

from orchestrator.runs.answers.claims import CLAIMS_MAX, QUOTE_CHARACTERS_MAX, Claim, claims_of


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("Nothing is quoted here.", []),
        ("It was so [cite:a.txt:10-25].", [Claim("a.txt", 10, 25)]),
        ("It was so [cite:10-25].", [Claim("", 10, 25)]),
        ("[cite:odd]name:1.txt:3-4]", [Claim("odd]name:1.txt", 3, 4)]),
        ("[cite:a:1-2][cite:a:1-2]", [Claim("a", 1, 2)]),
        ("[cite:a:1-2] and [cite:b:3-4]", [Claim("a", 1, 2), Claim("b", 3, 4)]),
        ("[cite:a:x-4] [cite:] [cite:a:5-] [cite:a:1-2", []),
        ("[cite:a:1-9999999999999999]", []),
        ("He wrote “we paid it in full” in May.", [Claim(quote="we paid it in full")]),
        ('He wrote "we paid it in full."', [Claim(quote="we paid it in full")]),
        (
            "Er schrieb „wir haben alles voll bezahlt“.",
            [Claim(quote="wir haben alles voll bezahlt")],
        ),
        ("Il dit « nous avons tout payé » en mai.", [Claim(quote="nous avons tout payé")]),
        ('The so-called "best effort" clause.', []),
        ('He said "no" [cite:a:1-3].', [Claim("a", 1, 3, "no")]),
        ("He said “no”, [cite:1-3]", [Claim("", 1, 3, "no")]),
        ("“no” he said, as in [cite:1-3]", [Claim("", 1, 3)]),
        (
            '"one two three four" [cite:1-3] [cite:5-9]',
            [Claim("", 1, 3, "one two three four"), Claim("", 5, 9)],
        ),
        ('6" by 4" and then it was\n\nmany more words than this "', []),
    ],
)
def test_claims_of_a_text(text: str, claims: list[Claim]) -> None:
    assert claims_of(text, is_json=False) == claims


@pytest.mark.parametrize(("words", "is_claim"), [(3, False), (4, True)])
def test_a_quotation_of_few_words_is_no_claim(words: int, is_claim: bool) -> None:
    """Names and turns of speech stand in quotation marks too."""
    assert bool(claims_of(f"“{'word ' * words}”", is_json=False)) is is_claim


@pytest.mark.parametrize(("extra", "is_claim"), [(0, True), (1, False)])
def test_a_quotation_has_a_largest_size(extra: int, is_claim: bool) -> None:
    quote = ("a b c d " + "x" * QUOTE_CHARACTERS_MAX)[: QUOTE_CHARACTERS_MAX + extra]

    assert bool(claims_of(f"“{quote}”", is_json=False)) is is_claim


def test_claims_of_json() -> None:
    """A typed answer has a form of its own for what it rests on."""
    value = {
        "total": 3,
        "evidence": [
            {"document": "a", "start": 1, "end": 5, "quote": "paid"},
            {"quote": "two words", "page": 4},
            {"document": "b", "start": 7, "end": 9},
            {"start": 7, "end": 9},
            {"document": "b", "start": True, "end": 9.5, "quote": ""},
        ],
        "note": "as in “one two three four five” and [cite:c:1-2]",
    }

    assert claims_of(json.dumps(value, ensure_ascii=False), is_json=True) == [
        Claim("a", 1, 5, "paid"),
        Claim(quote="two words"),
        Claim("b", 7, 9),
        Claim(quote="one two three four five"),
        Claim("c", 1, 2),
    ]


def test_numbers_that_no_place_has_are_no_place() -> None:
    value = {"document": "a", "start": 2**63, "end": 2**64 - 1, "quote": "q"}

    assert claims_of(json.dumps(value), is_json=True) == [Claim("a", None, None, "q")]


def test_what_is_said_to_be_json_and_is_none_is_read_as_text() -> None:
    assert claims_of("{[cite:1-2]", is_json=True) == [Claim("", 1, 2)]


def test_what_code_cited_follows_what_the_text_names() -> None:
    cited = [Claim("a", 1, 5, "paid"), Claim("b", 2, 3, "x"), Claim(quote="as code says")]

    assert claims_of("[cite:b:2-3] “as code says”", is_json=False, cited=cited) == [
        Claim("b", 2, 3, "x"),
        Claim("a", 1, 5, "paid"),
        Claim(quote="as code says"),
    ]


def test_the_quotation_before_a_marker_goes_before_what_code_took_from_there() -> None:
    """What the reader is shown is what must stand there."""
    cited = [Claim("a", 1, 5, "paid")]

    assert claims_of("“unpaid” [cite:a:1-5]", is_json=False, cited=cited) == [
        Claim("a", 1, 5, "unpaid")
    ]


def test_claims_are_bounded_in_number() -> None:
    text = " ".join(f"[cite:{n}-{n + 1}]" for n in range(10_000))
    cited = [Claim("a", n, n + 1) for n in range(10_000)]

    assert len(claims_of(text, is_json=False)) == CLAIMS_MAX
    assert len(claims_of("", is_json=False, cited=cited)) == CLAIMS_MAX


@pytest.mark.parametrize(("characters", "count"), [(524, 500), (525, 499), (2_000, 131)])
def test_claims_are_bounded_in_size(characters: int, count: int) -> None:
    """An answer is sent whole, with all that it cites."""
    quotes = [Claim("", n, n + characters, "x" * characters) for n in range(500)]
    places = " ".join(f"[cite:{n}-{n + characters}]" for n in range(500))

    assert len(claims_of("", is_json=False, cited=quotes)) == count
    assert len(claims_of(places, is_json=False)) == count


@pytest.mark.parametrize(
    "piece",
    ["[cite:", "“", '"', "„", "[cite:a:1-", "]", ":1-2", '"\n', "[cite:" + "]" * 1_000, "« ", "[{"],
)
@pytest.mark.parametrize("is_json", [False, True])
def test_hostile_texts_are_read_in_linear_time(piece: str, is_json: bool) -> None:
    """An answer is the model's, and so may be anybody's."""
    text = piece * ((1 << 20) // len(piece))
    started = time.process_time()

    assert len(claims_of(text, is_json=is_json)) <= CLAIMS_MAX
    assert time.process_time() - started < 20
