"""What becomes of sessions that runs have left behind, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from fathom.sandbox.v1 import sandbox_service_pb2 as pb
from fathom.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub

from common.database import Database
from orchestrator.operations.session_sweep import SessionSweep
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import RunStore
from orchestrator.sandbox_client import SandboxClient
from orchestrator.tables import MIGRATIONS
from tests.support.fake_sandbox import FakeSandbox
from tests.support.serving import serve

TIMEOUT_S = 30


class Place:
    """A sweep between a database and a sandbox."""

    def __init__(self, runs: RunStore, channel: grpc.aio.Channel, sandbox: FakeSandbox) -> None:
        self.sandbox = sandbox
        self.sweep = SessionSweep(runs, SandboxClient(channel))
        self._runs = runs
        self._stub = SandboxServiceStub(channel)

    async def run(self, state: Run.State.ValueType) -> str:
        """Store a run in a state, and return its id."""
        record = RunRecord.queued(RunSpec())
        record.progress.state = state
        await self._runs.create("acme", record, RunEvent(sequence=1), None)
        return record.run_id

    async def session(self, **labels: str) -> str:
        """Open a session with labels, and return its name."""
        request = pb.CreateSessionRequest(labels=labels)
        return str((await self._stub.CreateSession(request, timeout=TIMEOUT_S)).session.name)


@pytest.fixture
async def place(database_url: str) -> AsyncIterator[Place]:
    database, sandbox = await Database.open(database_url, MIGRATIONS), FakeSandbox()
    async with serve(sandbox.register) as channel:
        yield Place(RunStore(database), channel, sandbox)
    await database.close()


async def test_a_session_whose_run_has_ended_is_deleted_at_the_second_look(place: Place) -> None:
    """Whoever drove the run was killed between the run's end and its session's. At the first look
    the run may have ended that moment, and its driver is about to end the session."""
    left = await place.session(run=await place.run(Run.STATE_ANSWERED))

    await place.sweep.sweep()
    assert set(place.sandbox.sessions) == {left}

    await place.sweep.sweep()
    assert not place.sandbox.sessions


async def test_sessions_of_live_runs_and_of_others_stay(place: Place) -> None:
    """A sandbox may serve other deployments, and people who open sessions by hand."""
    kept = {
        await place.session(run=await place.run(Run.STATE_RUNNING)),
        await place.session(run="of-another-deployment"),
        await place.session(),
    }

    await place.sweep.sweep()
    await place.sweep.sweep()

    assert set(place.sandbox.sessions) == kept
