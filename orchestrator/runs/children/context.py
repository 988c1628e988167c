"""The context of a child run: what its parent's code gave by value, or a part of the parent's own
context, which is used where it is.

A part is found by characters. Its bytes are read to be measured, and never copied, but where it
stands beside text by value, overlaps another part, or holds malformed UTF-8.
"""

from __future__ import annotations

import asyncio
import codecs
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Protocol

import blake3

from common.errors import InvalidFieldError
from orchestrator.blobs import BlobStore
from orchestrator.contexts.stored_context import (
    ContextKind,
    StoredContext,
    StoredDocument,
    TextShape,
)
from orchestrator.contexts.text_scan import TextScan
from orchestrator.contexts.upload_plan import NAME_CHARACTERS_MAX, check_length

VALUE_BYTES_MAX = 8 << 20
DOCUMENTS_MAX = 10_000
_COPY_BYTES_MAX = 64 << 20
_ASCII_MAX = 0x7F
_ID_DIGITS = 32
_TITLE_CHARACTERS = 256


@dataclasses.dataclass(frozen=True)
class Slice:
    """A part of the parent's context."""

    document: str
    """Empty in a context of one text."""
    start: int
    """First character."""
    stop: int | None
    """After the last one; None for the end."""


Text = str | Slice


@dataclasses.dataclass(frozen=True)
class OneText:
    """One text."""

    text: Text


@dataclasses.dataclass(frozen=True)
class JsonValue:
    """A JSON value, as JSON text."""

    text: str


@dataclasses.dataclass(frozen=True)
class NamedTexts:
    """Documents."""

    documents: Sequence[tuple[str, Text]]
    """Name and text."""


Given = OneText | JsonValue | NamedTexts
"""What a child is to work on."""


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
        _check_values(given)
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
        placed = [
            (name, text if isinstance(text, str) else await self._place(whole, documents, text))
            for name, text in named
        ]
        slices = [(name, text) for name, text in placed if isinstance(text, _Place)]
        if len(slices) == len(placed) and _is_in_place(slices):
            return await self._in_place(tenant, whole, kind, slices)
        parts = [(name, await self._bytes(whole, text)) for name, text in placed]
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

    async def _place(
        self, whole: StoredContext, documents: dict[str, StoredDocument], part: Slice
    ) -> _Place:
        """Return where a part stands; raises InvalidFieldError where it stands nowhere."""
        document = documents.get(part.document)
        if document is None:
            raise InvalidFieldError(
                "context.slice.document", f"the context has no document {part.document[:80]!r}"
            )
        stop = document.characters if part.stop is None else part.stop
        if not 0 <= part.start < stop <= document.characters:
            raise InvalidFieldError(
                "context.slice",
                f"{part.start} to {stop} is no part of {document.characters} characters",
            )
        place = _Place(document, part.start, stop)
        if document.code_point_max <= _ASCII_MAX:
            first, last = part.start, stop
        elif whole.shape.malformed_sequences:
            return place
        else:
            first, last = await self._bytes_of(whole, document, part.start, stop)
        offset = document.offset_bytes + first
        return dataclasses.replace(place, offset_bytes=offset, size_bytes=last - first)

    async def _bytes_of(
        self, whole: StoredContext, document: StoredDocument, start: int, stop: int
    ) -> tuple[int, int]:
        """Return the bytes before two characters of a document of good UTF-8."""
        seeker = _Seeker((start, stop))
        async for piece in self._read(whole, document.offset_bytes, document.size_bytes):
            if await asyncio.to_thread(seeker.feed, piece):
                break
        return seeker.found()

    async def _in_place(
        self,
        tenant: str,
        whole: StoredContext,
        kind: ContextKind,
        slices: Sequence[tuple[str, _Place]],
    ) -> str:
        """Store the description of parts that stay where they are."""
        shapes = [await self._shape(whole, place) for _, place in slices]
        documents = [
            StoredDocument(
                name=name,
                offset_bytes=place.offset_bytes,
                size_bytes=place.size_bytes,
                characters=shape.characters,
                code_point_max=shape.code_point_max,
                metadata=place.document.metadata,
            )
            for (name, place), shape in zip(slices, shapes, strict=True)
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

    async def _shape(self, whole: StoredContext, place: _Place) -> TextShape:
        scan = TextScan()
        async for piece in self._read(whole, place.offset_bytes, place.size_bytes):
            await asyncio.to_thread(scan.feed, piece)
        return scan.finish()

    async def _bytes(self, whole: StoredContext, text: str | _Place) -> bytes:
        """Return a text's bytes, to be copied."""
        if isinstance(text, str):
            return text.encode()
        if text.stop - text.start > _COPY_BYTES_MAX:
            raise InvalidFieldError(
                "context.slice",
                f"has {text.stop - text.start} characters; at most {_COPY_BYTES_MAX} where it must "
                "be copied: beside text by value, overlapping another part, or of malformed UTF-8",
            )
        document = text.document
        if text.size_bytes:
            return b"".join(
                [piece async for piece in self._read(whole, text.offset_bytes, text.size_bytes)]
            )
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        kept, before = [], 0
        async for piece in self._read(whole, document.offset_bytes, document.size_bytes):
            decoded = decoder.decode(piece)
            kept.append(decoded[max(text.start - before, 0) : max(text.stop - before, 0)])
            before += len(decoded)
            if before >= text.stop:
                break
        decoded = decoder.decode(b"", True)
        kept.append(decoded[max(text.start - before, 0) : max(text.stop - before, 0)])
        return "".join(kept).encode()

    def _read(self, whole: StoredContext, offset: int, size: int) -> AsyncIterator[bytes]:
        return self._blobs.read(whole.blob_key, offset=offset, size=size)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a part stands."""

    document: StoredDocument
    """Within this document."""
    start: int
    """First character."""
    stop: int
    """After the last one."""
    offset_bytes: int = 0
    """First byte in the blob; with a size of 0 it has no bytes of its own there."""
    size_bytes: int = 0
    """Length, in bytes."""


class _Seeker:
    """Finds the bytes of characters in good UTF-8 that streams by."""

    def __init__(self, characters: Sequence[int]) -> None:
        self._wanted = list(characters)
        self._found: list[int] = []
        self._characters = 0
        self._bytes = 0

    def feed(self, piece: bytes) -> bool:
        """Take the next bytes; return whether all is found."""
        begun = len(piece.translate(None, delete=_CONTINUATIONS))
        while self._wanted and self._wanted[0] < self._characters + begun:
            at = _start_of(piece, self._wanted.pop(0) - self._characters)
            self._found.append(self._bytes + at)
        self._characters += begun
        self._bytes += len(piece)
        return not self._wanted

    def found(self) -> tuple[int, int]:
        """Return the two places; those after the last character are the end."""
        first, last = (*self._found, *[self._bytes] * len(self._wanted))
        return first, last


_CONTINUATIONS = bytes(range(0x80, 0xC0))
_STRIDE = 64 << 10


def _start_of(piece: bytes, number: int) -> int:
    """Return where in a piece its n-th character that begins there does, from 0."""
    at = 0
    while True:
        begun = len(piece[at : at + _STRIDE].translate(None, delete=_CONTINUATIONS))
        if begun > number:
            break
        number -= begun
        at += _STRIDE
    while True:
        if not 0x80 <= piece[at] < 0xC0:
            if not number:
                return at
            number -= 1
        at += 1


def _is_in_place(slices: Sequence[tuple[str, _Place]]) -> bool:
    """Whether parts can stay where they are: all have bytes there, and none overlaps another."""
    if not all(place.size_bytes for _, place in slices):
        return False
    stop = 0
    for _, place in sorted(slices, key=lambda each: each[1].offset_bytes):
        if place.offset_bytes < stop:
            return False
        stop = place.offset_bytes + place.size_bytes
    return True


def _check_values(given: Given) -> None:
    texts: list[Text] = []
    if isinstance(given, JsonValue | OneText):
        texts = [given.text]
    else:
        names = [name for name, _ in given.documents]
        if not 1 <= len(names) <= DOCUMENTS_MAX:
            raise InvalidFieldError("context.documents", f"must be 1 to {DOCUMENTS_MAX}")
        if len(set(names)) < len(names):
            raise InvalidFieldError("context.documents.name", "must be unique")
        for name in names:
            check_length("context.documents.name", name, NAME_CHARACTERS_MAX, least=1)
        texts = [text for _, text in given.documents]
    if any(not text for text in texts):
        raise InvalidFieldError("context", "must not be empty")
    size = sum(len(text.encode()) for text in texts if isinstance(text, str))
    if size > VALUE_BYTES_MAX:
        raise InvalidFieldError(
            "context", f"has {size} bytes by value; at most {VALUE_BYTES_MAX} are allowed"
        )


def _sum(shapes: Sequence[TextShape]) -> TextShape:
    return TextShape(
        characters=sum(shape.characters for shape in shapes),
        code_point_max=max(shape.code_point_max for shape in shapes),
        lines=sum(shape.lines for shape in shapes),
        malformed_sequences=0,
    )
