"""The image file: sound to its linter, and with all that a build needs."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tomllib

import pytest

from sandbox_service.config import SandboxConfig
from tests.integration.deploy.documents import DEPLOY, PORTS, ROOT, tool

DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
SENT = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(requirements: str) -> dict[str, frozenset[str]]:
    """Return `name==version` to its hashes."""
    found: dict[str, set[str]] = {}
    for line in requirements.splitlines():
        if match := re.match(r"(\S+==\S+)", line):
            hashes = found.setdefault(match[1], set())
        elif match := re.match(r"\s+--hash=(\S+)", line):
            hashes.add(match[1])
    return {name: frozenset(hashes) for name, hashes in found.items()}


def test_the_linter_has_nothing_to_say() -> None:
    command = [tool("hadolint"), "--no-color", str(DEPLOY / "Dockerfile")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout


def test_the_last_stage_runs_as_an_unprivileged_user() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]

    assert re.findall(r"^USER (.+)$", last, re.MULTILINE) == ["65532:65532"]
    assert "STOPSIGNAL SIGTERM" in last


def test_every_stage_starts_from_one_image_with_a_tag() -> None:
    images = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))
    (default,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)

    assert images == {"${PYTHON_IMAGE}"}
    assert re.fullmatch(r"\S+/python:3\.\d+-slim-\w+", default)


@pytest.mark.parametrize("service", PORTS)
def test_a_service_has_its_dependencies_and_its_command(service: str) -> None:
    """The image finds both by the service's name."""
    assert pins((ROOT / "requirements" / f"{service}.txt").read_text())
    assert f"fathom-{service}" in PROJECT["project"]["scripts"]


def test_all_that_the_wheel_is_made_of_is_sent_to_the_build() -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]

    for path in (*packages, "pyproject.toml", PROJECT["project"]["readme"]):
        assert f"!{path}" in SENT
    assert "**" in SENT


def test_the_wheel_is_built_with_the_versions_that_the_tests_use() -> None:
    build = pins((DEPLOY / "build-requirements.txt").read_text())
    development = pins((ROOT / "requirements" / "dev.txt").read_text())

    assert build.items() <= development.items()
    assert all(build.values())
    assert set(PROJECT["build-system"]["requires"]) <= set(build)


def test_the_image_sets_only_settings_that_there_are() -> None:
    """A service refuses to start with one that it does not have."""
    names = set(re.findall(r"FATHOM_SANDBOX_\w+(?==)", DOCKERFILE))
    known = {field.name.upper() for field in dataclasses.fields(SandboxConfig)}

    assert names == set(re.findall(r"FATHOM_\w+(?==)", DOCKERFILE))
    assert names
    assert {name.removeprefix("FATHOM_SANDBOX_") for name in names} <= known
