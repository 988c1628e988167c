"""Uploads that break off and go on, over loopback: nothing that came is sent twice, and what is
stored is what was sent.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import blake3
import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.context_service_pb2 import UploadContextRequest

from orchestrator.contexts.json_check import JsonCheck
from orchestrator.contexts.upload_threads import UploadThreads
from orchestrator.errors import ObjectStoreError
from tests.support.contexts import ContextStack, context_service, refused, text_messages
from tests.support.eventually import eventually
from tests.support.orchestrator import TIMEOUT_S, chunk, document, start

TEXT, DOCUMENTS, JSON = Context.KIND_TEXT, Context.KIND_DOCUMENTS, Context.KIND_JSON
DATA = "zwölf Boxkämpfer\n".encode() * 100_000


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[ContextStack]:
    async with context_service(tmp_path) as running:
        yield running


def new_id() -> str:
    return str(uuid.uuid4())


async def test_an_upload_that_broke_off_goes_on_where_it_was(stack: ContextStack) -> None:
    upload_id = new_id()
    await stack.break_off(start(TEXT, upload_id=upload_id), chunk(DATA[:1000], 0))

    response = await stack.upload(*text_messages(DATA, offset=1000, upload_id=upload_id))

    assert response.context.blake3 == blake3.blake3(DATA).hexdigest()
    assert response.context.characters == len(DATA.decode())
    assert await stack.read(response.context.name) == DATA


async def test_an_upload_goes_on_at_another_replica(tmp_path: Path, database_url: str) -> None:
    """Where the first one is gone, or a balancer sends the client elsewhere."""
    upload_id = new_id()
    async with (
        context_service(tmp_path, database_url=database_url) as one,
        context_service(tmp_path, database_url=database_url) as other,
    ):
        await one.break_off(start(TEXT, upload_id=upload_id), chunk(DATA[:1000], 0))

        async def is_let_go_of() -> bool:
            try:
                return (await other.kept(upload_id)).bytes_kept == 1000
            except grpc.aio.AioRpcError as error:  # nobody else may write to it until then
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                return False

        await eventually(is_let_go_of)

        response = await other.upload(*text_messages(DATA, offset=1000, upload_id=upload_id))

        assert response.context.blake3 == blake3.blake3(DATA).hexdigest()
        assert await one.read(response.context.name) == DATA


async def test_a_look_at_an_upload_that_breaks_meanwhile_takes_nothing_of_it_away(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gigabytes would have to be sent again."""
    upload_id = new_id()
    async with (
        context_service(tmp_path, database_url=database_url) as one,
        context_service(tmp_path, database_url=database_url) as other,
    ):
        call = one.stub.UploadContext(timeout=TIMEOUT_S)
        await call.write(start(TEXT, upload_id=upload_id))
        await call.write(chunk(DATA[:1000], 0))
        await one.have_written(1000)

        begin_blob = UploadThreads.begin_blob

        async def begin_late(*args: Any) -> Any:
            call.cancel()
            while True:
                try:
                    return await begin_blob(*args)
                except ObjectStoreError:  # the stream still writes
                    await asyncio.sleep(0.001)

        monkeypatch.setattr(UploadThreads, "begin_blob", begin_late)

        assert (await other.kept(upload_id)).bytes_kept == 1000


async def test_documents_go_on_within_the_open_one(stack: ContextStack) -> None:
    upload_id = new_id()
    await stack.break_off(
        start(DOCUMENTS, upload_id=upload_id),
        document("a", metadata={"k": "v"}),
        chunk(b"one", 0),
        document("empty"),
        document("b"),
        chunk(b"tw", 3),
    )
    kept = await stack.kept(upload_id)
    assert (kept.bytes_kept, kept.documents_kept) == (5, 3)

    resumed = await stack.upload(
        start(DOCUMENTS, upload_id=upload_id), chunk(b"o", 5), document("c"), chunk(b"3", 6)
    )

    at_once = await stack.upload(
        start(DOCUMENTS),
        *(document("a", metadata={"k": "v"}), chunk(b"one", 0), document("empty")),
        *(document("b"), chunk(b"two", 3), document("c"), chunk(b"3", 6)),
    )
    assert at_once.already_stored
    assert at_once.context == resumed.context


async def test_an_unnamed_upload_that_breaks_leaves_nothing(
    stack: ContextStack, tmp_path: Path
) -> None:
    await stack.break_off(start(TEXT), chunk(DATA[: 1 << 20], 0))

    def is_gone() -> bool:
        return not [p for p in (tmp_path / "objects").rglob("*") if p.is_file()]

    await eventually(is_gone)
    # The cancelled call may begin after that: whatever it does, no context comes of it.
    await stack.upload_text(b"something else")
    assert len(await stack.parts.store.newest("default", before=None, count=9)) == 1


async def test_a_chunk_at_the_wrong_place_costs_nothing_of_what_is_kept(
    stack: ContextStack,
) -> None:
    upload_id = new_id()
    await stack.break_off(start(TEXT, upload_id=upload_id), chunk(DATA[:1000], 0))

    error = await refused(stack.upload(start(TEXT, upload_id=upload_id), chunk(b"x", 0)))

    assert error.metadata == {"field": "chunk.offset_bytes"}
    assert (await stack.kept(upload_id)).bytes_kept == 1000


async def test_another_start_under_the_same_id_is_refused(stack: ContextStack) -> None:
    upload_id = new_id()
    await stack.break_off(start(TEXT, upload_id=upload_id), chunk(b"x", 0))

    error = await refused(stack.upload(start(TEXT, title="t", upload_id=upload_id)))

    assert (error.code, error.reason) == (
        grpc.StatusCode.ABORTED,
        ErrorReason.ERROR_REASON_REQUEST_ID_REUSED,
    )


async def test_an_upload_that_has_ended_gives_its_context_again(stack: ContextStack) -> None:
    """The answer may be what was lost: nobody is to send 100 GB again for it."""
    upload_id = new_id()
    first = await stack.upload(*text_messages(DATA, upload_id=upload_id))

    again = await stack.upload(start(TEXT, upload_id=upload_id))
    kept = await stack.kept(upload_id)

    assert again.context == first.context == kept.context
    assert again.already_stored


async def test_an_upload_whose_context_was_deleted_since_begins_anew(stack: ContextStack) -> None:
    upload_id = new_id()
    first = await stack.upload(*text_messages(DATA, upload_id=upload_id))
    await stack.delete(first.context.name)

    again = await stack.upload(*text_messages(DATA, upload_id=upload_id))

    assert not again.already_stored
    assert await stack.read(again.context.name) == DATA


async def test_a_later_stream_takes_an_upload_over(stack: ContextStack) -> None:
    """A client whose connection hangs must not wait for the server to notice."""
    upload_id = new_id()
    first = stack.stub.UploadContext(timeout=TIMEOUT_S)
    await first.write(start(TEXT, upload_id=upload_id))
    await first.write(chunk(b"abc", 0))
    await stack.have_written(3)

    second = await stack.upload(start(TEXT, upload_id=upload_id), chunk(b"def", 3))
    await first.write(chunk(b"xyz", 3))
    error = await refused(first)

    assert await stack.read(second.context.name) == b"abcdef"
    assert (error.code, error.reason) == (
        grpc.StatusCode.ABORTED,
        ErrorReason.ERROR_REASON_UPLOAD_SUPERSEDED,
    )
    assert error.metadata == {"upload_id": upload_id}


async def test_wrong_bytes_end_an_upload(stack: ContextStack) -> None:
    """It could never end well: to go on with it would be in vain."""
    upload_id = new_id()
    messages = [start(TEXT, upload_id=upload_id, blake3="0" * 64), chunk(b"abc", 0)]

    error = await refused(stack.upload(*messages))
    missing = await refused(stack.kept(upload_id))

    assert error.reason == ErrorReason.ERROR_REASON_DIGEST_MISMATCH
    assert missing.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("upload_id", ["", "u", "zz" * 16])
async def test_an_id_that_is_no_uuid_is_refused(stack: ContextStack, upload_id: str) -> None:
    error = await refused(stack.kept(upload_id))

    assert error.metadata == {"field": "upload_id"}


async def test_equal_uploads_at_once_are_stored_once(stack: ContextStack, tmp_path: Path) -> None:
    responses = await asyncio.gather(*(stack.upload(*text_messages(DATA)) for _ in range(4)))

    assert len({response.context.name for response in responses}) == 1
    assert sorted(response.already_stored for response in responses) == [False, True, True, True]
    assert await stack.read(responses[0].context.name) == DATA
    blobs = [p for p in (tmp_path / "objects").rglob("*") if p.is_file()]
    assert len([p for p in blobs if "blobs" in p.parts and "indexes" not in p.parts]) == 1
    assert not (await stack.parts.removal._stored.removed(count=9))


@pytest.mark.parametrize("ends_well", [True, False])
async def test_large_json_is_checked_as_it_comes(stack: ContextStack, ends_well: bool) -> None:
    """Beyond what is parsed at once, by a process that holds a window of it."""
    data = b'[{"name": "Zo\xc3\xab", "n": 1.5e3}' + b', {"name": "of some length"}' * 200_000
    data += b"]" if ends_well else b"]]"
    messages = [
        start(JSON),
        *(chunk(data[i : i + (1 << 20)], i) for i in range(0, len(data), 1 << 20)),
    ]

    if not ends_well:
        error = await refused(stack.upload(*messages))
        assert error.metadata == {"field": "chunk.data"}
        assert f"more after its end at byte {len(data) - 1:,}" in str(error)
        return
    context = (await stack.upload(*messages)).context
    assert context.size_bytes == len(data)


async def test_json_that_goes_wrong_is_refused_before_its_end(stack: ContextStack) -> None:
    sent = 0

    async def messages() -> AsyncIterator[UploadContextRequest]:
        nonlocal sent
        yield start(JSON)
        yield chunk(b"[1, oops]", 0)
        for sent in range(200):
            yield chunk(b" " * (1 << 20), 9 + (sent << 20))

    await refused(stack.stub.UploadContext(messages(), timeout=TIMEOUT_S))

    assert sent < 199


async def test_an_upload_that_is_cut_off_makes_no_context(stack: ContextStack) -> None:
    """gRPC ends the messages of a broken stream as it ends those of a whole one."""
    for n in range(30):
        call = stack.stub.UploadContext(timeout=TIMEOUT_S)
        await call.write(start(TEXT))
        await call.write(chunk(b"x" * (n + 1), 0))
        call.cancel()

    await stack.upload_text(b"whole")

    assert len(await stack.parts.store.newest("default", before=None, count=9)) == 1


async def test_checks_of_json_leave_threads_to_others(
    stack: ContextStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile value takes seconds a chunk: some of those at once must hold up no other upload."""
    gate, feed = threading.Event(), JsonCheck.feed
    entered: list[int] = []

    def slow(check: JsonCheck, data: bytes) -> None:
        entered.append(len(data))
        gate.wait(TIMEOUT_S)
        feed(check, data)

    monkeypatch.setattr(JsonCheck, "feed", slow)
    uploads = [
        asyncio.create_task(stack.upload(start(JSON), chunk(f"[{number}]".encode(), 0)))
        for number in range(40)
    ]
    await eventually(lambda: len(entered) >= 2)

    text = b"x" * (1 << 20)
    assert (await stack.upload_text(text)).size_bytes == len(text)
    assert len(entered) == 2
    gate.set()
    assert len({each.context.name for each in await asyncio.gather(*uploads)}) == 40
