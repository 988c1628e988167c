"""Code that is run again to rebuild a session: it draws the same randomness, asks no model anew,
and is found by whoever takes a run over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import received
from sandbox_service.guest_build import GuestBuild
from tests.support.fake_gateway import ScriptedError
from tests.support.sandbox import TIMEOUT_S, Sandbox, guest, sandbox

pytestmark = pytest.mark.guest
FIXED = wire.Determinism(clock_time=Timestamp(seconds=1_700_000_000), seed=7)


@pytest.fixture(scope="module")
def build() -> GuestBuild:
    return guest()


@pytest.fixture
async def box(build: GuestBuild, tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(build, tmp_path) as box:
        yield box


async def test_a_rebuilt_session_draws_what_the_first_one_drew(box: Sandbox) -> None:
    """What was undone in the first session is left out of the second, and moves nothing."""
    draw = "import os, time\nprint(os.urandom(8), time.time_ns())"
    limits = session_pb2.SessionLimits(fuel_max=300_000_000)
    first = await box.create(determinism=FIXED, limits=limits)
    seen = [(await box.run(first, code)).out for code in (draw, "while True: pass", draw)]

    second = await box.create(determinism=FIXED, limits=limits)
    again = [(await box.run(second, draw, random_stream=stream)).out for stream in (1, 3)]

    assert again == [seen[0], seen[2]]


@pytest.mark.parametrize(("allowed", "made"), [(2, 2), (3, 3), (4, 3)])
async def test_an_execution_can_have_a_limit_of_sub_calls(
    box: Sandbox, allowed: int, made: int
) -> None:
    """A run counts over all of its sessions, of which a rebuilt one knows only a part."""
    session = await box.create(run_token="t")
    await box.run(session, "llm_query('before')")

    ran = await box.run(session, "for n in range(3): llm_query(str(n))", sub_calls_max=allowed)

    assert ran.kinds().count("sub_call_started") == made
    assert ran.result.HasField("limit_reached") == (allowed < 3)


async def test_sub_calls_that_are_known_to_have_failed_are_not_made_again(box: Sandbox) -> None:
    """The gateway would make them anew, since a failure is no answer that it keeps."""
    session = await box.create(run_token="t")
    await box.run(session, "llm_query('before')")
    reason = ErrorReason.ERROR_REASON_PROVIDER_UNAVAILABLE
    error = ScriptedError(grpc.StatusCode.UNAVAILABLE, reason).to_status()
    code = (
        "got = llm_query_batched(['a', 'b', 'c'])\n"
        "print([str(each) for each in got if isinstance(each, str)], type(got[1]).__name__)"
    )

    failed = [wire.FailedSubCall(sequence=2, error=error)]
    ran = await box.run(session, code, failed_sub_calls=failed)

    assert ran.out == "['re: a', 're: c'] FailedQuery\n"
    asked = [request.prompt.messages[-1].text for request in box.gateway.requests]
    assert sorted(asked) == ["a", "before", "c"]
    outcomes = [e.sub_call_finished for e in ran.events if e.HasField("sub_call_finished")]
    assert sorted(each.HasField("error") for each in outcomes) == [False, False, True]


async def test_sessions_are_found_by_their_labels(box: Sandbox) -> None:
    """Who takes a run over finds what the one before has left of it."""
    wanted = await box.create(labels={"run": "a", "turn": "1"})
    await box.create(labels={"run": "b"})

    request = wire.ListSessionsRequest(labels={"run": "a"})
    response = await box.stub.ListSessions(request, timeout=TIMEOUT_S)

    assert [session.name for session in response.sessions] == [wanted]


async def test_a_page_token_is_good_for_the_same_labels_only(box: Sandbox) -> None:
    for _ in range(2):
        await box.create(labels={"run": "a"})
    request = wire.ListSessionsRequest(labels={"run": "a"}, page_size=1)
    first = await box.stub.ListSessions(request, timeout=TIMEOUT_S)
    request.page_token = first.next_page_token
    assert len((await box.stub.ListSessions(request, timeout=TIMEOUT_S)).sessions) == 1

    request.labels["run"] = "b"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.stub.ListSessions(request, timeout=TIMEOUT_S)

    assert received(caught.value).reason == ErrorReason.ERROR_REASON_INVALID_FIELD


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("random_stream", {"random_stream": -1}),
        ("sub_calls_max", {"sub_calls_max": -1}),
        ("sub_calls_max", {"sub_calls_max": 1_000_001}),
        ("failed_sub_calls", {"failed_sub_calls": [wire.FailedSubCall(sequence=1)]}),
        ("failed_sub_calls", {"failed_sub_calls": [wire.FailedSubCall(sequence=0)]}),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(
    box: Sandbox, field: str, fields: dict[str, object]
) -> None:
    session = await box.create()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.run(session, "1", **fields)

    assert received(caught.value).code is grpc.StatusCode.INVALID_ARGUMENT
    assert received(caught.value).metadata["field"] == field
