"""What a tenant may send out: plain values, read from the configuration file by `egress_table`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from common.config import Secret
from llm_gateway.prompts import MESSAGES_MAX


class Reaction(enum.StrEnum):
    """What is done about a finding, from least to most."""

    OFF = "off"
    """Nothing is looked for."""
    RECORD = "record"
    """The finding is recorded, the prompt goes out as it is."""
    REDACT = "redact"
    """The secret is replaced by a note of what it was."""
    REFUSE = "refuse"
    """The call is refused."""


@dataclass(frozen=True, kw_only=True)
class EgressPolicy:
    """The rules for one tenant."""

    messages_max: int = MESSAGES_MAX
    """Messages of one prompt; no more than that for anybody."""
    prompt_bytes_max: int = 32 << 20
    """UTF-8 bytes of all messages of one prompt."""
    tiers: frozenset[str] | None = None
    """Tiers, and deployments as `models/{model}`, that may be asked; None for all. It narrows what
    a run token permits and never widens it."""
    secrets: Reaction = Reaction.RECORD
    """What is done about credentials."""
    canaries: tuple[Secret, ...] = ()
    """Texts planted in data that must never leave."""
    on_canary: Reaction = Reaction.REFUSE
    """What is done about them."""
    captures_content: bool = False
    """Whether prompts and answers are put into traces; never into logs."""


@dataclass(frozen=True, kw_only=True)
class EgressPolicies:
    """The rules of all tenants."""

    default: EgressPolicy = field(default_factory=EgressPolicy)
    """For tenants without rules of their own."""
    tenants: Mapping[str, EgressPolicy] = field(default_factory=dict)
    """By tenant."""

    def of(self, tenant: str) -> EgressPolicy:
        """Return a tenant's rules."""
        return self.tenants.get(tenant, self.default)
