"""The command where no services run: it looks runs up, and does not go on with them by that."""

from __future__ import annotations

import io
from pathlib import Path

from fathom_client.client import Client
from fathom_client.command.invocation import Invocation
from fathom_client.command.server_choice import say_what_goes_on
from fathom_client.command.terminal import Terminal
from fathom_client.home import Home

from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.steps import Steps
from orchestrator.runs.queue import Drive
from orchestrator.runs.stop_wish import StopWish
from tests.support.client_command import run, serving
from tests.support.durable import durable
from tests.support.fake_orchestrator import FakeOrchestrator, answered


def _nobody(_log: EventLog) -> Drive:
    async def drive(_tenant: str, record: RunRecord, _stop: StopWish, _steps: Steps) -> None:
        raise AssertionError(f"{record.run_id} is driven")

    return drive


async def unfinished_run(folder: Path) -> str:
    """Leave a run in a home as services do that were ended; returns its name."""
    home = Home(folder / "home")
    home.create()
    async with durable(home.database_url, _nobody, running_max=0) as parts:
        record = await parts.create("default")
    return record.head.name


async def test_looking_runs_up_does_not_go_on_with_them(tmp_path: Path) -> None:
    """It would spend money that nobody has asked to spend."""
    name = await unfinished_run(tmp_path)

    listed = await run(tmp_path, "runs", "list")

    assert listed.status == 0
    assert f"{name}  queued" in listed.stdout
    assert "1 run unfinished" in listed.stderr
    assert "try: fathom up" in listed.stderr


async def test_watching_a_run_that_nothing_drives_says_what_would(tmp_path: Path) -> None:
    """In place of waiting for ever."""
    name = await unfinished_run(tmp_path)

    watched = await run(tmp_path, "runs", "watch", name)

    assert (watched.status, watched.stdout) == (5, "")
    assert f"{name} waits: no services are running here" in watched.stderr
    assert "try: fathom up" in watched.stderr


async def test_a_run_that_nothing_drives_can_be_cancelled(tmp_path: Path) -> None:
    name = await unfinished_run(tmp_path)

    ended = await run(tmp_path, "runs", "cancel", name)

    assert ended.status == 0
    assert f"{name} has ended" in ended.stderr


async def test_services_that_have_just_been_started_say_which_runs_they_go_on_with(
    tmp_path: Path,
) -> None:
    """Somebody began them, and somebody pays for them."""
    said = io.StringIO()
    invocation = Invocation(
        terminal=Terminal({}, stream=said), environ={"FATHOM_HOME": str(tmp_path)}
    )
    orchestrator = FakeOrchestrator(answered("42"), ending_when_cancelled=answered("43"))
    async with serving(orchestrator) as address:
        await say_what_goes_on(invocation, address)
        assert said.getvalue() == ""
        async with Client(address) as client:
            run_ = await client.create("how many?", "contexts/c1")
        await say_what_goes_on(invocation, address)

    assert said.getvalue() == f"1 unfinished run goes on:\n  {run_.name}  how many?\n"
