"""`fathom contexts` as a process, against the real service of contexts."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.contexts import context_service

COMMAND = (sys.executable, "-P", "-m", "fathom_client.command.main", "contexts")
TIMEOUT_S = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "notes.txt").write_text("the notes\n")
    with zipfile.ZipFile(tmp_path / "mails.zip", "w") as archive:
        archive.writestr("a.eml", "hello")
        archive.writestr("../up.eml", "hello")
    return tmp_path


async def run(folder: Path, address: str, *arguments: str) -> tuple[int, str, str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("FATHOM_")}
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, *arguments, "--server", address),
        cwd=folder,
        env=environ | {"FATHOM_HOME": str(folder / "home")},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_context_is_put_listed_shown_and_deleted(folder: Path) -> None:
    async with context_service(folder / "state") as stack:
        status, name, _ = await run(folder, stack.address, "put", "notes.txt", "--ttl", "2h")
        name = name.strip()
        _, listed, _ = await run(folder, stack.address, "list")
        _, shown, _ = await run(folder, stack.address, "show", name.partition("/")[2])
        deleted, _, _ = await run(folder, stack.address, "delete", name)
        missing, _, error = await run(folder, stack.address, "show", name)

    assert (status, deleted, missing) == (0, 0, 1)
    assert name in listed
    assert "notes.txt" in listed
    assert "10 B (10 bytes)" in shown
    assert "expires" in shown
    assert f"there is no {name}" in error


async def test_an_archive_is_put_as_documents(folder: Path) -> None:
    """What leads out of it is left out and told."""
    async with context_service(folder / "state") as stack:
        status, out, told = await run(folder, stack.address, "put", "mails.zip", "--json")
        name = json.loads(out)["name"]
        _, shown, _ = await run(folder, stack.address, "show", name, "--json")

    assert status == 0
    assert "1 file, 5 B, 1 skipped (unsafe)" in told
    documents = json.loads(shown)["first_documents"]
    assert [document["name"] for document in documents] == ["mails.zip/a.eml"]


async def test_a_place_that_the_server_may_read_is_put_by_its_uri(folder: Path) -> None:
    """The bytes do not pass through this machine."""
    mine = folder / "mine"
    mine.mkdir()
    (mine / "large.json").write_text('{"a": 1}')
    async with context_service(folder / "state", folders=(mine,)) as stack:
        uri = f"file://{mine}/large.json"
        status, out, error = await run(
            folder, stack.address, "put", uri, "--json-input", "--json", "--ttl", "2h"
        )
        beside, _, told = await run(folder, stack.address, "put", uri, "notes.txt")
        refused, _, why = await run(folder, stack.address, "put", f"file://{folder}/notes.txt")

    assert status == 0, error
    found = json.loads(out)
    assert (found["kind"], found["size_bytes"]) == ("KIND_JSON", "8")
    assert found["expire_time"]
    assert (beside, refused) == (2, 4)
    assert "name nothing beside it" in told
    assert "error: the URI is outside of the folders that this server reads" in why
    assert "try: ask the server's operator to have it read there" in why


async def test_a_damaged_archive_is_told_with_what_to_try(folder: Path) -> None:
    (folder / "mails.zip").write_bytes(b"PK no archive")
    async with context_service(folder / "state") as stack:
        status, _, told = await run(folder, stack.address, "put", "mails.zip")

    assert status == 2
    assert "cannot be read as an archive" in told
    assert "try: unpack it" in told


async def test_what_is_no_context_is_a_mistake_of_usage(folder: Path) -> None:
    async with context_service(folder / "state") as stack:
        status, _, told = await run(folder, stack.address, "delete", "runs/x")

    assert status == 2
    assert "runs/x is no context" in told
