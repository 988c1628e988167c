"""Contexts from the orchestrator's store to the sandbox's sessions: both know the same form of
blobs and indexes, whichever kind of store it is.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fathom.orchestrator.v1.context_pb2 import Context

from common.blob_index.json_index import JsonIndex
from common.blob_index.text_index import TextIndex
from orchestrator.blobs import FolderBlobStore
from orchestrator.s3_blobs import S3BlobStore
from sandbox_service.context_mounts import ContextBlob, ContextMounts
from sandbox_service.frames import Mount, Text
from sandbox_service.limits import Limits
from sandbox_service.object_cache import CachedObjects
from sandbox_service.objects import FolderObjects
from tests.support.contexts import context_service
from tests.support.orchestrator import chunk, document, start
from tests.support.s3 import S3Server

LIMITS = Limits(memory_bytes_max=64 << 20)
TEXT = "líne\n".encode() * 4_000_000
JSON = b"[" + b'["an item of some length", 2, 3, 4],' * 150_000 + b"3]"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as running:
        yield running


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Keeps the sandbox from making an index itself."""
    with monkeypatch.context() as patch:
        yield patch


def forbid_processes(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an index is made though there is one")

    patch.setattr(subprocess, "Popen", refuse)


@pytest.mark.parametrize("store", ["folder", "s3"])
@pytest.mark.parametrize("kind", ["text", "documents", "json"])
async def test_a_first_session_finds_blob_and_index(
    tmp_path: Path, server: S3Server, no_process: pytest.MonkeyPatch, store: str, kind: Any
) -> None:
    """The first session over a large context waits for nothing."""
    remote = server.objects()
    folder = tmp_path / "objects"
    blobs = S3BlobStore(remote) if store == "s3" else FolderBlobStore(folder)
    data = JSON if kind == "json" else TEXT
    wire = {
        "text": Context.KIND_TEXT,
        "documents": Context.KIND_DOCUMENTS,
        "json": Context.KIND_JSON,
    }
    messages = [start(wire[kind]), *([document("a")] if kind == "documents" else [])]
    messages += [chunk(data[i : i + (1 << 20)], i) for i in range(0, len(data), 1 << 20)]
    async with context_service(tmp_path, blobs=blobs) as stack:
        context = (await stack.upload(*messages)).context
        stored = await stack.parts.store.get("default", context.name.partition("/")[2])
    text = Text(
        name="a" if kind == "documents" else "",
        offset_bytes=0,
        size_bytes=len(data),
        characters=context.characters,
        code_point_max=0xED,
    )
    mount = Mount(variable="context", kind=kind, texts=[] if kind == "json" else [text])
    blob = ContextBlob(mount=mount, key=stored.blob_key, size_bytes=context.size_bytes)
    objects = (
        CachedObjects(remote, tmp_path / "cache", bytes_max=1 << 40, kept_s=3600.0)
        if store == "s3"
        else FolderObjects(folder)
    )
    mounts = ContextMounts(objects, 256 << 20)
    forbid_processes(no_process)

    opened = await mounts.open([blob], LIMITS)

    index = (JsonIndex if kind == "json" else TextIndex).checked(opened.fds[1], len(data))
    if isinstance(index, TextIndex):
        assert index.characters_before(index.blocks) == len(data.decode())
        assert index.line_feeds_before(index.blocks) == data.count(b"\n")
    else:
        assert index.table(1) == ("array", 150_001)
    opened.close()
    await mounts.close()
