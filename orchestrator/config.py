"""Settings of the orchestrator, read from `FATHOM_ORCHESTRATOR_*`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from common.config import ConfigError, Secret, ServerConfig, split_address
from common.parted_objects import open_bucket
from orchestrator.contexts.assembly import ContextSettings
from orchestrator.contexts.upload_plan import TTL_MAX_S, TTL_MIN_S, UploadLimits
from orchestrator.durable.assembly import QueueSettings
from orchestrator.runs.assembly import DriverSettings
from orchestrator.runs.children.run_trees import TreeSettings
from orchestrator.runs.default_limits import DefaultLimits
from orchestrator.runs.limits import RunLimits
from orchestrator.runs.spec import DIRECT_TOKENS_MAX
from orchestrator.runs.spec_defaults import SpecDefaults

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
    object_store: str = "objects"
    """Where the object store is, the one that the sandbox service reads: a folder, or
    `s3://bucket/prefix`."""
    object_store_endpoint: str = ""
    """URL of an S3-compatible service; empty for Amazon's."""
    object_store_region: str = "us-east-1"
    """Region of the bucket."""
    object_store_credentials: Path | None = None
    """File with aws_access_key_id and aws_secret_access_key, as other S3 tools have it; the
    environment's AWS_* where unset."""
    object_store_reserve_bytes: int = 512 << 20
    """Bytes of its disk that uploads leave free, for events and outputs of runs; where it is a
    folder."""
    run_token_key: Secret = Secret("")
    """Signs run tokens; the gateway's must be the same. At least 32 bytes."""
    run_token_audience: str = "fathom"
    """Which deployment's gateway run tokens are for; the gateway's must be the same."""
    run_token_lifetime_s: float = 900.0
    """Seconds that a run token is good for at most; it is renewed while code runs. 0 is as long as
    the run."""
    api_keys_file: Path | None = None
    """TOML file of the API keys that callers bring; without it all callers are one tenant."""
    api_keys_check_s: float = 5.0
    """How often that file is looked at for changes."""
    profiles_folder: Path | None = None
    """Folder of the profiles that runs may name, a TOML file each; those that come with fathom
    where unset."""
    profiles_check_s: float = 5.0
    """How often these files are looked at for changes."""
    runs_kept_days: float = 0.0
    """Days after its end that a run is deleted; 0 keeps runs for ever."""
    runs_running_max: int = 8
    """Runs that this process drives at a time; the others wait. Child runs are not counted. 0 is
    for a process that drives none, and only ends those that are to stop."""
    runs_running_max_per_tenant: int = 8
    """Runs of one tenant that all processes together drive at a time; child runs not counted."""
    runs_waiting_max: int = 10_000
    """Runs that may wait, of all tenants; more are refused."""
    runs_waiting_max_per_tenant: int = 1_000
    """Runs of one tenant that may wait; more are refused."""
    concurrent_rpcs_max_per_tenant: int = 500
    """Calls of one tenant that this process serves at a time; where there are API keys."""
    watchers_max_per_tenant: int = 200
    """Calls of WatchRun among them."""
    cell_calls_max_per_tenant: int = 150
    """Calls that the code of one tenant's runs makes and that this process serves at a time, those
    that wait for child runs at each depth, and those of host tools; further ones wait until some of
    these end. Where there are API keys. All tenants together have `concurrent_rpcs_max`, beside the
    calls of clients."""
    executor_lease_s: float = 15.0
    """Seconds without a sign of this process until others take its runs over (PostgreSQL)."""
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
    limits_growth_max: float = 10.0
    """How many times the defaults of time, sub-calls, tokens and money a large context gets."""
    direct_tokens_max: int = 0
    """Tokens of a context that a model is first shown whole, to answer without code; 0 is never."""
    depth_default: int = 1
    """Nesting of child runs in a run that asks for nothing; 0 is none."""
    depth_max: int = 4
    """Nesting of child runs that a run may ask for."""
    children_live_default: int = 4
    """Child runs at a time in the tree below a run that asks for nothing."""
    children_live_max: int = 64
    """Child runs at a time that a run may ask for."""
    children_per_tree_max: int = 10_000
    """Child runs that a run and all below it may start in their whole life."""
    child_context_ttl_s: float = 7 * 86_400.0
    """Seconds that a context is kept that was made for a child run; longer while one uses it."""
    context_bytes_max: int = 128 << 30
    """Size of a context."""
    documents_max: int = 100_000
    """Documents of a context."""
    tenant_bytes_max: int = 0
    """Bytes that a tenant may store, names and metadata of documents and unfinished uploads
    included; 0 for no bound."""
    uploads_unfinished_max: int = 100
    """Unfinished uploads of a tenant; more are refused."""
    upload_ttl_s: float = 86_400.0
    """Seconds after which an upload that nobody goes on with is dropped."""
    context_ttl_s: float = 0.0
    """Seconds after which a context is deleted whose upload names no time; 0 is never."""
    context_sweep_interval_s: float = 60.0
    """Seconds between two looks for contexts and uploads whose time is over."""
    context_folders: str = ""
    """Folders, separated by colons, whose files every tenant may make contexts of by CreateContext
    with file:///path; none where empty."""
    context_buckets: str = ""
    """Buckets, separated by commas, whose objects every tenant may make contexts of by
    CreateContext with s3://bucket/key; none where empty."""
    checkpoint_after_s: float = 5.0
    """Seconds of own work of a run's code after which its session is stored; 0 is after every
    turn."""
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
        self._check_times()
        if self.runs_running_max < 0:
            raise ConfigError("runs_running_max: must be at least 0")
        for name in (
            *("runs_running_max_per_tenant", "runs_waiting_max", "runs_waiting_max_per_tenant"),
            *("concurrent_rpcs_max_per_tenant", "watchers_max_per_tenant"),
            *("cell_calls_max_per_tenant", "children_per_tree_max", "output_characters_max"),
            *("context_bytes_max", "documents_max", "uploads_unfinished_max"),
            *("last_answer_tokens", "last_request_bytes"),
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1")
        self._check_smart_limits()
        for name in ("turns", "time", "sub_calls", "tokens", "cost_usd"):
            suffix = "_s" if name == "time" else ""
            default = getattr(self, f"{name}_default{suffix}")
            ceiling = getattr(self, f"{name}_max{suffix}")
            if not 0 < default <= ceiling:
                raise ConfigError(f"{name}_default{suffix}: must be above 0, to {name}_max{suffix}")

        for name in ("depth", "children_live"):
            default, ceiling = getattr(self, f"{name}_default"), getattr(self, f"{name}_max")
            if not 0 <= default <= ceiling:
                raise ConfigError(f"{name}_default: must be from 0 to {name}_max")
        if not TTL_MIN_S <= self.child_context_ttl_s <= TTL_MAX_S:
            raise ConfigError(f"child_context_ttl_s: must be {TTL_MIN_S:g} to {TTL_MAX_S:g}")

    def _check_times(self) -> None:
        self.check_positive(
            *("executor_lease_s", "api_keys_check_s", "profiles_check_s", "cell_time_max_s"),
            *("upload_ttl_s", "context_sweep_interval_s"),
        )
        if self.run_token_lifetime_s and self.run_token_lifetime_s < 1:
            raise ConfigError("run_token_lifetime_s: must be 0 or at least 1")

    def _check_smart_limits(self) -> None:
        if self.limits_growth_max < 1:
            raise ConfigError("limits_growth_max: must be at least 1")
        if not 0 <= self.direct_tokens_max <= DIRECT_TOKENS_MAX:
            raise ConfigError(f"direct_tokens_max: must be 0 to {DIRECT_TOKENS_MAX}")

    @property
    def spec_defaults(self) -> SpecDefaults:
        """What a run gets that asks for nothing, and may ask for at most."""
        base = RunLimits(
            turns_max=self.turns_default,
            time_max_s=self.time_default_s,
            sub_calls_max=self.sub_calls_default,
            tokens_max=self.tokens_default,
            cost_usd_nanos_max=round(self.cost_usd_default * _USD),
            depth_max=self.depth_default,
            children_live_max=self.children_live_default,
        )
        ceilings = RunLimits(
            turns_max=self.turns_max,
            time_max_s=self.time_max_s,
            sub_calls_max=self.sub_calls_max,
            tokens_max=self.tokens_max,
            cost_usd_nanos_max=round(self.cost_usd_max * _USD),
            depth_max=self.depth_max,
            children_live_max=self.children_live_max,
        )
        return SpecDefaults(
            limits=DefaultLimits(base=base, ceilings=ceilings, growth_max=self.limits_growth_max),
            direct_tokens_max=self.direct_tokens_max,
        )

    @property
    def tree_settings(self) -> TreeSettings:
        """How large trees of runs may be."""
        return TreeSettings(
            context_ttl_s=self.child_context_ttl_s, per_tree_max=self.children_per_tree_max
        )

    @property
    def context_settings(self) -> ContextSettings:
        """How contexts are kept."""
        return ContextSettings(
            limits=UploadLimits(
                bytes_max=self.context_bytes_max,
                documents_max=self.documents_max,
                tenant_bytes_max=self.tenant_bytes_max,
                unfinished_max=self.uploads_unfinished_max,
                ttl_s=self.context_ttl_s,
            ),
            upload_ttl_s=self.upload_ttl_s,
            sweep_interval_s=self.context_sweep_interval_s,
            folders=[Path(folder) for folder in self.context_folders.split(":") if folder],
            buckets={
                bucket: open_bucket(
                    bucket,
                    endpoint=self.object_store_endpoint,
                    region=self.object_store_region,
                    credentials=self.object_store_credentials,
                )
                for bucket in self.context_buckets.split(",")
                if bucket
            },
        )

    @property
    def queue_settings(self) -> QueueSettings:
        """How many runs are driven."""
        return QueueSettings(
            database_url=self.database_url,
            running_max=self.runs_running_max,
            per_tenant_max=self.runs_running_max_per_tenant,
            waiting_max=self.runs_waiting_max,
            waiting_max_per_tenant=self.runs_waiting_max_per_tenant,
            lease_s=self.executor_lease_s,
            run_time_max_s=self.time_max_s,
        )

    @property
    def driver_settings(self) -> DriverSettings:
        """How runs are driven."""
        return DriverSettings(
            cell_time_max_s=self.cell_time_max_s,
            output_characters_max=self.output_characters_max,
            last_answer_tokens=self.last_answer_tokens,
            last_request_bytes=self.last_request_bytes,
            checkpoint_after_s=self.checkpoint_after_s,
        )
