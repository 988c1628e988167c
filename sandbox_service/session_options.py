"""What a session is to be, and what it has done: plain values that its copies take over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sandbox_service import frames
from sandbox_service.context_mounts import ContextBlob
from sandbox_service.limits import Limits
from sandbox_service.profiles import DEFAULT_PROFILE

DEFAULT_SUB_TIER = "sub"


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What a session is to be."""

    limits: Limits
    """Limits in force."""
    contexts: Sequence[ContextBlob]
    """Contexts to load."""
    idle_ttl_s: float
    """Deleted after this long without a call."""
    run_token: str = ""
    """Sent with each sub-call."""
    sub_tier: str = DEFAULT_SUB_TIER
    """What a sub-call asks where the code names nothing."""
    labels: Mapping[str, str]
    """The caller's own bookkeeping."""
    profile: str = DEFAULT_PROFILE
    """What is imported beforehand."""
    determinism: frames.Determinism | None = None
    """Fixed clock and randomness, if asked for."""


@dataclass(frozen=True, kw_only=True)
class SessionUse:
    """What a session has done so far; its forks and what is restored of it go on from there."""

    executions: int = 0
    """Executions that ended."""
    fuel_used: int = 0
    """Instructions of all executions."""
    time_used_s: float = 0.0
    """Own wall time of all executions."""
    sub_calls_of_children: int = 0
    """Sub-calls that child runs have made."""
    sub_calls: int = 0
    """Sub-calls made."""
    sub_call_batches: int = 0
    """Batches of sub-calls made."""
    determinism: frames.Determinism | None = None
    """Fixed clock and randomness, the clock as the last execution left it."""
