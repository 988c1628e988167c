"""An upload under way: what it may hold besides bytes."""

from __future__ import annotations

import pytest

from common.errors import InvalidFieldError, LimitAboveCeilingError
from orchestrator.contexts.stored_context import ContextKind
from orchestrator.contexts.upload import WORDS_BYTES_MAX, Upload
from orchestrator.contexts.upload_plan import UploadLimits, UploadPlan

LIMITS = UploadLimits(bytes_max=1 << 30, documents_max=100_000)
ENTRIES = {f"{number:0256}": "é" * 256 for number in range(16)}
"""As much as one document may have."""
ENTRIES_BYTES = 16 * (256 + 512)


def test_names_and_metadata_of_all_documents_are_bounded() -> None:
    """They are held in memory and are no bytes of the context: nothing else bounds them."""
    upload = Upload(UploadPlan(kind=ContextKind.DOCUMENTS), LIMITS)
    name_bytes = 6
    count = WORDS_BYTES_MAX // (ENTRIES_BYTES + name_bytes)
    for number in range(count):
        upload.document(f"{number:06}", ENTRIES)
    with pytest.raises(LimitAboveCeilingError) as caught:
        upload.document(f"{count:06}", ENTRIES)

    assert caught.value.metadata == {
        "field": "document.metadata",
        "value": str((count + 1) * (ENTRIES_BYTES + name_bytes)),
        "ceiling": str(WORDS_BYTES_MAX),
    }


@pytest.mark.parametrize(
    ("name", "metadata", "field"),
    [
        ("a\0", {}, "document.name"),
        ("a", {"k\0": "v"}, "document.metadata"),
        ("a", {"k": "\0"}, "document.metadata"),
    ],
)
def test_nul_characters_are_refused(name: str, metadata: dict[str, str], field: str) -> None:
    """PostgreSQL has no place for them in a text, and would fail with the whole upload done."""
    upload = Upload(UploadPlan(kind=ContextKind.DOCUMENTS), LIMITS)
    with pytest.raises(InvalidFieldError) as caught:
        upload.document(name, metadata)

    assert caught.value.metadata == {"field": field}


def test_a_title_has_no_nul_character() -> None:
    with pytest.raises(InvalidFieldError) as caught:
        UploadPlan(kind=ContextKind.TEXT, title="a\0b")

    assert caught.value.metadata == {"field": "start.title"}
