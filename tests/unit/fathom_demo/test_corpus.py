"""The generated corpus and the truth told about it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from fathom_demo.corpus import CorpusTruth, write_corpus
from fathom_demo.feedback import CATEGORIES, MARKER, draw_categories, record_line
from fathom_demo.questions import COUNT_QUESTION, count_is_right, search_is_right, search_question

_TELLTALES = {
    "billing": r"card was charged|invoice|refund|full price|a fee of|subscription|receipt"
    r"|payments? left|pending payment|voucher",
    "delivery": r"parcel|courier|handed over|the van came|driver|shipment|express|package"
    r"|carrier",
    "product defect": r"stopped working|crack|casing|battery|broke off|grinding|is bent|sparks"
    r"|stitching|rattles|rust|is broken",
    "account access": r"password|log in|two-factor|signs me out|unlock|verification|login|sign-in",
    "praise": r"best I have|pleasure|delighted|wonderful|five stars|adores|hats off|excellent"
    r"|how happy|fan for life|compliments|fantastic",
}
"""One expression per category, written for this recount alone."""


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """Runs can be compared only if they are asked about the same text."""
    one = write_corpus(tmp_path / "one", 3, lines=6_000, records=50)
    two = write_corpus(tmp_path / "two", 3, lines=6_000, records=50)

    assert one == two
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_bytes_do_not_depend_on_the_version_of_python(tmp_path: Path) -> None:
    """A digest written down once holds wherever this test runs."""
    truth = write_corpus(tmp_path / "corpus", 1, lines=2_000, records=100)

    assert truth.sha256 == "b83f720a6d8317dbc99b60672a05a5942b560262ea6460f2d7bc8a5485ae08ae"


def test_another_seed_gives_another_text_and_needle(tmp_path: Path) -> None:
    """An answer learned from one corpus must not fit the next."""
    one = write_corpus(tmp_path / "one", 1, lines=1_000, records=10)
    two = write_corpus(tmp_path / "two", 2, lines=1_000, records=10)

    assert one.needle_code != two.needle_code
    assert one.sha256 != two.sha256


@pytest.mark.parametrize("lines", [300, 4_999, 5_000, 12_345])
def test_a_corpus_has_exactly_the_lines_asked_for(tmp_path: Path, lines: int) -> None:
    """Sizes below, at and above a section's size."""
    write_corpus(tmp_path / "corpus", 5, lines=lines, records=100)

    data = (tmp_path / "corpus").read_bytes()
    assert data.count(b"\n") == lines
    assert data.endswith(b"\n")


def test_records_that_just_fit_are_written(tmp_path: Path) -> None:
    """The limit's lower side: 200 lines are left for the rest."""
    assert write_corpus(tmp_path / "corpus", 5, lines=300, records=100).records == 100


def test_records_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """The limit's upper side."""
    with pytest.raises(ValueError, match="101 records do not fit in 300 lines"):
        write_corpus(tmp_path / "corpus", 5, lines=300, records=101)

    assert not (tmp_path / "corpus").exists()


def test_the_truth_about_the_file_is_true(tmp_path: Path) -> None:
    """Size and digest are those of the bytes on disk."""
    truth = write_corpus(tmp_path / "corpus", 8, lines=5_000, records=40)

    data = (tmp_path / "corpus").read_bytes()
    assert (truth.size_bytes, truth.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_recount_of_the_records_gives_the_truth(corpus: tuple[str, CorpusTruth]) -> None:
    """The counts are checked by other means than those that made them."""
    text, truth = corpus
    records = [line for line in text.splitlines() if line.startswith(MARKER)]
    counted: Counter[str] = Counter()
    for record in records:
        told = [name for name, telltale in _TELLTALES.items() if re.search(telltale, record)]
        if told == ["delivery", "billing"] or ("express" in record and len(told) > 1):
            told = ["delivery"]
        counted[told[0]] += 1
        assert len(told) == 1, record

    assert len(records) == truth.records
    assert dict(counted) == truth.counts


def test_the_needle_stands_once_in_the_text(corpus: tuple[str, CorpusTruth]) -> None:
    """Its code is told in one place, among other codes for other places."""
    text, truth = corpus
    codes = re.findall(r"\b\d{4}-\d{4}\b", text)

    assert text.count(truth.needle_code) == 1
    assert len(codes) == len(set(codes)) > 10


def test_the_needle_wanders_with_the_seed(tmp_path: Path) -> None:
    """A needle always near one end would be found by reading that end."""
    shares = []
    for seed in range(6):
        truth = write_corpus(tmp_path / "corpus", seed, lines=1_000, records=20)
        text = (tmp_path / "corpus").read_text(encoding="utf-8")
        shares.append(text.index(truth.needle_code) / len(text))

    assert min(shares) < 0.3
    assert max(shares) > 0.7


def test_no_record_names_its_category() -> None:
    """Otherwise counting would need no model."""
    rng = Random(1)
    lines = [
        record_line(rng, number, category)
        for number, category in enumerate(draw_categories(rng, 3_000))
    ]
    label = re.compile(
        r"\b(bill(ed|ing)|deliver|product|defect|account|access|praise)", re.IGNORECASE
    )

    assert [line for line in lines if label.search(line)] == []


def test_every_category_has_records(corpus: tuple[str, CorpusTruth]) -> None:
    """A category without records would count right by accident."""
    _, truth = corpus

    assert list(truth.counts) == list(CATEGORIES)
    assert min(truth.counts.values()) > 0


def test_the_text_has_accents_and_one_byte_characters_only(
    corpus: tuple[str, CorpusTruth],
) -> None:
    """Beyond U+00FF CPython would double the memory of the whole text."""
    text, _ = corpus

    assert "\xff" >= max(text) > "\x7f"


def test_a_right_search_answer_is_told_from_wrong_ones(corpus: tuple[str, CorpusTruth]) -> None:
    """An answer with a second code is a guess."""
    _, truth = corpus

    assert truth.needle_place in search_question(truth)
    assert search_is_right(f"It is {truth.needle_code}.", truth)
    assert not search_is_right(f"{truth.needle_code} or 0000-0000", truth)
    assert not search_is_right("I do not know.", truth)


def test_a_right_count_answer_is_told_from_wrong_ones(corpus: tuple[str, CorpusTruth]) -> None:
    """One wrong number is a wrong answer, in whatever layout."""
    _, truth = corpus
    right = "; ".join(f"**{name}**: {count}" for name, count in truth.counts.items())
    wrong = right.replace(str(truth.counts["praise"]), str(truth.counts["praise"] + 1))

    assert all(name in COUNT_QUESTION for name in CATEGORIES)
    assert count_is_right(right, truth)
    assert count_is_right(json.dumps(truth.counts), truth)
    assert not count_is_right(wrong, truth)
    assert not count_is_right("", truth)


def test_the_command_prints_the_truth_as_json(tmp_path: Path) -> None:
    """Scripts write the corpus with the command and keep what it prints."""
    path = tmp_path / "corpus.txt"
    command = [sys.executable, "-m", "fathom_demo.corpus", str(path), "--lines", "500"]
    done = subprocess.run(
        [*command, "--records", "20", "--seed", "4"], capture_output=True, check=True, timeout=60
    )

    truth = CorpusTruth(**json.loads(done.stdout))
    assert truth.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
