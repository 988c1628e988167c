"""How the root policy understands the question of a run."""

from __future__ import annotations

import pytest
from fathom_demo.questions import COUNT_QUESTION
from fathom_demo.scripted_model.openai_wire import Message
from fathom_demo.scripted_model.question import Kind, find_question, understand


@pytest.mark.parametrize(
    "content",
    [
        "Question: Who wrote it?\n\nThe context is a str of 10 characters.",
        "You have a context.\n\n<question>\nWho wrote it?\n</question>\n\nBegin.",
        "Question:\n\nWho wrote it?\n\nThe data: `context` is one text. It has 3 lines.\n\nBegin.",
        "Task: Who wrote it?",
        "The original question was: Who wrote it?",
        "## Question: Who wrote it?",
        "Here is some data.\n\nWho wrote it?",
        "Who wrote it?",
    ],
)
def test_the_question_is_found_in_a_message(content: str) -> None:
    """The policy must not depend on one orchestrator's wording."""
    messages = [Message("system", "Question: no, this is the system."), Message("user", content)]

    assert find_question(messages).text == "Who wrote it?"


@pytest.mark.parametrize(
    "content",
    ["<question>One.\n\nTwo?</question>", "Question:\n\nOne.\n\nTwo?\n\nThe data: a text."],
)
def test_a_question_of_several_paragraphs_is_kept_whole(content: str) -> None:
    """A question may be long."""
    assert find_question([Message("user", content)]).text == "One.\n\nTwo?"


def test_a_question_without_text_is_a_digest() -> None:
    """Nothing to go by is no reason to fail."""
    assert find_question([Message("user", "")]).kind is Kind.DIGEST


def test_the_demo_count_question_is_taken_apart() -> None:
    """Marker and categories come from the question's own words."""
    question = understand(COUNT_QUESTION)

    assert question.kind is Kind.COUNT
    assert question.marker == "FEEDBACK"
    assert question.categories == (
        "billing",
        "delivery",
        "product defect",
        "account access",
        "praise",
    )


def test_categories_may_end_in_a_conjunction() -> None:
    """People write lists with an `or`."""
    question = understand(
        "How many lines beginning with 'LOG' are there? Decide whether each is about a fire,"
        " a flood, or a storm."
    )

    assert question.categories == ("a fire", "a flood", "a storm")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("What is the vault code of the mill?", Kind.SEARCH),
        ("Find the phone number of the harbour office.", Kind.SEARCH),
        ("How does the parser recover from errors?", Kind.DIGEST),
        ("How many apples are there?", Kind.DIGEST),
    ],
)
def test_a_question_has_a_kind(text: str, kind: Kind) -> None:
    """A count without marker and categories is read as any other question."""
    assert understand(text).kind is kind


def test_keywords_are_the_words_that_carry_meaning() -> None:
    """They are what the context is searched for."""
    assert understand("What is the vault code of the Ósk mill?").keywords == (
        "vault",
        "code",
        "Ósk",
        "mill",
    )
