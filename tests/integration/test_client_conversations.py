"""`fathom conversations` as a process, against the real orchestrator between fakes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.client_command import Ended, run
from tests.support.orchestrator import Stack, orchestrator


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    (tmp_path / "notes.txt").write_text("the notes\n")
    async with orchestrator(tmp_path) as running:
        yield running


async def verb(stack: Stack, folder: Path, *arguments: str) -> Ended:
    return await run(folder, "conversations", *arguments, "--server", stack.server.address)


async def test_questions_build_on_one_another(stack: Stack, tmp_path: Path) -> None:
    name = (await verb(stack, tmp_path, "start", "notes.txt")).stdout.strip()
    stack.gateway.replies = ["```repl\nn = len(context)\nFINAL(n)\n```"]
    first = await verb(stack, tmp_path, "ask", name, "How long is it?")
    stack.gateway.replies = ["```repl\nFINAL(n * 2)\n```"]
    second = await verb(stack, tmp_path, "ask", name, "And twice that?")

    assert name.startswith("conversations/")
    assert (first.status, first.stdout) == (0, "10\n")
    assert (second.status, second.stdout) == (0, "20\n")
    shown = await verb(stack, tmp_path, "show", name)
    assert "2 runs" in shown.stdout
    assert [line.split("  ")[-1] for line in shown.stdout.splitlines()[2:]] == [
        "How long is it?",
        "And twice that?",
    ]


async def test_conversations_are_listed_and_deleted(stack: Stack, tmp_path: Path) -> None:
    started = json.loads((await verb(stack, tmp_path, "start", "notes.txt", "--json")).stdout)
    name = started["name"]

    listed = await verb(stack, tmp_path, "list", "--json")
    deleted = await verb(stack, tmp_path, "delete", name.removeprefix("conversations/"))
    gone = await verb(stack, tmp_path, "show", name)

    assert [each["name"] for each in json.loads(listed.stdout)["conversations"]] == [name]
    assert deleted.status == 0
    assert gone.status == 1
    assert name in gone.stderr
