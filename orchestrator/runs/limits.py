"""What a run may consume: the limits with the server's defaults filled in, and the check of what
a caller asks for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from common.errors import InvalidFieldError, LimitAboveCeilingError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunLimits:
    """Limits of one run."""

    turns_max: int
    """Turns of the root model."""
    time_max_s: float
    """Wall time from the start of work."""
    sub_calls_max: int
    """Sub-calls that code may make."""
    tokens_max: int
    """Input and output tokens together."""
    cost_usd_nanos_max: int
    """Money, in billionths of a US dollar."""
    depth_max: int = 0
    """Nesting of child runs below."""
    children_live_max: int = 0
    """Child runs at a time, in all of the tree below."""


_LEAST: dict[str, float] = {
    "turns_max": 1,
    "time_max": 0.001,
    "sub_calls_max": 0,
    "tokens_max": 1,
    "cost_usd_nanos_max": 0,
    "depth_max": 0,
    "children_live_max": 0,
}


def check_limits(
    asked: Mapping[str, float | None], *, defaults: RunLimits, ceilings: RunLimits
) -> RunLimits:
    """Return the limits asked for, with defaults where a value is None.

    `asked` is by the fields' names in the contract; `time_max` in seconds. Raises
    InvalidFieldError for a value too small, naming all such fields, and LimitAboveCeilingError.
    """
    too_small = {
        f"spec.limits.{name}": f"must be at least {least:g}"
        for name, least in _LEAST.items()
        if (value := asked.get(name)) is not None and value < least
    }
    if too_small:
        raise InvalidFieldError.many(too_small)
    values: dict[str, float] = {}
    for name in _LEAST:
        attribute = "time_max_s" if name == "time_max" else name
        value, ceiling = asked.get(name), getattr(ceilings, attribute)
        if value is not None and value > ceiling:
            raise LimitAboveCeilingError(f"spec.limits.{name}", _plain(value), _plain(ceiling))
        values[attribute] = getattr(defaults, attribute) if value is None else value
    return RunLimits(**values)  # type: ignore[arg-type]  # whole numbers for all but the time


def _plain(value: float) -> str:
    """Return a number with all its digits, for clients that read it."""
    return str(int(value)) if value == int(value) else str(value)
