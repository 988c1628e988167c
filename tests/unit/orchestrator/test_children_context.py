"""The contexts of child runs: by value, by place, and where a part has to be copied."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidFieldError
from orchestrator.contexts.stored_context import (
    ContextKind,
    StoredContext,
    StoredDocument,
    TextShape,
)
from orchestrator.contexts.text_scan import TextScan
from orchestrator.runs.children.context import ChildContexts
from orchestrator.runs.children.given import Given, JsonValue, NamedTexts, OneText, Slice

PIECE = 7
"""Blobs are read in pieces that cut characters."""


class Shelf:
    """Contexts, blobs and values in memory."""

    def __init__(self, *documents: tuple[str, bytes]) -> None:
        self.blob = b"".join(data for _, data in documents)
        self.added: list[tuple[StoredContext, Sequence[StoredDocument]]] = []
        self.copied: list[tuple[ContextKind, list[tuple[str, bytes]]]] = []
        self._documents: list[StoredDocument] = []
        offset, malformed = 0, 0
        for name, data in documents:
            shape = shape_of(data)
            malformed += shape.malformed_sequences
            self._documents.append(
                StoredDocument(
                    name=name,
                    offset_bytes=offset,
                    size_bytes=len(data),
                    characters=shape.characters,
                    code_point_max=shape.code_point_max,
                )
            )
            offset += len(data)
        is_one = documents[0][0] == ""
        one = self._documents[0]
        self.context = context(
            kind=ContextKind.TEXT if is_one else ContextKind.DOCUMENTS,
            size_bytes=len(self.blob),
            shape=TextShape(one.characters, one.code_point_max, 1, malformed),
        )

    async def get(self, _tenant: str, _context_id: str) -> StoredContext:
        return self.context

    async def documents(
        self, _tenant: str, _context_id: str, *, names: Collection[str]
    ) -> list[StoredDocument]:
        assert not any("\0" in name for name in names), "PostgreSQL has no place for it"
        return [document for document in self._documents if document.name in names]

    async def add(
        self, _tenant: str, made: StoredContext, documents: Sequence[StoredDocument]
    ) -> tuple[StoredContext, bool]:
        self.added.append((made, documents))
        return made, False

    async def read(self, _key: str, *, offset: int, size: int) -> AsyncIterator[bytes]:
        for start in range(offset, offset + size, PIECE):
            yield self.blob[start : min(start + PIECE, offset + size)]

    async def store(
        self, _tenant: str, kind: ContextKind, parts: Sequence[tuple[str, bytes]], *, title: str
    ) -> StoredContext:
        self.copied.append((kind, list(parts)))
        return context(kind=kind, context_id="copy", title=title)

    async def make(self, given: Given | None) -> str:
        shelf: Any = self
        maker = ChildContexts(shelf, shelf, shelf, kept_s=60.0)
        return await maker.make("t", "contexts/whole", given)

    def text(self) -> str:
        """Return the text of the newest context that was left in place."""
        made, documents = self.added[-1]
        assert not documents
        start = made.offset_bytes
        return self.blob[start : start + made.size_bytes].decode()


def context(**fields: Any) -> StoredContext:
    """Return a context."""
    values: dict[str, Any] = {
        "context_id": "whole",
        "kind": ContextKind.TEXT,
        "title": "",
        "size_bytes": 0,
        "blake3": "",
        "blob_key": "blobs/b",
        "shape": TextShape(),
        "document_count": 1,
        "created_us": 0,
    }
    return StoredContext(**values | fields)


def shape_of(data: bytes) -> TextShape:
    """Measure a text."""
    scan = TextScan()
    scan.feed(data)
    return scan.finish()


async def test_without_a_context_it_is_the_parents() -> None:
    assert await Shelf(("", b"abc")).make(None) == "contexts/whole"


@settings(max_examples=200, deadline=None)
@given(text=st.text(min_size=1, max_size=60), data=st.data())
async def test_a_part_is_what_python_would_cut(text: str, data: st.DataObject) -> None:
    """Characters on one side, bytes on the other."""
    text = text.encode("utf-8", "replace").decode()
    start = data.draw(st.integers(0, len(text) - 1))
    stop = data.draw(st.integers(start + 1, len(text)))
    shelf = Shelf(("", text.encode()))

    await shelf.make(OneText(Slice("", start, stop)))

    made, _ = shelf.added[0]
    assert shelf.text() == text[start:stop]
    assert made.shape == shape_of(text[start:stop].encode())
    assert made.blob_bytes == len(text.encode())
    assert not shelf.copied


async def test_a_part_without_an_end_goes_to_the_end() -> None:
    shelf = Shelf(("", "äöü".encode()))

    await shelf.make(OneText(Slice("", 1, None)))

    assert shelf.text() == "öü"


async def test_a_part_of_a_part_is_within_it() -> None:
    """A grandchild's part counts from where its parent's context begins."""
    shelf = Shelf(("", b"0123456789"))
    shelf.context = context(
        size_bytes=6, offset_bytes=2, blob_bytes=10, shape=TextShape(6, ord("9"), 1)
    )

    await shelf.make(OneText(Slice("", 1, 3)))

    assert shelf.text() == "34"
    assert shelf.added[0][0].blob_bytes == 10


async def test_documents_stay_where_they_are() -> None:
    shelf = Shelf(("a", "äa".encode()), ("b", b"bb"), ("c", b"cc"))

    parts = [("one", Slice("c", 0, None)), ("two", Slice("a", 1, 2))]
    await shelf.make(NamedTexts(parts))

    made, documents = shelf.added[0]
    assert made.kind is ContextKind.DOCUMENTS
    assert [(d.name, d.offset_bytes, d.size_bytes) for d in documents] == [
        ("one", 5, 2),
        ("two", 2, 1),
    ]


@pytest.mark.parametrize(
    ("parts", "copied"),
    [
        ([("x", Slice("a", 0, 2)), ("y", Slice("a", 1, 3))], [b"ab", b"bc"]),
        ([("x", Slice("a", 0, 2)), ("y", "by value")], [b"ab", b"by value"]),
    ],
)
async def test_what_cannot_stay_is_copied(
    parts: list[tuple[str, str | Slice]], copied: list[bytes]
) -> None:
    """A session takes each byte of a blob once, and from one blob a context."""
    shelf = Shelf(("a", b"abc"))

    assert await shelf.make(NamedTexts(parts)) == "contexts/copy"

    kind, stored = shelf.copied[0]
    assert kind is ContextKind.DOCUMENTS
    assert [data for _, data in stored] == copied


@given(data=st.binary(min_size=1, max_size=40), cut=st.data())
async def test_parts_of_malformed_text_are_what_code_sees(data: bytes, cut: st.DataObject) -> None:
    text = data.decode("utf-8", "replace")
    start = cut.draw(st.integers(0, len(text) - 1))
    stop = cut.draw(st.integers(start + 1, len(text)))
    shelf = Shelf(("", data))

    await shelf.make(OneText(Slice("", start, stop)))

    if shelf.copied:
        assert shelf.copied[0][1] == [("", text[start:stop].encode())]
    else:
        assert shelf.text() == text[start:stop]


async def test_a_part_of_the_broken_end_of_a_text_is_what_code_sees() -> None:
    """Decoding bytes as they come gives these characters only when no more can come."""
    shelf = Shelf(("", b"ab\xed\xa0"))

    await shelf.make(OneText(Slice("", 3, 4)))

    assert shelf.copied[0][1] == [("", "\ufffd".encode())]


@pytest.mark.parametrize(
    "given_",
    [
        OneText(""),
        OneText(Slice("", 0, 4)),
        OneText(Slice("", 2, 2)),
        OneText(Slice("", -1, 2)),
        OneText(Slice("other", 0, 1)),
        OneText("x" * ((8 << 20) + 1)),
        JsonValue(""),
        NamedTexts([]),
        NamedTexts([("a", "x"), ("a", "y")]),
        NamedTexts([("", "x")]),
        NamedTexts([("n" * 1025, "x")]),
        NamedTexts([("n\0", "x")]),
        OneText(Slice("n\0", 0, 1)),
    ],
)
async def test_what_is_no_context_is_refused(given_: Given) -> None:
    shelf = Shelf(("", b"abc"))

    with pytest.raises(InvalidFieldError):
        await shelf.make(given_)

    assert not shelf.added
    assert not shelf.copied


async def test_the_largest_value_is_taken() -> None:
    shelf = Shelf(("", b"abc"))

    assert await shelf.make(OneText("x" * (8 << 20))) == "contexts/copy"


async def test_there_are_no_parts_of_json() -> None:
    shelf = Shelf(("", b"[1]"))
    shelf.context = context(kind=ContextKind.JSON, size_bytes=3)

    with pytest.raises(InvalidFieldError, match="no document"):
        await shelf.make(OneText(Slice("", 0, 1)))
