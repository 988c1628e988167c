"""The compose file: valid, as confined as the pods are, and with the same arrows."""

from __future__ import annotations

import itertools
import re
import subprocess

import pytest

from tests.integration.deploy.documents import (
    ARROWS,
    DEPLOY,
    PORTS,
    compose,
    compose_environment,
    tool,
)

SCHEMA = ("--builtin-schema", "vendor.compose-spec")


def test_the_file_follows_the_specification() -> None:
    command = [tool("check-jsonschema"), *SCHEMA, str(DEPLOY / "compose.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout


def test_there_is_one_container_for_each_service() -> None:
    assert set(compose()["services"]) == set(PORTS)


@pytest.mark.parametrize("service", PORTS)
def test_a_container_has_no_privilege(service: str) -> None:
    spec = compose()["services"][service]

    assert spec["user"] == "65532:65532"
    assert spec["read_only"] is True
    assert spec["cap_drop"] == ["ALL"]
    assert spec["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(spec)


@pytest.mark.parametrize("service", PORTS)
def test_a_container_has_limits(service: str) -> None:
    assert {"mem_limit", "cpus", "pids_limit"} <= set(compose()["services"][service])


@pytest.mark.parametrize("service", PORTS)
def test_a_container_says_that_it_serves_on_the_port_it_listens_on(service: str) -> None:
    port = PORTS[service]
    test = compose()["services"][service]["healthcheck"]["test"]

    assert compose_environment(service)[f"FATHOM_{service.upper()}_LISTEN"] == f"0.0.0.0:{port}"
    assert test == ["CMD", "python", "-m", "common.healthcheck", f"127.0.0.1:{port}"]


def test_only_the_orchestrator_is_published_and_only_on_loopback() -> None:
    published = {
        name: spec["ports"] for name, spec in compose()["services"].items() if "ports" in spec
    }

    assert published == {"orchestrator": ["127.0.0.1:7311:7311"]}


def test_two_services_share_a_network_only_where_one_calls_the_other() -> None:
    services = compose()["services"]
    meeting = {
        frozenset(pair)
        for pair in itertools.combinations(services, 2)
        if set(services[pair[0]]["networks"]) & set(services[pair[1]]["networks"])
    }

    assert meeting == {frozenset(arrow) for arrow in ARROWS}


def test_only_the_gateway_has_a_way_out() -> None:
    """A network that is not internal has one, unless its packets leave under no address."""

    def has_way_out(network: str) -> bool:
        spec = compose()["networks"][network]
        masquerade = spec.get("driver_opts", {}).get(
            "com.docker.network.bridge.enable_ip_masquerade", "true"
        )
        return not spec.get("internal", False) and masquerade != "false"

    with_way_out = {
        name
        for name, spec in compose()["services"].items()
        if any(map(has_way_out, spec["networks"]))
    }
    assert with_way_out == {"gateway"}


def test_the_object_store_is_read_only_in_the_sandbox() -> None:
    mounts = {name: spec.get("volumes", []) for name, spec in compose()["services"].items()}

    assert "objects:/var/lib/fathom/objects" in mounts["orchestrator"]
    assert mounts["sandbox"] == [
        "objects:/var/lib/fathom/objects:ro",
        "sessions:/var/lib/fathom/sessions",
    ]
    assert mounts["gateway"] == ["ledger:/var/lib/fathom/state"]


def test_a_key_is_only_ever_a_reference_that_must_be_set() -> None:
    keys = {
        (service, name): value
        for service in PORTS
        for name, value in compose_environment(service).items()
        if name.endswith("_KEY")
    }

    assert set(keys) == {
        ("orchestrator", "FATHOM_ORCHESTRATOR_RUN_TOKEN_KEY"),
        ("gateway", "FATHOM_GATEWAY_RUN_TOKEN_KEY"),
        ("gateway", "OPENAI_API_KEY"),
    }
    assert all(re.fullmatch(r"\$\{[A-Z_]+:\?.+\}", value) for value in keys.values())
