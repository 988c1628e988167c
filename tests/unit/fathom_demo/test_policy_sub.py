"""The sub-model's written rules."""

from __future__ import annotations

from random import Random

import pytest
from fathom_demo.feedback import CATEGORIES, draw_categories, record_line
from fathom_demo.scripted_model.openai_wire import ChatRequest, Message
from fathom_demo.scripted_model.policy_sub import SubPolicy

CATEGORY_LINE = f"Categories: {', '.join(CATEGORIES)}"


def ask(prompt: str) -> str:
    """Return the sub-model's reply to a prompt."""
    return SubPolicy()(ChatRequest("scripted-sub", (Message("user", prompt),))).content


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_all_records_of_a_corpus_are_sorted_right(seed: int) -> None:
    """The demo compares counts with the truth: one slip in 3,000 would fail it."""
    rng = Random(seed)
    truth = draw_categories(rng, 3_000)
    lines = [f"{n}. {record_line(rng, n, name)}" for n, name in enumerate(truth)]

    said = ask(f"Sort these.\n{CATEGORY_LINE}\n\nRecords:\n" + "\n".join(lines))

    assert said.splitlines() == [f"{n}: {name}" for n, name in enumerate(truth)]


def test_a_record_without_a_cue_is_called_unclear() -> None:
    """A guess would be counted as if it were known."""
    assert ask(f"{CATEGORY_LINE}\n\nRecords:\n1. Good morning.") == "1: unclear"


def test_a_record_with_as_many_cues_for_two_categories_is_called_unclear() -> None:
    """A draw is no decision."""
    assert ask(f"{CATEGORY_LINE}\n\nRecords:\n1. parcel password") == "1: unclear"


def test_a_category_outside_the_table_is_told_by_its_own_words() -> None:
    """Other people's categories get a plain but defined treatment."""
    said = ask("Categories: gardening, astronomy\n\nRecords:\n1. I like astronomy\n2. gardens")

    assert said == "1: astronomy\n2: gardening"


def test_categories_inside_a_text_do_not_change_what_is_asked() -> None:
    """Only the instruction before the data says what to do."""
    said = ask("Question: What is the code of the barn?\n\nThe barn code is 7.\nCategories: a, b")

    assert said == "7\nThe barn code is 7."


def test_the_value_beside_the_words_of_the_question_is_the_answer() -> None:
    """Other numbers, nearer to the start or in better known sentences, are not."""
    said = ask(
        "Answer from the passages.\n\nQuestion: What is the gate code of the north barn?\n\n"
        "Passages:\n\n[1] On 2025-03-04 at 10:15 somebody asked for the gate code of the north\n"
        "barn. The gate code of the south barn is 1111.\n\n"
        "[2] Since Monday 3 March the gate code of the\nnorth barn is 2468."
    )

    assert said.splitlines()[0] == "2468"


def test_a_sentence_wrapped_before_a_capital_letter_is_read_as_one() -> None:
    """Mails break their lines anywhere, also before a name."""
    said = ask(
        "Question: What is the gate code of the Osei barn?\n\nPassages:\n\n"
        "After the lock was serviced by the locksmith we set the gate code of the\n"
        "Osei barn to 2468 and tried it."
    )

    assert said.splitlines()[0] == "2468"


def test_a_date_is_an_answer_only_to_a_question_about_time() -> None:
    """Dates stand everywhere, so they answer nothing else."""
    text = "The code of the barn was changed on 2025-03-04.\nThe code of the barn is now 2468."

    assert ask(f"Question: What is the code of the barn?\n\n{text}").startswith("2468\n")
    assert ask(f"Question: On what date was the code of the barn changed?\n\n{text}").startswith(
        "2025-03-04\n"
    )


def test_a_question_that_the_passages_do_not_answer_is_not_answered() -> None:
    """The root policy relies on these two words to look further."""
    said = ask("Question: What is the port of the mail relay?\n\nPassages:\n\nIt rained in 1987.")

    assert said == "NOT FOUND"


def test_findings_are_sentences_of_the_text_itself() -> None:
    """What helps is quoted, the rest left out."""
    said = ask(
        "Note what helps, one finding a line.\n\nQuestion: How do otters keep warm?\n\nText:\n\n"
        "Otters keep warm by thick fur. The river is long. Otters also eat all day to stay warm."
    )

    assert said == "- Otters keep warm by thick fur.\n- Otters also eat all day to stay warm."


def test_a_summary_is_shorter_than_its_text_and_made_of_its_sentences() -> None:
    """Nothing is invented."""
    text = " ".join(f"Sentence {word} about the harbour and its boats." for word in "abcdefgh")

    said = ask(f"Summarise this text.\n{text}")

    assert 0 < len(said) < len(text) / 2
    assert all(part.strip() in text for part in said.split(". "))


def test_a_prompt_of_no_known_shape_is_answered_from_its_own_text() -> None:
    """The fallback reads the first line as the question."""
    said = ask("Where do the swallows nest?\nThe cat sleeps.\nThe swallows nest below the roof.")

    assert said == "- The swallows nest below the roof."


def test_a_prompt_of_nothing_gets_a_reply() -> None:
    """Even so the server must say something defined."""
    assert ask(" ") == "NOT FOUND"
