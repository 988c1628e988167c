"""The whole orchestrator as real processes that are killed or told to end, over both databases,
between a fake gateway and a fake sandbox: the answer is that of an undisturbed run, and the log has
each step once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fathom.gateway.v1 import gateway_service_pb2 as gateway_pb
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec

from tests.support.eventually import eventually
from tests.support.fake_gateway import FakeGateway
from tests.support.fake_sandbox import FakeSandbox
from tests.support.orchestrator import chunk, serve_on_address, start
from tests.support.orchestrator_process import OrchestratorProcess
from tests.support.postgres import PostgresServer

TURNS = 6
RUNS = 4
TIMEOUT_S = 60.0


def reply(request: gateway_pb.GenerateRequest) -> str:
    """Count a variable up, a cell a turn; the answer is what the session has kept of it."""
    turn = sum(message.role == message.ROLE_ASSISTANT for message in request.prompt.messages) + 1
    if turn < TURNS:
        return "```repl\nn = globals().get('n', 0) + 1\nprint(n)\n```"
    return "```repl\nFINAL(n)\n```"


@dataclasses.dataclass
class Place:
    """Where orchestrators run: a folder, a database and neighbours that outlive them."""

    folder: Path
    url: str
    gateway: FakeGateway
    sandbox: FakeSandbox
    gateway_address: str
    sandbox_address: str

    def orchestrator(self) -> OrchestratorProcess:
        return OrchestratorProcess(
            self.folder, self.url, gateway=self.gateway_address, sandbox=self.sandbox_address
        )

    async def asked(self, times: int) -> None:
        """Wait until the model was asked so often."""
        await eventually(lambda: len(self.gateway.requests) >= times)


@contextlib.asynccontextmanager
async def _place(folder: Path, url: str) -> AsyncIterator[Place]:
    gateway, sandbox = FakeGateway([reply]), FakeSandbox(folder / "objects")
    async with (
        serve_on_address(gateway) as gateway_address,
        serve_on_address(sandbox) as sandbox_address,
    ):
        yield Place(folder, url, gateway, sandbox, gateway_address, sandbox_address)


@pytest.fixture
async def place(tmp_path: Path, database_url: str) -> AsyncIterator[Place]:
    async with _place(tmp_path, database_url) as made:
        yield made


@pytest.fixture
async def shared(tmp_path: Path, postgres: PostgresServer) -> AsyncIterator[Place]:
    async with _place(tmp_path, postgres.new_database()) as made:
        yield made


async def create(orchestrator: OrchestratorProcess, count: int) -> list[str]:
    """Create runs and return their names."""
    upload = orchestrator.contexts.UploadContext(
        iter([start(Context.KIND_TEXT), chunk(b"some text\n", 0)]), timeout=TIMEOUT_S
    )
    context = (await upload).context
    spec = RunSpec(question="How often?", context=context.name)
    created = [
        await orchestrator.runs.CreateRun(pb.CreateRunRequest(spec=spec), timeout=TIMEOUT_S)
        for _ in range(count)
    ]
    return [each.run.name for each in created]


async def watch(orchestrator: OrchestratorProcess, name: str) -> list[RunEvent]:
    """Return a run's events to its end."""
    call = orchestrator.runs.WatchRun(pb.WatchRunRequest(name=name), timeout=TIMEOUT_S)
    return [response.event async for response in call]


def check(events: list[RunEvent]) -> None:
    """The run has the answer of an undisturbed one, and each of its steps once."""
    run = events[-1].run_changed
    assert (run.state, run.answer.text, run.turns) == (Run.STATE_ANSWERED, str(TURNS - 1), TURNS)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    steps = Counter(
        (event.turn, event.cell, event.WhichOneof("event"))
        for event in events
        if event.WhichOneof("event") in {"model_replied", "cell_started", "cell_finished"}
    )
    assert set(steps.values()) == {1}
    assert len(steps) == 3 * TURNS


async def test_runs_of_killed_orchestrators_end_with_the_same_answer(place: Place) -> None:
    """kill -9 again and again: the next process goes on."""
    async with place.orchestrator() as first:
        names = await create(first, RUNS)
        await place.asked(RUNS + 1)
        await first.end(signal.SIGKILL)
    for kills in (2, 3):  # of the calls of all: fewer than there are, however fast they come
        async with place.orchestrator():
            await place.asked(kills * (RUNS + 1))
    async with place.orchestrator() as last:
        for name in names:
            check(await watch(last, name))


async def test_a_second_replica_takes_over_and_watchers_follow(shared: Place) -> None:
    """A client that was cut off comes back to any replica, by sequence, and misses nothing."""
    async with shared.orchestrator() as first, shared.orchestrator() as second:
        names = await create(first, RUNS)
        watching = [asyncio.create_task(watch(second, name)) for name in names]
        await shared.asked(RUNS + 2)
        await first.end(signal.SIGKILL)
        for events in await asyncio.gather(*watching):
            check(events)


async def test_sigterm_hands_runs_to_the_other_replica(shared: Place) -> None:
    """A rolling update fails no run."""
    async with shared.orchestrator() as first:
        shared.gateway.hold.clear()
        names = await create(first, RUNS)
        await shared.asked(RUNS)
        async with shared.orchestrator() as second:
            await first.end(signal.SIGTERM)
            shared.gateway.hold.set()
            for name in names:
                check(await watch(second, name))


async def test_a_cancellation_reaches_the_replica_that_drives_the_run(shared: Place) -> None:
    """The session of a cell that would run for ever is closed."""
    shared.gateway.replies = ["```repl\nhang()\n```"]
    async with shared.orchestrator() as first:
        (name,) = await create(first, 1)
        await eventually(lambda: any(each.is_busy for each in shared.sandbox.sessions.values()))
        async with shared.orchestrator() as second:
            watching = asyncio.create_task(watch(second, name))
            await second.runs.CancelRun(pb.CancelRunRequest(name=name), timeout=TIMEOUT_S)
            async with asyncio.timeout(TIMEOUT_S):
                events = await watching
            await eventually(lambda: not shared.sandbox.sessions)

    assert events[-1].run_changed.state == Run.STATE_CANCELLED
