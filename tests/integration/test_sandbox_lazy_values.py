"""Documents and JSON larger than a session's memory, in a real guest: item by item, as used."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.sandbox.v1 import session_pb2

from tests.support.sandbox import Sandbox, details, guest, sandbox, shape
from tests.support.sandbox_calls import value

pytestmark = pytest.mark.guest
Mount = session_pb2.ContextMount
MIB = 1 << 20
SMALL = session_pb2.SessionLimits(memory_bytes_max=64 * MIB)
"""Of such a session a quarter is 16 MiB: what is larger comes by reference."""


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


def documents(box: Sandbox, texts: dict[str, bytes]) -> Mount:
    ranges, offset = [], 0
    for name, data in texts.items():
        ranges.append(
            session_pb2.DocumentRange(
                name=name, offset_bytes=offset, size_bytes=len(data), text_shape=shape(data)
            )
        )
        offset += len(data)
    data = b"".join(texts.values())
    return Mount(
        variable="context",
        kind=Mount.KIND_DOCUMENTS,
        blob_key=box.store(data),
        size_bytes=len(data),
        documents=ranges,
    )


async def test_documents_too_large_together_are_read_one_by_one(box: Sandbox) -> None:
    """Each is decoded by itself, also where one ends in the midst of a character."""
    texts = {f"doc {number}": f"Text {number} \u20ac\n".encode() * 9 for number in range(5_000)}
    texts |= {"cut": b"half \xe2\x82", "rest": b"\xac more", "huge": b"big \xff\n" * (3 * MIB)}
    session = await box.create(contexts=[documents(box, texts)], limits=SMALL)
    characters = sum(len(data.decode()) for name, data in texts.items() if name[:3] == "doc")

    asked: dict[str, Any] = {
        "[type(context).__name__, len(context)]": ["LazyDocuments", len(texts)],
        "[isinstance(context, dict), isinstance(context, str)]": [True, False],
        "list(context)": list(texts),
        "context['doc 7']": texts["doc 7"].decode(),
        "[context['cut'], context['rest']]": ["half \ufffd", "\ufffd more"],
        "type(context['huge']).__name__, context['huge'][:6]": ["LazyText", "big \ufffd\n"],
        "sum(len(text) for name, text in context.items() if name.startswith('doc'))": characters,
        "[(m.document, m.line_number) for m in grep('Text 4999', limit=2)]": [
            ["doc 4999", 0],
            ["doc 4999", 1],
        ],
        "'nothing' in context": False,
    }
    for code, expected in asked.items():
        assert await value(box, session, f"({code})") == expected, code


def json_mount(box: Sandbox, data: bytes) -> Mount:
    mount = box.text(data)
    mount.kind = Mount.KIND_JSON
    return mount


RECORDS = [{"id": number, "name": f"n\u20ac{number}", "text": "x" * 80} for number in range(60_000)]


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["array", "object"])
async def test_large_json_is_read_item_by_item(box: Sandbox, is_wrapped: bool) -> None:
    document: Any = {"version": 1, "data": RECORDS, "end": None} if is_wrapped else RECORDS
    data = json.dumps(document, ensure_ascii=False).encode()
    session = await box.create(contexts=[json_mount(box, data)], limits=SMALL)

    if is_wrapped:
        assert await value(box, session, "[list(context), context['version']]") == [
            ["version", "data", "end"],
            1,
        ]
        await box.run(session, "context = context['data']")

    assert await value(box, session, "[type(context).__name__, len(context)]") == [
        "LazyItems",
        len(RECORDS),
    ]
    assert await value(box, session, "context[50_000]") == RECORDS[50_000]
    assert await value(box, session, "context[-3:]") == RECORDS[-3:]
    total = sum(number for number in range(len(RECORDS)))
    assert await value(box, session, "sum(item['id'] for item in context)") == total


async def test_a_large_json_object_is_read_by_key(box: Sandbox) -> None:
    document = {f"key {record['id']}": record for record in RECORDS}
    session = await box.create(
        contexts=[json_mount(box, json.dumps(document).encode())], limits=SMALL
    )

    assert await value(
        box,
        session,
        "isinstance(context, dict) and [context['key 59999']['id'], len(context), "
        "'key 60000' in context, "
        "sum(v['id'] for v in context.values()), sum(len(k) for k in context)]",
    ) == [59999, 60_000, False, sum(range(60_000)), sum(map(len, document))]


@pytest.mark.parametrize("end", [b"", b",", b"]]", b",}", b"] x"])
async def test_large_text_that_is_no_json_is_unreadable(box: Sandbox, end: bytes) -> None:
    data = b"[" + b'{"a": "bcd"},' * 500_000 + b"{}" + end

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.create(contexts=[json_mount(box, data)], limits=SMALL)

    code, reason, metadata = details(caught.value)
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONTEXT_UNREADABLE")
    assert "JSON" in metadata["problem"]
