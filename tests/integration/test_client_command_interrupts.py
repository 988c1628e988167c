"""The `fathom` command under Ctrl-C, and over a connection that breaks."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

from tests.support.client_command import (
    NOBODY,
    TIMEOUT_S,
    RunCancelledError,
    end_of,
    run,
    serving,
    start,
)
from tests.support.fake_orchestrator import FakeOrchestrator, answered, cancelled, partial


async def told(process: asyncio.subprocess.Process, text: str) -> None:
    """Wait for a line on standard error that holds `text`."""
    assert process.stderr is not None
    async for line in process.stderr:
        if text in line.decode():
            return


async def test_ctrl_c_cancels_the_run_and_keeps_what_it_found(folder: Path) -> None:
    orchestrator = FakeOrchestrator(
        answered("42"), ending_when_cancelled=cancelled(RunCancelledError("was cancelled"))
    )
    async with serving(orchestrator) as address:
        process = await start(folder, "ask", "why?", "notes.txt", "--server", address)
        await asyncio.wait_for(orchestrator.watching.wait(), TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        ended = await end_of(process)

    assert (ended.status, ended.stdout) == (130, "the first half\n")
    assert "cancelling" in ended.stderr
    assert "not an answer" in ended.stderr
    assert "cost so far: $0.31" in ended.stderr
    assert orchestrator.runs["runs/r1"].HasField("end_time")


async def test_ctrl_c_prints_a_partial_answer_where_there_is_one(folder: Path) -> None:
    orchestrator = FakeOrchestrator(
        answered("42"), ending_when_cancelled=partial("half of it", "time_max")
    )
    async with serving(orchestrator) as address:
        process = await start(folder, "ask", "why?", "notes.txt", "--server", address)
        await asyncio.wait_for(orchestrator.watching.wait(), TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        ended = await end_of(process)

    assert (ended.status, ended.stdout) == (130, "half of it\n")


async def test_ctrl_c_ends_a_command_that_waits_for_standard_input(folder: Path) -> None:
    """Reading it holds up the event loop, which would tell of the signal after the end."""
    process = await start(folder, "ask", "why?", "-", "--server", NOBODY)
    assert process.stdin is not None
    process.stdin.write(b"more than a pipe holds\n" * 100_000)
    await asyncio.wait_for(process.stdin.drain(), TIMEOUT_S)
    process.send_signal(signal.SIGINT)
    status = await asyncio.wait_for(process.wait(), TIMEOUT_S)

    assert status == 130
    assert process.stderr is not None
    assert b"interrupted; cost so far: nothing" in await process.stderr.read()


async def test_ctrl_c_while_watching_leaves_the_run_alone(folder: Path) -> None:
    orchestrator = FakeOrchestrator(
        answered("42"), ending_when_cancelled=cancelled(RunCancelledError("was cancelled"))
    )
    async with serving(orchestrator) as address:
        await run(folder, "ask", "why?", "notes.txt", "--detach", "--server", address)
        process = await start(folder, "runs", "watch", "runs/r1", "--server", address)
        await asyncio.wait_for(orchestrator.watching.wait(), TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        ended = await end_of(process)

    assert ended.status == 130
    assert "the run goes on" in ended.stderr
    assert f"try: fathom runs watch runs/r1 --server {address}" in ended.stderr
    assert not orchestrator.runs["runs/r1"].HasField("end_time")


async def test_a_second_ctrl_c_quits_without_waiting(folder: Path) -> None:
    """A service that does not end the run must not hold the user's terminal."""
    orchestrator = FakeOrchestrator(answered("42"), ending_when_cancelled=lambda _: None)
    orchestrator.is_deaf = True
    async with serving(orchestrator) as address:
        process = await start(folder, "ask", "why?", "notes.txt", "--server", address)
        await asyncio.wait_for(told(process, "turn 1/20"), TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(orchestrator.cancel_asked.wait(), TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        ended = await end_of(process)

    assert ended.status == 130
    assert "interrupted; cost so far: $0.31" in ended.stderr
    assert "try: fathom runs show runs/r1" in ended.stderr


async def test_a_broken_connection_is_told_and_costs_no_event(folder: Path) -> None:
    """Half a minute of silence would look like a model that thinks."""
    orchestrator = FakeOrchestrator(answered("42"))
    orchestrator.cut_watches_after = [4]
    async with serving(orchestrator) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--events", "--server", address)

    sequences = [int(json.loads(line)["sequence"]) for line in ended.stdout.splitlines()]
    assert sequences == list(range(1, len(sequences) + 1))
    assert ended.status == 0
    assert ended.stderr.count("the connection broke") == 1
