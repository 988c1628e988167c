"""The gateway's configuration from the environment. What is offered and at which price stands in
the TOML file that `config` names; see `catalog_file.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from common.config import ConfigError, Secret, ServerConfig

PREFIX = "FATHOM_GATEWAY_"
_KEY_BYTES_MIN = 32
_LEASE_S_MIN = 0.5
_ACCOUNTS = ("database", "memory")
_VALKEY_SCHEMES = ("redis://", "rediss://", "unix://")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatewayConfig(ServerConfig):
    """Settings of the gateway."""

    listen: str = "127.0.0.1:7313"
    """Address that gRPC listens on, `host:port`; port 0 takes any free one."""
    config: Path = Path("gateway.toml")
    """TOML file with providers, deployments and tiers."""
    run_token_key: Secret = Secret("")
    """Key that run tokens are checked with: a text of at least 32 bytes, the same as the
    orchestrator's, or `ed25519-public:` and the public half of the orchestrator's key."""
    run_token_previous_key: Secret = Secret("")
    """Key, of either kind, of tokens that are still good while keys are changed."""
    run_token_lifetime_max_s: float = 90_000.0
    """Seconds that a run token may be good for at most; one with more is refused."""
    run_token_audience: str = "fathom"
    """Which deployment's tokens are good, the same as the orchestrator's."""
    run_token_required: bool = True
    """Refuse calls without a run token. False admits them without any limit: never outside of
    development."""
    operator_key: Secret = Secret("")
    """Credential for QuotaService, at least 32 bytes; without it nobody may call that service."""
    database_url: Secret = Secret("sqlite+aiosqlite:///gateway.sqlite")
    """The ledger of calls, as an SQLAlchemy URL with an async driver; it may hold a password."""
    ledger_answers: Path = Path("gateway-answers")
    """Folder of recorded answers that are too large for the database. Gateways that share the
    database share the folder."""
    ledger_answer_bytes_inline_max: int = 65_536
    """Bytes of a recorded answer above which it goes to the folder."""
    ledger_retention_days: int = 30
    """Days after which recorded answers and spend are deleted."""
    ledger_lease_s: float = 15.0
    """Seconds without a sign of life after which a gateway is dead, and its calls are another's."""
    accounts: Secret = Secret("database")
    """Where spend is counted against limits and quotas: `database` for the ledger's, which gateways
    may share; `memory` for one gateway alone; else the URL of a Valkey server, such as
    `redis://host:6379/0`, for many gateways. It may hold a password."""
    cache_url: Secret = Secret("")
    """URL of a Valkey server that gateways share cached answers in, in place of the database. It
    may hold a password; the server may evict what it likes."""
    output_tokens_default: int = 4096
    """Tokens an answer may have where neither the prompt nor the deployment says."""
    attempts_max: int = 6
    """Exchanges with providers for one call, over all deployments."""
    retry_backoff_s: float = 0.5
    """Longest wait before the first retry; it doubles with each, up to 8 seconds. Where more
    than 2 seconds come out, another deployment is asked instead."""
    newer_metric_names: bool = False
    """Tell durations and tokens also as `gen_ai.client.inference.duration` and
    `gen_ai.client.inference.usage.*`, which the conventions have been moving to."""
    credentials_check_s: float = 5.0
    """Seconds between two looks at files with keys and certificates, for changed ones."""
    abandoned_drain_s: float = 5.0
    """Seconds that an exchange whose caller has gone may go on, so that its real usage is known."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_keys()
        self.check_positive("ledger_retention_days")
        if self.ledger_lease_s < _LEASE_S_MIN:
            raise ConfigError(f"ledger_lease_s: must be at least {_LEASE_S_MIN}")
        accounts = self.accounts.reveal()
        if accounts not in _ACCOUNTS and not accounts.startswith(_VALKEY_SCHEMES):
            raise ConfigError("accounts: must be database, memory or the URL of a Valkey server")
        if self.cache_url and not self.cache_url.reveal().startswith(_VALKEY_SCHEMES):
            raise ConfigError("cache_url: must be the URL of a Valkey server")
        if self.output_tokens_default < 1 or self.attempts_max < 1:
            raise ConfigError("output_tokens_default and attempts_max: must be at least 1")
        self.check_positive("credentials_check_s")

    def _check_keys(self) -> None:
        if self.run_token_required and not self.run_token_key:
            raise ConfigError(
                f"{PREFIX}RUN_TOKEN_KEY: is not set; give the orchestrator's key, or set "
                f"{PREFIX}RUN_TOKEN_REQUIRED=false to admit everyone, in development only"
            )
        self.check_positive("run_token_lifetime_max_s")
        if self.operator_key and len(self.operator_key.reveal().encode()) < _KEY_BYTES_MIN:
            raise ConfigError(f"operator_key: needs at least {_KEY_BYTES_MIN} bytes")
