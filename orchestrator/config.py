"""Settings of the orchestrator, read from `FATHOM_ORCHESTRATOR_*`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from common.config import ConfigError, Secret, ServerConfig, split_address
from orchestrator.contexts.upload import UploadLimits
from orchestrator.runs.driver import DriverSettings
from orchestrator.runs.limits import RunLimits

PREFIX = "FATHOM_ORCHESTRATOR_"
_USD = 1_000_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrchestratorConfig(ServerConfig):
    """Settings of the orchestrator."""

    listen: str = "127.0.0.1:7311"
    """Address that gRPC listens on, `host:port`; port 0 takes any free one."""
    gateway_address: str = "127.0.0.1:7313"
    """Address of the gateway, `host:port`."""
    sandbox_address: str = "127.0.0.1:7312"
    """Address of the sandbox service, `host:port`."""
    database_url: Secret = Secret("sqlite+aiosqlite:///orchestrator.sqlite")
    """The database, as an SQLAlchemy URL with an async driver; it may hold a password."""
    object_store: Path = Path("objects")
    """Folder of the object store, the one that the sandbox service reads."""
    run_token_key: Secret = Secret("")
    """Signs run tokens; the gateway's must be the same. At least 32 bytes."""
    run_token_audience: str = "fathom"
    """Which deployment's gateway run tokens are for; the gateway's must be the same."""
    api_keys_file: Path | None = None
    """TOML file of the API keys that callers bring; without it all callers are one tenant."""
    api_keys_check_s: float = 5.0
    """How often that file is looked at for changes."""
    runs_running_max: int = 8
    """Runs driven at a time; the others wait."""
    runs_waiting_max: int = 1_000
    """Runs that may wait; more are refused."""
    turns_default: int = 20
    """Turns of a run that asks for nothing."""
    turns_max: int = 200
    """Turns that a run may ask for."""
    time_default_s: float = 600.0
    """Seconds of a run that asks for nothing."""
    time_max_s: float = 86_400.0
    """Seconds that a run may ask for."""
    sub_calls_default: int = 1_000
    """Sub-calls of a run that asks for nothing."""
    sub_calls_max: int = 100_000
    """Sub-calls that a run may ask for."""
    tokens_default: int = 20_000_000
    """Tokens of a run that asks for nothing."""
    tokens_max: int = 2_000_000_000
    """Tokens that a run may ask for."""
    cost_usd_default: float = 5.0
    """US dollars of a run that asks for nothing."""
    cost_usd_max: float = 1_000.0
    """US dollars that a run may ask for."""
    context_bytes_max: int = 16 << 30
    """Size of a context."""
    json_bytes_max: int = 256 << 20
    """Size of a JSON context, which is parsed whole to be checked."""
    documents_max: int = 100_000
    """Documents of a context."""
    cell_time_max_s: float = 120.0
    """Seconds of a cell's own work; waiting for sub-calls is not counted."""
    output_characters_max: int = 10_000
    """Characters of a cell's output that the root model is shown."""
    last_answer_tokens: int = 8_192
    """Tokens that a last answer, at a limit, may have, with the reasoning before it."""
    last_request_bytes: int = 48_000
    """Bytes of conversation that the request for a last answer may hold."""

    def __post_init__(self) -> None:
        super().__post_init__()
        split_address(self.gateway_address)
        split_address(self.sandbox_address)
        if not self.run_token_key:
            raise ConfigError("run_token_key: is needed; it must be the gateway's")
        for name in ("runs_running_max", "runs_waiting_max", "output_characters_max"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1")
        for name in ("turns", "time", "sub_calls", "tokens", "cost_usd"):
            suffix = "_s" if name == "time" else ""
            default = getattr(self, f"{name}_default{suffix}")
            ceiling = getattr(self, f"{name}_max{suffix}")
            if not 0 < default <= ceiling:
                raise ConfigError(f"{name}_default{suffix}: must be above 0, to {name}_max{suffix}")

    @property
    def default_limits(self) -> RunLimits:
        """What a run gets that asks for nothing."""
        return RunLimits(
            turns_max=self.turns_default,
            time_max_s=self.time_default_s,
            sub_calls_max=self.sub_calls_default,
            tokens_max=self.tokens_default,
            cost_usd_nanos_max=round(self.cost_usd_default * _USD),
        )

    @property
    def ceiling_limits(self) -> RunLimits:
        """What a run may ask for at most."""
        return RunLimits(
            turns_max=self.turns_max,
            time_max_s=self.time_max_s,
            sub_calls_max=self.sub_calls_max,
            tokens_max=self.tokens_max,
            cost_usd_nanos_max=round(self.cost_usd_max * _USD),
        )

    @property
    def upload_limits(self) -> UploadLimits:
        """What an upload may hold."""
        return UploadLimits(
            bytes_max=self.context_bytes_max,
            json_bytes_max=self.json_bytes_max,
            documents_max=self.documents_max,
        )

    @property
    def driver_settings(self) -> DriverSettings:
        """How runs are driven."""
        return DriverSettings(
            cell_time_max_s=self.cell_time_max_s,
            output_characters_max=self.output_characters_max,
            last_answer_tokens=self.last_answer_tokens,
            last_request_bytes=self.last_request_bytes,
        )
