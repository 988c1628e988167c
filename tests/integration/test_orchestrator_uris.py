"""Contexts made of what the server reads by itself: only where its configuration lets it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1 import context_service_pb2 as pb
from fathom.orchestrator.v1.context_pb2 import Context
from google.protobuf.duration_pb2 import Duration

from tests.support.contexts import ContextStack, context_service, refused
from tests.support.orchestrator import TIMEOUT_S

TEXT = Context.KIND_TEXT


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "open"
    folder.mkdir()
    (folder / "a b.txt").write_bytes(b"some text\n" * 300_000)
    (folder / "value.json").write_bytes(b"[1, 2]")
    (tmp_path / "secret.txt").write_bytes(b"secret")
    return folder


@pytest.fixture
async def stack(tmp_path: Path, open_folder: Path) -> AsyncIterator[ContextStack]:
    async with context_service(tmp_path / "state", folders=(open_folder,)) as running:
        yield running


async def create(stack: ContextStack, uri: str, kind: Any = TEXT, **fields: Any) -> Context:
    request = pb.CreateContextRequest(uri=uri, kind=kind, **fields)
    return (await stack.stub.CreateContext(request, timeout=TIMEOUT_S)).context


async def test_a_file_becomes_a_context(stack: ContextStack, open_folder: Path) -> None:
    uri = f"file://{open_folder}/a%20b.txt"

    context = await create(stack, uri, ttl=Duration(seconds=90))
    again = await create(stack, uri, title="another")
    json = await create(stack, f"file://{open_folder}/value.json", Context.KIND_JSON, title="t")

    assert (context.size_bytes, context.lines, context.title) == (3_000_000, 300_000, uri[:256])
    assert again.name == context.name
    assert (json.kind, json.title) == (Context.KIND_JSON, "t")
    assert await stack.read(context.name) == b"some text\n" * 300_000


@pytest.mark.parametrize(
    "path",
    ["{0}/../secret.txt", "{0}/%2e%2e/secret.txt", "/etc/passwd", "{0}-beside", "{0}/link"],
)
async def test_nothing_outside_of_the_folders_is_read(
    stack: ContextStack, open_folder: Path, path: str
) -> None:
    (open_folder / "link").symlink_to(open_folder.parent / "secret.txt")
    Path(f"{open_folder}-beside").write_bytes(b"secret")

    error = await refused(create(stack, "file://" + path.format(open_folder)))

    assert (error.code, error.reason) == (
        grpc.StatusCode.PERMISSION_DENIED,
        ErrorReason.ERROR_REASON_PERMISSION_DENIED,
    )
    assert await stack.parts.store.newest("default", before=None, count=9) == []


async def test_what_is_no_file_is_not_found(stack: ContextStack, open_folder: Path) -> None:
    """A pipe would hang the server, a device might never end."""
    os.mkfifo(open_folder / "pipe")

    for name in ("none", "pipe", "."):
        error = await refused(create(stack, f"file://{open_folder}/{name}"))
        assert error.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("uri", {"uri": ""}),
        ("uri", {"uri": "x" * 2_049}),
        ("uri", {"uri": "https://169.254.169.254/latest"}),
        ("uri", {"uri": "file://elsewhere/x"}),
        ("uri", {"uri": "file:relative"}),
        ("uri", {"uri": "file:///a%00b"}),
        ("uri", {"uri": "file:///a?b"}),
        ("uri", {"uri": "file://[/x"}),
        ("kind", {"uri": "file:///x", "kind": Context.KIND_UNSPECIFIED}),
        ("kind", {"uri": "file:///x", "kind": Context.KIND_DOCUMENTS}),
        ("start.title", {"uri": "file:///x", "title": "t" * 257}),
    ],
)
async def test_a_faulty_request_is_refused(
    stack: ContextStack, field: str, fields: dict[str, Any]
) -> None:
    error = await refused(create(stack, **fields))

    assert (error.code, error.metadata) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        {"field": field},
    )


async def test_without_folders_no_file_is_read(tmp_path: Path, open_folder: Path) -> None:
    async with context_service(tmp_path / "state") as stack:
        error = await refused(create(stack, f"file://{open_folder}/value.json"))

    assert error.code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_file_above_the_ceiling_leaves_nothing(tmp_path: Path, open_folder: Path) -> None:
    async with context_service(
        tmp_path / "state", folders=(open_folder,), bytes_max=2_999_999
    ) as stack:
        error = await refused(create(stack, f"file://{open_folder}/a%20b.txt"))
        left = [p for p in (tmp_path / "state" / "objects").rglob("*") if p.is_file()]

    assert error.reason == ErrorReason.ERROR_REASON_LIMIT_ABOVE_CEILING
    assert left == []
