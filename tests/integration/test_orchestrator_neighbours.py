"""A run whose sandbox or gateway fails, is full or is away, over real gRPC: what it waits for, what
it tells the model, and what ends it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1.run_pb2 import Run
from google.protobuf.duration_pb2 import Duration

from common.errors import ReceivedError
from tests.support.eventually import eventually
from tests.support.fake_gateway import (
    ScriptedError,
)
from tests.support.orchestrator import Stack, orchestrator
from tests.support.run_scripts import cases, cell, endings


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path) as running:
        yield running


async def test_a_lost_session_comes_back_with_its_variables(stack: Stack) -> None:
    """A worker that dies costs time, and nothing that the model would see."""
    run, events = await stack.ask(
        cell("x = llm_query('a')"),
        cell("lose_session(times=1)\ny = llm_query(context)"),
        cell("FINAL(x + y)"),
    )

    assert run.answer.text == "ASOME TEXT\n"
    assert endings(events) == ["COMPLETED"] * 3
    numbers = [e.sub_call_started.sub_call for e in events if e.HasField("sub_call_started")]
    assert numbers == [1, 2]
    codes = [request.code for request in stack.sandbox.executed]
    assert codes.count("x = llm_query('a')\n") == 2


async def test_a_cell_that_loses_every_session_is_undone_and_the_model_is_told(
    stack: Stack,
) -> None:
    """The model must know which cell was too much, and keeps what it had before."""
    reply = "\n\n".join([cell("x = 'seen'"), cell("lose_session()"), cell("print('never')")])

    run, events = await stack.ask(reply, cell("FINAL(x)"))

    assert run.answer.text == "seen"
    assert endings(events) == ["COMPLETED", "WORKER_LOST", "COMPLETED"]
    assert "Cell 2 of 3 was lost" in stack.gateway.prompts()[1]
    assert "all from before it is kept" in stack.gateway.prompts()[1]


async def test_a_session_that_cannot_be_used_any_more_is_replaced_by_an_empty_one(
    stack: Stack,
) -> None:
    """Where one cell after the other is lost, what broke is older than both."""
    run, events = await stack.ask(
        cell("x = 1\nlose_session()"), cell("lose_session()"), cell("FINAL('x' in globals())")
    )

    assert run.answer.text == "false"
    assert endings(events) == ["WORKER_LOST", "SESSION_LOST", "COMPLETED"]
    assert "started anew" in stack.gateway.prompts()[2]


async def test_a_full_sandbox_is_asked_again(stack: Stack) -> None:
    busy = ScriptedError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, ErrorReason.ERROR_REASON_SANDBOX_CAPACITY
    )
    busy.retry_after_s = 0.01
    stack.sandbox.failures = [busy, busy]

    run, _ = await stack.ask(cell("FINAL(context)"))

    assert run.state == Run.STATE_ANSWERED
    assert len({request.request_id for request in stack.sandbox.created}) == 1


async def test_a_cell_that_finds_no_worker_is_run_a_moment_later(stack: Stack) -> None:
    """Its session is where it was: it only waits for a place to run in."""
    busy = ScriptedError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, ErrorReason.ERROR_REASON_SANDBOX_CAPACITY
    )
    busy.retry_after_s = 0.01
    stack.sandbox.execute_failures = [busy, busy]

    run, events = await stack.ask(cell("FINAL(context)"))

    assert run.state == Run.STATE_ANSWERED
    assert endings(events) == ["COMPLETED"]
    assert len(stack.sandbox.created) == 1


async def test_a_context_that_does_not_fit_ends_the_run_with_that_reason(stack: Stack) -> None:
    stack.sandbox.failures = [
        ScriptedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            ErrorReason.ERROR_REASON_CONTEXT_TOO_LARGE,
            bytes_needed="5",
        )
    ]

    run, _ = await stack.ask(cell("print(1)"))

    error = ReceivedError(run.error)
    assert (run.state, error.code, error.reason_name, error.metadata) == (
        Run.STATE_FAILED,
        grpc.StatusCode.FAILED_PRECONDITION,
        "ERROR_REASON_CONTEXT_TOO_LARGE",
        {"bytes_needed": "5"},
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_PROVIDER_UNAVAILABLE),
        (grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_PROVIDER_CREDENTIAL),
        (grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_CONTEXT_WINDOW_EXCEEDED),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ErrorReason.ERROR_REASON_PROVIDER_TIMEOUT),
    ],
)
async def test_a_failing_provider_ends_the_run_with_the_gateways_reason(
    stack: Stack, code: grpc.StatusCode, reason: ErrorReason.ValueType
) -> None:
    """The gateway has retried already; its code, reason and metadata say what to do."""
    run, _ = await stack.ask(ScriptedError(code, reason, provider="p", model="m"))

    error = ReceivedError(run.error)
    assert run.state == Run.STATE_FAILED
    assert (error.code, error.reason) == (code, reason)
    assert error.metadata == {"provider": "p", "model": "m"}
    await eventually(lambda: stack.sandbox.deleted == ["sessions/s1"])


async def test_a_failed_sub_call_is_written_down_with_its_reason(stack: Stack) -> None:
    """A failure is a value for the model's code, and a fact for people."""
    stack.sandbox.answer = lambda _: ScriptedError(
        grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_PROVIDER_UNAVAILABLE
    )

    run, events = await stack.ask(cell("llm_query('a')"), "FINAL(gave up)")

    finished = next(e.sub_call_finished for e in events if e.HasField("sub_call_finished"))
    error = ReceivedError(finished.error)
    assert error.reason == ErrorReason.ERROR_REASON_PROVIDER_UNAVAILABLE
    assert (run.sub_calls, run.sub_calls_live, run.usage.calls) == (1, 0, 2)


async def test_a_gateway_that_restarts_is_asked_again(stack: Stack) -> None:
    """A rolling update must not fail the runs in progress; the request id stays the same."""
    away = ScriptedError(grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_DRAINING)

    run, events = await stack.ask(away, "FINAL(back)")

    assert run.answer.text == "back"
    assert len({request.call.request_id for request in stack.gateway.requests}) == 1
    assert cases(events).count("turn_started") == 1


async def test_a_gateway_that_stays_away_is_waited_for_until_the_run_is_out_of_time(
    stack: Stack,
) -> None:
    """Whoever restarts it has as long as the run has; what was found until then is not lost."""
    away = ScriptedError(grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_DRAINING)
    for time_s in (3, 9, 24):  # on a slow machine no cell ends within the first
        asked = len(stack.gateway.requests)
        time_max = Duration(seconds=time_s)
        run, _ = await stack.ask(cell("print('found')"), away, time_max=time_max)
        if run.answer.text == "found" and len(stack.gateway.requests) > asked + 3:
            break

    assert (run.state, run.answer.text) == (Run.STATE_PARTIAL, "found")
    assert run.answer.limit_reached == "time_max"
    assert len(stack.gateway.requests) > asked + 3
