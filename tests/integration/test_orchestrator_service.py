"""OrchestratorService over loopback: what is refused, what is remembered, what can be watched.

Long, because each thing that a caller can meet is a short test of its own, over one fixture.
"""

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
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec
from google.protobuf.duration_pb2 import Duration

from common.errors import ReceivedError, received
from tests.support.eventually import eventually
from tests.support.fake_gateway import FakeGateway, ScriptedError
from tests.support.fake_sandbox import FakeSandbox
from tests.support.orchestrator import TIMEOUT_S, Stack, orchestrator

UNKNOWN_CONTEXT = "contexts/" + "0" * 32
HANG = "```repl\nprint('here')\nhang()\n```"


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path) as running:
        yield running


async def failure(call: Any) -> ReceivedError:
    """Return the error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return received(caught.value)


async def create(stack: Stack, request_id: str = "", **spec: Any) -> Run:
    fields = {"question": "What?", "context": (await stack.upload()).name} | spec
    request = pb.CreateRunRequest(spec=RunSpec(**fields), request_id=request_id)
    return (await stack.runs.CreateRun(request, timeout=TIMEOUT_S)).run


async def get(stack: Stack, run: Run) -> Run:
    response = await stack.runs.GetRun(pb.GetRunRequest(name=run.name), timeout=TIMEOUT_S)
    return response.run


async def cancel(stack: Stack, run: Run) -> Run:
    response = await stack.runs.CancelRun(pb.CancelRunRequest(name=run.name), timeout=TIMEOUT_S)
    return response.run


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
        runs = [await create(stack) for _ in range(3)]
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


async def test_runs_are_listed_newest_first_in_pages(stack: Stack) -> None:
    runs = [await create(stack) for _ in range(5)]
    for run in runs:
        await stack.watch(run)

    pages: list[list[str]] = []
    token = ""
    while not pages or token:
        request = pb.ListRunsRequest(page_size=2, page_token=token)
        response = await stack.runs.ListRuns(request, timeout=TIMEOUT_S)
        pages.append([run.name for run in response.runs])
        token = response.next_page_token

    assert [len(page) for page in pages] == [2, 2, 1]
    names = [name for page in pages for name in page]
    assert names == sorted({run.name for run in runs}, reverse=True)


async def test_a_page_of_large_runs_ends_before_it_is_too_large_for_a_message(
    stack: Stack,
) -> None:
    """Else a list that holds a few large answers could not be read at all."""
    stack.gateway.replies = ["FINAL(" + "a" * 390_000 + ")"]
    runs = [await create(stack) for _ in range(12)]
    for run in runs:
        await stack.watch(run)

    names: list[str] = []
    token, pages = "", 0
    while not pages or token:
        request = pb.ListRunsRequest(page_size=500, page_token=token)
        response = await stack.runs.ListRuns(request, timeout=TIMEOUT_S)
        names += [run.name for run in response.runs]
        token, pages = response.next_page_token, pages + 1

    assert names == sorted((run.name for run in runs), reverse=True)
    assert pages == 3


async def test_runs_are_listed_by_state(stack: Stack) -> None:
    answered = await create(stack)
    await stack.watch(answered)
    stack.gateway.replies = [ScriptedError(grpc.StatusCode.UNAVAILABLE, 41)]
    failed = await create(stack)
    await stack.watch(failed)

    request = pb.ListRunsRequest(states=[Run.STATE_FAILED, Run.STATE_CANCELLED])
    response = await stack.runs.ListRuns(request, timeout=TIMEOUT_S)

    assert [run.name for run in response.runs] == [failed.name]


async def test_a_page_token_is_good_for_its_own_list_only(stack: Stack) -> None:
    for _ in range(2):
        await create(stack)
    first = await stack.runs.ListRuns(pb.ListRunsRequest(page_size=1), timeout=TIMEOUT_S)

    bad = [
        pb.ListRunsRequest(page_token="nonsense"),
        pb.ListRunsRequest(page_token="é"),
        pb.ListRunsRequest(page_token=first.next_page_token[:-4] + "AAA="),
        pb.ListRunsRequest(page_token=first.next_page_token, states=[Run.STATE_ANSWERED]),
    ]
    errors = [await failure(stack.runs.ListRuns(r, timeout=TIMEOUT_S)) for r in bad]

    assert [error.metadata for error in errors] == [{"field": "page_token"}] * 4


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("page_size", pb.ListRunsRequest(page_size=-1)),
        ("states", pb.ListRunsRequest(states=[Run.STATE_UNSPECIFIED])),
        ("states", pb.ListRunsRequest(states=[99])),  # type: ignore[list-item]
    ],
)
async def test_a_list_that_cannot_be_made_is_refused(
    stack: Stack, field: str, request_: pb.ListRunsRequest
) -> None:
    error = await failure(stack.runs.ListRuns(request_, timeout=TIMEOUT_S))

    assert error.metadata == {"field": field}


async def test_a_watcher_that_comes_back_misses_nothing_and_sees_nothing_twice(
    stack: Stack,
) -> None:
    """Connections break: the sequence is what makes a stream whole again."""
    stack.gateway.replies = ["```repl\nfor n in range(30):\n    llm_query(str(n))\n```", "FINAL(x)"]
    run = await create(stack)

    seen: list[int] = []
    while True:
        request = pb.WatchRunRequest(name=run.name, after_sequence=seen[-1] if seen else 0)
        call = stack.runs.WatchRun(request, timeout=TIMEOUT_S)
        event = RunEvent()
        for _ in range(3):
            response: Any = await call.read()
            if response is grpc.aio.EOF:
                break
            event = response.event
            seen.append(event.sequence)
        call.cancel()
        if event.run_changed.state == Run.STATE_ANSWERED:
            break

    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) == 69


async def test_watchers_that_take_several_events_at_once_see_the_same(stack: Stack) -> None:
    stack.gateway.replies = ["```repl\nfor n in range(30):\n    llm_query(str(n))\n```", "FINAL(x)"]
    run = await create(stack)
    alone = await stack.watch(run)

    request = pb.WatchRunRequest(name=run.name, after_sequence=1, joined=True)
    told = [r async for r in stack.runs.WatchRun(request, timeout=TIMEOUT_S)]

    assert [event for r in told for event in (r.event, *r.further)] == alone[1:]
    assert len(told) == 1


async def test_live_watchers_and_late_ones_see_the_same(stack: Stack) -> None:
    stack.gateway.replies = ["```repl\nllm_query('a')\n```", "FINAL(x)"]
    run = await create(stack)

    live = await asyncio.gather(*(stack.watch(run) for _ in range(3)))
    late = await stack.watch(run)

    assert live == [late] * 3


async def test_a_watch_after_the_last_event_ends_at_once(stack: Stack) -> None:
    run = await create(stack)
    events = await stack.watch(run)

    assert await stack.watch(run, after=events[-1].sequence) == []
    assert await stack.watch(run, after=events[-1].sequence + 5) == []
    assert await stack.watch(run, after=events[-2].sequence) == [events[-1]]


async def test_a_negative_sequence_is_refused(stack: Stack) -> None:
    run = await create(stack)
    request = pb.WatchRunRequest(name=run.name, after_sequence=-1)

    error = await failure(stack.runs.WatchRun(request, timeout=TIMEOUT_S))

    assert error.metadata == {"field": "after_sequence"}


async def test_the_stored_run_is_what_its_last_event_says(stack: Stack) -> None:
    run = await create(stack)

    events = await stack.watch(run)

    assert await get(stack, run) == events[-1].run_changed


async def test_cancelling_stops_a_waiting_model_call(stack: Stack) -> None:
    stack.gateway.hold.clear()
    run = await create(stack)
    await stack.gateway.asked.wait()

    await cancel(stack, run)
    async with asyncio.timeout(TIMEOUT_S):
        end = (await stack.watch(run))[-1].run_changed

    error = ReceivedError(end.error)
    assert (end.state, error.code, error.reason_name, error.metadata) == (
        Run.STATE_CANCELLED,
        grpc.StatusCode.ABORTED,
        "ERROR_REASON_RUN_CANCELLED",
        {"run": run.name},
    )


async def test_cancelling_stops_a_running_cell_and_deletes_its_session(stack: Stack) -> None:
    stack.gateway.replies = [HANG]
    run = await create(stack)
    await watch_for(stack, run, "cell_started")

    await cancel(stack, run)
    async with asyncio.timeout(TIMEOUT_S):
        *_, cell, end = await stack.watch(run)

    assert cell.cell_finished.ending == "ABORTED"
    assert end.run_changed.state == Run.STATE_CANCELLED
    await eventually(lambda: stack.sandbox.deleted == ["sessions/s1"])


async def test_a_cancelled_run_keeps_what_it_had_found(stack: Stack) -> None:
    """Whoever stops a run that has cost something wants to see what it has got."""
    stack.gateway.replies = ["```repl\nprint('seven of them')\n```", "```repl\nhang()\n```"]
    run = await create(stack)
    await watch_for(stack, run, "cell_finished")

    await cancel(stack, run)
    end = (await stack.watch(run))[-1].run_changed

    assert (end.state, end.found_so_far) == (Run.STATE_CANCELLED, "seven of them")
    assert not end.HasField("answer")


async def test_cancelling_a_run_that_waits_ends_it_without_any_work(tmp_path: Path) -> None:
    gateway = FakeGateway()
    gateway.hold.clear()
    async with orchestrator(tmp_path, gateway=gateway, runs_running_max=1) as stack:
        first = await create(stack)
        second = await create(stack)
        await cancel(stack, second)
        events = await stack.watch(second)
        gateway.hold.set()
        await stack.watch(first)

    assert [event.run_changed.state for event in events] == [
        Run.STATE_QUEUED,
        Run.STATE_CANCELLED,
    ]
    assert len(gateway.requests) == 1


async def test_cancelling_an_ended_run_changes_nothing(stack: Stack) -> None:
    run = await create(stack)
    events = await stack.watch(run)

    answer = await cancel(stack, run)

    assert answer == events[-1].run_changed
    assert await stack.watch(run) == events


async def test_a_restart_lets_what_was_unfinished_go_on_and_keeps_the_rest(tmp_path: Path) -> None:
    """A deployment in the middle of a run costs the run nothing but time."""
    gateway, sandbox = FakeGateway(), FakeSandbox(tmp_path / "objects")
    async with orchestrator(tmp_path, gateway=gateway, sandbox=sandbox) as stack:
        done = await create(stack)
        before = await stack.watch(done)
        gateway.hold.clear()
        gateway.asked.clear()
        broken = await create(stack)
        await gateway.asked.wait()
        waiting = await create(stack)
    gateway.hold.set()
    async with orchestrator(tmp_path, gateway=gateway, sandbox=sandbox) as stack:
        kept = await stack.watch(done)
        for run in (broken, waiting):
            events = await stack.watch(run)
            assert events[-1].run_changed.state == Run.STATE_ANSWERED
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))

    assert kept == before


async def test_draining_ends_a_watch_with_a_reason_to_come_back(tmp_path: Path) -> None:
    """The client resumes by sequence at another server, or the same one later."""
    gateway = FakeGateway()
    gateway.hold.clear()
    async with orchestrator(tmp_path, gateway=gateway) as stack:
        run = await create(stack)
        await gateway.asked.wait()
        watching = asyncio.create_task(
            failure(stack.runs.WatchRun(pb.WatchRunRequest(name=run.name), timeout=TIMEOUT_S))
        )
        await watch_for(stack, run, "turn_started")
        await stack.server.__aexit__(None, None, None)
        error = await watching

    assert (error.code, error.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        ErrorReason.ERROR_REASON_DRAINING,
    )


async def watch_for(stack: Stack, run: Run, case: str) -> None:
    """Return once an event of a kind has come."""
    call = stack.runs.WatchRun(pb.WatchRunRequest(name=run.name), timeout=TIMEOUT_S)
    async for response in call:
        if response.event.WhichOneof("event") == case:
            break
    call.cancel()
