"""How a cell is to be run: what its caller asks for, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.errors import ServiceError
from sandbox_service import frames


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """How a cell is to be run."""

    code: str
    """Python source."""
    call_prefix: str = ""
    """Prefix of sub-calls' request ids; empty for none."""
    turn: int = 0
    """Turn of the run."""
    report_variables: bool = False
    """Whether to describe the variables at the end."""
    check: frames.CheckMode = "record"
    """What to do with suspicious patterns in the code."""
    random_stream: int = 0
    """Which stream of fixed randomness it draws from; 0 for that of its number."""
    sub_calls_max: int | None = None
    """Sub-calls that it may make; None for what the session has left."""
    failed_sub_calls: Mapping[int, ServiceError] = field(default_factory=dict)
    """Sub-calls that failed when the code ran before, by their position in it, from 1."""
    sub_tier: str = ""
    """What its sub-calls ask where they name no tier; empty for the session's."""
