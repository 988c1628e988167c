"""The prompt files: complete, true to the guest, and fit for small models."""

from __future__ import annotations

import ast
import dataclasses
import string
from importlib import resources

import pytest

from orchestrator.contexts.stored_context import (
    ContextKind,
    StoredContext,
    StoredDocument,
    TextShape,
)
from orchestrator.runs.answers.replies import parse_reply
from orchestrator.runs.budget import LIMIT_NAMES
from orchestrator.runs.limits import RunLimits
from orchestrator.runs.model.prompt_book import PromptBook, chunk_characters
from orchestrator.runs.model.question import question_message

FILES = sorted(
    file.name.removesuffix(".md")
    for file in resources.files("orchestrator").joinpath("prompts").iterdir()
)
PROVIDED = (
    *("context", "llm_query", "llm_query_batched", "FINAL", "FINAL_VAR", "SHOW_VARS"),
    *("grep", "lines", "chunks", "LazyText", "cite"),
)
NOT_BUILT = ("count_tokens", "answer[")
LIMITS = RunLimits(
    turns_max=20,
    time_max_s=600.0,
    sub_calls_max=1_000,
    tokens_max=1_000_000,
    cost_usd_nanos_max=5_000_000_000,
)
CONTEXT = StoredContext(
    context_id="c1",
    kind=ContextKind.TEXT,
    title="",
    size_bytes=4_000_000,
    blake3="0" * 64,
    blob_key="blobs/00/0",
    shape=TextShape(characters=3_999_000, code_point_max=100, lines=50_000),
    document_count=1,
    created_us=0,
)


@pytest.fixture(scope="module")
def book() -> PromptBook:
    return PromptBook.packaged()


def raw(name: str) -> str:
    return resources.files("orchestrator").joinpath("prompts", f"{name}.md").read_text()


@pytest.mark.parametrize("name", FILES)
def test_a_prompt_is_a_sound_template(name: str) -> None:
    """A stray dollar sign would fail in the middle of a run."""
    template = string.Template(raw(name))

    assert template.is_valid()
    assert raw(name).strip()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("word", NOT_BUILT)
def test_no_prompt_names_a_function_that_does_not_exist(name: str, word: str) -> None:
    """A model believes what it is told, and then its cells fail."""
    assert word not in raw(name)


@pytest.mark.parametrize("name", PROVIDED)
def test_the_system_prompt_names_everything_that_is_provided(book: PromptBook, name: str) -> None:
    assert name in book.system(window_tokens=0)


def test_child_runs_are_named_only_where_there_may_be_some(book: PromptBook) -> None:
    """A model that is told of them and refused them wastes a turn."""
    told = book.system(window_tokens=0, children_live_max=3)

    assert "3 of them may run at a time" in told
    assert all(name in told for name in ("rlm_query(", "rlm_query_batched(", "part("))
    assert "rlm_query" not in book.system(window_tokens=0)


def test_every_example_in_the_system_prompt_parses(book: PromptBook) -> None:
    cells = parse_reply(book.system(window_tokens=8_000)).cells

    assert len(cells) == 4
    for cell in cells:
        ast.parse(cell)


def test_the_system_prompt_shows_data_passed_to_a_sub_model(book: PromptBook) -> None:
    """Small models ask a sub-model about a context that it was never given."""
    text = book.system(window_tokens=8_000)
    wrong, right = text.index("Wrong"), text.index("Right:")

    assert wrong < right
    assert "+ part" in text[right:]
    assert "FailedQuery" in text


def test_the_sub_models_window_decides_the_size_of_pieces(book: PromptBook) -> None:
    text = book.system(window_tokens=8_000)

    assert "8,000 tokens" in text
    assert f"context[0:{chunk_characters(8_000)}]" in text


@pytest.mark.parametrize(
    ("window_tokens", "characters"),
    [(0, 30_000), (500, 2_000), (8_192, 10_000), (128_000, 200_000), (1_000_000, 200_000)],
)
def test_pieces_fit_the_window(window_tokens: int, characters: int) -> None:
    assert chunk_characters(window_tokens) == characters


@pytest.mark.parametrize("limit", sorted(LIMIT_NAMES))
def test_every_limit_has_words_for_the_model(book: PromptBook, limit: str) -> None:
    why = book.text(f"limit_{limit}")

    assert why in book.text("last_answer", why=why)


def test_numbers_are_written_for_people(book: PromptBook) -> None:
    assert "1,234 of them" in book.text("cells_not_run", count=1_234)


def test_a_missing_value_is_an_error_and_not_a_dollar_sign(book: PromptBook) -> None:
    with pytest.raises(KeyError):
        book.text("final_rejected")


def test_the_question_comes_with_the_facts_of_the_data(book: PromptBook) -> None:
    text = question_message(book, "Who paid $$5?", CONTEXT, [], LIMITS)

    for fact in ("Who paid $$5?", "3,999,000 characters", "50,000 lines", "1,000,000 tokens"):
        assert fact in text
    for limit in ("20 turns", "1,000 sub-model calls", "10 minutes"):
        assert limit in text


def test_a_schema_is_told_with_the_question(book: PromptBook) -> None:
    """What has `$` in it, as most schemas do, is told as it is."""
    schema = '{"$ref": "#/$defs/a", "$defs": {"a": {}}}'

    assert schema in question_message(book, "Why?", CONTEXT, [], LIMITS, schema_json=schema)
    assert "Schema" not in question_message(book, "Why?", CONTEXT, [], LIMITS)
    for name in ("last_answer_typed", "answer_schema"):
        assert schema in book.text(name, why="Enough.", schema=schema)


def test_documents_are_named_up_to_twenty(book: PromptBook) -> None:
    documents = [
        StoredDocument(
            name=f"f{n}.txt", offset_bytes=0, size_bytes=1, characters=n, code_point_max=9
        )
        for n in range(25)
    ]
    context = dataclasses.replace(CONTEXT, kind=ContextKind.DOCUMENTS, document_count=25)

    text = question_message(book, "Why?", context, documents, LIMITS)

    assert "- f19.txt (19 characters)" in text
    assert "f20.txt" not in text
    assert "5 more" in text


@pytest.mark.parametrize("kind", ContextKind)
@pytest.mark.parametrize(("characters", "is_large"), [(4 << 20, False), ((4 << 20) + 1, True)])
def test_a_model_is_told_that_large_data_may_be_lazy(
    book: PromptBook, kind: ContextKind, characters: int, is_large: bool
) -> None:
    """Told of a `str`, it would use what only a real one can do."""
    shape = dataclasses.replace(CONTEXT.shape, characters=characters)
    context = dataclasses.replace(CONTEXT, kind=kind, shape=shape)

    text = question_message(book, "Why?", context, [], LIMITS)

    assert ("too large for that" in text) == is_large


def test_malformed_text_is_told_to_the_model(book: PromptBook) -> None:
    context = dataclasses.replace(CONTEXT, shape=TextShape(malformed_sequences=3))

    assert "3 byte sequences" in question_message(book, "Why?", context, [], LIMITS)
