"""One upload as it streams by: the order of its messages checked, its bytes hashed, measured and
indexed. It keeps no bytes, and knows neither the wire nor a store; `uploads.py` feeds it.

`take` and `finish` block for milliseconds to seconds: call them in a thread.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import blake3

from common.blob_index.text_index import TextIndexBuilder
from common.errors import InvalidFieldError, LimitAboveCeilingError
from orchestrator.contexts.errors import DigestMismatchError
from orchestrator.contexts.json_check import JsonCheck
from orchestrator.contexts.stored_context import (
    ContextKind,
    StoredContext,
    StoredDocument,
    TextShape,
)
from orchestrator.contexts.text_scan import TextScan
from orchestrator.contexts.upload_plan import (
    CHUNK_BYTES_MAX,
    NAME_CHARACTERS_MAX,
    UploadLimits,
    UploadPlan,
    check_entries,
    check_length,
)

INDEXED_BYTES_MIN = 4 << 20
"""A smaller blob is never read by reference, so it needs no index."""
WORDS_BYTES_MAX = 64 << 20
"""Names and metadata of all documents of an upload, which are held until it ends."""
_QUICK_BYTES = 64 << 10
_ID_DIGITS = 32


@dataclasses.dataclass(frozen=True)
class BegunDocument:
    """A document whose bytes are coming."""

    name: str
    """Unique in the upload."""
    offset_bytes: int
    """First byte in the whole upload."""
    metadata: dict[str, str]
    """The uploader's bookkeeping."""


@dataclasses.dataclass(frozen=True)
class BlobIndex:
    """The index of a finished upload's bytes."""

    kind: str
    """`text` or `json`, as in its key."""
    data: bytes
    """The index itself."""


class Upload:
    """An upload under way. `close` it, whatever happens."""

    def __init__(self, plan: UploadPlan, limits: UploadLimits) -> None:
        """Begin; raises LimitAboveCeilingError for what is announced."""
        self.plan = plan
        """What was announced."""
        self._limits = limits
        self._digest = blake3.blake3()
        self._json = JsonCheck() if plan.kind is ContextKind.JSON else None
        self._index = TextIndexBuilder()
        self._text_index = b""
        self._scan = self._new_scan()
        self._names: set[str] = set()
        self._words_bytes = 0
        self._documents: list[StoredDocument] = []
        self._shapes: list[TextShape] = []
        self.size_bytes = 0
        """Bytes taken."""
        self.begun: list[BegunDocument] = []
        """Documents begun, the last of which is open."""
        self._check_size(plan.size_bytes or 0, "start.size_bytes")

    def document(self, name: str, metadata: Mapping[str, str]) -> None:
        """Begin a document; raises InvalidFieldError or LimitAboveCeilingError."""
        if self.plan.kind is not ContextKind.DOCUMENTS:
            raise InvalidFieldError("document", "is for KIND_DOCUMENTS only")
        check_length("document.name", name, NAME_CHARACTERS_MAX, least=1)
        if name in self._names:
            raise InvalidFieldError("document.name", f"{name!r} was used before in this upload")
        if len(self._names) >= self._limits.documents_max:
            ceiling = self._limits.documents_max
            raise LimitAboveCeilingError("document", len(self._names) + 1, ceiling)
        check_entries("document.metadata", metadata)
        self._words_bytes += sum(len(text.encode()) for pair in metadata.items() for text in pair)
        self._words_bytes += len(name.encode())
        if self._words_bytes > WORDS_BYTES_MAX:
            raise LimitAboveCeilingError("document.metadata", self._words_bytes, WORDS_BYTES_MAX)
        self._end_document()
        self._names.add(name)
        self.begun.append(BegunDocument(name, self.size_bytes, dict(metadata)))

    def check_chunk(self, offset: int, size_bytes: int) -> None:
        """Raise InvalidFieldError or LimitAboveCeilingError where such a chunk may not come."""
        if offset != self.size_bytes:
            raise InvalidFieldError(
                "chunk.offset_bytes", f"is {offset}, but {self.size_bytes} bytes were sent before"
            )
        if not 1 <= size_bytes <= CHUNK_BYTES_MAX:
            raise InvalidFieldError(
                "chunk.data", f"has {size_bytes} bytes; a chunk has 1 to {CHUNK_BYTES_MAX}"
            )
        if self.plan.kind is ContextKind.DOCUMENTS and not self.begun:
            raise InvalidFieldError("chunk", "came before any document was begun")
        self._check_size(self.size_bytes + size_bytes, "chunk.offset_bytes")

    def is_quick(self, size_bytes: int) -> bool:
        """Tell whether so many bytes are taken without a wait worth a thread."""
        return size_bytes <= _QUICK_BYTES and self._json is None

    def take(self, data: bytes) -> None:
        """Take the next bytes; raises InvalidFieldError where they can be no JSON."""
        self._digest.update(data)
        self._scan.feed(data)
        if self._json is None:
            self._index.feed(data)
        else:
            self._json.feed(data)
        self.size_bytes += len(data)

    def take_again(self, pieces: Iterable[bytes], begun: Sequence[BegunDocument]) -> None:
        """Take what was kept of an earlier stream: its bytes, and the documents begun in them."""
        left = deque(begun)
        for piece in pieces:
            rest = piece
            while rest:
                self._begin_again(left)
                stop = left[0].offset_bytes - self.size_bytes if left else len(rest)
                self.take(rest[:stop])
                rest = rest[stop:]
        self._begin_again(left)

    def finish(self, blob_key: str) -> tuple[StoredContext, list[StoredDocument]]:
        """Check the whole and describe it, as the context of a blob.

        Raises InvalidFieldError or DigestMismatchError.
        """
        if self.plan.kind is ContextKind.DOCUMENTS:
            self._end_document()
            if not self._documents:
                raise InvalidFieldError("document", "KIND_DOCUMENTS needs at least one")
        else:
            if not self.size_bytes:
                raise InvalidFieldError("chunk", "the upload holds no bytes")
            self._shapes.append(self._scan.finish())
        digest = self._digest.hexdigest()
        self._check_announced(digest)
        if self._json is not None:
            self._json.finish()
        created_us = time.time_ns() // 1000
        ttl_s = self._limits.ttl_s if self.plan.ttl_s is None else self.plan.ttl_s
        context = StoredContext(
            context_id=_context_id(self.plan.kind, digest, self._documents),
            kind=self.plan.kind,
            title=self.plan.title,
            size_bytes=self.size_bytes,
            blake3=digest,
            blob_key=blob_key,
            shape=self._shape(),
            document_count=len(self._documents) or 1,
            created_us=created_us,
            expires_us=created_us + int(ttl_s * 1e6) if ttl_s else None,
            words_bytes=self._words_bytes,
        )
        return context, self._documents

    def index(self) -> BlobIndex | None:
        """Return the index of a finished upload; None where the blob needs none."""
        if self._json is not None:
            data = self._json.index()
            return None if data is None else BlobIndex("json", data)
        if self.size_bytes < INDEXED_BYTES_MIN:
            return None
        return BlobIndex("text", self._text_index)

    def close(self) -> None:
        """Let go of what it holds besides memory."""
        if self._json is not None:
            self._json.close()

    def _new_scan(self) -> TextScan:
        return TextScan(counts_line_feeds=self._json is not None)  # the index counts them

    def _shape(self) -> TextShape:
        shape = _sum(self._shapes)
        if self._json is not None:
            return shape
        self._text_index = self._index.finish()
        return dataclasses.replace(shape, lines=shape.lines + self._index.line_feeds)

    def _begin_again(self, left: deque[BegunDocument]) -> None:
        while left and left[0].offset_bytes == self.size_bytes:
            begun = left.popleft()
            self.document(begun.name, begun.metadata)

    def _end_document(self) -> None:
        if len(self.begun) == len(self._documents):
            return
        shape = self._scan.finish()
        self._scan = self._new_scan()
        self._shapes.append(shape)
        begun = self.begun[-1]
        self._documents.append(
            StoredDocument(
                name=begun.name,
                offset_bytes=begun.offset_bytes,
                size_bytes=self.size_bytes - begun.offset_bytes,
                characters=shape.characters,
                code_point_max=shape.code_point_max,
                metadata=begun.metadata,
            )
        )

    def _check_size(self, size: int, field: str) -> None:
        if size > self._limits.bytes_max:
            raise LimitAboveCeilingError(field, size, self._limits.bytes_max)

    def _check_announced(self, digest: str) -> None:
        announced = self.plan.size_bytes
        if announced is not None and announced != self.size_bytes:
            raise DigestMismatchError("size", expected=announced, actual=self.size_bytes)
        if self.plan.blake3 and self.plan.blake3.lower() != digest:
            raise DigestMismatchError("BLAKE3", expected=self.plan.blake3, actual=digest)


def _context_id(kind: ContextKind, digest: str, documents: Sequence[StoredDocument]) -> str:
    identity = [
        kind.value,
        digest,
        [[d.name, d.offset_bytes, d.size_bytes, sorted(d.metadata.items())] for d in documents],
    ]
    return blake3.blake3(json.dumps(identity).encode()).hexdigest()[:_ID_DIGITS]


def _sum(shapes: Sequence[TextShape]) -> TextShape:
    return TextShape(
        characters=sum(shape.characters for shape in shapes),
        code_point_max=max((shape.code_point_max for shape in shapes), default=0),
        lines=sum(shape.lines for shape in shapes),
        malformed_sequences=sum(shape.malformed_sequences for shape in shapes),
    )
