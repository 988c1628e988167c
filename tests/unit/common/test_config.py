"""Configuration from the environment."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from common.config import ConfigError, Secret, ServerConfig, describe, load, split_address


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThingConfig(ServerConfig):
    """A service's configuration."""

    key: Secret = Secret("")
    """Something secret."""
    retries_max: int = 3
    """A number."""
    ratio: float = 0.5
    """Another number."""


def test_a_variable_sets_the_field_of_its_name() -> None:
    environ = {"FATHOM_THING_RETRIES_MAX": "7", "FATHOM_THING_ADDRESS_FILE": "/run/a", "HOME": "/"}

    config = load(ThingConfig, environ, prefix="FATHOM_THING_")

    assert (config.retries_max, config.address_file, config.ratio) == (7, Path("/run/a"), 0.5)


def test_an_unknown_variable_with_the_prefix_is_an_error() -> None:
    """A typo must not silently leave the default in force."""

    with pytest.raises(ConfigError, match="FATHOM_THING_RETRYS_MAX: there is no such setting"):
        load(ThingConfig, {"FATHOM_THING_RETRYS_MAX": "7"}, prefix="FATHOM_THING_")


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("FATHOM_THING_RETRIES_MAX", "many"),
        ("FATHOM_THING_RATIO", ""),
        ("FATHOM_THING_REFLECTION", "perhaps"),
    ],
)
def test_a_value_of_the_wrong_type_names_the_variable(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        load(ThingConfig, {variable: text}, prefix="FATHOM_THING_")


def test_an_optional_setting_is_unset_by_an_empty_value() -> None:
    config = load(ThingConfig, {"FATHOM_THING_ADDRESS_FILE": ""}, prefix="FATHOM_THING_")

    assert config.address_file is None


def test_a_secret_does_not_show_in_the_described_configuration() -> None:
    config = load(ThingConfig, {"FATHOM_THING_KEY": "hunter2"}, prefix="FATHOM_THING_")

    assert "hunter2" not in f"{describe(config)} {config} {config.key!r} {config.key}"
    assert config.key.reveal() == "hunter2"


@pytest.mark.parametrize("address", ["localhost", ":80", "host:port", "host:70000", ""])
def test_what_is_not_an_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        split_address(address)


def test_an_address_may_be_of_ip_version_6() -> None:
    assert split_address("[::1]:80") == ("[::1]", 80)
