"""What a client announces of an upload, and what an upload may hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from common.errors import InvalidFieldError
from orchestrator.contexts.stored_context import ContextKind

CHUNK_BYTES_MAX = 2 << 20
TITLE_CHARACTERS_MAX = 256
NAME_CHARACTERS_MAX = 1024
METADATA_ENTRIES_MAX = 16
METADATA_CHARACTERS_MAX = 256
TTL_MIN_S = 60.0
TTL_MAX_S = 100 * 366 * 86_400.0
_DIGITS = frozenset("0123456789abcdefABCDEF")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """What uploads may hold, and what becomes of them."""

    bytes_max: int
    """Bytes of a context."""
    documents_max: int
    """Documents of one context."""
    tenant_bytes_max: int = 0
    """Bytes that a tenant may store, names and metadata of documents and unfinished uploads
    included; 0 for no bound."""
    unfinished_max: int = 100
    """Unfinished uploads of a tenant."""
    ttl_s: float = 0.0
    """How long a context lives that was announced without a time; 0 for ever."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UploadPlan:
    """What the client announced; raises InvalidFieldError where it cannot be meant."""

    kind: ContextKind
    """What code will see."""
    title: str = ""
    """Words for people."""
    size_bytes: int | None = None
    """Size to check at the end."""
    blake3: str = ""
    """Digest to check at the end, hexadecimal; empty for none."""
    ttl_s: float | None = None
    """How long the context lives; None for the server's own time."""

    def __post_init__(self) -> None:
        check_length("start.title", self.title, TITLE_CHARACTERS_MAX)
        if self.size_bytes is not None and self.size_bytes < 0:
            raise InvalidFieldError("start.size_bytes", "must be at least 0")
        if self.blake3 and (len(self.blake3) != 64 or not set(self.blake3) <= _DIGITS):
            raise InvalidFieldError("start.blake3", "must have 64 hexadecimal digits")
        if self.ttl_s is not None and not TTL_MIN_S <= self.ttl_s <= TTL_MAX_S:
            raise InvalidFieldError(
                "start.ttl", f"must be from {TTL_MIN_S:g} to {TTL_MAX_S:g} seconds"
            )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, to be stored and compared."""
        return dataclasses.asdict(self) | {"kind": self.kind.value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Make one of what `to_json` gave."""
        return cls(**{**values, "kind": ContextKind(values["kind"])})


def check_entries(field: str, entries: Mapping[str, str]) -> None:
    """Raise InvalidFieldError where a map of bookkeeping is too large."""
    if len(entries) > METADATA_ENTRIES_MAX:
        raise InvalidFieldError(field, f"has more than {METADATA_ENTRIES_MAX} entries")
    for key, value in entries.items():
        if max(len(key), len(value)) > METADATA_CHARACTERS_MAX:
            raise InvalidFieldError(
                field, f"has an entry of more than {METADATA_CHARACTERS_MAX} characters"
            )
        if "\0" in key or "\0" in value:  # no text to PostgreSQL
            raise InvalidFieldError(field, "has an entry with a NUL character")


def check_length(field: str, text: str, most: int, *, least: int = 0) -> None:
    """Raise InvalidFieldError where a text is too short or too long, or has a NUL character, which
    PostgreSQL has no place for."""
    if not least <= len(text) <= most:
        raise InvalidFieldError(field, f"must have {least} to {most} characters")
    if "\0" in text:
        raise InvalidFieldError(field, "must have no NUL character")
