"""Reads `[egress]` of the configuration file: rules for everyone, and changes for tenants."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from common.config import Secret
from common.toml_table import Table
from llm_gateway.egress.policy import EgressPolicies, EgressPolicy, Reaction
from llm_gateway.prompts import MESSAGES_MAX

_REACTIONS = tuple(reaction.value for reaction in Reaction)
_CANARY_CHARACTERS_MIN = 8
"""A shorter text would be found by chance."""


def egress_from(table: Table, offered: Sequence[str]) -> EgressPolicies:
    """Return the policies of a table, which may be empty.

    `offered` has the tiers, and the deployments as `models/{model}`, that a rule may name.
    """
    tenants = table.optional_tables("tenants")
    default = _policy(table, EgressPolicy(), offered)
    return EgressPolicies(
        default=default,
        tenants={name: _policy(rules, default, offered) for name, rules in tenants.items()},
    )


def _policy(table: Table, base: EgressPolicy, offered: Sequence[str]) -> EgressPolicy:
    """Return `base` with what a table says instead."""
    tiers = table.text_list("tiers", offered)
    messages_max = table.count("messages_max", base.messages_max)
    if messages_max > MESSAGES_MAX:
        table.fail("messages_max", f"must be at most {MESSAGES_MAX}")
    policy = dataclasses.replace(
        base,
        messages_max=messages_max,
        prompt_bytes_max=table.count("prompt_bytes_max", base.prompt_bytes_max),
        tiers=frozenset(tiers) if tiers else base.tiers,
        secrets=Reaction(table.choice("secrets", _REACTIONS, base.secrets.value)),
        canaries=_canaries(table) or base.canaries,
        on_canary=Reaction(table.choice("on_canary", _REACTIONS[1:], base.on_canary.value)),
        captures_content=table.flag("captures_content", base.captures_content),
    )
    table.end()
    return policy


def _canaries(table: Table) -> tuple[Secret, ...]:
    file = table.text("canaries_file", "")
    if not file:
        return ()
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        table.fail("canaries_file", f"{file} cannot be read")
    canaries = [line.strip() for line in lines if line.strip()]
    if not canaries or min(map(len, canaries)) < _CANARY_CHARACTERS_MIN:
        table.fail(
            "canaries_file",
            f"{file} needs a text a line, each of at least {_CANARY_CHARACTERS_MIN} characters",
        )
    return tuple(map(Secret, canaries))
