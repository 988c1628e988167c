"""Where parts of a context stand in its blob. They are named by characters; their bytes are read to
be measured, piece by piece.
"""

from __future__ import annotations

import asyncio
import codecs
import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence

from common.errors import InvalidFieldError
from orchestrator.blobs import BlobStore
from orchestrator.contexts.stored_context import StoredContext, StoredDocument, TextShape
from orchestrator.contexts.text_scan import TextScan
from orchestrator.runs.children.given import Slice

_COPY_BYTES_MAX = 64 << 20
_ASCII_MAX = 0x7F


@dataclasses.dataclass(frozen=True)
class Place:
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


class Places:
    """The parts of one context."""

    def __init__(self, blobs: BlobStore, whole: StoredContext) -> None:
        self._blobs = blobs
        self._whole = whole

    async def find(self, documents: Mapping[str, StoredDocument], part: Slice) -> Place:
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
        place = Place(document, part.start, stop)
        if document.code_point_max <= _ASCII_MAX:
            first, last = part.start, stop
        elif self._whole.shape.malformed_sequences:
            return place
        else:
            first, last = await self._bytes_of(document, part.start, stop)
        offset = document.offset_bytes + first
        return dataclasses.replace(place, offset_bytes=offset, size_bytes=last - first)

    async def _bytes_of(self, document: StoredDocument, start: int, stop: int) -> tuple[int, int]:
        """Return the bytes before two characters of a document of good UTF-8."""
        seeker = _Seeker((start, stop))
        async for piece in self._read(document.offset_bytes, document.size_bytes):
            if await asyncio.to_thread(seeker.feed, piece):
                break
        return seeker.found()

    async def shape(self, place: Place) -> TextShape:
        """Return what a part is made of; it has bytes of its own."""
        scan = TextScan()
        async for piece in self._read(place.offset_bytes, place.size_bytes):
            await asyncio.to_thread(scan.feed, piece)
        return scan.finish()

    async def copied(self, place: Place) -> bytes:
        """Return the bytes of a part; raises InvalidFieldError for one of more than 64 Mi
        characters."""
        if place.stop - place.start > _COPY_BYTES_MAX:
            raise InvalidFieldError(
                "context.slice",
                f"has {place.stop - place.start} characters; at most {_COPY_BYTES_MAX} where it "
                "must be copied: beside text by value, overlapping another part, or of malformed "
                "UTF-8",
            )
        document = place.document
        if place.size_bytes:
            return b"".join(
                [piece async for piece in self._read(place.offset_bytes, place.size_bytes)]
            )
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        kept, before = [], 0
        async for piece in self._read(document.offset_bytes, document.size_bytes):
            decoded = decoder.decode(piece)
            kept.append(decoded[max(place.start - before, 0) : max(place.stop - before, 0)])
            before += len(decoded)
            if before >= place.stop:
                break
        decoded = decoder.decode(b"", True)
        kept.append(decoded[max(place.start - before, 0) : max(place.stop - before, 0)])
        return "".join(kept).encode()

    def _read(self, offset: int, size: int) -> AsyncIterator[bytes]:
        return self._blobs.read(self._whole.blob_key, offset=offset, size=size)


def can_stay(places: Sequence[Place]) -> bool:
    """Whether parts can stay where they are: all have bytes there, and none overlaps another."""
    if not all(place.size_bytes for place in places):
        return False
    stop = 0
    for place in sorted(places, key=lambda each: each.offset_bytes):
        if place.offset_bytes < stop:
            return False
        stop = place.offset_bytes + place.size_bytes
    return True


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
