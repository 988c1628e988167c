"""The orchestrator's settings."""

from __future__ import annotations

import pytest

from common.config import ConfigError, describe, load
from orchestrator.config import PREFIX, OrchestratorConfig
from orchestrator.runs.limits import RunLimits

KEY = {f"{PREFIX}RUN_TOKEN_KEY": "k" * 32}


def loaded(**settings: str) -> OrchestratorConfig:
    environ = KEY | {PREFIX + name: value for name, value in settings.items()}
    return load(OrchestratorConfig, environ, prefix=PREFIX)


def test_the_defaults_are_the_documented_ones() -> None:
    config = loaded()

    assert config.listen == "127.0.0.1:7311"
    assert config.spec_defaults.limits.base == RunLimits(
        turns_max=20,
        time_max_s=600.0,
        sub_calls_max=1_000,
        tokens_max=20_000_000,
        cost_usd_nanos_max=5_000_000_000,
        depth_max=1,
        children_live_max=4,
    )
    assert config.spec_defaults.limits.ceilings.cost_usd_nanos_max == 1_000_000_000_000


def test_without_the_key_it_does_not_start() -> None:
    """A gateway that trusts unsigned runs would pay for anyone."""
    with pytest.raises(ConfigError, match="FATHOM_ORCHESTRATOR_RUN_TOKEN_KEY"):
        load(OrchestratorConfig, {}, prefix=PREFIX)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RUN_TOKEN_LIFETIME_S", "0.5"),
        ("RUN_TOKEN_LIFETIME_S", "-1"),
        ("RUNS_RUNNING_MAX", "-1"),
        ("RUNS_WAITING_MAX", "0"),
        ("RUNS_WAITING_MAX_PER_TENANT", "0"),
        ("CONCURRENT_RPCS_MAX_PER_TENANT", "0"),
        ("WATCHERS_MAX_PER_TENANT", "0"),
        ("CELL_CALLS_MAX_PER_TENANT", "0"),
        ("CHILDREN_PER_TREE_MAX", "0"),
        ("OUTPUT_CHARACTERS_MAX", "0"),
        ("TURNS_DEFAULT", "201"),
        ("TIME_DEFAULT_S", "0"),
        ("COST_USD_DEFAULT", "1000.5"),
        ("GATEWAY_ADDRESS", "nowhere"),
        ("SANDBOX_ADDRESS", "nowhere"),
        ("TURNS_DEFUALT", "3"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_at_the_start(name: str, value: str) -> None:
    with pytest.raises(ConfigError):
        loaded(**{name: value})


def test_secrets_are_not_shown() -> None:
    """The effective settings are logged at the start."""
    config = loaded(DATABASE_URL="postgresql+psycopg://me:hidden@db/fathom")

    assert "kkkk" not in str(describe(config))
    assert "hidden" not in str(describe(config))
