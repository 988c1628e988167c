"""What a run may consume at most, as the caller states it.

The orchestrator enforces limits; here they are only written down and sent.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from decimal import Decimal

from fathom.orchestrator.v1 import run_pb2

from fathom_client.figures import NANOS_PER_USD, count_text, plural, span_text, usd_text


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one run with all its children; None leaves the server's default in force."""

    usd: Decimal | float | None = None
    """Money in US dollars; 0 permits free models only."""
    time_s: float | None = None
    """Wall time in seconds, from the run's start."""
    turns: int | None = None
    """Turns of the root model."""
    sub_calls: int | None = None
    """Calls that the model's code makes to sub-models."""
    tokens: int | None = None
    """Input and output tokens together."""
    depth: int | None = None
    """Nesting of child runs."""
    children: int | None = None
    """Child runs at a time, in all of the tree below the run."""

    def to_wire(self) -> run_pb2.Limits:
        """Return the message that carries these limits."""
        limits = run_pb2.Limits(
            turns_max=self.turns,
            sub_calls_max=self.sub_calls,
            tokens_max=self.tokens,
            cost_usd_nanos_max=self._usd_nanos(),
            depth_max=self.depth,
            children_live_max=self.children,
        )
        if self.time_s is not None:
            limits.time_max.FromNanoseconds(round(self.time_s * 1_000_000_000))
        return limits

    def or_else(self, other: Limits) -> Limits:
        """Return these limits, with those of `other` where there is none."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        missing = [name for name, value in chosen.items() if value is None]
        return Limits(**(chosen | {name: getattr(other, name) for name in missing}))

    def describe(self) -> str:
        """Return the limits that are set, as the trust line shows them: `$5, 20 turns, 10 min`."""
        usd_nanos = self._usd_nanos()
        parts = [
            None if usd_nanos is None else usd_text(usd_nanos),
            None if self.turns is None else plural(self.turns, "turn"),
            None if self.time_s is None else span_text(self.time_s),
            None if self.sub_calls is None else f"{count_text(self.sub_calls)} calls",
            None if self.tokens is None else f"{count_text(self.tokens)} tokens",
            None if self.depth is None else f"depth {self.depth}",
            None if self.children is None else f"{self.children:,} children at a time",
        ]
        return ", ".join(part for part in parts if part is not None)

    def _usd_nanos(self) -> int | None:
        if self.usd is None:
            return None
        return int(Decimal(str(self.usd)) * NANOS_PER_USD)
