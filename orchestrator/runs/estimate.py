"""What a run will take, foretold: calls, tokens, money and time, each as a range that holds nine
times in ten.

A plain model of a run's work gives the size, and the tenant's finished runs say how far from it
runs really end. Nothing is started, and no model is asked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from fathom.orchestrator.v1.run_pb2 import Run, RunSpec

from common.errors import InvalidFieldError, NotFoundError
from orchestrator.contexts.stored_context import StoredContext
from orchestrator.model_catalog import ModelCatalog, TierFacts
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.model.prompt_book import chunk_characters
from orchestrator.runs.spec import limits_of

_BYTES_PER_TOKEN = 4
_TURNS = 6
"""A run's turns, where nothing is known of earlier ones."""
_TURN_TOKENS, _TURN_GROWTH_TOKENS = 3_000, 1_000
"""Of the root model's input: what every turn sends, and what each adds for those after it."""
_TURN_OUTPUT_TOKENS, _SUB_OUTPUT_TOKENS = 400, 250
_READ_SHARE = 0.3
"""How much of the context sub-models read."""
_SUB_CALLS_LEAST = 3
_TURN_S, _SUB_CALL_S, _SUB_CALLS_AT_ONCE = 6.0, 4.0, 32
_MILLION = 1_000_000
_ENDED_WELL = (int(Run.STATE_ANSWERED), int(Run.STATE_PARTIAL))
_RECORD_RUNS = 200
_RECORD_BYTES = 8 << 20
_SIMILAR_FACTOR = 10
"""A context is like another up to so many times its size."""
_RECORD_RUNS_MIN = 3
"""With fewer runs on record the plain model counts as one more."""
_PRIOR_FREEDOM = 4
_PRIOR_SPREAD = 0.8
"""How far runs are from one another before any is known: a standard deviation of the logarithms,
as if seen on four runs."""
_Z = 1.6448536
"""The normal distribution's 95th percentile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one run takes; of a run to come, what the plain model expects."""

    calls: float
    """Calls to models."""
    tokens: float
    """Input and output tokens together."""
    cost_usd_nanos: float
    """Money, in billionths of a US dollar."""
    time_s: float
    """From start to end."""

    def values(self) -> tuple[float, ...]:
        """Return the four in their order."""
        return (self.calls, self.tokens, self.cost_usd_nanos, self.time_s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """What there is to read."""

    size_bytes: int
    """Bytes of the context."""
    documents: int
    """Its documents; 1 for one text."""

    @property
    def tokens(self) -> int:
        """Tokens, estimated as for contexts."""
        return -(-self.size_bytes // _BYTES_PER_TOKEN)

    def is_like(self, other: Size) -> bool:
        """Whether a run over one says something of a run over the other."""
        ratio = (self.size_bytes + 1) / (other.size_bytes + 1)
        is_near = 1 / _SIMILAR_FACTOR <= ratio <= _SIMILAR_FACTOR
        return is_near and (self.documents > 1) == (other.documents > 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """The prediction."""

    low: Work
    """Each value is this or more, in 95 of a hundred runs."""
    high: Work
    """Each value is this or less, in 95 of a hundred runs; never above the run's limits."""
    runs_considered: int
    """Finished runs that it rests on."""
    spec: RunSpec
    """The spec with the defaults that it would have."""


class RunRecords(Protocol):
    """Where finished runs are found."""

    async def newest(
        self, tenant: str, *, states: Sequence[int], before: str, count: int, bytes_max: int
    ) -> list[RunRecord]:
        """Return runs in one of some states, the newest first."""


class ContextRecords(Protocol):
    """Where contexts are found."""

    async def get(self, tenant: str, context_id: str) -> StoredContext:
        """Return a context; raises NotFoundError."""


class SpecAdmission(Protocol):
    """What decides whether a spec would do, and fills it in."""

    def complete(
        self, tenant: str, spec: RunSpec, *, size_bytes: int = 0, documents: int = 1
    ) -> RunSpec:
        """Return the spec with every default; raises an error that names a wrong field."""

    async def check(self, tenant: str, spec: RunSpec) -> None:
        """Raise what else would be said of a run with this spec."""


class Estimator:
    """Estimates runs."""

    def __init__(
        self,
        runs: RunRecords,
        contexts: ContextRecords,
        catalog: ModelCatalog,
        admission: SpecAdmission,
    ) -> None:
        self._runs = runs
        self._contexts = contexts
        self._catalog = catalog
        self._admission = admission

    async def estimate(self, tenant: str, spec: RunSpec, size: Size | None = None) -> Estimate:
        """Return what a run would take; `size` stands for a context that is not stored.

        Raises as the admission of the run would.
        """
        complete = self._admission.complete
        complete(tenant, spec)
        await self._admission.check(tenant, spec)
        if size is None:
            if not spec.context:
                raise InvalidFieldError("spec.context", "is needed, also in a conversation")
            size = await self._size(tenant, spec.context)
        spec = complete(tenant, spec, size_bytes=size.size_bytes, documents=size.documents)
        root, sub = await self._catalog.facts(
            tenant, root_tier=spec.root_tier, sub_tier=spec.sub_tier
        )
        similar = await self._similar(tenant, spec, size)
        ratios = [
            _ratios(work, plain_work(earlier, run.spec, root, sub))
            for run, earlier, work in similar
        ]
        expected = plain_work(size, spec, root, sub).values()
        ranges = [
            _range(value, [each[index] for each in ratios]) for index, value in enumerate(expected)
        ]
        low, high = ([each[end] for each in ranges] for end in (0, 1))
        most = _limits(spec)
        return Estimate(
            low=_work(min(value, limit) for value, limit in zip(low, most, strict=True)),
            high=_work(min(value, limit) for value, limit in zip(high, most, strict=True)),
            runs_considered=len(similar),
            spec=spec,
        )

    async def _similar(
        self, tenant: str, spec: RunSpec, size: Size
    ) -> list[tuple[Run, Size, Work]]:
        """Return the finished runs that were led alike over a context of about that size."""
        found = []
        sizes: dict[str, Size | None] = {}
        records = await self._runs.newest(
            tenant, states=_ENDED_WELL, before="", count=_RECORD_RUNS, bytes_max=_RECORD_BYTES
        )
        for run in (record.whole() for record in records):
            tiers = (run.spec.root_tier, run.spec.sub_tier)
            is_part = bool(run.parent or run.forked_from)
            if tiers != (spec.root_tier, spec.sub_tier) or is_part:
                continue
            name = run.spec.context
            if name not in sizes:
                try:
                    sizes[name] = await self._size(tenant, name)
                except NotFoundError:
                    sizes[name] = None  # deleted since
            earlier = sizes[name]
            if earlier is None or not size.is_like(earlier):
                continue
            if is_direct(size, spec) == is_direct(earlier, run.spec):
                found.append((run, earlier, work_of(run)))
        return found

    async def _size(self, tenant: str, name: str) -> Size:
        context = await self._contexts.get(tenant, name.removeprefix("contexts/"))
        return Size(size_bytes=context.size_bytes, documents=context.document_count)


def is_direct(size: Size, spec: RunSpec) -> bool:
    """Whether the root model is first shown the whole context."""
    return size.tokens <= spec.direct_tokens_max


def plain_work(size: Size, spec: RunSpec, root: TierFacts, sub: TierFacts) -> Work:
    """Return what a run is expected to take before any has been seen.

    Six turns, whose input grows by a thousand tokens each; sub-models that read three tenths of
    the context in pieces that fit their window, or three tenths of its documents one by one; one
    call with the whole context where that goes direct.
    """
    turns, sub_calls, piece_tokens = float(min(_TURNS, spec.limits.turns_max)), 0.0, 0.0
    root_input = turns * (_TURN_TOKENS + _TURN_GROWTH_TOKENS * (turns - 1) / 2)
    if is_direct(size, spec):
        turns, root_input = 1.0, float(size.tokens)
    else:
        piece_tokens = min(chunk_characters(sub.window_tokens) / _BYTES_PER_TOKEN, size.tokens)
        pieces = max(size.tokens / max(piece_tokens, 1), size.documents)
        sub_calls = min(_SUB_CALLS_LEAST + _READ_SHARE * pieces, spec.limits.sub_calls_max)
        piece_tokens = min(piece_tokens, size.tokens / max(size.documents, 1))
    root_input += turns * len(spec.question.encode()) / _BYTES_PER_TOKEN
    root_output, sub_output = turns * _TURN_OUTPUT_TOKENS, sub_calls * _SUB_OUTPUT_TOKENS
    sub_input = sub_calls * piece_tokens
    return Work(
        calls=turns + sub_calls,
        tokens=root_input + root_output + sub_input + sub_output,
        cost_usd_nanos=_cost(root, root_input, root_output) + _cost(sub, sub_input, sub_output),
        time_s=turns * _TURN_S + -(-sub_calls // _SUB_CALLS_AT_ONCE) * _SUB_CALL_S,
    )


def work_of(run: Run) -> Work:
    """Return what a finished run took."""
    return Work(
        calls=run.usage.calls,
        tokens=run.usage.input_tokens + run.usage.output_tokens,
        cost_usd_nanos=run.usage.cost_usd_nanos,
        time_s=(run.end_time.ToNanoseconds() - run.start_time.ToNanoseconds()) / 1e9,
    )


def _cost(tier: TierFacts, input_tokens: float, output_tokens: float) -> float:
    return (
        input_tokens * tier.input_usd_nanos_per_million_tokens
        + output_tokens * tier.output_usd_nanos_per_million_tokens
    ) / _MILLION


def _limits(spec: RunSpec) -> tuple[float, ...]:
    """Return what the run may take at most, in the order of Work; one call is its last answer."""
    limits = limits_of(spec)
    return (
        limits.turns_max + limits.sub_calls_max + 1,
        limits.tokens_max,
        limits.cost_usd_nanos_max,
        limits.time_max_s,
    )


def _ratios(real: Work, expected: Work) -> tuple[float, ...]:
    """Return how far a run ended from what was expected: logarithms of the ratios."""
    pairs = zip(real.values(), expected.values(), strict=True)
    return tuple(math.log((one + 1) / (other + 1)) for one, other in pairs)


def _range(expected: float, ratios: Sequence[float]) -> tuple[float, float]:
    """Return the 5th and the 95th percentile of what a value will be.

    The predictive distribution of normally distributed logarithms, of unknown mean and spread,
    after some observations (the conjugate prior: Gelman and others, Bayesian Data Analysis, 3.3).
    """
    count = len(ratios)
    if count < _RECORD_RUNS_MIN:
        ratios = [*ratios, 0.0]  # the plain model, taken as one more run
    mean = sum(ratios) / len(ratios)
    squares = _PRIOR_FREEDOM * _PRIOR_SPREAD**2 + sum((ratio - mean) ** 2 for ratio in ratios)
    freedom = _PRIOR_FREEDOM + count
    spread = math.sqrt(squares / freedom * (1 + 1 / len(ratios))) * _student(freedom)
    centre = math.log(expected + 1) + mean
    low, high = math.exp(centre - spread) - 1, math.exp(centre + spread) - 1
    return max(low, 0.0), max(high, 0.0)


def _student(freedom: int) -> float:
    """Return the 95th percentile of Student's distribution, to 2 % (Abramowitz and Stegun,
    26.7.5)."""
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / float(freedom) ** power for power, term in enumerate(terms, start=1))


def _work(values: Iterable[float]) -> Work:
    calls, tokens, cost_usd_nanos, time_s = values
    return Work(calls=calls, tokens=tokens, cost_usd_nanos=cost_usd_nanos, time_s=time_s)
