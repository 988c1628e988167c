"""The request for a last answer fits what was kept back for it, whatever the limits are."""

from __future__ import annotations

from fathom.gateway.v1.generation_pb2 import Usage
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model_catalog import TierFacts
from orchestrator.runs.budget import Allowance, Budget
from orchestrator.runs.limits import RunLimits
from orchestrator.runs.model.last_request import Fit, LastRequest

FREE = TierFacts(0, 0, 0)
DEAR = TierFacts(0, 1_000_000_000, 4_000_000_000)
PER_TOKEN = 1_000
MESSAGES_TOKENS = 64 * 16


def budget(request: LastRequest, *, tokens: int = 10**9, cost: int = 10**12) -> Budget:
    limits = RunLimits(
        turns_max=9, time_max_s=60.0, sub_calls_max=9, tokens_max=tokens, cost_usd_nanos_max=cost
    )
    at_worst = Allowance(request.tokens_at_worst, request.cost_usd_nanos_at_worst)
    return Budget(limits, last_call=at_worst)


def test_where_everything_fits_all_that_is_wanted_is_asked() -> None:
    request = LastRequest(DEAR, 2_048, 48_000)

    assert request.fit(budget(request)) == Fit(48_000, 2_048)


def test_the_models_window_bounds_the_request() -> None:
    request = LastRequest(TierFacts(8_048, 0, 0), 2_048, 48_000)

    assert request.fit(budget(request)) == Fit(18_000, 2_048)


def test_the_worst_case_is_every_byte_a_token_at_full_price() -> None:
    request = LastRequest(DEAR, 2_048, 48_000)

    assert request.tokens_at_worst == 48_000 + MESSAGES_TOKENS + 2_048
    input_cost = (48_000 + MESSAGES_TOKENS) * PER_TOKEN
    assert request.cost_usd_nanos_at_worst == input_cost + 2_048 * 4 * PER_TOKEN


@given(
    tokens=st.integers(min_value=20_000, max_value=10**8),
    cost=st.integers(min_value=50_000_000, max_value=10**12),
    is_dear=st.booleans(),
)
def test_when_the_work_has_spent_all_it_may_the_last_request_still_fits(
    tokens: int, cost: int, is_dear: bool
) -> None:
    """The gateway reserves the worst case before the call and refuses what does not fit."""
    request = LastRequest(DEAR if is_dear else FREE, 2_048, 48_000)
    made = budget(request, tokens=tokens, cost=cost)
    work = made.work_allowance()
    made.add(Usage(input_tokens=work.tokens_max, cost_usd_nanos=work.cost_usd_nanos_max))

    fit = request.fit(made)

    at_worst = fit.bytes_max + MESSAGES_TOKENS + fit.output_tokens
    assert made.tokens + at_worst <= tokens
    if is_dear:
        worst_cost = (fit.bytes_max + MESSAGES_TOKENS + 4 * fit.output_tokens) * PER_TOKEN
        assert made.usage.cost_usd_nanos + worst_cost <= cost
