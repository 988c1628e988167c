"""The deadline of the call being served, kept where client calls made for it can see it."""

from __future__ import annotations

import time
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("fathom_deadline", default=None)


def set_remaining_s(seconds: float | None) -> None:
    """Note that the call being served ends in `seconds`; None for no deadline."""
    _deadline.set(None if seconds is None else time.monotonic() + seconds)


def remaining_s() -> float | None:
    """Return the seconds left of the call being served, at least 0; None for no deadline."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())
