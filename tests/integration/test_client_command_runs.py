"""Runs that are left alone, shown, listed and cancelled by the `fathom` command."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fathom_client.home import Home

from tests.support.client_command import RunCancelledError, end_of, run, serving, start
from tests.support.fake_orchestrator import FakeOrchestrator, answered, cancelled


async def test_detaching_needs_services_that_stay(folder: Path) -> None:
    """Found out before any is started: with a key, they would be for nothing."""
    ended = await run(folder, "ask", "why?", "notes.txt", "--detach", OPENAI_API_KEY="k")

    assert (ended.status, ended.stdout) == (2, "")
    assert "try: fathom up" in ended.stderr
    assert not (folder / "home").exists()


async def test_detaching_prints_the_name_of_the_run(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--detach", "--server", address)

    assert (ended.status, ended.stdout) == (0, "runs/r1\n")
    assert "fathom runs watch runs/r1" in ended.stderr


async def test_showing_a_run_tells_what_the_model_saw(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        await run(folder, "ask", "why?", "notes.txt", "--detach", "--server", address)
        ended = await run(folder, "runs", "show", "r1", "--server", address)

    assert ended.status == 0
    assert "── turn 1 " in ended.stdout
    assert "print(len(context))" in ended.stdout
    assert "the model saw 29 of 48,112 characters" in ended.stdout
    assert "3 × llm_query (sub) · 1 failed (ERROR_REASON_RESOURCE_NOT_FOUND)" in ended.stdout
    assert "median 2 s, slowest 3 s · $0.21" in ended.stdout
    assert ended.stdout.rstrip().endswith("42")
    assert "\x1b" not in ended.stdout


async def test_showing_a_run_in_json_gives_run_and_events(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        await run(folder, "ask", "why?", "notes.txt", "--detach", "--server", address)
        ended = await run(folder, "runs", "show", "runs/r1", "--json", "--server", address)

    printed = json.loads(ended.stdout)
    assert printed["run"]["answer"]["text"] == "42"
    assert len(printed["events"]) == int(printed["run"]["last_sequence"])


async def test_showing_a_run_that_goes_on_does_not_wait_for_its_end(folder: Path) -> None:
    orchestrator = FakeOrchestrator(answered("42"), ending_when_cancelled=answered("43"))
    async with serving(orchestrator) as address:
        await run(folder, "ask", "why?", "notes.txt", "--detach", "--server", address)
        ended = await run(folder, "runs", "show", "runs/r1", "--server", address)

    assert ended.status == 0
    assert "not ended; follow it: fathom runs watch runs/r1" in ended.stdout


async def test_a_reader_that_has_seen_enough_gets_no_traceback(folder: Path) -> None:
    """As with `fathom runs show RUN | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    async with serving(FakeOrchestrator(answered("42"))) as address:
        process = await start(folder, "runs", "list", "--server", address, stdout=writer)
        os.close(writer)
        ended = await end_of(process)

    assert (ended.status, ended.stderr) == (1, "")


async def test_runs_are_listed_newest_first(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        for question in ("first?", "second?"):
            await run(folder, "ask", question, "notes.txt", "--detach", "--server", address)
        table = await run(folder, "runs", "list", "--server", address)
        listed = await run(folder, "runs", "list", "--json", "--server", address)

    rows = table.stdout.splitlines()
    assert rows[0].split()[:2] == ["RUN", "STATE"]
    assert [row.split()[0] for row in rows[1:]] == ["runs/r2", "runs/r1"]
    assert [each["question"] for each in json.loads(listed.stdout)["runs"]] == ["second?", "first?"]


async def test_a_home_that_another_command_is_about_to_use_is_told_so(folder: Path) -> None:
    """Its services have no address yet; a key, or a server elsewhere, would not help."""
    with Home(folder / "home").owned():
        ended = await run(folder, "runs", "list")

    assert (ended.status, ended.stdout) == (5, "")
    assert "another fathom command runs its services" in ended.stderr
    assert "try: wait for it" in ended.stderr


async def test_cancelling_a_run_ends_it(folder: Path) -> None:
    orchestrator = FakeOrchestrator(
        answered("42"), ending_when_cancelled=cancelled(RunCancelledError("was cancelled"))
    )
    async with serving(orchestrator) as address:
        await run(folder, "ask", "why?", "notes.txt", "--detach", "--server", address)
        ended = await run(folder, "runs", "cancel", "runs/r1", "--server", address)
        again = await run(folder, "runs", "cancel", "runs/r1", "--server", address)

    assert (ended.status, again.status) == (0, 0)
    assert "has ended before: cancelled" in again.stderr


async def test_an_unknown_run_is_an_error_with_its_name(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        ended = await run(folder, "runs", "show", "nope", "--server", address)

    assert (ended.status, ended.stdout) == (1, "")
    assert "runs/nope" in ended.stderr
