"""What is known of a conversation, and what its limits leave for another run."""

from __future__ import annotations

import dataclasses

from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec

from orchestrator.errors import ConversationBusyError, ConversationLimitExceededError
from orchestrator.runs.amounts import add_usage
from orchestrator.runs.log.record import TERMINAL_STATES

BOUNDED = ("sub_calls_max", "tokens_max", "cost_usd_nanos_max")
"""The limits that a conversation can have."""


@dataclasses.dataclass(frozen=True)
class Seat:
    """The right of one run to be the next of a conversation."""

    conversation_id: str
    """The conversation."""
    after_run_id: str
    """Its newest run when the right was given, which has ended; empty for none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredConversation:
    """A conversation as it is stored."""

    tenant: str
    """Whose it is."""
    conversation_id: str
    """Sorts by the time it was made."""
    context_id: str
    """What its runs read."""
    limits: Limits
    """Over all its runs; unset is none."""
    idle_ttl_us: int
    """Ended after this long without a run."""
    created_us: int
    """When it was made, in microseconds of Unix time, as all times here."""
    used_us: int
    """When its newest run was created, else when it was made itself."""
    newest_run: Run | None = None
    """Its newest run, as far as that is kept."""
    newest_run_id: str = ""
    """The id of that; empty before the first one."""
    past_usage: Usage = dataclasses.field(default_factory=Usage)
    """What all its runs but the newest took."""
    past_sub_calls: int = 0
    """Sub-calls of the same."""

    @property
    def name(self) -> str:
        """The resource name."""
        return f"conversations/{self.conversation_id}"

    @property
    def live_run(self) -> str:
        """The run that has not ended; else empty."""
        run = self.newest_run
        return run.name if run is not None and run.state not in TERMINAL_STATES else ""

    @property
    def expires_us(self) -> int:
        """When it ends, unless it is used again; a run that goes on is a use."""
        used_us = self.used_us
        if self.newest_run is not None:
            used_us = max(used_us, self.newest_run.end_time.ToMicroseconds())
        return used_us + self.idle_ttl_us

    def is_expired(self, now_us: int) -> bool:
        """Whether it has ended by lapse of time."""
        return not self.live_run and self.expires_us <= now_us

    @property
    def usage(self) -> Usage:
        """What its runs took that have ended."""
        total = Usage()
        total.CopyFrom(self.past_usage)
        if self.newest_run is not None and not self.live_run:
            add_usage(total, self.newest_run.usage)
        return total

    @property
    def sub_calls(self) -> int:
        """Sub-calls of its runs that have ended."""
        run = self.newest_run
        return self.past_sub_calls + (run.sub_calls if run is not None and not self.live_run else 0)

    def seat(self) -> Seat:
        """Give the next run its place; raises ConversationBusyError."""
        if self.live_run:
            raise ConversationBusyError(self.name, self.live_run)
        return Seat(self.conversation_id, self.newest_run_id)

    def lower(self, spec: RunSpec) -> None:
        """Lower the limits of a completed spec to what is left; raises
        ConversationLimitExceededError where that is nothing."""
        usage = self.usage
        spent = {
            "sub_calls_max": self.sub_calls,
            "tokens_max": usage.input_tokens + usage.output_tokens,
            "cost_usd_nanos_max": usage.cost_usd_nanos,
        }
        for limit in BOUNDED:
            if not self.limits.HasField(limit):  # type: ignore[arg-type]  # a name of BOUNDED
                continue
            value = getattr(self.limits, limit)
            left = value - spent[limit]
            # Nothing may be a wish: no sub-calls, or free models only. No run does without tokens.
            if left < 0 or (left == 0 and (value > 0 or limit == "tokens_max")):
                raise ConversationLimitExceededError(
                    self.name, limit, value=value, spent=spent[limit]
                )
            setattr(spec.limits, limit, min(getattr(spec.limits, limit), left))
