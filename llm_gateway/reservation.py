"""What is held for one exchange, from the moment in which it may begin until it is settled."""

from __future__ import annotations

from collections.abc import Callable

from llm_gateway.accounts.caps import NOTHING, Amounts
from llm_gateway.answers import Spend


class Reservation:
    """What is held for one exchange, until it is settled."""

    def __init__(
        self, output_tokens_max: int, amounts: Amounts, on_end: Callable[[Amounts], None]
    ) -> None:
        """`on_end` is called once, with what was taken."""
        self.output_tokens_max = output_tokens_max
        """What the answer may have; less than was wanted where only that fits the limits."""
        self.tokens = amounts.tokens
        """What the exchange takes at worst; what is held may be more, for a fallback."""
        self.cost_usd_nanos = amounts.cost_usd_nanos
        """The same, in billionths of a US dollar."""
        self._on_end: Callable[[Amounts], None] | None = on_end

    def settle(self, spend: Spend) -> None:
        """Book what the exchange took and free the rest; once, later calls do nothing.

        It has no point at which it could be cancelled.
        """
        self._end(Amounts(1, spend.tokens.total, spend.cost_usd_nanos))

    def release(self) -> None:
        """Free it all: the exchange was not begun."""
        self._end(NOTHING)

    def _end(self, taken: Amounts) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(taken)
