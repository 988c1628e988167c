"""`[egress]` of the configuration file."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path

import pytest

from common.config import ConfigError
from common.toml_table import Table
from llm_gateway.egress.egress_table import egress_from
from llm_gateway.egress.policy import EgressPolicies, EgressPolicy, Reaction

OFFERED = ("root", "sub", "models/small")


def read(text: str) -> EgressPolicies:
    return egress_from(
        Table("gateway.toml: egress", tomllib.loads(text, parse_float=Decimal)), OFFERED
    )


def test_an_empty_table_gives_the_defaults() -> None:
    """A file from before the table existed goes on meaning the same."""
    assert read("") == EgressPolicies()


def test_a_tenant_changes_what_it_names_and_keeps_the_rest() -> None:
    """Tightening the rule for everyone must tighten it for tenants with an exception elsewhere."""
    policies = read(
        """
        secrets = "refuse"
        prompt_bytes_max = 1000
        [tenants.auditors]
        secrets = "record"
        captures_content = true
        tiers = ["sub", "models/small"]
        """
    )

    assert policies.of("acme") == EgressPolicy(secrets=Reaction.REFUSE, prompt_bytes_max=1000)
    assert policies.of("auditors") == EgressPolicy(
        secrets=Reaction.RECORD,
        prompt_bytes_max=1000,
        captures_content=True,
        tiers=frozenset({"sub", "models/small"}),
    )


def test_canaries_are_read_from_their_file_and_never_shown(tmp_path: Path) -> None:
    """The configuration is logged at start; a planted text in a log is no longer secret."""
    file = tmp_path / "canaries"
    file.write_text("blue heron 7741\n\n  red kite 0915 \n")

    canaries = read(f'canaries_file = "{file}"').default.canaries

    assert [canary.reveal() for canary in canaries] == ["blue heron 7741", "red kite 0915"]
    assert "heron" not in repr(canaries)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('secrets = "warn"', "secrets: must be one of off, record, redact, refuse"),
        ('on_canary = "off"', "on_canary: must be one of record, redact, refuse"),
        ("captures_content = 1", "captures_content: must be true or false"),
        ('tiers = ["models/big"]', "tiers: 'models/big' is not one of root, sub, models/small"),
        ("messages_max = 10001", "messages_max: must be at most 10000"),
        ("messages_max = 0", "messages_max: must be a whole number of at least 1"),
        ('[tenants.a]\nsecret = "off"', "tenants: a: secret: there is no such key"),
        ('canaries_file = "/nowhere/canaries"', "canaries_file: /nowhere/canaries cannot be read"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_remedy(text: str, message: str) -> None:
    """A guard that silently ignores a rule guards nothing."""
    with pytest.raises(ConfigError) as error:
        read(text)

    assert str(error.value).startswith("gateway.toml: egress: ")
    assert message in str(error.value)


def test_a_canary_that_chance_would_find_is_refused(tmp_path: Path) -> None:
    """Three letters stand in every other prompt."""
    file = tmp_path / "canaries"
    file.write_text("abc\n")

    with pytest.raises(ConfigError, match="at least 8 characters"):
        read(f'canaries_file = "{file}"')
