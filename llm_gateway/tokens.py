"""Exact counts of tokens, from vocabularies that come with the installed packages: nothing is
fetched. For a caller who asks; calls themselves are estimated from bytes (`prompts.py`) and
settled from what the provider reports.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re

from rs_bpe import openai

from llm_gateway.catalog import Deployment
from llm_gateway.prompts import Prompt

VOCABULARIES = ("o200k_base", "cl100k_base")
_INLINE_BYTES = 4 << 10
"""A larger prompt is counted in a thread; this much takes about a tenth of a millisecond."""
_BY_MODEL = {
    "o200k_base": r"gpt-4o|chatgpt-4o|gpt-4\.1|gpt-4\.5|gpt-5|o1|o3|o4",
    "cl100k_base": r"gpt-4|gpt-3\.5-turbo|gpt-35-turbo",
}
_MODELS = {
    vocabulary: re.compile(rf"(?:[\w.-]+/)*(?:{names})(?:[-.:@]\S*)?", re.IGNORECASE)
    for vocabulary, names in _BY_MODEL.items()
}
_TOKENS_A_MESSAGE = 4
"""What OpenAI's chat models put around a message: its start, its role, a separator, its end."""
_TOKENS_OF_REPLY = 3
"""What opens the reply."""


@dataclasses.dataclass(frozen=True)
class TokenCount:
    """How many tokens a prompt has."""

    tokens: int
    """For one deployment."""
    is_exact: bool
    """By the model's own vocabulary; else an estimate."""


async def count_tokens(prompt: Prompt, deployment: Deployment) -> TokenCount:
    """Return what a prompt has for a deployment."""
    vocabulary = deployment.vocabulary or vocabulary_of(deployment.model)
    if not vocabulary:
        return TokenCount(prompt.input_tokens_estimate, is_exact=False)
    texts = [message.text for message in prompt.messages]
    if prompt.response_schema:
        texts.append(prompt.response_schema)
    if prompt.text_bytes <= _INLINE_BYTES and _is_loaded(vocabulary):
        tokens = _count(vocabulary, texts)
    else:
        tokens = await asyncio.to_thread(_count, vocabulary, texts)
    # What providers make of a schema is theirs.
    return TokenCount(tokens, is_exact=not prompt.response_schema)


async def input_tokens_at_most(prompt: Prompt, deployment: Deployment) -> int | None:
    """Return a closer bound than `Prompt.input_tokens_bound`; None without a vocabulary."""
    count = await count_tokens(prompt, deployment)
    if not count.is_exact:
        return None
    # What is put around messages is bounded more widely than it is counted.
    return count.tokens + prompt.input_tokens_bound - prompt.text_bytes


def vocabulary_of(model: str) -> str:
    """Return the vocabulary of a model by its provider's id of it; empty where it is unknown."""
    return next((name for name, pattern in _MODELS.items() if pattern.fullmatch(model)), "")


def _count(vocabulary: str, texts: list[str]) -> int:
    tokenizer = openai.o200k_base() if vocabulary == "o200k_base" else openai.cl100k_base()
    spoken: int = sum(tokenizer.count(text) for text in texts)
    return spoken + _TOKENS_A_MESSAGE * len(texts) + _TOKENS_OF_REPLY


def _is_loaded(vocabulary: str) -> bool:
    is_large = vocabulary == "o200k_base"
    return bool(openai.is_cached_o200k() if is_large else openai.is_cached_cl100k())
