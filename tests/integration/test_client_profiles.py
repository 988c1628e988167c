"""`fathom profiles`, and what `fathom ask` settles with the real orchestrator, as processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.client_command import run
from tests.support.orchestrator import orchestrator


async def test_profiles_are_listed_with_what_they_are_for(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as stack:
        listed = await run(tmp_path, "profiles", "list", "--server", stack.server.address)
        as_json = await run(
            tmp_path, "profiles", "list", "--json", "--server", stack.server.address
        )

    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert names == ["code-review", "contract-review", "research", "search"]
    assert "evidence" in listed.stdout
    [search] = [p for p in json.loads(as_json.stdout)["profiles"] if p["name"] == "profiles/search"]
    assert any(helper.startswith("mails(") for helper in search["helpers"])


async def test_a_question_is_asked_under_a_profile(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the notes\n")
    answer = {"answer": "yes", "evidence": [], "gaps": []}
    async with orchestrator(tmp_path) as stack:
        server = ("--server", stack.server.address)
        stack.gateway.replies = [f"FINAL({json.dumps(answer)})"]
        asked = await run(tmp_path, "ask", "Why?", "notes.txt", "--profile", "search", *server)
        wrong = await run(tmp_path, "ask", "Why?", "notes.txt", "--profile", "serch", *server)

    assert asked.status == 0
    assert json.loads(asked.stdout) == answer
    assert wrong.status != 0
    assert "there is no profiles/serch" in wrong.stderr
    assert "try: fathom profiles list" in wrong.stderr


async def test_the_limits_of_a_profile_go_before_the_commands_own(tmp_path: Path) -> None:
    """They are an operator's decision for such work; what is typed goes before both."""
    (tmp_path / "notes.txt").write_text("the notes\n")
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "tickets.toml").write_text(
        'version = "1"\ndescription = "d"\n'
        "[limits.defaults]\nturns_max = 33\n[limits.ceilings]\ncost_usd_max = 2.0\n"
    )
    asking = ("ask", "Why?", "notes.txt", "--profile", "tickets")
    async with orchestrator(tmp_path, profiles_folder=folder) as stack:
        server = ("--server", stack.server.address)
        stack.gateway.replies = ["FINAL(yes)"]
        asked = await run(tmp_path, *asking, *server)
        typed = await run(tmp_path, *asking, "--max-turns", "7", "--dry-run", *server)
        foretold = await run(tmp_path, "estimate", *asking[1:], "--max-usd", "1", *server)
        listed = await run(tmp_path, "runs", "list", "--json", *server)
    unknown = await run(tmp_path, *asking, "--dry-run", "--max-usd", "1")

    assert (asked.status, asked.stdout) == (0, "yes\n")
    assert asked.stderr.startswith("1 file, 10 B · limits $2, 33 turns, 10 min\n")
    assert typed.stderr.startswith("1 file, 10 B · limits $2, 7 turns, 10 min\n")
    assert foretold.stderr == "1 file, 10 B · limits $1, 33 turns, 10 min\n"
    assert unknown.stderr == "1 file, 10 B · limits $1, else those of profiles/tickets\n"
    assert len(json.loads(listed.stdout)["runs"]) == 1


@pytest.mark.parametrize(
    ("option", "value"), [("--root-model", "nope"), ("--schema", '{"type": "nope"}')]
)
async def test_what_would_be_refused_is_refused_before_anything_is_uploaded(
    tmp_path: Path, option: str, value: str
) -> None:
    """An upload may take hours, and a wrong name would be told after it."""
    (tmp_path / "notes.txt").write_text("the notes\n")
    async with orchestrator(tmp_path) as stack:
        server = ("--server", stack.server.address)
        refused = await run(tmp_path, "ask", "Why?", "notes.txt", option, value, *server)
        listed = await run(tmp_path, "contexts", "list", "--json", *server)

    assert refused.status == 2
    assert f"error: {option}: " in refused.stderr
    assert json.loads(listed.stdout) == {"contexts": []}


async def test_each_turn_has_one_line_at_a_limit_too(tmp_path: Path) -> None:
    """Where no line can be redrawn; the request for a last answer is no turn of its own."""
    (tmp_path / "notes.txt").write_text("the notes\n")
    async with orchestrator(tmp_path) as stack:
        stack.gateway.replies = ["```repl\nprint(1)\n```", "FINAL(so far)"]
        limited = ("--max-turns", "1", "--server", stack.server.address)
        ended = await run(tmp_path, "ask", "Why?", "notes.txt", *limited)

    assert (ended.status, ended.stdout) == (3, "so far\n")
    assert len([line for line in ended.stderr.splitlines() if line.startswith("turn ")]) == 1
