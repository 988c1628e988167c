"""How large the request for a last answer may be, so that what was kept back pays for it.

The gateway reserves the worst case before a call, a token for each byte; what is asked here fits
that, or is as small as makes sense.
"""

from __future__ import annotations

import dataclasses

from orchestrator.model_catalog import TierFacts
from orchestrator.runs.budget import Budget

_OVERHEAD_TOKENS = 1_024
"""What the gateway reserves for the messages besides their texts, on the safe side."""
_BYTES_PER_TOKEN = 3
"""For the model's window, which counts real tokens."""
_BYTES_MIN = 2_000
_OUTPUT_TOKENS_MIN = 64
_MILLION = 1_000_000


@dataclasses.dataclass(frozen=True)
class Fit:
    """A size that what is left can pay for."""

    bytes_max: int
    """Bytes of all messages together."""
    output_tokens: int
    """Tokens that the answer may have."""


@dataclasses.dataclass(frozen=True)
class LastRequest:
    """The bounds of one run's last request."""

    root: TierFacts
    """The root model's window and prices."""
    output_tokens_wanted: int
    """Tokens of the answer where everything fits."""
    bytes_wanted: int
    """Bytes of the messages where everything fits."""

    @property
    def tokens_at_worst(self) -> int:
        """Tokens to keep back."""
        return self.bytes_wanted + _OVERHEAD_TOKENS + self.output_tokens_wanted

    @property
    def cost_usd_nanos_at_worst(self) -> int:
        """Money to keep back, in billionths of a US dollar."""
        input_tokens = self.bytes_wanted + _OVERHEAD_TOKENS
        input_cost = input_tokens * self.root.input_usd_nanos_per_million_tokens
        output_cost = self.output_tokens_wanted * self.root.output_usd_nanos_per_million_tokens
        return -(-(input_cost + output_cost) // _MILLION)

    def fit(self, budget: Budget) -> Fit:
        """Return what the request may be with what is left of the run's limits: at most half of
        that is for the answer."""
        whole = budget.whole_allowance()
        tokens = whole.tokens_max - budget.tokens
        cost = (whole.cost_usd_nanos_max - budget.usage.cost_usd_nanos) * _MILLION
        output_price = self.root.output_usd_nanos_per_million_tokens
        output = min(self.output_tokens_wanted, tokens // 2)
        if output_price:
            output = min(output, cost // 2 // output_price)
        output = max(output, _OUTPUT_TOKENS_MIN)
        fits = tokens - output
        if self.root.input_usd_nanos_per_million_tokens:
            left = cost - output * output_price
            fits = min(fits, left // self.root.input_usd_nanos_per_million_tokens)
        size = min(fits - _OVERHEAD_TOKENS, self.bytes_wanted)
        if self.root.window_tokens:
            size = min(size, (self.root.window_tokens - output) * _BYTES_PER_TOKEN)
        return Fit(bytes_max=max(size, _BYTES_MIN), output_tokens=output)
