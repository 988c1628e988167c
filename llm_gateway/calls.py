"""One call to the gateway: what is asked, on whose behalf and until when."""

from __future__ import annotations

import dataclasses

from common.run_token import RunToken
from llm_gateway.prompts import Prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """What a servicer passes on, whatever method it came by."""

    prompt: Prompt
    """What is asked."""
    token: RunToken
    """Verified: who asks, and what that run may do and spend."""
    request_id: str = ""
    """Repeats with the same one are the same call; empty for a call that nobody repeats."""
    arrived: float
    """When it came, in the event loop's time."""
    deadline: float | None = None
    """When its caller stops waiting, in the event loop's time; None for never."""
    is_streamed: bool = False
    """The answer is wanted in pieces."""
    turn: int = 0
    """Turn of the run, from 1; 0 where the caller did not say."""
    batch_index: int | None = None
    """Position in the caller's batch."""

    def is_late(self, now: float) -> bool:
        """Whether its caller's time is over."""
        return self.deadline is not None and now >= self.deadline
