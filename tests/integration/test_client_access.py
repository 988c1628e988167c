"""The command and a server that wants to know who calls: TLS, certificates, API keys."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from common.config import ServerConfig
from common.server import Server
from orchestrator.api_keys import ApiKeys
from tests.support.certificates import Authority
from tests.support.client_command import run
from tests.support.fake_orchestrator import FakeOrchestrator, answered


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with one text."""
    (tmp_path / "notes.txt").write_text("the notes\n")
    return tmp_path


@asynccontextmanager
async def serving_tls(authority: Authority, **settings: Any) -> AsyncIterator[str]:
    """Serve over TLS alone; yields the address, without a scheme."""
    pair = authority.pair("server")
    files: dict[str, Any] = {"tls_certificate_file": pair.certificate, "tls_key_file": pair.key}
    server = Server("test", ServerConfig(drain_s=1.0, **files, **settings))
    FakeOrchestrator(answered("42")).register(server)
    async with server:
        yield server.address


async def test_a_server_named_by_https_is_called_over_tls(folder: Path) -> None:
    """An API key is sent with every call; without TLS whoever carries the bytes reads it."""
    authority = Authority(folder)
    arguments = ("ask", "how many?", "notes.txt", "--server")
    trusting: dict[str, Any] = {"FATHOM_TLS_CA_FILE": str(authority.file)}
    async with serving_tls(authority) as address:
        trusted = await run(folder, *arguments, f"https://{address}", **trusting)
        doubted = await run(folder, *arguments, f"https://{address}")
        plain = await run(folder, *arguments, address)

    assert (trusted.status, trusted.stdout) == (0, "42\n")
    assert trusted.stderr.splitlines()[-1].endswith(f"--server https://{address}")
    assert (doubted.status, plain.status) == (5, 5)
    assert "no authority that is trusted here" in doubted.stderr
    assert "try: name its authority: --tls-ca-file" in doubted.stderr
    assert "try: name it by https://HOST:PORT" in plain.stderr


async def test_a_certificate_is_shown_to_a_server_that_asks_for_one(folder: Path) -> None:
    """Naming files for TLS means TLS, with or without https:// before the server."""
    authority = Authority(folder)
    own = authority.pair("me")
    trusting = ("--tls-ca-file", str(authority.file))
    showing = ("--tls-certificate-file", str(own.certificate), "--tls-key-file", str(own.key))
    asked = ("ask", "how many?", "notes.txt")
    async with serving_tls(authority, tls_client_ca_file=authority.file) as address:
        known = await run(folder, *asked, "--server", address, *trusting, *showing)
        unknown = await run(folder, *asked, "--server", address, *trusting)
        damaged = await run(folder, *asked, "--server", address, *trusting, *showing[:2])

    assert (known.status, known.stdout) == (0, "42\n")
    assert f"--server https://{address} --tls-ca-file" in known.stderr.splitlines()[-1]
    assert unknown.status == 5
    assert "what to show: --tls-certificate-file" in unknown.stderr
    assert (damaged.status, damaged.stdout) == (2, "")
    assert "is of no use without the private key" in damaged.stderr


async def test_a_key_can_be_read_from_a_file_and_is_in_no_message(folder: Path) -> None:
    """On the command line every process of the machine could read it."""
    digest = hashlib.sha256(b"s3cret").hexdigest()
    (folder / "keys.toml").write_text(f'[keys.ci]\ntenant = "acme"\nsha256 = "{digest}"\n')
    (folder / "key").write_text("s3cret\n")
    (folder / "other").write_text("0ther")
    keys = ApiKeys(folder / "keys.toml")
    server = Server("test", ServerConfig(drain_s=1.0), admit=lambda _, call: keys.admit(call))
    FakeOrchestrator(answered("42")).register(server)
    async with server:
        asked = ("ask", "why?", "notes.txt", "--server", server.address)
        known = await run(folder, *asked, "--api-key-file", "key")
        wrong = await run(folder, *asked, "--api-key-file", "other")
        none = await run(folder, *asked)
        missing = await run(folder, *asked, "--api-key-file", "nowhere")

    assert (known.status, known.stdout) == (0, "42\n")
    assert (wrong.status, none.status, missing.status) == (4, 4, 2)
    assert "try: check FATHOM_API_KEY: the server does not know this key" in wrong.stderr
    assert "try: set FATHOM_API_KEY" in none.stderr
    assert "--api-key-file: nowhere: No such file" in missing.stderr
    assert not any(key in known.stderr + wrong.stderr for key in ("s3cret", "0ther"))
