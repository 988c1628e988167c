"""The root model's written rules, in conversations with cells that really run."""

from __future__ import annotations

import pytest
from fathom_demo.corpus import CorpusTruth
from fathom_demo.questions import COUNT_QUESTION, count_is_right, search_is_right, search_question
from fathom_demo.scripted_model.openai_wire import ChatRequest, Message
from fathom_demo.scripted_model.policy_root import RootPolicy

from tests.unit.fathom_demo.talk import Talk

SYSTEM = Message("system", "Write ```repl cells; `context` holds the data.")
ASKED = Message("user", "Question: What is the door code of the barn?")

FILES = {
    "docs/otters.md": "# Otters\n\nOtters keep warm by very thick fur, not by fat.\n" * 3,
    "docs/boats.md": "# Boats\n\nBoats are kept in the boathouse over winter.\n" * 400,
    "src/tides.py": "def tide(hour: int) -> float:\n    return 0.0\n" * 200,
}


def say(*messages: Message) -> str:
    """Return the root model's reply to a conversation."""
    return RootPolicy()(ChatRequest("scripted-root", (SYSTEM, ASKED, *messages))).content


def test_the_search_question_is_answered_right(corpus: tuple[str, CorpusTruth]) -> None:
    """One sentence is found among 20,000 lines and decoys."""
    text, truth = corpus
    talk = Talk(search_question(truth), text).run()

    assert search_is_right(str(talk.answer), truth)
    assert len(talk.replies) == 4
    [(_, start, end)] = talk.cited
    assert truth.needle_code in text[start:end]


def test_the_count_question_is_answered_right(corpus: tuple[str, CorpusTruth]) -> None:
    """Each record went to a sub-model, in batches, and the sums are exact."""
    text, truth = corpus
    talk = Talk(COUNT_QUESTION, text).run()

    assert count_is_right(str(talk.answer), truth)
    assert len(talk.sub_prompts) == 15
    assert len(talk.replies) == 4


def test_the_data_stands_in_the_prompts_of_the_sub_model(corpus: tuple[str, CorpusTruth]) -> None:
    """A sub-model knows nothing but its prompt."""
    text, truth = corpus
    talk = Talk(search_question(truth), text).run()

    assert truth.needle_code in talk.sub_prompts[0]


def test_the_policy_writes_no_answer_of_its_own(corpus: tuple[str, CorpusTruth]) -> None:
    """No reply may hold the code: the policy never sees the text but through its cells."""
    text, truth = corpus
    talk = Talk(search_question(truth), text).run()

    assert not any(truth.needle_code in reply for reply in talk.replies)


def test_failed_calls_of_a_batch_are_made_once_more(corpus: tuple[str, CorpusTruth]) -> None:
    """Two failures cost two more calls and change no count."""
    text, truth = corpus
    talk = Talk(COUNT_QUESTION, text, fail_sub_call=lambda number: number in (2, 5)).run()

    assert count_is_right(str(talk.answer), truth)
    assert len(talk.sub_prompts) == 17


def test_records_whose_calls_fail_twice_are_told_as_unclear(
    corpus: tuple[str, CorpusTruth],
) -> None:
    """The answer says what it does not know."""
    text, _ = corpus
    talk = Talk(COUNT_QUESTION, text, fail_sub_call=lambda number: number in (2, 16)).run()

    assert "600 records in all, 40 of them without a clear category" in str(talk.answer)


@pytest.mark.parametrize("shape", ["str", "dict", "list"])
def test_a_context_of_each_shape_is_searched(corpus: tuple[str, CorpusTruth], shape: str) -> None:
    """The orchestrator hands over text, documents or items."""
    text, truth = corpus
    half = text.index("\n", len(text) // 2)
    contexts: dict[str, object] = {
        "str": text,
        "dict": {"one.txt": text[:half], "two.txt": text[half:]},
        "list": [text[:half], {"nested": text[half:]}],
    }
    talk = Talk(search_question(truth), contexts[shape]).run()

    assert search_is_right(str(talk.answer), truth)


def test_any_other_question_is_answered_from_the_fitting_passages() -> None:
    """A directory of files gets a digest that names what it is based on."""
    talk = Talk("How do otters keep warm in the cold sea?", FILES).run()

    assert "very thick fur" in str(talk.answer)
    assert "docs/otters.md" in str(talk.answer)
    assert "boats.md" not in str(talk.answer)


def test_a_plural_in_the_question_finds_the_singular_in_the_text() -> None:
    """People do not know which form the text uses."""
    talk = Talk("Tell me everything about boathouses.", FILES).run()

    assert "Boats are kept in the boathouse over winter." in str(talk.answer)


def test_a_question_of_common_words_reads_places_spread_over_the_text() -> None:
    """Without a telling word there is still something to go by."""
    talk = Talk("Describe this, please.", FILES).run()

    assert talk.answer is not None
    assert "passages kept: " in talk.outputs[1]


def test_a_fact_that_is_not_there_is_not_made_up() -> None:
    """After the narrow and the wide search the answer says that nothing was found."""
    talk = Talk("What is the vault code of the lighthouse?", FILES).run()

    assert str(talk.answer).startswith("I found no answer in the context.")


def test_an_empty_context_is_answered_without_a_crash() -> None:
    """Nothing in, nothing found."""
    talk = Talk("What is the vault code of the lighthouse?", "").run()

    assert str(talk.answer).startswith("I found no answer in the context.")


def test_no_records_at_all_count_as_zero() -> None:
    """A wrong marker shows as an honest zero."""
    talk = Talk(COUNT_QUESTION, "nothing here\n").run()

    assert "billing: 0" in str(talk.answer)


def test_a_step_that_breaks_off_is_tried_once_with_less_to_do() -> None:
    """The second cell differs, so that it is no mere repetition."""
    inspected = Message("assistant", say())
    seen = Message("user", "the context is a str: ...")
    gather = say(inspected, seen)
    broken = Message("user", "Traceback ...\nMemoryError: too much")
    again = say(inspected, seen, Message("assistant", gather), broken)

    assert "# step: gather" in again
    assert again != gather


def test_a_step_that_breaks_off_twice_is_reported() -> None:
    """Giving up with the reason beats a third try."""
    inspected = Message("assistant", say())
    broken = Message("user", "Traceback ...\nMemoryError: too much")
    reply = say(inspected, broken, inspected, broken)

    assert "FINAL(" in reply
    assert "MemoryError: too much" in reply


@pytest.mark.parametrize(
    "demand",
    [
        "You have no more turns. Give your best final answer now, as plain text.",
        "The limit of sub-calls has been reached.\n\nAnswer now with what you know.",
        "No more code can be run. Give what you have, in plain text.",
    ],
)
def test_a_demand_for_the_answer_is_met_with_what_was_seen(demand: str) -> None:
    """At a limit the orchestrator wants prose, no cells."""
    history = [
        Message("assistant", "```repl\n# step: ask\n```"),
        Message("user", "answer: 2468\nThe door code is 2468.\n\nturn 3 of 3"),
        Message("assistant", "```repl\n# step: finish\n```"),
        Message("user", demand),
    ]

    assert say(*history) == "2468\nThe door code is 2468."


def test_a_demand_before_anything_was_found_is_met_honestly() -> None:
    """No answer is better than an invented one."""
    said = say(
        Message("assistant", "```repl\n# step: inspect\n```"),
        Message("user", "Give your final answer now."),
    )

    assert said.startswith("I had to stop before I found anything")


def test_what_was_gathered_is_told_without_the_words_around_it() -> None:
    """The orchestrator's own instructions are no part of an answer."""
    output = "It printed:\n<output>\npassages kept: 1 of 1\nthe door is red\n</output>"
    history = [
        Message("assistant", "```repl\n# step: gather\n```"),
        Message("user", f"Cell 1 of 1 ran without error. {output}\n\nThat was turn 2 of 20."),
        Message("assistant", "```repl\n# step: ask\n```"),
        Message("user", "Give your final answer now."),
    ]

    assert say(*history).endswith("passages kept: 1 of 1\nthe door is red")


def test_a_reply_that_was_not_run_is_written_again() -> None:
    """An empty or cut reply says nothing about the step before it."""
    history = [
        Message("assistant", say()),
        Message("user", "the context is a str: 1 document(s)"),
        Message("assistant", "(empty reply)"),
        Message("user", "Your reply was empty."),
    ]

    assert "# step: gather" in say(*history)


def test_a_lost_session_is_built_up_again() -> None:
    """All variables are gone, so the work begins anew."""
    history = [
        Message("assistant", "```repl\n# step: gather\n```"),
        Message("user", "The session was started anew; all your own variables are gone."),
    ]

    assert "# step: inspect" in say(*history)


def test_the_last_turn_asks_and_ends_in_one_reply() -> None:
    """There is no later turn in which to give the answer."""
    reply = say(
        Message("assistant", "```repl\n# step: gather\n```"),
        Message("user", "passages kept: 3\n\nThe next turn is your last one: end it."),
    )

    assert reply.index("# step: ask") < reply.index('FINAL_VAR("answer")')


def test_the_last_turn_ends_with_what_was_seen_when_it_is_too_soon_for_an_answer() -> None:
    """A step that answers nothing would waste the turn."""
    reply = say(
        Message("assistant", "```repl\n# step: inspect\n```"),
        Message("user", "the context is a str\n\nThe next turn is your last one: end it."),
    )

    assert "FINAL('I had to stop before I found anything" in reply


def test_without_a_repl_the_root_model_answers_from_the_prompt() -> None:
    """A small context may be sent to the root model as it is."""
    messages = (
        Message("user", "Reply.\nQuestion: What is the code of the barn?\n\nThe barn code is 7."),
    )

    said = RootPolicy()(ChatRequest("scripted-root", messages)).content

    assert said.splitlines()[0] == "7"


def test_a_hostile_question_stays_a_literal() -> None:
    """Question text is data in a cell, whatever it holds."""
    question = 'What is the code?\n```\nimport os $KEYWORDS """\' + 1/0 + \'\\'
    cell = RootPolicy()(
        ChatRequest(
            "scripted-root",
            (
                SYSTEM,
                Message("user", f"<question>{question}</question>"),
                Message("assistant", "```repl\n# step: gather\n```"),
                Message("user", "passages kept: 1"),
            ),
        )
    ).content

    assert ascii(question) in cell


DEMAND_OF_A_FORM = """

The final answer must be JSON that fits this JSON Schema:

```json
{"type": "object", "required": ["fact", "proof", "gaps"], "properties": {
  "fact": {"type": "string"}, "gaps": {"type": "array", "items": {"type": "string"}},
  "proof": {"type": "array", "items": {"type": "object", "required": ["quote", "document"],
    "properties": {"quote": {"type": "string"}, "document": {"type": "string"},
      "start": {"type": "integer"}, "end": {"type": "integer"}}}}}}
```
"""
DEMAND_OF_CONFIDENCE = "\n\nSay how sure you are: `FINAL(answer, confidence=0.9)`."
OFFER_OF_CHILDREN = (
    "\n\n`context` is a `dict` to the text of 3 documents. `rlm_query_batched(prompt, contexts)`"
    " runs children."
)


def test_an_answer_takes_the_form_that_is_demanded_and_names_its_places() -> None:
    """Only what cells have printed can be in it: the places are those that were cited."""
    talk = Talk("How do otters keep warm in the cold sea?", FILES, demands=DEMAND_OF_A_FORM).run()

    assert isinstance(talk.answer, dict)
    assert "very thick fur" in talk.answer["fact"]
    [proof] = talk.answer["proof"]
    assert (proof["document"], proof["start"], proof["end"]) == talk.cited[0]
    assert FILES["docs/otters.md"][proof["start"] : proof["end"]] == proof["quote"]
    assert talk.answer["gaps"] == []


def test_nothing_found_takes_the_form_too() -> None:
    """Prose would be refused, turn by turn, until none is left."""
    talk = Talk("What is the vault code of the lighthouse?", FILES, demands=DEMAND_OF_A_FORM).run()

    assert isinstance(talk.answer, dict)
    assert talk.answer["fact"].startswith("I found no answer")
    assert talk.answer["proof"] == []


def test_an_answer_says_how_sure_it_is_where_that_is_asked() -> None:
    question = "How do otters keep warm in the cold sea?"

    assert Talk(question, FILES, demands=DEMAND_OF_CONFIDENCE).run().confidence == 0.7
    assert Talk(question, FILES).run().confidence is None


def test_an_answer_that_is_not_sure_enough_is_checked_by_reading_again(
    corpus: tuple[str, CorpusTruth],
) -> None:
    """And not just claimed to be surer."""
    text, truth = corpus
    question = search_question(truth)

    talk = Talk(question, text, demands=DEMAND_OF_CONFIDENCE, confidence_min=0.8).run()

    assert search_is_right(str(talk.answer), truth)
    assert "# step: check" in talk.replies[4]
    assert "checked: 1 of 1 readings agree" in talk.outputs[4]
    assert talk.confidence == 0.95
    assert len(talk.sub_prompts) > 1


def test_a_question_about_each_document_gets_a_child_each() -> None:
    """Where child runs are offered; else it is read like any other."""
    question = "What is the safe's colour in each of these files?"
    files = {"a.txt": "red", "b.txt": "green", "c.txt": "blue"}

    talk = Talk(question, files, demands=OFFER_OF_CHILDREN).run()

    assert talk.children == [("What is the safe's colour here?", name) for name in files]
    assert talk.answer == "a.txt: red\nb.txt: green\nc.txt: blue"
    assert Talk(question, files).run().children == []
