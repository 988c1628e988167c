"""Stores what code gives to a child run by value as a context, as an upload does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from orchestrator.contexts.stored_context import ContextKind, StoredContext
from orchestrator.contexts.upload_plan import CHUNK_BYTES_MAX, UploadPlan
from orchestrator.contexts.upload_stream import UploadStream
from orchestrator.contexts.uploads import Uploads


class Marks(Protocol):
    """Where contexts are told apart from those that clients upload."""

    async def mark_derived(self, tenant: str, context_id: str) -> None:
        """Note that a context was made for a child run."""


class UploadedValues:
    """New contexts of child runs."""

    def __init__(self, uploads: Uploads, marks: Marks, *, kept_s: float) -> None:
        """What is stored is kept for `kept_s`, and as long as a run that has not ended uses it."""
        self._uploads = uploads
        self._marks = marks
        self._kept_s = kept_s

    async def store(
        self, tenant: str, kind: ContextKind, parts: Sequence[tuple[str, bytes]], *, title: str
    ) -> StoredContext:
        """Store names and bytes as a context; raises what an upload raises."""
        plan = UploadPlan(kind=kind, title=title, ttl_s=self._kept_s)
        stream = await self._uploads.open(tenant, plan)
        assert isinstance(stream, UploadStream), "an upload without a name has not ended before"
        try:
            offset = 0
            for name, data in parts:
                if kind is ContextKind.DOCUMENTS:
                    await stream.document(name, {})
                for start in range(0, len(data), CHUNK_BYTES_MAX):
                    piece = data[start : start + CHUNK_BYTES_MAX]
                    await stream.chunk(offset, piece)
                    offset += len(piece)
            context, was_there = await stream.finish()
        finally:
            await self._uploads.close(stream)
        if not was_there:
            await self._marks.mark_derived(tenant, context.context_id)
        return context
