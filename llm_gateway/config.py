"""The gateway's configuration from the environment. What is offered and at which price stands in
the TOML file that `config` names; see `catalog_file.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from common.config import ConfigError, Secret, ServerConfig

PREFIX = "FATHOM_GATEWAY_"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatewayConfig(ServerConfig):
    """Settings of the gateway."""

    listen: str = "127.0.0.1:7313"
    """Address that gRPC listens on, `host:port`; port 0 takes any free one."""
    config: Path = Path("gateway.toml")
    """TOML file with providers, deployments and tiers."""
    run_token_key: Secret = Secret("")
    """Key that run tokens are signed with, at least 32 bytes, the same as the orchestrator's."""
    run_token_required: bool = True
    """Refuse calls without a run token. False admits them without any limit: never outside of
    development."""
    output_tokens_default: int = 4096
    """Tokens an answer may have where neither the prompt nor the deployment says."""
    attempts_max: int = 6
    """Exchanges with providers for one call, over all deployments."""
    retry_backoff_s: float = 0.5
    """Longest wait before the first retry; it doubles with each, up to 2 seconds."""
    abandoned_drain_s: float = 5.0
    """Seconds that an exchange whose caller has gone may go on, so that its real usage is known."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run_token_required and not self.run_token_key:
            raise ConfigError(
                f"{PREFIX}RUN_TOKEN_KEY: is not set; give the orchestrator's key, or set "
                f"{PREFIX}RUN_TOKEN_REQUIRED=false to admit everyone, in development only"
            )
        if self.output_tokens_default < 1 or self.attempts_max < 1:
            raise ConfigError("output_tokens_default and attempts_max: must be at least 1")
        if self.abandoned_drain_s < 0 or self.retry_backoff_s < 0:
            raise ConfigError("abandoned_drain_s and retry_backoff_s: must be 0 or more")
