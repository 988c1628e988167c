"""The outside world as the loop sees it: a model to ask, and a session to run code in.

Both speak in the contract's data messages (an answer, an event of an execution); requests,
channels and retries stay behind these ports. Failures arrive as ReceivedError.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from fathom.gateway.v1.generation_pb2 import CallUsage, Generation, Message
from fathom.sandbox.v1.execution_pb2 import ExecutionEvent
from google.rpc.status_pb2 import Status

from orchestrator.contexts.stored_context import StoredContext, StoredDocument


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCall:
    """One question to the root model."""

    tier: str
    """Tier or deployment."""
    messages: Sequence[Message]
    """The conversation."""
    request_id: str
    """Names the call for the ledger: a repeat is not paid again."""
    turn: int
    """Turn of the run."""
    run_token: str
    """What permits it."""
    timeout_s: float
    """Given up after this long."""
    output_tokens_max: int | None = None
    """Tokens to answer with; the gateway's default where None."""
    response_schema_json: str = ""
    """JSON Schema that the answer is to satisfy, where the model can be held to one; empty for
    none."""


class Model(Protocol):
    """The door to language models."""

    async def generate(self, call: ModelCall) -> Generation:
        """Return a whole answer; raises ReceivedError."""

    async def count_tokens(
        self, tier: str, messages: Sequence[Message], *, run_token: str, timeout_s: float
    ) -> int:
        """Return the tokens of a conversation; raises ReceivedError."""


@dataclasses.dataclass(frozen=True)
class SettledCalls:
    """What the ledger has of some calls."""

    calls: Sequence[CallUsage]
    """What each took of each model."""
    open_calls: int
    """Those that have not ended; what they take is not among it."""


class CallBooks(Protocol):
    """The gateway's ledger."""

    async def settle_calls(
        self, prefix: str, *, run_token: str, grace_s: float, timeout_s: float
    ) -> SettledCalls:
        """Return what calls took that nobody waits for, by the beginning of their request ids;
        raises ReceivedError."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionOrder:
    """What a session is to be."""

    run_id: str
    """For the session's labels."""
    request_id: str
    """A repeat returns the same session."""
    context: StoredContext
    """Mounted as `context`."""
    documents: Sequence[StoredDocument]
    """Its documents; empty unless the kind is DOCUMENTS."""
    run_token: str
    """Sent along with sub-calls."""
    sub_tier: str
    """Tier or deployment of a sub-call that names none."""
    clock_ns: int
    """What its clocks show at first, in nanoseconds of Unix time."""
    seed: int
    """Of all its randomness."""
    guest: str = ""
    """What it has imported; empty for the service's default."""
    execute_time_max_s: float
    """Own work of one cell."""
    idle_ttl_s: float
    """Ended after this long without a call."""
    timeout_s: float
    """Given up after this long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestoreOrder:
    """What a session that comes back from a checkpoint is to be."""

    run_id: str
    """For the session's labels."""
    request_id: str
    """A repeat returns the same session."""
    checkpoint_key: str
    """The checkpoint."""
    run_token: str
    """Sent along with sub-calls."""
    sub_tier: str
    """Tier or deployment of a sub-call that names none."""
    idle_ttl_s: float
    """Ended after this long without a call."""
    timeout_s: float
    """Given up after this long."""


@dataclasses.dataclass(frozen=True)
class OpenSession:
    """A session that there is."""

    name: str
    """`sessions/{session}`."""
    executions: int
    """Executions that it has ended."""
    is_idle: bool
    """True where nothing runs in it."""


@dataclasses.dataclass(frozen=True)
class StoredSession:
    """A checkpoint of a session."""

    key: str
    """Names it."""
    size_bytes: int
    """Compressed size."""
    executions: int
    """Executions that the session had ended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellOrder:
    """One piece of code to run."""

    session: str
    """`sessions/{session}`."""
    code: str
    """Python source."""
    run_token: str
    """Replaces the session's."""
    call_prefix: str
    """Prefix of each sub-call's request id."""
    turn: int
    """Turn of the run."""
    random_stream: int
    """Which of the session's streams of randomness it draws from, from 1."""
    sub_calls_max: int
    """Sub-calls that it may make."""
    failed_sub_calls: Mapping[int, Status]
    """Outcomes of sub-calls that failed when it ran before, by their position in it, from 1."""
    timeout_s: float
    """The call is cut after this long, which interrupts the code."""
    sub_tier: str = ""
    """What its sub-calls ask where they name no tier; empty for the session's."""


class Sandbox(Protocol):
    """The door to sessions."""

    async def open_session(self, order: SessionOrder) -> str:
        """Return `sessions/{session}` once it is ready; raises ReceivedError."""

    def execute(self, order: CellOrder) -> AsyncGenerator[ExecutionEvent, None]:
        """Yield what happens; the result is the last event. Raises ReceivedError."""

    async def restore_session(self, order: RestoreOrder) -> OpenSession:
        """Return a session made from a checkpoint; raises ReceivedError."""

    async def sessions_of(self, run_id: str) -> Sequence[OpenSession]:
        """Return the sessions that were opened for a run; raises ReceivedError."""

    async def checkpoint(self, session: str, owner: str) -> StoredSession:
        """Store a session as it is, for an owner of checkpoints; raises ReceivedError."""

    async def refresh_run_token(self, session: str, run_token: str) -> None:
        """Replace a session's run token, also while code runs; raises ReceivedError."""

    async def interrupt(self, session: str) -> None:
        """Stop the running code, which then ends with its result."""

    async def delete_session(self, session: str) -> None:
        """End the session; succeeds where there is none."""
