"""Estimates over real gRPC, held against what runs then really take."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1 import gateway_service_pb2 as gateway_pb
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec

from common.errors import received
from tests.support.orchestrator import TIMEOUT_S, Stack, orchestrator

RECORDED, CHECKED = 20, 20


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path) as running:
        yield running


def reply(request: gateway_pb.GenerateRequest) -> str:
    """Take as many turns and sub-calls as the question says."""
    messages = request.prompt.messages
    found = re.search(r"(\d+) turns of (\d+) calls", messages[1].text)
    assert found is not None
    turns, calls = int(found[1]), int(found[2])
    if (len(messages) - 1) // 2 + 1 < turns:
        return f"```repl\nprint(len([llm_query(str(n)) for n in range({calls})]))\n```"
    return "FINAL(done)"


async def run(stack: Stack, context: Context, chance: random.Random) -> Run:
    """Run a question that takes about as much as others of its kind."""
    turns = max(2, round(chance.lognormvariate(1.4, 0.4)))
    calls = max(1, round(chance.lognormvariate(1.0, 0.5)))
    question = f"{turns} turns of {calls} calls"
    events = await stack.watch(await stack.create(question, context=context))
    return events[-1].run_changed


async def estimate(stack: Stack, **fields: object) -> pb.EstimateRunResponse:
    request = pb.EstimateRunRequest(**fields)  # type: ignore[arg-type]
    return await stack.runs.EstimateRun(request, timeout=TIMEOUT_S)


async def test_nine_runs_in_ten_end_within_their_estimate(stack: Stack) -> None:
    """An estimate that nobody has checked is a guess."""
    stack.gateway.replies = [reply]
    chance, context = random.Random(11), await stack.upload(b"some text\n" * 500)
    spec = RunSpec(question="9 turns of 9 calls", context=context.name)
    before = await estimate(stack, spec=spec)
    await asyncio.gather(*(run(stack, context, chance) for _ in range(RECORDED)))

    after = await estimate(stack, spec=spec)
    runs = await asyncio.gather(*(run(stack, context, chance) for _ in range(CHECKED)))

    assert (before.runs_considered, after.runs_considered) == (0, RECORDED)
    assert _ratio(after.calls) < _ratio(before.calls)
    for taken, predicted in (
        ([each.usage.calls for each in runs], after.calls),
        ([each.usage.input_tokens + each.usage.output_tokens for each in runs], after.tokens),
        ([each.usage.cost_usd_nanos for each in runs], after.cost_usd_nanos),
    ):
        inside = sum(predicted.low <= value <= predicted.high for value in taken)
        assert inside >= 0.8 * CHECKED
        assert _ratio(predicted) < 30


def _ratio(found: pb.Range) -> float:
    return found.high / max(found.low, 1)


async def test_nothing_is_started_and_nothing_is_asked(stack: Stack) -> None:
    found = await estimate(stack, spec=RunSpec(question="why?"), context_bytes=50_000_000)

    runs = (await stack.runs.ListRuns(pb.ListRunsRequest(), timeout=TIMEOUT_S)).runs
    assert (list(runs), stack.gateway.requests) == ([], [])
    assert found.calls.low <= found.calls.high
    assert found.limits.sub_calls_max == 2_500
    assert found.time_low.ToNanoseconds() < found.time_high.ToNanoseconds()


async def test_an_estimate_keeps_to_the_limits_that_are_asked_for(stack: Stack) -> None:
    spec = RunSpec(question="why?", limits=Limits(tokens_max=5_000, turns_max=2, sub_calls_max=1))

    found = await estimate(stack, spec=spec, context_bytes=1_000_000)

    assert found.tokens.high <= 5_000
    assert found.calls.high <= 4


@pytest.mark.parametrize(
    ("spec", "code", "reason"),
    [
        (
            RunSpec(question="", context="contexts/a"),
            grpc.StatusCode.INVALID_ARGUMENT,
            ErrorReason.ERROR_REASON_INVALID_FIELD,
        ),
        (
            RunSpec(question="why?", context="contexts/none"),
            grpc.StatusCode.NOT_FOUND,
            ErrorReason.ERROR_REASON_RESOURCE_NOT_FOUND,
        ),
        (
            RunSpec(question="why?", context="contexts/a", limits=Limits(turns_max=100_000)),
            grpc.StatusCode.INVALID_ARGUMENT,
            ErrorReason.ERROR_REASON_LIMIT_ABOVE_CEILING,
        ),
        (
            RunSpec(question="why?", context="contexts/a", answer_schema_json='{"type": "nope"}'),
            grpc.StatusCode.INVALID_ARGUMENT,
            ErrorReason.ERROR_REASON_INVALID_FIELD,
        ),
    ],
)
async def test_what_could_not_run_cannot_be_estimated(
    stack: Stack, spec: RunSpec, code: grpc.StatusCode, reason: int
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await estimate(stack, spec=spec)

    error = received(caught.value)
    assert (error.code, error.reason) == (code, reason)
