"""What comes back from models: pieces, one provider's completion, and the gateway's answer.

Counts of tokens live here, money in `prices.py`.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterable, Iterator


class FinishReason(enum.Enum):
    """Why a model stopped."""

    STOP = "stop"
    """It was done, or met a stop text."""
    LENGTH = "length"
    """It reached its limit of output tokens."""
    FILTERED = "filtered"
    """The provider withheld the rest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens that one exchange with a provider took."""

    input: int
    """Sent, cached ones included."""
    output: int
    """Received, reasoning included."""
    cached_input: int = 0
    """Of the input, those read from the provider's prefix cache."""
    reasoning: int = 0
    """Of the output, those spent on reasoning."""

    @property
    def total(self) -> int:
        """Input and output together, what a run's `tokens_max` limits."""
        return self.input + self.output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spend:
    """Tokens and their price; the sum over a call's attempts is what the call took."""

    tokens: Tokens = Tokens(input=0, output=0)
    """What was consumed."""
    cost_usd_nanos: int = 0
    """Billionths of a US dollar."""
    is_estimated: bool = False
    """A provider reported no usage, so the tokens are estimates."""

    def as_metadata(self) -> dict[str, str]:
        """Return it for the metadata of a failed call's error; empty where nothing was taken."""
        if not self.tokens.total and not self.cost_usd_nanos:
            return {}
        return {
            "input_tokens": str(self.tokens.input),
            "output_tokens": str(self.tokens.output),
            "cost_usd_nanos": str(self.cost_usd_nanos),
            "usage_estimated": str(self.is_estimated).lower(),
        }

    def __add__(self, other: Spend) -> Spend:
        return Spend(
            tokens=Tokens(
                input=self.tokens.input + other.tokens.input,
                output=self.tokens.output + other.tokens.output,
                cached_input=self.tokens.cached_input + other.tokens.cached_input,
                reasoning=self.tokens.reasoning + other.tokens.reasoning,
            ),
            cost_usd_nanos=self.cost_usd_nanos + other.cost_usd_nanos,
            is_estimated=self.is_estimated or other.is_estimated,
        )


@dataclasses.dataclass(frozen=True)
class Booked:
    """What the ledger has of one call, however often it was begun."""

    spend: Spend
    """What it took."""
    answers: int
    """Exchanges that gave its answer: one, or none yet."""


@dataclasses.dataclass(frozen=True)
class Delta:
    """A piece of an answer as it streams; one of the two is empty."""

    text: str = ""
    """To append to the answer."""
    reasoning: str = ""
    """To append to the reasoning."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the text, as it is sent."""
        return len(self.text.encode()) + len(self.reasoning.encode())


def merged(deltas: Iterable[Delta]) -> Iterator[Delta]:
    """Give texts and reasonings as they follow each other, neighbours of a kind together."""
    for _, same in itertools.groupby(deltas, key=lambda delta: bool(delta.text)):
        texts, reasonings = zip(*((delta.text, delta.reasoning) for delta in same), strict=True)
        yield Delta(text="".join(texts), reasoning="".join(reasonings))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """One provider's whole reply."""

    text: str
    """The answer; may be empty."""
    reasoning: str
    """What the provider gave as reasoning, apart from the answer."""
    finish_reason: FinishReason
    """Why it ends."""
    tokens: Tokens | None
    """What the provider reported; None where it reported nothing. Zeros are a report."""
    response_id: str = ""
    """The provider's id of the reply."""
    response_model: str = ""
    """The model that the provider says answered."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the text, as it is sent."""
        return len(self.text.encode()) + len(self.reasoning.encode())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What the gateway answers a call with."""

    completion: Completion
    """The reply that was accepted."""
    model: str
    """Name of the deployment that gave it."""
    tier_served: str = ""
    """The tier that it is of, where that is not the one that was asked."""
    spend: Spend
    """What it took, failed attempts included."""
    attempts: int
    """Calls made to providers for it; 0 where it was recorded before."""
    elapsed_s: float
    """From the call's arrival to the answer's end."""
    booked: Booked | None = None
    """All that was booked under the call's request id, this answer included; None where it was
    not begun before."""
