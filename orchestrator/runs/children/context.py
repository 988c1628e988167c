"""The context of a child run: what its parent's code gave by value, or a part of the parent's own
context, which is used where it is. It is copied only where it stands beside text by value, overlaps
another part, or holds malformed UTF-8.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from typing import Protocol

import blake3

from orchestrator.blobs import BlobStore
from orchestrator.contexts.stored_context import (
    ContextKind,
    StoredContext,
    StoredDocument,
    TextShape,
)
from orchestrator.runs.children.given import Given, JsonValue, OneText, Slice, check_given
from orchestrator.runs.children.places import Place, Places, can_stay

_ID_DIGITS = 32
_TITLE_CHARACTERS = 256


class Contexts(Protocol):
    """Where contexts are described."""

    async def get(self, tenant: str, context_id: str) -> StoredContext:
        """Return a context; raises NotFoundError."""

    async def documents(
        self, tenant: str, context_id: str, *, names: Collection[str]
    ) -> list[StoredDocument]:
        """Return its documents of these names."""

    async def add(
        self, tenant: str, context: StoredContext, documents: Sequence[StoredDocument]
    ) -> tuple[StoredContext, bool]:
        """Store a context over the blob of another one; return it, and whether it was there."""


class Values(Protocol):
    """Where new contexts are stored."""

    async def store(
        self, tenant: str, kind: ContextKind, parts: Sequence[tuple[str, bytes]], *, title: str
    ) -> StoredContext:
        """Store names and bytes as a context for child runs; one part without a name unless the
        kind is DOCUMENTS. Raises InvalidFieldError for what is no JSON."""


class ChildContexts:
    """Makes the contexts of child runs."""

    def __init__(
        self, contexts: Contexts, blobs: BlobStore, values: Values, *, kept_s: float
    ) -> None:
        """Contexts that are parts of others are kept for `kept_s`, and as long as a run that has
        not ended uses them."""
        self._contexts = contexts
        self._blobs = blobs
        self._values = values
        self._kept_s = kept_s

    async def make(self, tenant: str, parent: str, given: Given | None) -> str:
        """Return `contexts/{context}` for a child whose parent's context is `parent`.

        Raises InvalidFieldError for what cannot be one, and NotFoundError.
        """
        if given is None:
            return parent
        check_given(given)
        whole = await self._contexts.get(tenant, parent.removeprefix("contexts/"))
        if isinstance(given, JsonValue):
            parts = [("", given.text.encode())]
            made = await self._values.store(tenant, ContextKind.JSON, parts, title=whole.title)
            return made.name
        named = [("", given.text)] if isinstance(given, OneText) else given.documents
        kind = ContextKind.TEXT if isinstance(given, OneText) else ContextKind.DOCUMENTS
        wanted = {text.document for _, text in named if isinstance(text, Slice)}
        wanted = {name for name in wanted if "\0" not in name}  # which no document has
        documents = await self._documents(tenant, whole, wanted)
        places = Places(self._blobs, whole)
        placed = [
            (name, text if isinstance(text, str) else await places.find(documents, text))
            for name, text in named
        ]
        found = [(name, text) for name, text in placed if isinstance(text, Place)]
        if len(found) == len(placed) and can_stay([place for _, place in found]):
            shapes = [await places.shape(place) for _, place in found]
            return await self._in_place(tenant, whole, kind, found, shapes)
        parts = [
            (name, text.encode() if isinstance(text, str) else await places.copied(text))
            for name, text in placed
        ]
        made = await self._values.store(tenant, kind, parts, title=whole.title)
        return made.name

    async def _documents(
        self, tenant: str, whole: StoredContext, names: Collection[str]
    ) -> dict[str, StoredDocument]:
        if whole.kind is ContextKind.JSON or not names:
            return {}
        if whole.kind is ContextKind.DOCUMENTS:
            # A context may have a hundred thousand: making objects of all would hold others up.
            found = await self._contexts.documents(tenant, whole.context_id, names=names)
            return {document.name: document for document in found}
        one = StoredDocument(
            name="",
            offset_bytes=whole.offset_bytes,
            size_bytes=whole.size_bytes,
            characters=whole.shape.characters,
            code_point_max=whole.shape.code_point_max,
        )
        return {"": one}

    async def _in_place(
        self,
        tenant: str,
        whole: StoredContext,
        kind: ContextKind,
        found: Sequence[tuple[str, Place]],
        shapes: Sequence[TextShape],
    ) -> str:
        """Store the description of parts that stay where they are."""
        documents = [
            StoredDocument(
                name=name,
                offset_bytes=place.offset_bytes,
                size_bytes=place.size_bytes,
                characters=shape.characters,
                code_point_max=shape.code_point_max,
                metadata=place.document.metadata,
            )
            for (name, place), shape in zip(found, shapes, strict=True)
        ]
        ranges = [[d.name, d.offset_bytes, d.size_bytes] for d in documents]
        identity = json.dumps([kind.value, whole.blob_key, ranges]).encode()
        created_us = time.time_ns() // 1000
        context = StoredContext(
            context_id=blake3.blake3(identity).hexdigest()[:_ID_DIGITS],
            kind=kind,
            title=whole.title[:_TITLE_CHARACTERS],
            size_bytes=sum(document.size_bytes for document in documents),
            blake3=whole.blake3,
            blob_key=whole.blob_key,
            shape=_sum(shapes),
            document_count=len(documents),
            created_us=created_us,
            expires_us=created_us + int(self._kept_s * 1e6),
            offset_bytes=documents[0].offset_bytes if kind is ContextKind.TEXT else 0,
            blob_bytes=whole.blob_bytes or whole.size_bytes,
            derived_from=whole.context_id,
        )
        rows = documents if kind is ContextKind.DOCUMENTS else []
        stored, _ = await self._contexts.add(tenant, context, rows)
        return stored.name


def _sum(shapes: Sequence[TextShape]) -> TextShape:
    return TextShape(
        characters=sum(shape.characters for shape in shapes),
        code_point_max=max(shape.code_point_max for shape in shapes),
        lines=sum(shape.lines for shape in shapes),
        malformed_sequences=0,
    )
