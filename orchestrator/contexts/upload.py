"""One upload: the order of its messages checked, its bytes hashed, measured and written as they
come. It knows neither the wire nor the database; the caller feeds it and takes the result.

`chunk` and `finish` block for milliseconds to seconds: call them in a thread.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence

import blake3
import grpc
import orjson
from fathom.errors.v1.error_reason_pb2 import ErrorReason

from common.errors import InvalidFieldError, LimitAboveCeilingError, ServiceError
from orchestrator.blobs import BlobWriter
from orchestrator.contexts.stored_context import (
    ContextKind,
    StoredContext,
    StoredDocument,
    TextShape,
)
from orchestrator.contexts.text_scan import TextScan

CHUNK_BYTES_MAX = 2 << 20
TITLE_CHARACTERS_MAX = 256
NAME_CHARACTERS_MAX = 1024
METADATA_ENTRIES_MAX = 16
METADATA_CHARACTERS_MAX = 256
_ID_DIGITS = 32


class DigestMismatchError(ServiceError):
    """The bytes are not those that the client announced."""

    code = grpc.StatusCode.DATA_LOSS
    reason = ErrorReason.ERROR_REASON_DIGEST_MISMATCH

    def __init__(self, what: str, *, expected: object, actual: object) -> None:
        message = f"the uploaded bytes have a {what} of {actual}, not the {expected} announced"
        super().__init__(message, expected=expected, actual=actual)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """What an upload may hold."""

    bytes_max: int
    """Bytes of any context."""
    json_bytes_max: int
    """Bytes of a JSON context: it is parsed whole to be checked."""
    documents_max: int
    """Documents of one context."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UploadPlan:
    """What the client announced."""

    kind: ContextKind
    """What code will see."""
    title: str = ""
    """Words for people."""
    size_bytes: int | None = None
    """Size to check at the end."""
    blake3: str = ""
    """Digest to check at the end, hexadecimal; empty for none."""


class Upload:
    """An upload under way."""

    def __init__(self, plan: UploadPlan, writer: BlobWriter, limits: UploadLimits) -> None:
        """Begin; raises InvalidFieldError or LimitAboveCeilingError for what is announced."""
        _check_plan(plan)
        self._plan = plan
        self._writer = writer
        self._limits = limits
        self._digest = blake3.blake3()
        self._size = 0
        self._scan = TextScan()
        self._names: set[str] = set()
        self._open: _OpenDocument | None = None
        self._documents: list[StoredDocument] = []
        self._shapes: list[TextShape] = []
        self._check_size(plan.size_bytes or 0, "start.size_bytes")

    def document(self, name: str, metadata: Mapping[str, str]) -> None:
        """Begin a document; raises InvalidFieldError."""
        if self._plan.kind is not ContextKind.DOCUMENTS:
            raise InvalidFieldError("document", "is for KIND_DOCUMENTS only")
        _check_length("document.name", name, NAME_CHARACTERS_MAX, least=1)
        if name in self._names:
            raise InvalidFieldError("document.name", f"{name!r} was used before in this upload")
        if len(self._names) >= self._limits.documents_max:
            ceiling = self._limits.documents_max
            raise LimitAboveCeilingError("document", len(self._names) + 1, ceiling)
        check_entries("document.metadata", metadata)
        self._end_document()
        self._names.add(name)
        self._open = _OpenDocument(name, self._size, dict(metadata))

    def chunk(self, offset: int, data: bytes) -> None:
        """Take the next bytes; raises InvalidFieldError or LimitAboveCeilingError."""
        if offset != self._size:
            raise InvalidFieldError(
                "chunk.offset_bytes", f"is {offset}, but {self._size} bytes were sent before"
            )
        if not 1 <= len(data) <= CHUNK_BYTES_MAX:
            raise InvalidFieldError(
                "chunk.data", f"has {len(data)} bytes; a chunk has 1 to {CHUNK_BYTES_MAX}"
            )
        if self._plan.kind is ContextKind.DOCUMENTS and self._open is None:
            raise InvalidFieldError("chunk", "came before any document was begun")
        self._check_size(self._size + len(data), "chunk.offset_bytes")
        self._writer.write(data)
        self._digest.update(data)
        self._scan.feed(data)
        self._size += len(data)

    def finish(self) -> tuple[StoredContext, list[StoredDocument]]:
        """Check the whole, put the bytes under their key, and describe them.

        Raises InvalidFieldError or DigestMismatchError, and then keeps nothing.
        """
        if self._plan.kind is ContextKind.DOCUMENTS:
            self._end_document()
            if not self._documents:
                raise InvalidFieldError("document", "KIND_DOCUMENTS needs at least one")
        else:
            if not self._size:
                raise InvalidFieldError("chunk", "the upload holds no bytes")
            self._shapes.append(self._scan.finish())
        digest = self._digest.hexdigest()
        self._check_announced(digest)
        if self._plan.kind is ContextKind.JSON:
            _check_json(self._writer.read_back())
        blob_key = f"blobs/{digest[:2]}/{digest}"
        self._writer.commit(blob_key)
        context = StoredContext(
            context_id=_context_id(self._plan.kind, digest, self._documents),
            kind=self._plan.kind,
            title=self._plan.title,
            size_bytes=self._size,
            blake3=digest,
            blob_key=blob_key,
            shape=_sum(self._shapes),
            document_count=len(self._documents) or 1,
            created_us=time.time_ns() // 1000,
        )
        return context, self._documents

    def abort(self) -> None:
        """Drop what was written, unless the upload is finished."""
        self._writer.abort()

    def _end_document(self) -> None:
        if self._open is None:
            return
        shape = self._scan.finish()
        self._shapes.append(shape)
        self._documents.append(
            StoredDocument(
                name=self._open.name,
                offset_bytes=self._open.offset,
                size_bytes=self._size - self._open.offset,
                characters=shape.characters,
                code_point_max=shape.code_point_max,
                metadata=self._open.metadata,
            )
        )
        self._open = None
        self._scan = TextScan()

    def _check_size(self, size: int, field: str) -> None:
        is_json = self._plan.kind is ContextKind.JSON
        ceiling = self._limits.json_bytes_max if is_json else self._limits.bytes_max
        if size > ceiling:
            raise LimitAboveCeilingError(field, size, ceiling)

    def _check_announced(self, digest: str) -> None:
        if self._plan.size_bytes is not None and self._plan.size_bytes != self._size:
            raise DigestMismatchError("size", expected=self._plan.size_bytes, actual=self._size)
        if self._plan.blake3 and self._plan.blake3.lower() != digest:
            raise DigestMismatchError("BLAKE3", expected=self._plan.blake3, actual=digest)


@dataclasses.dataclass(frozen=True)
class _OpenDocument:
    name: str
    offset: int
    metadata: dict[str, str]


def check_entries(field: str, entries: Mapping[str, str]) -> None:
    """Raise InvalidFieldError where a map of bookkeeping is too large."""
    if len(entries) > METADATA_ENTRIES_MAX:
        raise InvalidFieldError(field, f"has more than {METADATA_ENTRIES_MAX} entries")
    for key, value in entries.items():
        if max(len(key), len(value)) > METADATA_CHARACTERS_MAX:
            raise InvalidFieldError(
                field, f"has an entry of more than {METADATA_CHARACTERS_MAX} characters"
            )


def _check_plan(plan: UploadPlan) -> None:
    _check_length("start.title", plan.title, TITLE_CHARACTERS_MAX)
    if plan.size_bytes is not None and plan.size_bytes < 0:
        raise InvalidFieldError("start.size_bytes", "must be at least 0")
    digits = set("0123456789abcdefABCDEF")
    if plan.blake3 and (len(plan.blake3) != 64 or not set(plan.blake3) <= digits):
        raise InvalidFieldError("start.blake3", "must have 64 hexadecimal digits")


def _check_length(field: str, text: str, most: int, *, least: int = 0) -> None:
    if not least <= len(text) <= most:
        raise InvalidFieldError(field, f"must have {least} to {most} characters")


def _check_json(data: bytes) -> None:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidFieldError(
            "chunk.data", f"is no JSON: line {error.lineno}, column {error.colno}"
        ) from None


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
