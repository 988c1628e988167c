"""API keys: what a file may say, and whose key is whose."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from common.config import ConfigError
from common.errors import UnauthenticatedError
from orchestrator.api_keys import ApiKeys
from orchestrator.tenants import Caller
from tests.support.eventually import eventually


def digest(key: str) -> str:
    """Return what the file holds of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def entry(name: str, key: str, *more: str) -> str:
    """Return one key's table."""
    lines = [f"[keys.{name}]", 'tenant = "acme"', f'sha256 = "{digest(key)}"', *more]
    return "\n".join(lines) + "\n"


def keys(folder: Path, text: str) -> ApiKeys:
    """Read keys from a file with this text."""
    file = folder / "keys.toml"
    file.write_text(text)
    return ApiKeys(file)


def bearer(key: str) -> dict[str, str]:
    """Return the metadata of a call with a key."""
    return {"authorization": f"Bearer {key}"}


def test_without_a_file_everyone_is_the_default_tenant_and_its_operator() -> None:
    assert ApiKeys(None).caller({}) == Caller(tenant="default", key="", is_operator=True)


def test_a_key_tells_tenant_name_and_whether_it_is_an_operators(tmp_path: Path) -> None:
    text = entry("ci", "one") + entry("ops", "two", "operator = true")
    known = keys(tmp_path, text)
    assert known.caller(bearer("one")) == Caller(tenant="acme", key="ci")
    assert known.caller(bearer("two")) == Caller(tenant="acme", key="ops", is_operator=True)


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({}, "missing"),
        ({"authorization": ""}, "missing"),
        ({"authorization": "Basic one"}, "malformed"),
        ({"authorization": "one"}, "malformed"),
        ({"authorization": b"Bearer one"}, "malformed"),
        (bearer("other"), "foreign"),
        (bearer(""), "foreign"),
        (bearer(digest("one")), "foreign"),
    ],
)
def test_a_call_without_a_known_key_is_refused(
    tmp_path: Path, metadata: dict[str, str], problem: str
) -> None:
    """The digest is no key: who reads the file cannot call."""
    with pytest.raises(UnauthenticatedError) as caught:
        keys(tmp_path, entry("ci", "one")).caller(metadata)
    assert caught.value.metadata["problem"] == problem


def test_a_key_ends_when_it_expires(tmp_path: Path) -> None:
    known = keys(tmp_path, entry("old", "one", "expires = 2020-01-01T00:00:00Z"))
    with pytest.raises(UnauthenticatedError) as caught:
        known.caller(bearer("one"))
    assert caught.value.metadata["problem"] == "expired"
    later = keys(tmp_path, entry("new", "one", "expires = 2999-01-01T00:00:00+02:00"))
    assert later.caller(bearer("one")).key == "new"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "keys"),
        ("[keys]\n", "at least one"),
        ("not toml", "TOML"),
        ('[keys.ci]\ntenant = "acme"\n', "sha256"),
        ('[keys.ci]\ntenant = "acme"\nsha256 = "abc"\n', "64"),
        (f'[keys.ci]\nsha256 = "{digest("x")}"\n', "tenant"),
        (f'[keys.ci]\ntenant = "a b"\nsha256 = "{digest("x")}"\n', "tenant"),
        (entry("ci", "one", "key = 1"), "no such key"),
        (entry("ci", "one", "expires = 2020-01-01"), "expires"),
        (entry("ci", "one", "expires = 2020-01-01T00:00:00"), "offset"),
        (entry("a", "one") + entry("b", "one"), "another key"),
        (entry('"a b"', "one"), "letters"),
        (entry("ci", "one") + "[other]\n", "other"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        keys(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keys\.toml"):
        ApiKeys(tmp_path / "keys.toml")


async def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Keys are taken away without a restart, and a slip of the pen locks nobody out."""
    known = keys(tmp_path, entry("ci", "one"))
    watching = asyncio.create_task(known.watch(0.01))
    try:
        (tmp_path / "keys.toml").write_text("nonsense")
        await eventually(lambda: "stay as they were" in caplog.text)
        assert known.caller(bearer("one")).key == "ci"
        (tmp_path / "keys.toml").write_text(entry("ci", "two"))
        await eventually(lambda: _is_known(known, "two"))
        assert not _is_known(known, "one")
    finally:
        watching.cancel()


def _is_known(known: ApiKeys, key: str) -> bool:
    try:
        known.caller(bearer(key))
    except UnauthenticatedError:
        return False
    return True
