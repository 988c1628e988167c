"""ListRuns over loopback: order, pages, states, and lists that cannot be made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.run_pb2 import Run

from tests.support.fake_gateway import ScriptedError
from tests.support.orchestrator import TIMEOUT_S, Stack, orchestrator
from tests.support.run_calls import create, failure


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path) as running:
        yield running


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
