"""Numbers in the environment that are none, for every numeric setting of the three services."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator

import pytest

from common.config import ConfigError, ServerConfig, load
from llm_gateway.config import GatewayConfig
from orchestrator.config import OrchestratorConfig
from sandbox_service.config import SandboxConfig

KEY = "k" * 32
SERVICES: tuple[tuple[type[ServerConfig], str, dict[str, str]], ...] = (
    (
        OrchestratorConfig,
        "FATHOM_ORCHESTRATOR_",
        {"FATHOM_ORCHESTRATOR_RUN_TOKEN_KEY": KEY},
    ),
    (GatewayConfig, "FATHOM_GATEWAY_", {"FATHOM_GATEWAY_RUN_TOKEN_KEY": KEY}),
    (SandboxConfig, "FATHOM_SANDBOX_", {}),
)
NO_NUMBERS = (
    *("nan", "inf", "-inf", "-1", "-0.5", "1e400", "1e300", "9" * 30),
    *("", " ", "1\n", "0x10", "1_0", "1,5", "²", "٣", "true"),
)


def numeric_settings() -> Iterator[typing.Any]:
    for service, prefix, needed in SERVICES:
        hints = typing.get_type_hints(service)
        for field in dataclasses.fields(service):
            if hints[field.name] in (int, float):
                name = prefix + field.name.upper()
                yield pytest.param(service, prefix, needed, name, id=name)


@pytest.mark.parametrize(("service", "prefix", "needed", "name"), list(numeric_settings()))
def test_what_is_no_number_of_use_is_refused_by_its_name(
    service: type[ServerConfig], prefix: str, needed: dict[str, str], name: str
) -> None:
    """A NaN passes every comparison that is written the wrong way round, and infinity makes
    deadlines that no clock has room for: both would be found by the first run."""
    for text in NO_NUMBERS:
        with pytest.raises(ConfigError) as refused:
            load(service, needed | {name: text}, prefix=prefix)
        assert str(refused.value).startswith(f"{name}:"), text


@pytest.mark.parametrize(
    "name",
    [
        "FATHOM_ORCHESTRATOR_API_KEYS_CHECK_S",
        "FATHOM_ORCHESTRATOR_PROFILES_CHECK_S",
        "FATHOM_ORCHESTRATOR_CONTEXT_SWEEP_INTERVAL_S",
        "FATHOM_GATEWAY_CREDENTIALS_CHECK_S",
    ],
)
def test_a_pause_between_two_looks_cannot_be_nothing(name: str) -> None:
    """It would look for ever."""
    for service, prefix, needed in SERVICES:
        if name.startswith(prefix):
            with pytest.raises(ConfigError, match=f"^{name}: must be above 0$"):
                load(service, needed | {name: "0"}, prefix=prefix)
            load(service, needed | {name: "0.001"}, prefix=prefix)


def test_a_refusal_names_each_variable_that_it_is_about() -> None:
    """The names of fields stand in no environment."""
    environ = {"FATHOM_SANDBOX_FUEL_DEFAULT": "2", "FATHOM_SANDBOX_FUEL_MAX": "1"}

    with pytest.raises(ConfigError) as refused:
        load(SandboxConfig, environ, prefix="FATHOM_SANDBOX_")

    assert (
        str(refused.value)
        == "FATHOM_SANDBOX_FUEL_DEFAULT: must be from 1 to FATHOM_SANDBOX_FUEL_MAX"
    )


@pytest.mark.parametrize("address", ["127.0.0.1:²", "127.0.0.1:1\n", "a\nb:1", "127.0.0.1:65536"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError):
        load(SandboxConfig, {"FATHOM_SANDBOX_LISTEN": address}, prefix="FATHOM_SANDBOX_")
