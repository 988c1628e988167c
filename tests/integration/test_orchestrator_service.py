"""Runs that are created over loopback: what is refused, what is filled in, what is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.gateway_service_pb2 import Model
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.run_pb2 import Limits, Run
from google.protobuf.duration_pb2 import Duration

from tests.support.fake_gateway import FakeGateway, ScriptedError
from tests.support.orchestrator import TIMEOUT_S, Stack, orchestrator
from tests.support.run_calls import create, failure, get

UNKNOWN_CONTEXT = "contexts/" + "0" * 32


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path) as running:
        yield running


def seconds(value: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(value * 1e9))
    return duration


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("spec.question", {"question": ""}),
        ("spec.question", {"question": " \n"}),
        ("spec.question", {"question": "é" * (32 << 10) + "e"}),
        ("spec.context", {"context": ""}),
        ("spec.context", {"context": "runs/abc"}),
        ("spec.context", {"context": "contexts/../etc"}),
        ("spec.root_tier", {"root_tier": "r" * 129}),
        ("spec.sub_tier", {"sub_tier": "s" * 129}),
        ("spec.labels", {"labels": {str(n): "" for n in range(17)}}),
        ("spec.labels", {"labels": {"k": "v" * 257}}),
        ("spec.priority", {"priority": -1}),
        ("spec.priority", {"priority": 10}),
        ("spec.limits.turns_max", {"limits": Limits(turns_max=0)}),
        ("spec.limits.time_max", {"limits": Limits(time_max=seconds(0))}),
        ("spec.limits.time_max", {"limits": Limits(time_max=seconds(-1))}),
        ("spec.limits.sub_calls_max", {"limits": Limits(sub_calls_max=-1)}),
        ("spec.limits.tokens_max", {"limits": Limits(tokens_max=0)}),
        ("spec.limits.cost_usd_nanos_max", {"limits": Limits(cost_usd_nanos_max=-1)}),
        ("spec.limits.depth_max", {"limits": Limits(depth_max=-1)}),
        ("spec.limits.children_live_max", {"limits": Limits(children_live_max=-1)}),
    ],
)
async def test_a_field_that_is_not_valid_is_named(
    stack: Stack, field: str, spec: dict[str, Any]
) -> None:
    """A caller in any language must see what to change."""
    error = await failure(create(stack, **spec))

    assert (error.code, error.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ErrorReason.ERROR_REASON_INVALID_FIELD,
    )
    assert error.metadata == {"field": field}


@pytest.mark.parametrize(
    ("field", "above", "at"),
    [
        ("turns_max", 201, 200),
        ("sub_calls_max", 100_001, 100_000),
        ("tokens_max", 2_000_000_001, 2_000_000_000),
        ("cost_usd_nanos_max", 1_000 * 10**9 + 1, 1_000 * 10**9),
        ("time_max", seconds(86_401), seconds(86_400)),
        ("depth_max", 5, 4),
        ("children_live_max", 65, 64),
    ],
)
async def test_a_limit_above_the_ceiling_is_refused_and_one_at_it_is_taken(
    stack: Stack, field: str, above: Any, at: Any
) -> None:
    """Never lowered in silence: the caller would believe in a limit that is not there."""
    error = await failure(create(stack, limits=Limits(**{field: above})))
    run = await create(stack, limits=Limits(**{field: at}))

    assert (error.code, error.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ErrorReason.ERROR_REASON_LIMIT_ABOVE_CEILING,
    )
    assert error.metadata["field"] == f"spec.limits.{field}"
    for key, limit in (("value", above), ("ceiling", at)):
        plain = limit.seconds if isinstance(limit, Duration) else limit
        assert error.metadata[key] == str(plain)
    assert getattr(run.spec.limits, field) == at


async def test_an_unknown_context_is_not_found(stack: Stack) -> None:
    error = await failure(create(stack, context=UNKNOWN_CONTEXT))

    assert (error.code, error.metadata) == (
        grpc.StatusCode.NOT_FOUND,
        {"resource": UNKNOWN_CONTEXT},
    )


@pytest.mark.parametrize("field", ["root_tier", "sub_tier"])
async def test_a_tier_that_is_not_offered_is_refused_with_what_is(stack: Stack, field: str) -> None:
    error = await failure(create(stack, **{field: "huge"}))

    assert (error.code, error.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ErrorReason.ERROR_REASON_MODEL_NOT_OFFERED,
    )
    assert error.metadata == {"tier": "huge", "offered": "root, sub"}


async def test_a_deployment_can_be_named_in_place_of_a_tier(stack: Stack) -> None:
    """Its name goes to the gateway, the session and the run's tokens."""
    stack.gateway.models.append(Model(name="models/other", tiers=["other"]))
    stack.gateway.replies = ["```repl\nFINAL(1)\n```"]

    run = await create(stack, root_tier="models/other", sub_tier="models/small")
    await stack.watch(run)

    assert stack.gateway.requests[0].prompt.tier == "models/other"
    assert stack.gateway.tokens[0].tiers == ("models/other",)
    assert stack.sandbox.created[0].sub_tier == "models/small"


async def test_a_gateway_that_restarts_is_asked_again_for_its_models(stack: Stack) -> None:
    """A rolling update of the gateway must not refuse runs, nor fail those that begin."""
    away = ScriptedError(grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_DRAINING)
    stack.gateway.list_failures = [away, away]

    run = await create(stack)

    assert (await stack.watch(run))[-1].run_changed.state == Run.STATE_ANSWERED
    assert stack.gateway.lists == 3


async def test_a_gateway_that_cannot_be_reached_is_said_to_be_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.gateway_client._RETRY_S", 0.01)
    monkeypatch.setattr("orchestrator.gateway_client._LIST_TIMEOUT_S", 5.0)
    async with orchestrator(tmp_path, gateway_address="127.0.0.1:1") as stack:
        error = await failure(create(stack))

    assert error.code == grpc.StatusCode.UNAVAILABLE
    assert "127.0.0.1" not in error.status.message  # the library names addresses


async def test_defaults_are_filled_in_so_that_a_run_explains_itself(stack: Stack) -> None:
    run = await create(stack, limits=Limits(turns_max=3))

    assert (run.state, run.last_sequence) == (Run.STATE_QUEUED, 1)
    assert (run.spec.root_tier, run.spec.sub_tier) == ("root", "sub")
    assert run.spec.limits == Limits(
        turns_max=3,
        time_max=seconds(600),
        sub_calls_max=1_000,
        tokens_max=20_000_000,
        cost_usd_nanos_max=5 * 10**9,
        depth_max=1,
        children_live_max=4,
    )


async def test_a_run_can_be_created_while_the_gateway_is_busy(stack: Stack) -> None:
    """Creation returns at once; nothing waits for a model."""
    stack.gateway.hold.clear()

    run = await create(stack)

    await stack.gateway.asked.wait()
    assert (await get(stack, run)).state == Run.STATE_RUNNING
    stack.gateway.hold.set()
    assert (await stack.watch(run))[-1].run_changed.state == Run.STATE_ANSWERED


async def test_repeating_a_request_id_returns_the_first_run(stack: Stack) -> None:
    """A client that retries CreateRun after a lost answer starts no second run."""
    first = await create(stack, request_id="a")
    second = await create(stack, request_id="a")
    other = await create(stack, request_id="b")

    assert first.name == second.name != other.name


async def test_concurrent_repeats_of_a_request_make_one_run(stack: Stack) -> None:
    runs = await asyncio.gather(*(create(stack, request_id="a") for _ in range(8)))

    listed = await stack.runs.ListRuns(pb.ListRunsRequest(), timeout=TIMEOUT_S)
    assert len({run.name for run in runs}) == len(listed.runs) == 1


async def test_a_request_id_with_another_question_is_refused(stack: Stack) -> None:
    await create(stack, request_id="a")

    error = await failure(create(stack, request_id="a", question="Something else?"))

    assert (error.code, error.reason) == (
        grpc.StatusCode.ABORTED,
        ErrorReason.ERROR_REASON_REQUEST_ID_REUSED,
    )
    assert error.metadata == {"request_id": "a"}


async def test_a_request_id_has_at_most_256_characters(stack: Stack) -> None:
    await create(stack, request_id="a" * 256)

    error = await failure(create(stack, request_id="a" * 257))

    assert error.metadata == {"field": "request_id"}


async def test_a_full_queue_refuses_with_a_time_to_come_back(tmp_path: Path) -> None:
    gateway = FakeGateway()
    gateway.hold.clear()
    async with orchestrator(
        tmp_path, gateway=gateway, runs_running_max=1, runs_waiting_max=2
    ) as stack:
        runs = [await create(stack)]
        await gateway.asked.wait()  # until it has its place, it waits too
        runs += [await create(stack) for _ in range(2)]
        error = await failure(create(stack))
        gateway.hold.set()
        ends = [(await stack.watch(run))[-1].run_changed.state for run in runs]

    assert (error.code, error.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        ErrorReason.ERROR_REASON_RUN_QUEUE_FULL,
    )
    assert error.metadata == {"limit": "2", "scope": "service"}
    assert error.retry_after_s is not None
    assert ends == [Run.STATE_ANSWERED] * 3


async def test_runs_wait_their_turn_in_order(tmp_path: Path) -> None:
    async with orchestrator(tmp_path, runs_running_max=1) as stack:
        runs = [await create(stack, question=f"Question {n}?") for n in range(5)]
        for run in runs:
            await stack.watch(run)

        asked = [request.prompt.messages[1].text for request in stack.gateway.requests]
    assert [text.split("?")[0][-1] for text in asked] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    "call",
    [
        lambda s, name: s.runs.GetRun(pb.GetRunRequest(name=name), timeout=TIMEOUT_S),
        lambda s, name: s.runs.WatchRun(pb.WatchRunRequest(name=name), timeout=TIMEOUT_S),
        lambda s, name: s.runs.CancelRun(pb.CancelRunRequest(name=name), timeout=TIMEOUT_S),
    ],
)
async def test_an_unknown_run_is_not_found_and_a_bad_name_is_named(
    stack: Stack, call: Callable[[Stack, str], Any]
) -> None:
    unknown = await failure(call(stack, "runs/abc"))
    bad = await failure(call(stack, "abc"))

    assert (unknown.code, unknown.metadata) == (
        grpc.StatusCode.NOT_FOUND,
        {"resource": "runs/abc"},
    )
    assert (bad.code, bad.metadata) == (grpc.StatusCode.INVALID_ARGUMENT, {"field": "name"})
