"""FINAL and FINAL_VAR in a reply's text: what was meant is taken, and nothing else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.runs.answers.directives import Directive, Problem, Stretch, last_directive


def found(text: str) -> Directive | None:
    return last_directive([Stretch(text, text)])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("FINAL(42 apples)", "42 apples"),
        ("So:\n  FINAL(yes, it is)", "yes, it is"),
        ("FINAL(a (b) c)", "a (b) c"),
        ("FINAL (spaced)", "spaced"),
        ('FINAL("a ) b")', "a ) b"),
        ("FINAL('it (is')", "it (is"),
        ('FINAL("""two\nlines""")', "two\nlines"),
        ("FINAL(two\nlines)", "two\nlines"),
        ("FINAL(It's Ann's)", "It's Ann's"),
        ("FINAL(rock 'n' roll (live))", "rock 'n' roll (live)"),
        ("FINAL(fine :) really)", "fine :) really"),
        ('FINAL(the mark ")" is used)', 'the mark ")" is used'),
        ("FINAL(`f(x)` and `)`)", "`f(x)` and `)`"),
        ("FINAL(done).", "done"),
        ("FINAL(done) as I said\nmore (text)", "done"),
        ("FINAL(first)\nFINAL(second)", "second"),
        ("FINAL(lost\nFINAL(kept)", "kept"),
        ('FINAL("""a\nFINAL(b)\n""")', "a\nFINAL(b)"),
        ("FINAL([1, 2])", "[1, 2]"),
    ],
)
def test_the_argument_is_read_whole(text: str, answer: str) -> None:
    """The first `)` is rarely the end of an answer in prose."""
    directive = found(text)

    assert directive is not None
    assert (directive.text, directive.problem) == (answer, None)


@pytest.mark.parametrize(
    ("text", "directive"),
    [
        ("FINAL(yes, confidence=0.9)", Directive(text="yes", bare_name="yes", confidence=0.9)),
        ('FINAL("a, b",\tconfidence = .5)', Directive(text="a, b", confidence=0.5)),
        ("FINAL_VAR(report, confidence=1)", Directive(variable="report", confidence=1.0)),
        ("FINAL(so it is, confidence=0)", Directive(text="so it is", confidence=0.0)),
        ("FINAL(x, confidence=1.01)", Directive(problem=Problem.NOT_A_CONFIDENCE)),
        ('FINAL("x, confidence=0.9")', Directive(text="x, confidence=0.9")),
        ("FINAL(confidence=0.9)", Directive(text="confidence=0.9")),
        ("FINAL(, confidence=0.9)", Directive(problem=Problem.EMPTY, confidence=0.9)),
        ("FINAL(it was low, confidence=low)", Directive(text="it was low, confidence=low")),
    ],
)
def test_a_confidence_is_told_from_the_answer(text: str, directive: Directive) -> None:
    """Written as for the function in a cell, since models write both alike."""
    assert found(text) == directive


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no end",
        "I will use FINAL(x) soon",
        "- FINAL(x)",
        "    FINAL(x)",
        "FINALLY(x)",
        "FINAL x",
    ],
)
def test_only_a_line_start_begins_a_directive(text: str) -> None:
    """A model that talks about FINAL has not given it."""
    assert found(text) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("FINAL()", Problem.EMPTY),
        ("FINAL(  )", Problem.EMPTY),
        ('FINAL("")', Problem.EMPTY),
        ("FINAL(...)", Problem.EMPTY),
        ("FINAL_VAR()", Problem.EMPTY),
        ("FINAL(open", Problem.UNFINISHED),
        ("FINAL(good)\nFINAL(cut", Problem.UNFINISHED),
        ('FINAL(f"{n} found")', Problem.CODE),
        ("FINAL_VAR(a.b)", Problem.NOT_A_NAME),
        ('FINAL_VAR("two words")', Problem.NOT_A_NAME),
    ],
)
def test_a_directive_without_an_answer_says_what_is_wrong(text: str, problem: Problem) -> None:
    """The model is told, instead of a wrong answer being taken."""
    directive = found(text)

    assert directive is not None
    assert directive.problem is problem


@pytest.mark.parametrize("argument", ["total", '"total"', "'total'", "`total`", " total "])
def test_final_var_takes_a_name_with_or_without_quotes(argument: str) -> None:
    assert found(f"FINAL_VAR({argument})") == Directive(variable="total")


def test_a_bare_name_is_kept_apart_from_a_quoted_one() -> None:
    """`FINAL(total)` may mean the variable; `FINAL("total")` means the word."""
    assert found("FINAL(total)") == Directive(text="total", bare_name="total")
    assert found('FINAL("total")') == Directive(text="total")


def test_a_directive_begins_in_prose_only_and_reaches_over_blanked_code() -> None:
    """An answer may hold a block of code; code may not hold the answer."""
    text = "FINAL(see\nFINAL(3)\nend)"
    search = "FINAL(see\n        \nend)"

    assert last_directive([Stretch(text, search)]) == Directive(text="see\nFINAL(3)\nend")


def test_a_directive_does_not_reach_into_the_next_stretch() -> None:
    directive = last_directive([Stretch("FINAL(a", "FINAL(a"), Stretch("b)", "b)")])

    assert directive == Directive(problem=Problem.UNFINISHED)


@pytest.mark.parametrize("text", ["FINAL(\n" * 20_000, "FINAL(" + "'a " * 30_000, "(" * 100_000])
def test_a_hostile_reply_takes_no_time(text: str) -> None:
    """A reply is the model's: it must not hold up the other runs."""
    started = time.process_time()

    found(text)

    assert time.process_time() - started < 20


@given(st.text())
def test_no_text_breaks_the_search(text: str) -> None:
    directive = found(f"FINAL({text})")

    assert directive is not None


@given(st.text(alphabet=st.characters(exclude_characters="()\"'`\n\r\0\\"), min_size=1))
def test_plain_words_come_back_as_they_are(words: str) -> None:
    directive = found(f"FINAL({words})")

    assert directive is not None
    assert directive.text == words.strip() or directive.problem is Problem.EMPTY
