"""ContextService over loopback: bytes in, the same bytes out, and every fault named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import blake3
import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1 import context_service_pb2 as pb
from fathom.orchestrator.v1.context_pb2 import Context

from common.errors import ReceivedError, received
from tests.support.orchestrator import TIMEOUT_S, Stack, chunk, document, orchestrator, start

TEXT, DOCUMENTS, JSON = Context.KIND_TEXT, Context.KIND_DOCUMENTS, Context.KIND_JSON


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path, context_bytes_max=10_000_000, documents_max=3) as running:
        yield running


async def upload(stack: Stack, *messages: pb.UploadContextRequest) -> pb.UploadContextResponse:
    return await stack.contexts.UploadContext(iter(messages), timeout=TIMEOUT_S)


async def refused(stack: Stack, *messages: pb.UploadContextRequest) -> ReceivedError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upload(stack, *messages)
    return received(caught.value)


async def read(stack: Stack, name: str, **range_: int) -> bytes:
    call = stack.contexts.ReadContext(pb.ReadContextRequest(name=name, **range_), timeout=TIMEOUT_S)
    return b"".join([response.data async for response in call])


async def failure(call: Any) -> ReceivedError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return received(caught.value)


async def test_a_text_is_measured_and_read_back(stack: Stack) -> None:
    data = "zwölf\nBoxkämpfer 🥊".encode()
    response = await upload(stack, start(TEXT, title="t"), chunk(data[:4], 0), chunk(data[4:], 4))

    context = response.context
    assert (context.kind, context.title, context.size_bytes) == (TEXT, "t", len(data))
    assert (context.characters, context.lines, context.document_count) == (18, 2, 1)
    assert context.tokens_estimated == -(-len(data) // 4)
    assert context.blake3 == blake3.blake3(data).hexdigest()
    assert await read(stack, context.name) == data
    got = await stack.contexts.GetContext(pb.GetContextRequest(name=context.name), timeout=30)
    assert got.context == context


async def test_the_same_bytes_are_stored_once(stack: Stack, tmp_path: Path) -> None:
    """However they are cut, and whatever title comes with them."""
    first = await upload(stack, start(TEXT, title="one"), chunk(b"abcd", 0))
    second = await upload(stack, start(TEXT, title="two"), chunk(b"ab", 0), chunk(b"cd", 2))

    assert (first.already_stored, second.already_stored) == (False, True)
    assert second.context == first.context
    assert len([p for p in (tmp_path / "objects" / "blobs").rglob("*") if p.is_file()]) == 1


async def test_the_same_bytes_of_another_kind_are_another_context(stack: Stack) -> None:
    text = await upload(stack, start(TEXT), chunk(b"[1]", 0))
    json = await upload(stack, start(JSON), chunk(b"[1]", 0))
    documents = await upload(stack, start(DOCUMENTS), document("a"), chunk(b"[1]", 0))
    renamed = await upload(stack, start(DOCUMENTS), document("b"), chunk(b"[1]", 0))

    names = {r.context.name for r in (text, json, documents, renamed)}
    assert len(names) == 4
    assert text.context.blake3 == json.context.blake3


async def test_documents_keep_their_order_ranges_and_metadata(stack: Stack) -> None:
    response = await upload(
        stack,
        start(DOCUMENTS),
        document("b.txt", metadata={"from": "mail"}),
        chunk(b"one\ntwo", 0),
        document("empty"),
        document("a.txt"),
        chunk(b"drei\n", 7),
    )

    context = response.context
    listed = await stack.contexts.ListDocuments(
        pb.ListDocumentsRequest(name=context.name), timeout=TIMEOUT_S
    )
    assert [(d.name, d.offset_bytes, d.size_bytes, d.characters) for d in listed.documents] == [
        ("b.txt", 0, 7, 7),
        ("empty", 7, 0, 0),
        ("a.txt", 7, 5, 5),
    ]
    assert dict(listed.documents[0].metadata) == {"from": "mail"}
    assert (context.document_count, context.lines, context.characters) == (3, 3, 12)


async def test_documents_are_listed_in_pages(stack: Stack) -> None:
    messages = [document(name) for name in "abc"]
    context = (await upload(stack, start(DOCUMENTS), *messages)).context

    first = await stack.contexts.ListDocuments(
        pb.ListDocumentsRequest(name=context.name, page_size=2), timeout=TIMEOUT_S
    )
    second = await stack.contexts.ListDocuments(
        pb.ListDocumentsRequest(name=context.name, page_size=2, page_token=first.next_page_token),
        timeout=TIMEOUT_S,
    )

    assert [d.name for d in first.documents] == ["a", "b"]
    assert [d.name for d in second.documents] == ["c"]
    assert second.next_page_token == ""


async def test_a_context_of_one_text_lists_one_nameless_document(stack: Stack) -> None:
    context = await stack.upload(b"abc")

    listed = await stack.contexts.ListDocuments(
        pb.ListDocumentsRequest(name=context.name), timeout=TIMEOUT_S
    )

    assert [(d.name, d.size_bytes, d.characters) for d in listed.documents] == [("", 3, 3)]


async def test_malformed_text_is_stored_as_it_is_and_counted(stack: Stack) -> None:
    """Real data is not always UTF-8; refusing it would help nobody."""
    context = await stack.upload(b"a\xffb\xe2\x82c\xf0\x9f")

    assert (context.malformed_sequences, context.characters) == (3, 6)
    assert await read(stack, context.name) == b"a\xffb\xe2\x82c\xf0\x9f"


@pytest.mark.parametrize(
    ("field", "messages"),
    [
        ("start", []),
        ("start", [chunk(b"a", 0)]),
        ("start", [start(TEXT), start(TEXT)]),
        ("start.kind", [start(Context.KIND_UNSPECIFIED)]),
        ("start.title", [start(TEXT, title="t" * 257)]),
        ("start.size_bytes", [start(TEXT, size_bytes=-1)]),
        ("start.blake3", [start(TEXT, blake3="abc")]),
        ("start.blake3", [start(TEXT, blake3="x" * 64)]),
        ("message", [start(TEXT), pb.UploadContextRequest()]),
        ("chunk", [start(TEXT)]),
        ("chunk.data", [start(TEXT), chunk(b"", 0)]),
        ("chunk.data", [start(TEXT), chunk(b"a" * ((2 << 20) + 1), 0)]),
        ("chunk.offset_bytes", [start(TEXT), chunk(b"a", 1)]),
        ("chunk.offset_bytes", [start(TEXT), chunk(b"a", 0), chunk(b"b", 0)]),
        ("chunk.data", [start(JSON), chunk(b'{"a": ', 0)]),
        ("chunk.data", [start(JSON), chunk(b'"\xff"', 0)]),
        ("chunk", [start(DOCUMENTS), chunk(b"a", 0)]),
        ("document", [start(TEXT), document("a")]),
        ("document", [start(DOCUMENTS)]),
        ("document.name", [start(DOCUMENTS), document("")]),
        ("document.name", [start(DOCUMENTS), document("a" * 1025)]),
        ("document.name", [start(DOCUMENTS), document("a"), document("a")]),
        ("document.metadata", [start(DOCUMENTS), document("a", metadata={"k": "v" * 257})]),
        (
            "document.metadata",
            [start(DOCUMENTS), document("a", metadata={str(n): "" for n in range(17)})],
        ),
    ],
)
async def test_a_faulty_upload_is_refused_and_leaves_nothing(
    stack: Stack, tmp_path: Path, field: str, messages: list[pb.UploadContextRequest]
) -> None:
    error = await refused(stack, *messages)

    assert (error.code, error.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ErrorReason.ERROR_REASON_INVALID_FIELD,
    )
    assert error.metadata == {"field": field}
    assert not [p for p in (tmp_path / "objects").rglob("*") if p.is_file()]


async def test_a_chunk_of_two_mebibytes_is_taken(stack: Stack) -> None:
    context = (await upload(stack, start(TEXT), chunk(b"a" * (2 << 20), 0))).context

    assert context.size_bytes == 2 << 20


@pytest.mark.parametrize(
    ("field", "messages"),
    [
        ("start.size_bytes", [start(TEXT, size_bytes=10_000_001)]),
        (
            "chunk.offset_bytes",
            [start(TEXT), *(chunk(b" " * 2_000_000, n * 2_000_000) for n in range(6))],
        ),
        ("document", [start(DOCUMENTS), *(document(name) for name in "abcd")]),
    ],
)
async def test_an_upload_above_a_ceiling_is_refused(
    stack: Stack, field: str, messages: list[pb.UploadContextRequest]
) -> None:
    error = await refused(stack, *messages)

    assert error.reason == ErrorReason.ERROR_REASON_LIMIT_ABOVE_CEILING
    assert error.metadata["field"] == field


async def test_an_upload_at_the_ceiling_is_taken(stack: Stack) -> None:
    messages = [chunk(b" " * 2_000_000, n * 2_000_000) for n in range(5)]

    assert (await upload(stack, start(TEXT), *messages)).context.size_bytes == 10_000_000


async def test_what_was_announced_is_checked(stack: Stack) -> None:
    """Bytes lost on the way must not become a context that looks right."""
    digest = blake3.blake3(b"abc").hexdigest()
    good = await upload(stack, start(TEXT, size_bytes=3, blake3=digest.upper()), chunk(b"abc", 0))
    size = await refused(stack, start(TEXT, size_bytes=4), chunk(b"abc", 0))
    other = await refused(stack, start(TEXT, blake3="0" * 64), chunk(b"abc", 0))

    assert good.context.blake3 == digest
    assert (size.code, size.reason_name, size.metadata) == (
        grpc.StatusCode.DATA_LOSS,
        "ERROR_REASON_DIGEST_MISMATCH",
        {"expected": "4", "actual": "3"},
    )
    assert other.metadata == {"expected": "0" * 64, "actual": digest}


@pytest.mark.parametrize(
    ("range_", "expected"),
    [
        ({}, b"0123456789"),
        ({"offset_bytes": 3}, b"3456789"),
        ({"offset_bytes": 3, "size_bytes": 4}, b"3456"),
        ({"offset_bytes": 8, "size_bytes": 9}, b"89"),
        ({"size_bytes": 0}, b""),
        ({"offset_bytes": 10}, b""),
        ({"offset_bytes": 99}, b""),
    ],
)
async def test_ranges_are_read(stack: Stack, range_: dict[str, int], expected: bytes) -> None:
    context = await stack.upload(b"0123456789")

    assert await read(stack, context.name, **range_) == expected


async def test_a_large_range_comes_in_pieces_of_a_mebibyte(stack: Stack) -> None:
    data = bytes(range(256)) * 10_000
    messages = [chunk(data[i : i + (1 << 20)], i) for i in range(0, len(data), 1 << 20)]
    context = (await upload(stack, start(TEXT), *messages)).context

    call = stack.contexts.ReadContext(pb.ReadContextRequest(name=context.name), timeout=TIMEOUT_S)
    pieces = [response.data async for response in call]

    assert b"".join(pieces) == data
    assert max(map(len, pieces)) == 1 << 20


@pytest.mark.parametrize("field", ["offset_bytes", "size_bytes"])
async def test_a_negative_range_is_refused(stack: Stack, field: str) -> None:
    context = await stack.upload()
    request = pb.ReadContextRequest(name=context.name, **{field: -1})

    error = await failure(stack.contexts.ReadContext(request, timeout=TIMEOUT_S))

    assert error.metadata == {"field": field}


async def test_an_unknown_context_is_not_found(stack: Stack) -> None:
    name = "contexts/" + "0" * 32
    errors = [
        await failure(stack.contexts.GetContext(pb.GetContextRequest(name=name), timeout=30)),
        await failure(stack.contexts.ListDocuments(pb.ListDocumentsRequest(name=name), timeout=30)),
        await failure(stack.contexts.ReadContext(pb.ReadContextRequest(name=name), timeout=30)),
    ]

    assert [error.code for error in errors] == [grpc.StatusCode.NOT_FOUND] * 3
    assert [error.metadata for error in errors] == [{"resource": name}] * 3


async def test_contexts_are_listed_newest_first_in_pages(stack: Stack) -> None:
    made = [(await stack.upload(f"text {n}".encode())).name for n in range(5)]

    listed: list[str] = []
    token = ""
    while not listed or token:
        request = pb.ListContextsRequest(page_size=2, page_token=token)
        response = await stack.contexts.ListContexts(request, timeout=TIMEOUT_S)
        listed += [context.name for context in response.contexts]
        token = response.next_page_token

    assert listed == made[::-1]
