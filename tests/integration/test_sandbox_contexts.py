"""Contexts in a real guest: every form of text, large and small, and back after a trap."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.sandbox.v1 import session_pb2

from sandbox_service.requests import PROVIDED_NAMES
from tests.support.sandbox import Sandbox, details, guest, sandbox, shape

pytestmark = pytest.mark.guest
Mount = session_pb2.ContextMount
TEXTS = {
    "ascii": b"plain line\n" * 100_000,
    "latin1": "caf\u00e9 line\n".encode() * 50_000,
    "ucs2": "price \u20ac line\n".encode() * 50_000,
    "ucs4": "smile \U0001f600 line\n".encode() * 50_000,
    "malformed": b"cut \xff\xe2\x82 here \xf0\x9f\x98\n" * 50_000,
    "small": "\u00e9\u20ac\U0001f600".encode() + b"\xff",
    "one": b"x",
    "empty": b"",
}
DIGEST = "import hashlib\nhashlib.sha256(context.encode()).hexdigest(), len(context)"


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


def digest(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    return f"('{hashlib.sha256(text.encode()).hexdigest()}', {len(text)})\n"


@pytest.mark.parametrize("name", TEXTS)
async def test_a_text_arrives_as_python_would_decode_it(box: Sandbox, name: str) -> None:
    """All four forms in which Python stores text, and bytes that are no UTF-8."""
    data = TEXTS[name]

    session = await box.create(contexts=[box.text(data)])

    assert (await box.run(session, DIGEST)).out == digest(data)


@pytest.mark.parametrize("name", ["ascii", "latin1", "ucs2", "ucs4"])
async def test_a_filled_text_equals_one_that_the_guest_made(box: Sandbox, name: str) -> None:
    """Python compares by form and length before it looks at characters."""
    data = TEXTS[name]
    session = await box.create(contexts=[box.text(data)])

    ran = await box.run(
        session,
        "same = ''.join(context[i:i + 1000] for i in range(0, len(context), 1000))\n"
        "same == context, hash(same) == hash(context), {context: 1}[same]",
    )

    assert ran.out == "(True, True, 1)\n"


async def test_a_large_text_survives_a_trap(box: Sandbox) -> None:
    """Its pages are part of the state before the cell."""
    data = TEXTS["ascii"] * 10
    session = await box.create(contexts=[box.text(data)])

    await box.run(session, "import os\nos.abort()")

    assert (await box.run(session, DIGEST)).out == digest(data)


async def test_memory_of_a_deleted_text_is_the_cells_to_use(box: Sandbox) -> None:
    """What took its place is state like any other, and comes back after a trap as well."""
    data = TEXTS["ascii"] * 10
    session = await box.create(contexts=[box.text(data)])
    await box.run(session, f"del context\nz = 'q' * {len(data) - 5000}")

    await box.run(session, "z = z.replace('q', 'w')\nimport os\nos.abort()")

    ran = await box.run(session, "len(z), z.count('q'), 'context' in globals()")
    assert ran.out == f"({len(data) - 5000}, {len(data) - 5000}, False)\n"


async def test_a_large_text_is_held_once(box: Sandbox) -> None:
    """100 MB of context must not cost a worker 200."""
    data = b"abcdefghi\n" * 3_000_000
    warm_up = await box.create()
    await box.run(warm_up, "1")
    (pid,) = box.worker_pids()
    before = resident_bytes(pid)

    session = await box.create(contexts=[box.text(data)])
    counted = await box.run(session, "context.count('a')")
    await box.run(session, "1")

    assert counted.out == "3000000\n"
    # Beside the text there is what any session takes: a few megabytes.
    assert resident_bytes(pid) - before < 1.3 * len(data) + (8 << 20)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def test_documents_arrive_by_name_and_in_order(box: Sandbox) -> None:
    documents = {"b.txt": b"beta", "a.txt": "\u20ac".encode() * 90_000, "c.txt": b"", "d": b"\xff"}
    data = b"".join(documents.values())
    ranges, offset = [], 0
    for name, content in documents.items():
        ranges.append(
            session_pb2.DocumentRange(
                name=name,
                offset_bytes=offset,
                size_bytes=len(content),
                text_shape=shape(content),
            )
        )
        offset += len(content)
    mount = Mount(
        variable="context",
        kind=Mount.KIND_DOCUMENTS,
        blob_key=box.store(data),
        size_bytes=len(data),
        documents=ranges,
    )

    session = await box.create(contexts=[mount])

    ran = await box.run(session, "[(name, len(text), text[:1]) for name, text in context.items()]")
    assert ran.out == (
        "[('b.txt', 4, 'b'), ('a.txt', 90000, '\u20ac'), ('c.txt', 0, ''), ('d', 1, '\ufffd')]\n"
    )


async def test_many_small_documents_arrive(box: Sandbox) -> None:
    """More than fit one answer to the guest."""
    count, size = 3_000, 2_000
    data = b"x" * (count * size)
    ranges = [
        session_pb2.DocumentRange(
            name=f"{i}",
            offset_bytes=i * size,
            size_bytes=size,
            text_shape=session_pb2.TextShape(characters=size, code_point_max=120),
        )
        for i in range(count)
    ]
    mount = Mount(
        variable="context",
        kind=Mount.KIND_DOCUMENTS,
        blob_key=box.store(data),
        size_bytes=len(data),
        documents=ranges,
    )

    session = await box.create(contexts=[mount])

    ran = await box.run(session, "len(context), sum(map(len, context.values())), list(context)[-1]")
    assert ran.out == f"({count}, {count * size}, '{count - 1}')\n"


@pytest.mark.parametrize("size", [3, 40_000])
async def test_json_arrives_parsed(box: Sandbox, size: int) -> None:
    data = json.dumps({"\u00e9": list(range(size))}, ensure_ascii=False).encode()
    mount = box.text(data)
    mount.kind = Mount.KIND_JSON

    session = await box.create(contexts=[mount])

    assert (await box.run(session, "sum(context['\u00e9'])")).out == f"{sum(range(size))}\n"


async def test_several_contexts_have_names_of_their_own(box: Sandbox) -> None:
    mounts = [box.text(b"one"), box.text(b"two" * 100_000, variable="other")]

    session = await box.create(contexts=mounts)

    assert (await box.run(session, "context, len(other)")).out == "('one', 300000)\n"


async def test_the_sessions_own_names_are_known(box: Sandbox) -> None:
    """Those are the names that no context may take."""
    session = await box.create()

    ran = await box.run(session, "sorted(n for n in globals() if not n.startswith('__'))")

    assert ran.out == f"{sorted(PROVIDED_NAMES)}\n"


@pytest.mark.parametrize("variable", ["llm_query", "FINAL", "__builtins__", "class", "a b", ""])
async def test_a_context_takes_no_name_of_the_sessions_own(box: Sandbox, variable: str) -> None:
    """A cell that looks for `llm_query` must not find a text."""
    mount = box.text(b"x")
    mount.variable = variable

    code, reason, metadata = await failure(box, mount)

    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert metadata["field"] == "contexts[0].variable"


async def failure(
    box: Sandbox, mount: Mount, **fields: Any
) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.create(contexts=[mount], **fields)
    # The worker goes on.
    assert (await box.run(await box.create(), "1")).out == "1\n"
    return details(caught.value)


@pytest.mark.parametrize(
    ("characters", "code_point_max"),
    [(300_000, 0xFF), (300_000, 0x20AC), (300_000, 0x1F600), (299_999, 0x7F), (1, 0x7F)],
)
async def test_a_text_that_is_not_as_described_is_refused(
    box: Sandbox, characters: int, code_point_max: int
) -> None:
    """A wrong description would make a string that Python must not meet."""
    mount = box.text(b"abc" * 100_000)
    mount.text_shape.characters = characters
    mount.text_shape.code_point_max = code_point_max

    code, reason, metadata = await failure(box, mount)

    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONTEXT_UNREADABLE")
    assert metadata["context"] == "context"


async def test_a_text_of_wider_characters_than_described_is_refused(box: Sandbox) -> None:
    mount = box.text("\U0001f600".encode() * 50_000)
    mount.text_shape.code_point_max = 0xFFFF

    _, reason, metadata = await failure(box, mount)

    assert reason == "CONTEXT_UNREADABLE"
    assert "larger than ucs2" in metadata["problem"]


async def test_a_small_text_is_checked_too(box: Sandbox) -> None:
    mount = box.text(b"abc")
    mount.text_shape.characters = 2

    assert (await failure(box, mount))[1] == "CONTEXT_UNREADABLE"


async def test_a_missing_blob_is_unreadable(box: Sandbox) -> None:
    mount = box.text(b"abc")
    mount.blob_key = "contexts/none"

    assert (await failure(box, mount))[1] == "CONTEXT_UNREADABLE"


async def test_a_blob_of_another_size_is_unreadable(box: Sandbox) -> None:
    mount = box.text(b"abcd")
    mount.size_bytes = 5

    assert "4 bytes, not 5" in (await failure(box, mount))[2]["problem"]


async def test_text_that_is_no_json_is_unreadable(box: Sandbox) -> None:
    mount = box.text(b'{"a": ')
    mount.kind = Mount.KIND_JSON

    _, reason, metadata = await failure(box, mount)

    assert reason == "CONTEXT_UNREADABLE"
    assert "JSON" in metadata["problem"]


async def test_json_that_grows_beyond_memory_does_not_fit(box: Sandbox) -> None:
    """How much JSON takes is not known before it is parsed."""
    mount = box.text(b"[" + b"[]," * 1_300_000 + b"0]")
    mount.kind = Mount.KIND_JSON
    limits = session_pb2.SessionLimits(memory_bytes_max=80 << 20)

    code, reason, metadata = await failure(box, mount, limits=limits)

    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONTEXT_TOO_LARGE")
    assert int(metadata["bytes_needed"]) > 40 << 20
    assert metadata["memory_bytes_max"] == str(80 << 20)


@pytest.mark.parametrize("memory_bytes_max", [64 << 20, 1 << 30])
async def test_a_part_of_a_blob_is_a_context(box: Sandbox, memory_bytes_max: int) -> None:
    """A child run's context is a part of its parent's, loaded or by reference, without a copy."""
    data = b"before\n" * 1_000 + "\u00e4 part\n".encode() * 3_000_000 + b"after\n"
    start, stop = 7_000, len(data) - 6
    mount = box.text(data)
    mount.offset_bytes, mount.size_bytes, mount.blob_bytes = start, stop - start, len(data)
    mount.text_shape.CopyFrom(shape(data[start:stop]))
    limits = session_pb2.SessionLimits(memory_bytes_max=memory_bytes_max)

    session = await box.create(contexts=[mount], limits=limits)

    ran = await box.run(session, "print(len(context), repr(context[:7]), repr(context[-6:]))")
    assert ran.out == "21000000 '\u00e4 part\\n' ' part\\n'\n"
    is_lazy = (await box.session(session)).lazy_variables == ["context"]
    assert is_lazy == (memory_bytes_max == 64 << 20)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"offset_bytes": 5}, "contexts[0].offset_bytes"),
        ({"offset_bytes": -1, "blob_bytes": 20}, "contexts[0].offset_bytes"),
        ({"blob_bytes": 3}, "contexts[0].offset_bytes"),
    ],
)
async def test_a_part_that_is_not_within_its_blob_is_refused(
    box: Sandbox, change: dict[str, int], field: str
) -> None:
    mount = box.text(b"0123456789")
    for name, value in change.items():
        setattr(mount, name, value)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.create(contexts=[mount])

    assert details(caught.value) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": field},
    )
