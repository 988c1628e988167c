"""What the `fathom` command says where it is used wrongly or the service is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import UnauthenticatedError
from tests.support.client_command import NOBODY, run, serving
from tests.support.fake_orchestrator import FakeOrchestrator, answered

USAGE = [
    ("ask", "why?", "nope.txt"),
    ("ask", "notes.txt"),
    ("ask", "what", "is", "notes.txt"),
    ("ask", "why?", "notes.txt", "--max-usd", "lots"),
    ("ask", "why?", "notes.txt", "--max-turns", "0"),
    ("ask", "why?", "notes.txt", "--json", "--events"),
    ("ask", "why?", "-f", "nope.txt"),
    ("ask", "why?", "--paths-from", "nope.txt"),
    ("ask", " ", "notes.txt"),
    ("ask", "--question", "", "notes.txt"),
    ("up", "--scripted-model", "--listen", "nowhere"),
    ("rnus", "list"),
]


@pytest.mark.parametrize("arguments", USAGE, ids=lambda arguments: " ".join(arguments))
async def test_wrong_usage_has_a_status_of_its_own(folder: Path, arguments: tuple[str]) -> None:
    ended = await run(folder, *arguments, FATHOM_SERVER=NOBODY)

    assert (ended.status, ended.stdout) == (2, "")
    assert ended.stderr


async def test_a_service_that_is_not_there_is_unreachable(folder: Path) -> None:
    ended = await run(folder, "ask", "why?", "notes.txt", "--server", NOBODY)

    assert (ended.status, ended.stdout) == (5, "")
    assert "error: the service cannot be reached" in ended.stderr
    assert "cost so far: nothing" in ended.stderr
    assert "try: fathom doctor" in ended.stderr


async def test_an_unreachable_service_is_told_in_json_too(folder: Path) -> None:
    ended = await run(folder, "ask", "why?", "notes.txt", "--json", "--server", NOBODY)

    printed = json.loads(ended.stdout)
    assert (ended.status, printed["status"], printed["run"]) == (5, "failed", None)
    assert printed["error"]["code"] == "UNAVAILABLE"


async def test_a_refused_credential_has_a_status_of_its_own(folder: Path) -> None:
    orchestrator = FakeOrchestrator(answered("42"))
    orchestrator.create_error = UnauthenticatedError("missing", "no credential was given")
    async with serving(orchestrator) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--server", address)

    assert ended.status == 4
    assert "no credential was given" in ended.stderr


async def test_without_a_service_and_a_key_both_remedies_are_named(folder: Path) -> None:
    ended = await run(folder, "ask", "why?", "notes.txt")

    assert (ended.status, ended.stdout) == (4, "")
    assert "OPENAI_API_KEY" in ended.stderr
    assert "--server" in ended.stderr


async def test_doctor_reports_a_service_that_answers_and_shows_no_key(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        ended = await run(
            folder, "doctor", "--json", "--server", address, OPENAI_API_KEY="sk-secret"
        )

    report = json.loads(ended.stdout)
    levels = {check["name"]: check["level"] for check in report["checks"]}
    assert (ended.status, report["ok"]) == (0, True)
    assert (levels["server"], levels["models"], levels["python"]) == ("ok", "ok", "ok")
    assert "sk-secret" not in ended.stdout + ended.stderr


async def test_doctor_fails_where_the_service_does_not_answer(folder: Path) -> None:
    ended = await run(folder, "doctor", "--server", NOBODY)

    assert ended.status == 1
    assert "fail  server" in ended.stdout
    assert "fathom up" in ended.stdout
