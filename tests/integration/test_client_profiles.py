"""`fathom profiles` and `fathom ask --profile` as processes, against the real orchestrator."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.test_client_command import run
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
    assert "profiles/search" in wrong.stderr
