"""Prices of tokens, in integers: money is billionths of a US dollar and is always rounded up.

Prices are given in the configuration or compiled at start from the `genai-prices` table, whose
own arithmetic is too slow for every call.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from decimal import Decimal

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelPrice, TieredPrices

from llm_gateway.answers import Tokens

_MILLION = 1_000_000
_NANOS = 1_000_000_000


class UnknownPriceError(LookupError):
    """The price table does not have the model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """What tokens cost once a prompt is larger than a size; nano-dollars a million tokens."""

    above_input_tokens: int = 0
    """The rates hold for prompts of more tokens than this."""
    input: int
    """Input that was not cached."""
    output: int
    """Output, reasoning included."""
    cached_input: int
    """Input that the provider read from its prefix cache."""


@dataclasses.dataclass(frozen=True)
class Price:
    """What one deployment costs."""

    bands: tuple[Rates, ...]
    """By size of the prompt, ascending; the first holds from the first token."""

    def cost_usd_nanos(self, tokens: Tokens) -> int:
        """Return what so many tokens cost."""
        rates = self._reachable(tokens.input)[-1]
        cached = min(tokens.cached_input, tokens.input)
        nanos = (
            (tokens.input - cached) * rates.input
            + cached * rates.cached_input
            + tokens.output * rates.output
        )
        return -(-nanos // _MILLION)

    def cost_usd_nanos_bound(self, input_tokens: int, output_tokens: int) -> int:
        """Return what at most so many tokens cost at most, nothing being cached."""
        return max(
            -(-(input_tokens * _dearest_input(band) + output_tokens * band.output) // _MILLION)
            for band in self._reachable(input_tokens)
        )

    def output_tokens_within(self, input_tokens: int, cost_usd_nanos: int) -> int | None:
        """Return how many output tokens `cost_usd_nanos` pays beside the input.

        None where output is free and so unbounded; negative where the input alone costs more.
        """
        bounds = []
        for band in self._reachable(input_tokens):
            left = cost_usd_nanos * _MILLION - input_tokens * _dearest_input(band)
            if left < 0:
                return -1
            if band.output:
                bounds.append(left // band.output)
        return min(bounds, default=None)

    def _reachable(self, input_tokens: int) -> list[Rates]:
        first, *later = self.bands
        return [first, *(band for band in later if band.above_input_tokens < input_tokens)]


FREE = Price((Rates(input=0, output=0, cached_input=0),))


def usd_nanos_per_million(usd: Decimal) -> int:
    """Convert a price in dollars a million tokens; a rest below a billionth is rounded up."""
    return int((usd * _NANOS).to_integral_value(rounding="ROUND_CEILING"))


def price_from_table(model: str, base_url: str, now: dt.datetime) -> tuple[Price, int]:
    """Return a model's price by the `genai-prices` table, and its window in tokens (0: unknown).

    The provider is recognised by `base_url`, else the model by its name alone. Prices that depend
    on the time of day are those at `now`. Raises UnknownPriceError.
    """
    snapshot = get_snapshot()
    for api_url in (base_url, None):
        try:
            _, info = snapshot.find_provider_model(model, None, None, api_url)
        except LookupError:
            continue
        price = _compile(info.get_prices(now))
        if price is not None:
            return price, info.context_window or 0
    raise UnknownPriceError(model)


def _compile(price: ModelPrice) -> Price | None:
    kinds = {
        "input": getattr(price, "input_mtok", None),
        "output": getattr(price, "output_mtok", None),
        "cached_input": getattr(price, "cache_read_mtok", None),
    }
    if kinds["input"] is None or kinds["output"] is None:
        return None  # it is sold by something else than tokens
    if kinds["cached_input"] is None:
        kinds["cached_input"] = kinds["input"]
    starts = {0}
    for value in kinds.values():
        if isinstance(value, TieredPrices):
            starts.update(tier.start for tier in value.tiers)
    return Price(
        tuple(
            Rates(
                above_input_tokens=start,
                **{kind: _rate(value, start) for kind, value in kinds.items()},
            )
            for start in sorted(starts)
        )
    )


def _rate(value: Decimal | TieredPrices | None, above_input_tokens: int) -> int:
    if isinstance(value, TieredPrices):
        reached = [tier.price for tier in value.tiers if tier.start <= above_input_tokens]
        value = reached[-1] if reached else value.base
    return usd_nanos_per_million(value or Decimal(0))


def _dearest_input(rates: Rates) -> int:
    return max(rates.input, rates.cached_input)
