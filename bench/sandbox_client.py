"""The sandbox service as a client has it, in the few calls that benchmarks make."""

from __future__ import annotations

import dataclasses

from fathom.sandbox.v1 import (
    execution_pb2,
    sandbox_service_pb2,
    sandbox_service_pb2_grpc,
    session_pb2,
)

_TIMEOUT_S = 120
Result = execution_pb2.ExecutionResult


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a cell gave."""

    output: str
    """Both streams."""
    result: Result
    """How it ended."""


class Sandbox:
    """A client of one service."""

    def __init__(self, stub: sandbox_service_pb2_grpc.SandboxServiceAsyncStub) -> None:
        self._stub = stub

    async def info(self) -> sandbox_service_pb2.GetSandboxInfoResponse:
        """Return what the service says of itself."""
        request = sandbox_service_pb2.GetSandboxInfoRequest()
        return await self._stub.GetSandboxInfo(request, timeout=_TIMEOUT_S)

    async def create(
        self,
        mount: session_pb2.ContextMount | None = None,
        *,
        limits: session_pb2.SessionLimits | None = None,
        profile: str = "",
    ) -> str:
        """Start a session, with a context where one is given, and return its name."""
        request = sandbox_service_pb2.CreateSessionRequest(
            contexts=[mount] if mount else [], limits=limits, profile=profile
        )
        response = await self._stub.CreateSession(request, timeout=_TIMEOUT_S)
        return response.session.name

    async def run(self, session: str, code: str) -> Ran:
        """Run a cell to whatever end."""
        output = ""
        result = Result()
        request = sandbox_service_pb2.ExecuteRequest(name=session, code=code)
        async for response in self._stub.Execute(request, timeout=_TIMEOUT_S):
            event = response.event
            output += event.output.text
            if event.HasField("result"):
                result = event.result
        return Ran(output, result)

    async def execute(self, session: str, code: str) -> str:
        """Run a cell and return its output; RuntimeError unless it ran to its end."""
        ran = await self.run(session, code)
        if ran.result.ending != Result.ENDING_COMPLETED:
            raise RuntimeError(f"the cell ended with {ran.result}")
        return ran.output

    async def interrupt(self, session: str) -> None:
        """Stop what runs."""
        request = sandbox_service_pb2.InterruptExecutionRequest(name=session)
        response = await self._stub.InterruptExecution(request, timeout=_TIMEOUT_S)
        if not response.was_running:
            raise RuntimeError("nothing ran that could be interrupted")

    async def fork(self, session: str) -> str:
        """Copy a session and return the copy's name."""
        request = sandbox_service_pb2.ForkSessionRequest(name=session)
        response = await self._stub.ForkSession(request, timeout=_TIMEOUT_S)
        return response.session.name

    async def checkpoint(self, session: str) -> str:
        """Store a session's image and return its key."""
        request = sandbox_service_pb2.CheckpointSessionRequest(name=session)
        response = await self._stub.CheckpointSession(request, timeout=_TIMEOUT_S)
        return response.checkpoint.key

    async def restore(self, key: str) -> str:
        """Make a session from a stored image and return its name."""
        request = sandbox_service_pb2.RestoreSessionRequest(checkpoint_key=key)
        response = await self._stub.RestoreSession(request, timeout=_TIMEOUT_S)
        return response.session.name

    async def delete(self, session: str) -> None:
        """End a session."""
        request = sandbox_service_pb2.DeleteSessionRequest(name=session)
        await self._stub.DeleteSession(request, timeout=_TIMEOUT_S)
