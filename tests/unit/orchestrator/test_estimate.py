"""Estimates: what they rest on, and how wide they are."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest
from fathom.gateway.v1.gateway_service_pb2 import Model
from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec

from common.config import Secret
from common.errors import InvalidFieldError, NotFoundError
from common.run_token import RunTokenSigner
from orchestrator.contexts.stored_context import ContextKind, StoredContext, TextShape
from orchestrator.errors import ModelNotOfferedError
from orchestrator.model_catalog import ModelCatalog, TierFacts
from orchestrator.runs import estimate_messages
from orchestrator.runs.default_limits import DefaultLimits
from orchestrator.runs.estimate import Estimate, Estimator, Size, Work, plain_work
from orchestrator.runs.limits import RunLimits
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.spec import complete_spec

LIMITS = RunLimits(
    turns_max=20,
    time_max_s=600.0,
    sub_calls_max=1_000,
    tokens_max=20_000_000,
    cost_usd_nanos_max=5_000_000_000,
)
DEFAULTS = DefaultLimits(base=LIMITS, ceilings=LIMITS, growth_max=1.0)
ROOT, SUB = TierFacts(128_000, 2_500_000_000, 10_000_000_000), TierFacts(128_000, 150_000_000, 0)
IDS = itertools.count(1)


class Offer:
    """A gateway with two tiers."""

    async def list_models(self, run_token: str) -> list[Model]:
        return [_model("large", "root", ROOT), _model("small", "sub", SUB)]


def _model(name: str, tier: str, facts: TierFacts) -> Model:
    return Model(
        name=f"models/{name}",
        tiers=[tier],
        context_tokens_max=facts.window_tokens,
        input_usd_nanos_per_million_tokens=facts.input_usd_nanos_per_million_tokens,
        output_usd_nanos_per_million_tokens=facts.output_usd_nanos_per_million_tokens,
    )


class Records:
    """Runs and contexts of some tenants, in memory."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, Run]] = []
        self.sizes = {"small": 40_000, "large": 40_000_000}

    async def newest(
        self, tenant: str, *, states: Sequence[int], before: str, count: int, bytes_max: int
    ) -> list[RunRecord]:
        found = [RunRecord(run, Run()) for owner, run in self.runs if owner == tenant]
        return [record for record in found if record.head.state in states][:count]

    async def get(self, tenant: str, context_id: str) -> StoredContext:
        if context_id not in self.sizes:
            raise NotFoundError(f"contexts/{context_id}")
        return StoredContext(
            context_id=context_id,
            kind=ContextKind.TEXT,
            title="",
            size_bytes=self.sizes[context_id],
            blake3="",
            blob_key="",
            shape=TextShape(),
            document_count=1,
            created_us=0,
        )

    def add(
        self,
        factor: float = 1.0,
        *,
        tenant: str = "t",
        count: int = 1,
        context: str = "small",
        root_tier: str = "root",
        **fields: object,
    ) -> None:
        """Add finished runs that took `factor` times what is expected."""
        for _ in range(count):
            run = Run(name=f"runs/{next(IDS)}", state=Run.STATE_ANSWERED)
            run.spec.CopyFrom(spec(context=context, root_tier=root_tier))
            work = plain_work(Size(size_bytes=40_000, documents=1), run.spec, ROOT, SUB)
            run.usage.CopyFrom(
                Usage(
                    calls=round(work.calls * factor),
                    input_tokens=round(work.tokens * factor),
                    cost_usd_nanos=round(work.cost_usd_nanos * factor),
                )
            )
            run.start_time.FromSeconds(1_000)
            run.end_time.FromNanoseconds(int((1_000 + work.time_s * factor) * 1e9))
            run.MergeFrom(Run(**fields))  # type: ignore[arg-type]
            self.runs.append((tenant, run))


def spec(**fields: object) -> RunSpec:
    fields["context"] = f"contexts/{fields.get('context', 'small')}"
    return Admission().complete("t", RunSpec(question="why?", **fields))  # type: ignore[arg-type]


class Admission:
    """Admits everything, with these tests' defaults."""

    def complete(
        self, tenant: str, spec: RunSpec, *, size_bytes: int = 0, documents: int = 1
    ) -> RunSpec:
        del tenant
        defaults = DEFAULTS.for_context(size_bytes=size_bytes, documents=documents)
        return complete_spec(spec, defaults=defaults, ceilings=LIMITS)

    async def check(self, tenant: str, spec: RunSpec) -> None:
        pass


async def estimated(records: Records, tenant: str = "t", **fields: object) -> Estimate:
    signer = RunTokenSigner(Secret("a key that is thirty-two bytes long"))
    catalog = ModelCatalog(Offer(), signer)
    fields["context"] = f"contexts/{fields.get('context', 'small')}"
    asked = RunSpec(question="why?", **fields)  # type: ignore[arg-type]
    return await Estimator(records, records, catalog, Admission()).estimate(tenant, asked)


def width(estimate: Estimate) -> float:
    return math.log(estimate.high.tokens / estimate.low.tokens)


async def test_without_a_record_the_range_is_wide() -> None:
    """Nobody is told a figure that nothing supports."""
    estimate = await estimated(Records())

    assert estimate.runs_considered == 0
    assert width(estimate) > 4
    assert 0 < estimate.low.cost_usd_nanos < estimate.high.cost_usd_nanos


async def test_runs_that_agree_make_it_narrow() -> None:
    records = Records()
    records.add(count=50)

    estimate = await estimated(records)

    assert estimate.runs_considered == 50
    assert width(estimate) < 1


async def test_the_record_moves_it_to_where_runs_really_end() -> None:
    records = Records()
    records.add(8.0, count=50)

    estimate = await estimated(records)

    expected = plain_work(Size(size_bytes=40_000, documents=1), estimate.spec, ROOT, SUB)
    for low, value, high in zip(
        estimate.low.values(), expected.values(), estimate.high.values(), strict=True
    ):
        assert low < 8 * value < high
        assert low > 4 * value


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant": "another"},
        {"context": "large"},
        {"context": "deleted"},
        {"root_tier": "other"},
        {"parent": "runs/p"},
        {"forked_from": "runs/p"},
        {"state": Run.STATE_FAILED},
    ],
)
async def test_runs_that_say_nothing_of_this_one_are_left_out(fields: dict[str, object]) -> None:
    """Another tenant's figures are nobody's; other sizes and tiers behave differently."""
    records = Records()
    records.add(count=3, **fields)  # type: ignore[arg-type]

    assert (await estimated(records)).runs_considered == 0


async def test_runs_over_much_smaller_contexts_do_not_count() -> None:
    records = Records()
    records.sizes["tenth"] = 4_000
    records.sizes["less"] = 3_990
    records.add(context="tenth")
    records.add(context="less")

    assert (await estimated(records)).runs_considered == 1


async def test_no_estimate_goes_beyond_the_limits() -> None:
    estimate = await estimated(
        Records(),
        context="large",
        limits=Limits(tokens_max=1_000, cost_usd_nanos_max=7, turns_max=2, sub_calls_max=0),
    )

    assert (estimate.high.tokens, estimate.high.cost_usd_nanos) == (1_000, 7)
    assert estimate.high.calls <= 3


async def test_a_larger_context_takes_more() -> None:
    small, large = await estimated(Records()), await estimated(Records(), context="large")

    assert large.high.tokens > small.high.tokens
    assert large.high.calls > small.high.calls


async def test_an_estimate_fails_as_the_run_would() -> None:
    with pytest.raises(ModelNotOfferedError):
        await estimated(Records(), root_tier="nobody")
    with pytest.raises(NotFoundError):
        await estimated(Records(), context="deleted")


async def test_a_range_holds_nine_runs_in_ten() -> None:
    """The promise of the contract, over runs that differ as real ones do."""
    chance = random.Random(7)
    inside = 0
    for _ in range(100):
        records = Records()
        for _ in range(chance.randrange(5, 60)):
            records.add(chance.lognormvariate(1.0, 0.6))
        estimate = await estimated(records)
        real = chance.lognormvariate(1.0, 0.6)
        expected = plain_work(Size(size_bytes=40_000, documents=1), estimate.spec, ROOT, SUB)
        inside += estimate.low.tokens <= real * expected.tokens <= estimate.high.tokens

    assert 85 <= inside <= 98


def test_a_size_stands_for_a_context_that_is_not_stored() -> None:
    """A dry run uploads nothing."""
    request = pb.EstimateRunRequest(spec=RunSpec(question="q"), context_bytes=10)

    asked, size = estimate_messages.read_request(request)

    assert size == Size(size_bytes=10, documents=1)
    assert Admission().complete("t", asked).question == "q"
    assert request.spec.context == ""


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"spec": RunSpec(context="contexts/a"), "context_bytes": 1}, "context_bytes"),
        ({"context_bytes": -1}, "context_bytes"),
        ({"context_bytes": (1 << 50) + 1}, "context_bytes"),
        ({"context_documents": -1}, "context_documents"),
    ],
)
def test_a_wrong_size_is_named(fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        estimate_messages.read_request(pb.EstimateRunRequest(**fields))  # type: ignore[arg-type]
    assert caught.value.metadata["field"] == field


def test_a_response_holds_the_whole_range() -> None:
    low = Work(calls=1.2, tokens=10.0, cost_usd_nanos=0.4, time_s=1.5)
    high = Work(calls=1.2, tokens=20.5, cost_usd_nanos=3.0, time_s=2.5)
    estimate = Estimate(low=low, high=high, runs_considered=4, spec=spec())

    response = estimate_messages.response(estimate)

    assert (response.calls.low, response.calls.high) == (1, 2)
    assert (response.tokens.low, response.tokens.high) == (10, 21)
    assert (response.cost_usd_nanos.low, response.cost_usd_nanos.high) == (0, 3)
    assert response.time_low.ToMilliseconds() == 1_500
    assert response.runs_considered == 4
    assert response.limits.turns_max == 20
