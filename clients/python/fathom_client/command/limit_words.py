"""A run's limits in the words they were typed in: which option sets one, and amounts of it.

Only for people. `--json` and `--events` keep the contract's names and units.
"""

from __future__ import annotations

from fathom.orchestrator.v1 import run_event_pb2

from fathom_client.figures import count_text, span_text, usd_text

_OPTIONS = {
    "turns_max": "--max-turns",
    "time_max": "--max-time",
    "sub_calls_max": "--max-calls",
    "tokens_max": "--max-tokens",
    "cost_usd_nanos_max": "--max-usd",
    "depth_max": "--max-depth",
    "children_live_max": "--max-children",
}
_WITHOUT_OPTION = {"context_tokens_max": "the root model's window"}
_HELD_BEFORE_A_CALL = frozenset({"tokens_max", "cost_usd_nanos_max"})
"""What a call takes is known only after it, so one that might not fit is not made."""


def option_of(limit: str) -> str | None:
    """Return the option that sets a limit, by its name in the contract."""
    return _OPTIONS.get(limit)


def amount_text(limit: str, amount: int) -> str:
    """Return an amount in the unit of a limit: `$0.31`, `10 min` or `1.4k`."""
    if limit == "cost_usd_nanos_max":
        return usd_text(amount)
    return span_text(amount) if limit == "time_max" else count_text(amount)


def reached_text(reached: run_event_pb2.LimitReached) -> str:
    """Return what stopped a run, such as `limit reached: --max-turns (20 of 20)`."""
    limit = reached.limit
    spent, value = amount_text(limit, reached.spent), amount_text(limit, reached.value)
    name = option_of(limit) or _WITHOUT_OPTION.get(limit, limit)
    text = f"limit reached: {name} ({spent} of {value}"
    if limit in _HELD_BEFORE_A_CALL and reached.spent < reached.value:
        text += ", and the next call might not fit"
    return text + ")"
