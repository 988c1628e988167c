"""What a run may consume that asks for nothing: more for a larger context.

A limit that a caller states always holds as it is; the check of those is `limits.py`'s.
"""

from __future__ import annotations

import dataclasses

from orchestrator.runs.limits import RunLimits

_PLAIN_BYTES = 20_000_000
"""A context of so many bytes has the configured defaults; above, they grow in proportion."""
_SUB_CALLS_PER_DOCUMENT = 2
"""Code commonly asks about each document, and again about those that matter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefaultLimits:
    """The server's defaults."""

    base: RunLimits
    """For a context of ordinary size: the floor."""
    ceilings: RunLimits
    """Never exceeded."""
    growth_max: float
    """How many times the base a large context gets at most."""

    def for_context(self, *, size_bytes: int, documents: int) -> RunLimits:
        """Return the defaults for a context of that size and that many documents.

        Time, sub-calls, tokens and money are the base times `size_bytes` / 20 MB, from the base
        up to `growth_max` times the base; sub-calls are at least two a document within that. A
        longer context does not take more turns.
        """
        base, ceilings = self.base, self.ceilings
        growth = min(max(size_bytes / _PLAIN_BYTES, 1.0), self.growth_max)
        sub_calls = max(base.sub_calls_max * growth, documents * _SUB_CALLS_PER_DOCUMENT)
        sub_calls = min(sub_calls, base.sub_calls_max * self.growth_max)
        return dataclasses.replace(
            base,
            time_max_s=min(base.time_max_s * growth, ceilings.time_max_s),
            sub_calls_max=min(int(sub_calls), ceilings.sub_calls_max),
            tokens_max=min(int(base.tokens_max * growth), ceilings.tokens_max),
            cost_usd_nanos_max=min(
                int(base.cost_usd_nanos_max * growth), ceilings.cost_usd_nanos_max
            ),
        )
