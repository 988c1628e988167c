"""What can be done to cached answers in the ledger's own transactions."""

from __future__ import annotations

import dataclasses

from llm_gateway.ledger.operations import Operation


@dataclasses.dataclass(frozen=True)
class FindCached(Operation[bytes | None]):
    """Return the answer under a key; None where there is none or it has expired."""

    key: bytes
    """32 bytes."""
    now_us: int
    """When."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepCached(Operation[None]):
    """Keep an answer in place of what was there."""

    key: bytes
    """32 bytes."""
    answer: bytes
    """Its bytes."""
    expires_us: int
    """Until when it is given."""


@dataclasses.dataclass(frozen=True)
class TrimCached(Operation[int]):
    """Delete what has expired, and the oldest above a number; return how many went."""

    now_us: int
    """When."""
    answers_max: int
    """That may stay."""
    rows_max: int
    """At most so many go at a time."""
