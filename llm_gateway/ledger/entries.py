"""What the ledger holds: keys of calls, what an exchange holds and took, recorded answers.

Values only; what is done with them is in `operations.py`.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Sequence
from typing import Any

import orjson

from llm_gateway.answers import Completion, FinishReason, Spend
from llm_gateway.prompts import Message, Prompt

_FORM = 1
"""Version of a recorded answer's bytes."""


class CallState(enum.IntEnum):
    """Where a call is."""

    OPEN = 1
    """Its owner works on it."""
    ANSWERED = 2
    """Its answer is recorded, and stays."""
    SPENT = 3
    """It ended without an answer and not for nothing. Its key is free; whoever takes it is to
    know."""


@dataclasses.dataclass(frozen=True, order=True)
class CallKey:
    """What makes two calls one."""

    tenant: str
    """Whose call it is."""
    run: str
    """`runs/{run}`: request ids of other runs are others."""
    request_id: str
    """Chosen by the caller, or by the ledger for a call that nobody can repeat."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hold:
    """An exchange that is about to begin: what it costs at worst, until its real cost is known."""

    exchange_id: str
    """Never used again, so that its cost is booked once."""
    model: str
    """Name of the deployment that is asked."""
    input_tokens: int
    """Of the prompt at most."""
    output_tokens: int
    """Of the answer at most."""
    cost_usd_nanos: int
    """At most, in billionths of a US dollar."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExchangeRecord:
    """An exchange that has ended, and what it took."""

    exchange_id: str
    """As its hold."""
    key: CallKey
    """The call that it was made for."""
    tier: str
    """What the call asked for."""
    model: str
    """Name of the deployment that was asked."""
    ended_us: int
    """Microseconds of Unix time."""
    spend: Spend
    """What it took."""
    is_answer: bool
    """It gave the call's answer."""
    is_cached: bool = False
    """There was none: the call got an answer that was given before."""
    is_presumed: bool = False
    """Its worst case was booked while it went on, so that even nothing must be booked."""

    @property
    def is_to_be_booked(self) -> bool:
        """Whether it took anything, or was thought to."""
        spend = self.spend
        return bool(spend.tokens.total or spend.cost_usd_nanos or self.is_presumed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredAnswer:
    """An answer's bytes, or where they are; one of the two."""

    data: bytes | None = None
    """The bytes, where they are few."""
    key: str | None = None
    """Their key in the store of answers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallEntry:
    """A call as it stands in the ledger."""

    digest: bytes
    """Of what was asked."""
    state: CallState
    """Where it is."""
    owner: str
    """The process that works on it, or did."""
    lease_until_us: int
    """Until when that process is known to live; 0 where nothing is known of it."""
    answer: StoredAnswer
    """Empty unless it is answered."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallSum:
    """What one call took of one deployment."""

    request_id: str
    """Names the call in its run."""
    tier: str
    """What it asked for."""
    model: str
    """Name of the deployment."""
    spend: Spend
    """What was booked."""
    answers: int
    """Exchanges that gave its answer: one, or none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallSums:
    """What some calls of a run took."""

    calls: tuple[CallSum, ...]
    """Those that something is booked for."""
    open_calls: int
    """Those that are under way."""


@dataclasses.dataclass(frozen=True)
class RecordedAnswer:
    """What a repeat of a call gets."""

    completion: Completion
    """As the first caller got it; its tokens are not recorded with it."""
    model: str
    """Name of the deployment that gave it."""

    def encode(self) -> bytes:
        """Return its bytes."""
        said = self.completion
        return orjson.dumps(
            {
                "form": _FORM,
                "model": self.model,
                "text": said.text,
                "reasoning": said.reasoning,
                "finish_reason": said.finish_reason.value,
                "response_id": said.response_id,
                "response_model": said.response_model,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> RecordedAnswer:
        """Read what `encode` made; raises ValueError for anything else."""
        try:
            values = orjson.loads(data)
            if values.pop("form") != _FORM:
                raise ValueError("it is of another form")
            model = values.pop("model")
            finish_reason = FinishReason(values.pop("finish_reason"))
            completion = Completion(**values, finish_reason=finish_reason, tokens=None)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("it is no recorded answer") from error
        return cls(completion, model)


def digest_of(prompt: Prompt) -> bytes:
    """Return what tells two prompts apart that came under one request id.

    The tier counts by its name: what stands behind it may change between a call and its repeat.
    Parameters that are not set are left out, so that later ones change no older digest.
    """
    optional: dict[str, object] = {
        "output_tokens_max": prompt.output_tokens_max,
        "temperature": prompt.temperature,
        "stop": prompt.stop or None,
        "seed": prompt.seed,
        "response_schema": prompt.response_schema or None,
    }
    given = {name: value for name, value in optional.items() if value is not None}
    if prompt.history is None:
        digest = begin_digest(prompt.tier)
        extend_digest(digest, prompt.messages, is_first=True)
    else:
        digest = prompt.history.begun_digest()
    digest.update(b"]," + orjson.dumps(given)[1:] if given else b"]}")
    return bytes(digest.digest())


def begin_digest(tier: str) -> Any:
    """Return the digest of a prompt of which nothing but its tier is known. What is digested is
    one JSON object."""
    return hashlib.blake2b(b'{"tier":%b,"messages":[' % orjson.dumps(tier), digest_size=32)


def extend_digest(digest: Any, messages: Sequence[Message], *, is_first: bool) -> None:
    """Add messages to a digest; `is_first` tells that there were none before."""
    if messages:
        items = orjson.dumps(messages)[1:-1]
        digest.update(items if is_first else b"," + items)
