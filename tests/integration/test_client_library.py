"""The client library against an orchestrator's servicers over a real port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from fathom.orchestrator.v1 import context_pb2
from fathom_client import Client, InputFile, Limits, Upload, read_inputs
from fathom_client.errors import NotFoundError, ResourceExhaustedError, UnavailableError
from fathom_client.uploads import CHUNK_BYTES, InputChangedError
from fathom_client.watching import watch

from common.config import ServerConfig
from common.errors import RequestIdReusedError
from common.server import Server
from tests.support.fake_orchestrator import FakeOrchestrator, answered, failed, partial

TEXT = context_pb2.Context.KIND_TEXT


@asynccontextmanager
async def client_of(orchestrator: FakeOrchestrator) -> AsyncIterator[Client]:
    server = Server("test", ServerConfig(drain_s=1.0))
    orchestrator.register(server)
    async with server, Client(server.address) as client:
        yield client


def text(data: bytes) -> Upload:
    return Upload(kind=TEXT, files=(InputFile(name="t", size_bytes=len(data), data=data),))


def instantly(waits: list[float]) -> Callable[[float], Awaitable[None]]:
    """Return a pause that takes no time and is written down."""

    async def pause(wait_s: float) -> None:
        waits.append(wait_s)

    return pause


async def test_asking_uploads_creates_and_waits_for_the_answer() -> None:
    orchestrator = FakeOrchestrator(answered("42"))
    async with client_of(orchestrator) as client:
        result = await client.ask("how many?", text(b"data"), limits=Limits(usd=1, turns=3))

    assert (result.status, result.text, result.error) == ("answered", "42", None)
    assert (result.cost_usd, result.tokens, result.elapsed_s) == (0.31, 2_500, 42.0)
    spec = orchestrator.create_requests[0].spec
    assert (spec.question, spec.context) == ("how many?", "contexts/c1")
    assert (spec.limits.cost_usd_nanos_max, spec.limits.turns_max) == (1_000_000_000, 3)


async def test_a_run_that_failed_is_a_result_with_its_error() -> None:
    async with client_of(FakeOrchestrator(failed(RequestIdReusedError("r")))) as client:
        result = await client.ask("why?", "contexts/c1")

    assert (result.status, result.text) == ("failed", None)
    assert result.error is not None
    assert result.error.code is grpc.StatusCode.ABORTED
    assert result.error.reason == "ERROR_REASON_REQUEST_ID_REUSED"
    assert result.error.metadata == {"request_id": "r"}


async def test_a_partial_answer_is_a_result_with_text() -> None:
    async with client_of(FakeOrchestrator(partial("some", "turns_max"))) as client:
        result = await client.ask("why?", "contexts/c1")

    assert (result.status, result.text) == ("partial", "some")


async def test_large_texts_go_in_chunks_of_one_mebibyte() -> None:
    data = bytes(range(1, 256)) * 10_000
    sent: list[int] = []
    orchestrator = FakeOrchestrator(answered(""))
    async with client_of(orchestrator) as client:
        await client.upload(text(data), on_progress=sent.append)

    assert orchestrator.documents == [{"": data}]
    assert orchestrator.started[0].size_bytes == len(data)
    assert sent == [CHUNK_BYTES, 2 * CHUNK_BYTES, len(data)]


async def test_documents_keep_their_names_order_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b.txt").write_bytes(b"bbb")
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "c.txt").write_bytes(b"c" * (CHUNK_BYTES + 1))
    monkeypatch.chdir(tmp_path)
    orchestrator = FakeOrchestrator(answered(""))
    async with client_of(orchestrator) as client:
        await client.upload(read_inputs(["b.txt", "a.txt", "c.txt"]).upload)

    (documents,) = orchestrator.documents
    assert list(documents.items()) == [
        ("b.txt", b"bbb"),
        ("a.txt", b""),
        ("c.txt", b"c" * (CHUNK_BYTES + 1)),
    ]


@pytest.mark.parametrize("size_bytes", [9, 11])
async def test_a_file_that_changes_while_it_is_sent_is_noticed(
    tmp_path: Path, size_bytes: int
) -> None:
    """The answer must not be about half of a file that is being written."""
    file = tmp_path / "a.txt"
    file.write_bytes(b"0123456789")
    upload = read_inputs([file]).upload
    file.write_bytes(b"x" * size_bytes)

    async with client_of(FakeOrchestrator(answered(""))) as client:
        with pytest.raises(InputChangedError, match=r"a\.txt"):
            await client.upload(upload)


async def test_a_file_that_is_gone_is_an_error_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"x")
    upload = read_inputs([file]).upload
    file.unlink()

    async with client_of(FakeOrchestrator(answered(""))) as client:
        with pytest.raises(FileNotFoundError):
            await client.upload(upload)


async def test_an_upload_that_the_server_refuses_tells_why() -> None:
    """The refusal comes while chunks are still being written."""
    server = Server("test", ServerConfig(drain_s=1.0), message_bytes_max=1000)
    FakeOrchestrator(answered("")).register(server)
    async with server, Client(server.address) as client:
        with pytest.raises(ResourceExhaustedError, match="larger than max"):
            await client.upload(text(b"x" * 20 * CHUNK_BYTES))


async def test_a_broken_watch_goes_on_where_it_stopped() -> None:
    """A server that drains must not cost a watcher an event, nor show one twice."""
    orchestrator = FakeOrchestrator(answered("42"))
    orchestrator.cut_watches_after = [3, 0, 5]
    waits: list[float] = []
    breaks: list[int] = []
    async with client_of(orchestrator) as client:
        run = await client.create("why?", "contexts/c1")
        stub = client._orchestrator
        events = [
            event
            async for event in watch(
                stub, run.name, pause=instantly(waits), on_break=lambda: breaks.append(len(waits))
            )
        ]

    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].run_changed.answer.text == "42"
    assert orchestrator.watched_after == [0, 3, 3, 8]
    assert len(waits) == 3
    assert breaks == [0, 2], "a second attempt at mending is no second break"


async def test_a_watch_gives_up_once_patience_ends() -> None:
    orchestrator = FakeOrchestrator(answered("42"))
    orchestrator.cut_watches_after = [0] * 50
    waits: list[float] = []
    async with client_of(orchestrator) as client:
        run = await client.create("why?", "contexts/c1")
        with pytest.raises(UnavailableError) as caught:
            async for _ in watch(
                client._orchestrator,
                run.name,
                patience_s=1.5,
                pause=instantly(waits),
                clock=lambda: sum(waits),
            ):
                pass

    assert caught.value.reason == "ERROR_REASON_DRAINING"
    assert waits == [0.2, 0.4, 0.8]


async def test_watching_after_the_last_event_ends_at_once() -> None:
    orchestrator = FakeOrchestrator(answered("42"))
    async with client_of(orchestrator) as client:
        run = await client.create("why?", "contexts/c1")
        last = (await client.get(run.name)).last_sequence
        events = [event async for event in client.watch(run.name, after_sequence=last)]

    assert events == []


async def test_an_unknown_run_is_not_found_with_its_name() -> None:
    async with client_of(FakeOrchestrator(answered(""))) as client:
        with pytest.raises(NotFoundError) as caught:
            await client.get("runs/nope")

    assert caught.value.reason == "ERROR_REASON_RESOURCE_NOT_FOUND"
    assert caught.value.metadata == {"resource": "runs/nope"}


@pytest.mark.parametrize(("count_max", "listed"), [(2, 2), (3, 3), (9, 3)])
async def test_runs_are_listed_over_pages_up_to_the_count(count_max: int, listed: int) -> None:
    async with client_of(FakeOrchestrator(answered(""))) as client:
        for _ in range(3):
            await client.create("why?", "contexts/c1")
        runs = await client.list_runs(count_max=count_max)

    assert [run.name for run in runs] == ["runs/r3", "runs/r2", "runs/r1"][:listed]


async def test_each_run_is_created_under_a_request_id_of_its_own() -> None:
    """The connection may repeat the call; the server then knows it for the same one."""
    orchestrator = FakeOrchestrator(answered(""))
    async with client_of(orchestrator) as client:
        await client.create("why?", "contexts/c1")
        await client.create("why?", "contexts/c1")
        await client.create("why?", "contexts/c1", request_id="mine")

    ids = [request.request_id for request in orchestrator.create_requests]
    assert len(set(ids)) == 3
    assert all(ids)
    assert ids[2] == "mine"


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(client.get("runs/1"), timeout=20)
