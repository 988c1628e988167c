"""What is known of a stored context and of each of its documents."""

from __future__ import annotations

import dataclasses
import enum


class ContextKind(enum.Enum):
    """What a run's code sees as `context`."""

    TEXT = "text"
    DOCUMENTS = "documents"
    JSON = "json"


@dataclasses.dataclass(frozen=True)
class TextShape:
    """What a text is after decoding as UTF-8, malformed sequences replaced by U+FFFD."""

    characters: int = 0
    """Code points."""
    code_point_max: int = 0
    """The largest code point; 0 for an empty text."""
    lines: int = 0
    """Line feeds, and one for an unfinished last line."""
    malformed_sequences: int = 0
    """Sequences that were replaced."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredDocument:
    """One document of a context."""

    name: str
    """Unique in the context; empty for the only text of a context without documents."""
    offset_bytes: int
    """First byte in the blob."""
    size_bytes: int
    """Length, in bytes."""
    characters: int
    """Code points after decoding."""
    code_point_max: int
    """The largest code point; 0 for an empty text."""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    """The uploader's bookkeeping."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredContext:
    """A context as it is stored."""

    context_id: str
    """Made from the content."""
    kind: ContextKind
    """What code sees."""
    title: str
    """The first uploader's words for it."""
    size_bytes: int
    """Length of the blob."""
    blake3: str
    """Digest of the blob, hexadecimal."""
    blob_key: str
    """Key of the blob in the object store."""
    shape: TextShape
    """Of the whole; documents are summed up, `code_point_max` is the largest of all."""
    document_count: int
    """1 unless the kind is DOCUMENTS."""
    created_us: int
    """When it was first stored, microseconds of Unix time."""
    expires_us: int | None = None
    """When it may be deleted, as above; None is never."""
    words_bytes: int = 0
    """Of its documents' names and metadata together, as far as they count as stored."""

    offset_bytes: int = 0
    """Of a text that is a part of another context: its first byte in the blob. Documents have
    places of their own."""
    blob_bytes: int = 0
    """Of parts of another context: length of the whole blob; else 0."""
    derived_from: str = ""
    """Of what was made for a child run: the id of the context that it is a part of, or its own;
    else empty."""

    @property
    def name(self) -> str:
        """The resource name."""
        return f"contexts/{self.context_id}"

    @property
    def readable_bytes(self) -> int:
        """Bytes from its first one on that places in it are counted in: of documents, which lie
        anywhere in a blob, all of that."""
        return (self.kind is ContextKind.DOCUMENTS and self.blob_bytes) or self.size_bytes

    @property
    def tokens_estimated(self) -> int:
        """Tokens at four bytes each, rounded up."""
        return -(-self.size_bytes // 4)
