"""The gateway's settings fail closed."""

from __future__ import annotations

import pytest

from common.config import ConfigError, load
from llm_gateway.config import PREFIX, GatewayConfig

KEY = {"FATHOM_GATEWAY_RUN_TOKEN_KEY": "k" * 32}


def test_a_key_is_all_that_must_be_set() -> None:
    config = load(GatewayConfig, KEY, prefix=PREFIX)

    assert config.listen == "127.0.0.1:7313"
    assert config.run_token_required


def test_without_a_key_the_gateway_does_not_start() -> None:
    with pytest.raises(ConfigError, match="FATHOM_GATEWAY_RUN_TOKEN_KEY"):
        load(GatewayConfig, {}, prefix=PREFIX)


def test_only_an_explicit_setting_admits_everyone() -> None:
    environ = {"FATHOM_GATEWAY_RUN_TOKEN_REQUIRED": "false"}

    assert not load(GatewayConfig, environ, prefix=PREFIX).run_token_required


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("OUTPUT_TOKENS_DEFAULT", "0", "1"),
        ("ATTEMPTS_MAX", "0", "1"),
        ("ABANDONED_DRAIN_S", "-0.1", "0"),
        ("RETRY_BACKOFF_S", "-0.1", "0"),
        ("OPERATOR_KEY", "k" * 31, "k" * 32),
        ("LEDGER_RETENTION_DAYS", "0", "1"),
        ("LEDGER_ANSWER_BYTES_INLINE_MAX", "-1", "0"),
        ("LEDGER_LEASE_S", "0.4", "0.5"),
        ("ACCOUNTS", "postgresql://host", "redis://host:6379/0"),
        ("CACHE_URL", "database", "rediss://host:6379/0"),
        ("RUN_TOKEN_LIFETIME_MAX_S", "0", "1"),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, bad: str, good: str) -> None:
    load(GatewayConfig, KEY | {PREFIX + name: good}, prefix=PREFIX)

    with pytest.raises(ConfigError, match=PREFIX + name):
        load(GatewayConfig, KEY | {PREFIX + name: bad}, prefix=PREFIX)
