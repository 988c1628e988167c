"""What `deploy/` sets is what the services read: a wrong name would stop them at their start."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable

import pytest

from common.config import ConfigError, load
from llm_gateway.catalog_file import load_catalog
from orchestrator.config import OrchestratorConfig
from sandbox_service.config import SandboxConfig
from tests.integration.deploy.documents import (
    DEPLOY,
    KUSTOMIZATION,
    PORTS,
    compose,
    compose_environment,
    config_class,
    container,
    kubernetes_environment,
    prefix,
)

SOURCES = [compose_environment, kubernetes_environment]
Source = Callable[[str], dict[str, str]]
SANDBOX_OWN_BYTES = 1 << 30
"""What the sandbox's processes take beside the sessions, generously."""


@pytest.mark.parametrize("service", PORTS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_variable_is_a_setting_with_a_valid_value(source: Source, service: str) -> None:
    environment = source(service)

    ours = {name for name in environment if name.startswith("FATHOM_")}
    assert all(name.startswith(prefix(service)) for name in ours)
    load(config_class(service), environment, prefix=prefix(service))


@pytest.mark.parametrize("service", PORTS)
def test_a_misspelt_variable_would_be_noticed(service: str) -> None:
    """Otherwise the test above would prove nothing."""
    environment = {f"{prefix(service)}LISTENS": "0.0.0.0:1"}

    with pytest.raises(ConfigError, match="LISTENS: there is no such setting"):
        load(config_class(service), environment, prefix=prefix(service))


@pytest.mark.parametrize("service", PORTS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_address_is_that_of_a_service(source: Source, service: str) -> None:
    addresses = {
        value for value in source(service).values() if re.fullmatch(r"[a-z][a-z0-9.-]*:\d+", value)
    }

    assert addresses <= {f"{name}:{port}" for name, port in PORTS.items()}
    assert bool(addresses) is (service != "gateway")


@pytest.mark.parametrize("source", SOURCES)
def test_the_memory_of_all_sessions_fits_the_container(source: Source) -> None:
    """Above its limit the kernel ends the container, and every session with it."""
    config = load(SandboxConfig, source("sandbox"), prefix=prefix("sandbox"))
    limits: dict[Source, str] = {
        compose_environment: compose()["services"]["sandbox"]["mem_limit"],
        kubernetes_environment: container("sandbox")["resources"]["limits"]["memory"],
    }
    limit = re.fullmatch(r"(\d+)(g|Gi)", limits[source])

    assert limit is not None
    needed_bytes = config.sessions_max * config.memory_bytes_max + SANDBOX_OWN_BYTES
    assert needed_bytes <= int(limit[1]) << 30


@pytest.mark.parametrize("source", SOURCES)
def test_every_run_that_is_driven_finds_a_session(source: Source) -> None:
    """A run whose session is refused fails."""
    runs = load(OrchestratorConfig, source("orchestrator"), prefix=prefix("orchestrator"))
    sandbox = load(SandboxConfig, source("sandbox"), prefix=prefix("sandbox"))

    assert runs.runs_running_max < sandbox.sessions_max


@pytest.mark.parametrize("source", SOURCES)
def test_both_ends_use_one_folder_of_objects(source: Source) -> None:
    folders = {
        value
        for service in ("orchestrator", "sandbox")
        for value in source(service).values()
        if value.endswith("/objects")
    }

    assert folders == {"/var/lib/fathom/objects"}


@pytest.mark.parametrize("source", SOURCES)
def test_the_gateway_accepts_its_models_with_the_keys_that_the_container_has(
    source: Source,
) -> None:
    """Otherwise it would not start: every provider's key and every price has to be there."""
    now = dt.datetime.now(dt.UTC)

    catalog = load_catalog(KUSTOMIZATION / "gateway.toml", source("gateway"), now)

    assert set(catalog.tiers) == {"root", "sub"}


def test_compose_mounts_the_models_that_kubernetes_has() -> None:
    """One file says what is offered."""
    default = re.fullmatch(r"\$\{\w+:-(.+)\}", compose()["configs"]["gateway"]["file"])

    assert default is not None
    assert (DEPLOY / default[1]).samefile(KUSTOMIZATION / "gateway.toml")
