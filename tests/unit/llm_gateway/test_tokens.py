"""Exact counts of tokens."""

from __future__ import annotations

import pytest

from llm_gateway.prompts import Message, Role
from llm_gateway.tokens import TokenCount, count_tokens, vocabulary_of
from tests.support.gateway import deployment, prompt

FRAME = 4 + 3
"""Around one message, and of the reply."""


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-mini-2024-07-18", "o200k_base"),
        ("openai/gpt-5-mini", "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("o3-mini", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo-0125", "cl100k_base"),
        ("gpt-50", ""),
        ("my-gpt-4o", ""),
        ("o30", ""),
        ("llama-3.3-70b", ""),
    ],
)
def test_a_vocabulary_is_known_by_the_models_id(model: str, vocabulary: str) -> None:
    """A wrong guess would be an exact-looking lie."""
    assert vocabulary_of(model) == vocabulary


@pytest.mark.parametrize(
    ("model", "text", "tokens"),
    [
        # As tiktoken counts them.
        ("gpt-4o", "hello world", 2),
        ("gpt-4", "hello world", 2),
        ("gpt-4o", "antidisestablishmentarianism", 6),
        ("gpt-4", "antidisestablishmentarianism", 6),
        ("gpt-4o", "お誕生日おめでとう", 8),
        ("gpt-4", "お誕生日おめでとう", 9),
        ("gpt-4o", "2 + 2 = 4", 7),
        ("gpt-4", "2 + 2 = 4", 7),
    ],
)
async def test_counts_are_the_vocabularys(model: str, text: str, tokens: int) -> None:
    counted = await count_tokens(prompt(text), deployment(model=model))

    assert counted == TokenCount(tokens + FRAME, is_exact=True)


async def test_each_message_has_its_frame() -> None:
    messages = (Message(Role.SYSTEM, "hello world"), Message(Role.USER, "hello world"))

    counted = await count_tokens(prompt(messages=messages), deployment(model="gpt-4o"))

    assert counted.tokens == 2 * (2 + 4) + 3


async def test_an_unknown_vocabulary_gives_an_estimate_and_says_so() -> None:
    counted = await count_tokens(prompt("x" * 400), deployment(model="local-8b"))

    assert counted == TokenCount(101, is_exact=False)


async def test_with_a_schema_a_count_is_an_estimate() -> None:
    """What a provider puts before its model for one is not known; the bound has all its bytes."""
    schema = '{"type":"object"}'
    with_schema = prompt("hello", response_schema=schema)

    counted = await count_tokens(with_schema, deployment(model="gpt-4o"))

    assert not counted.is_exact
    assert counted.tokens > (await count_tokens(prompt("hello"), deployment(model="gpt-4o"))).tokens
    assert with_schema.input_tokens_bound == prompt("hello").input_tokens_bound + len(schema)


async def test_a_deployment_may_name_its_vocabulary() -> None:
    """An endpoint may call a known model by a name of its own."""
    named = deployment(model="prod-eu", vocabulary="cl100k_base")

    assert await count_tokens(prompt("hello world"), named) == TokenCount(2 + FRAME, is_exact=True)


async def test_a_large_prompt_is_counted_as_a_small_one_is() -> None:
    """It goes to a thread, so that others are answered meanwhile."""
    counted = await count_tokens(prompt("hello world " * 10_000), deployment(model="gpt-4o"))

    assert counted.tokens == 20_001 + FRAME


async def test_what_looks_like_a_special_token_is_text() -> None:
    """A prompt cannot end itself."""
    counted = await count_tokens(prompt("<|endoftext|>"), deployment(model="gpt-4o"))

    assert counted.tokens > 1 + FRAME
