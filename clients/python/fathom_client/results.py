"""What a finished run came to, in plain Python values.

A view of the wire's `Run`, which stays reachable as `run`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fathom.orchestrator.v1 import run_pb2

from fathom_client.errors import CallError, from_status
from fathom_client.figures import NANOS_PER_USD, usd_text

Status = Literal["queued", "running", "answered", "partial", "failed", "cancelled"]

_STATUSES: dict[run_pb2.Run.State.ValueType, Status] = {
    run_pb2.Run.STATE_QUEUED: "queued",
    run_pb2.Run.STATE_RUNNING: "running",
    run_pb2.Run.STATE_ANSWERED: "answered",
    run_pb2.Run.STATE_PARTIAL: "partial",
    run_pb2.Run.STATE_FAILED: "failed",
    run_pb2.Run.STATE_CANCELLED: "cancelled",
}


@dataclass(frozen=True)
class Result:
    """A run as it stands, most often at its end."""

    run: run_pb2.Run
    """The run as the server gave it."""

    @property
    def status(self) -> Status:
        """The state in one lower-case word."""
        return _STATUSES.get(self.run.state, "queued")

    @property
    def text(self) -> str | None:
        """The answer, whole or partial; None where there is none."""
        return self.run.answer.text if self.run.HasField("answer") else None

    @property
    def found_so_far(self) -> str:
        """What a cancelled or failed run had found; nobody has said that it is an answer."""
        return self.run.found_so_far

    @property
    def error(self) -> CallError | None:
        """Why there is no answer; None where there is one or the run goes on."""
        return from_status(self.run.error) if self.run.HasField("error") else None

    @property
    def cost_usd(self) -> float:
        """Money spent so far, in US dollars."""
        return self.run.usage.cost_usd_nanos / NANOS_PER_USD

    @property
    def cost_text(self) -> str:
        """The same for people: `$0.31`, or `at least $0.31` where some calls are not counted
        yet."""
        text = usd_text(self.run.usage.cost_usd_nanos)
        return f"at least {text}" if self.is_usage_incomplete else text

    @property
    def is_usage_incomplete(self) -> bool:
        """True where money and tokens miss what some calls took that were cut off; the server
        completes them after the run's end, so that a later look has them."""
        return self.run.usage_incomplete

    @property
    def tokens(self) -> int:
        """Input and output tokens so far."""
        return self.run.usage.input_tokens + self.run.usage.output_tokens

    @property
    def elapsed_s(self) -> float:
        """Seconds from the run's start to its end; 0 while it has not ended."""
        if not self.run.HasField("end_time"):
            return 0.0
        first = self.run.start_time if self.run.HasField("start_time") else self.run.create_time
        return max(0.0, (self.run.end_time.ToNanoseconds() - first.ToNanoseconds()) / 1e9)
