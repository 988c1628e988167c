"""The outside world as the loop sees it: a model to ask, and a session to run code in.

Both speak in the contract's data messages (an answer, an event of an execution); requests,
channels and retries stay behind these ports. Failures arrive as ReceivedError.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from fathom.gateway.v1.generation_pb2 import Generation, Message
from fathom.sandbox.v1.execution_pb2 import ExecutionEvent

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


class Model(Protocol):
    """The door to language models."""

    async def generate(self, call: ModelCall) -> Generation:
        """Return a whole answer; raises ReceivedError."""


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
    sub_calls_max: int
    """Sub-calls of the whole session."""
    execute_time_max_s: float
    """Own work of one cell."""
    idle_ttl_s: float
    """Ended after this long without a call."""
    timeout_s: float
    """Given up after this long."""


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
    timeout_s: float
    """The call is cut after this long, which interrupts the code."""


class Sandbox(Protocol):
    """The door to sessions."""

    async def open_session(self, order: SessionOrder) -> str:
        """Return `sessions/{session}` once it is ready; raises ReceivedError."""

    def execute(self, order: CellOrder) -> AsyncGenerator[ExecutionEvent, None]:
        """Yield what happens; the result is the last event. Raises ReceivedError."""

    async def interrupt(self, session: str) -> None:
        """Stop the running code, which then ends with its result."""

    async def delete_session(self, session: str) -> None:
        """End the session; succeeds where there is none."""
