"""What the `fathom` command sends: texts, paths, stored contexts, and what is told beforehand."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.support.client_command import run, serving
from tests.support.fake_orchestrator import FakeOrchestrator, answered

FORECAST = (
    "1 to 10 calls · 100 to 2k tokens · $0.01 to $2 · 2 s to 1 min 30 s · from 3 finished runs"
)


async def test_a_dry_run_sends_nothing(folder: Path) -> None:
    orchestrator = FakeOrchestrator(answered("42"))
    async with serving(orchestrator) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--dry-run", "--server", address)

    assert (ended.status, ended.stdout) == (0, "")
    assert ended.stderr == f"1 file, 10 B · limits $5, 20 turns, 10 min\n{FORECAST}\n"
    assert orchestrator.documents == []


async def test_a_confidence_is_asked_for(folder: Path) -> None:
    orchestrator = FakeOrchestrator(answered("42"))
    async with serving(orchestrator) as address:
        await run(folder, "ask", "why?", "notes.txt", "--confidence", "0.9", "--server", address)
        await run(folder, "ask", "why?", "notes.txt", "--server", address)

    sure, plain = (request.spec for request in orchestrator.create_requests)
    assert (sure.confidence_min, plain.HasField("confidence_min")) == (0.9, False)


async def test_an_estimate_is_one_line(folder: Path) -> None:
    """Known before anything is sent: a size is all that the server is told of the data."""
    orchestrator = FakeOrchestrator(answered("42"))
    async with serving(orchestrator) as address:
        ended = await run(folder, "estimate", "why?", "notes.txt", "--server", address)

    assert (ended.status, ended.stdout) == (0, f"{FORECAST}\n")
    (request,) = orchestrator.estimate_requests
    assert (request.spec.question, request.context_bytes, request.context_documents) == (
        "why?",
        10,
        1,
    )
    assert request.spec.limits.turns_max == 20
    assert orchestrator.documents == []


async def test_an_estimate_has_a_json_form(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        ended = await run(folder, "estimate", "why?", "notes.txt", "--json", "--server", address)

    found = json.loads(ended.stdout)
    assert found["calls"] == {"low": "1", "high": "10"}
    assert (found["time_low"], found["time_high"]) == ("2s", "90s")


async def test_text_can_be_piped_in(folder: Path) -> None:
    orchestrator = FakeOrchestrator(answered("42"))
    async with serving(orchestrator) as address:
        ended = await run(folder, "ask", "why?", "--server", address, stdin=b"piped text")

    assert ended.status == 0
    assert orchestrator.documents == [{"": b"piped text"}]


async def test_a_stored_context_is_asked_about_without_an_upload(folder: Path) -> None:
    orchestrator = FakeOrchestrator(answered("42"))
    async with serving(orchestrator) as address:
        asked = ("ask", "how many?", "--server", address, "--context")
        ended = await run(folder, *asked, "c1")
        both = await run(folder, *asked, "contexts/c1", "notes.txt")

    assert (ended.status, ended.stdout) == (0, "42\n")
    assert ended.stderr.startswith("contexts/c1 · limits $5")
    assert orchestrator.create_requests[0].spec.context == "contexts/c1"
    assert orchestrator.started == []
    assert both.status == 2
    assert "--context names the data; leave notes.txt out" in both.stderr


async def test_paths_come_from_options_and_lists_too(folder: Path) -> None:
    (folder / "more.txt").write_text("more\n")
    (folder / "list").write_text("dir\n")
    (folder / "dir").mkdir()
    (folder / "dir" / "a.md").write_text("# a\n")
    orchestrator = FakeOrchestrator(answered("42"))
    arguments = ("why?", "notes.txt", "-f", "more.txt", "--paths-from", "list")
    async with serving(orchestrator) as address:
        await run(folder, "ask", *arguments, "--server", address)

    assert list(orchestrator.documents[0]) == ["notes.txt", "more.txt", "dir/a.md"]


async def test_names_in_a_list_need_not_be_utf8(folder: Path) -> None:
    name = b"caf\xe9.txt"
    (folder / os.fsdecode(name)).write_text("a\n")
    (folder / "list").write_bytes(name + b"\nnotes.txt\n")
    orchestrator = FakeOrchestrator(answered("42"))
    async with serving(orchestrator) as address:
        ended = await run(folder, "ask", "why?", "--paths-from", "list", "--server", address)

    assert ended.status == 0, ended.stderr
    assert list(orchestrator.documents[0]) == ["caf\ufffd.txt", "notes.txt"]
