"""What is asked of a model, and how large it can be at most.

Checked when it is made from the wire (`wire.py`); nothing here knows of protobuf or providers.
"""

from __future__ import annotations

import dataclasses
import enum
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_gateway.histories import History

MESSAGES_MAX = 10_000
"""Of one prompt. Each is looked at on its way, which takes microseconds: millions of empty ones
would keep everybody else waiting."""
_TOKENS_A_MESSAGE_MAX = 16
"""What chat templates put around one message: role, separators, the reply's opening."""
_BYTES_A_TOKEN_USUAL = 4
"""English text and code; only for estimates, never for limits."""


class Role(enum.StrEnum):
    """Whose message it is, in the providers' words."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class CacheUse(enum.Enum):
    """Whether a prompt may be answered with an answer that was given before."""

    USUAL = "usual"
    """As the configuration says: at temperature 0, else not."""
    ALLOWED = "allowed"
    """At any temperature."""
    NEVER = "never"
    """Not at all; nor is the answer kept for others."""


@dataclasses.dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: Role
    """Whose it is."""
    text: str
    """What it says, not empty."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question to a model."""

    tier: str
    """A tier's name, or `models/{model}`."""
    messages: tuple[Message, ...]
    """At least one."""
    output_tokens_max: int | None = None
    """Tokens that the answer may have; None for the deployment's or the gateway's default."""
    temperature: float | None = None
    """0 to 2; None for the provider's default."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer."""
    seed: int | None = None
    """Repeatable sampling where the provider has it."""
    cache_use: CacheUse = CacheUse.USUAL
    """Whether an earlier answer will do."""
    response_schema: str = ""
    """JSON Schema that the answer is to satisfy, as compact JSON; empty for none."""
    history: History | None = dataclasses.field(default=None, compare=False, repr=False)
    """What was made of these very messages already; None where nothing was."""

    def __post_init__(self) -> None:
        known = self.history
        if known is not None and not (known.messages is self.messages and known.tier == self.tier):
            object.__setattr__(self, "history", None)  # something else took their place

    @cached_property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all messages."""
        if self.history is not None:
            return self.history.text_bytes
        return sum(len(message.text.encode()) for message in self.messages)

    @property
    def input_tokens_bound(self) -> int:
        """Tokens that it has at most: no vocabulary has a token of less than one byte."""
        schema_bytes = len(self.response_schema.encode())
        return self.text_bytes + schema_bytes + _TOKENS_A_MESSAGE_MAX * len(self.messages)

    @property
    def input_tokens_estimate(self) -> int:
        """Tokens that it probably has, for when a provider does not say."""
        return estimate_tokens(self.text_bytes + len(self.response_schema)) + len(self.messages)


def estimate_tokens(text_bytes: int) -> int:
    """Return the tokens that a text of so many bytes probably has."""
    return -(-text_bytes // _BYTES_A_TOKEN_USUAL)
