"""Claims looked up in stored contexts: places compared, quotes searched for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from fathom.orchestrator.v1.run_pb2 import Answer, Citation
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.blobs import BlobMissingError
from orchestrator.contexts.stored_context import (
    ContextKind,
    StoredContext,
    StoredDocument,
    TextShape,
)
from orchestrator.errors import ObjectStoreError
from orchestrator.runs import patient_blobs
from orchestrator.runs.answers.citations import PLACE_CHARACTERS_MAX, SEARCHES_MAX, CitationDesk
from orchestrator.runs.patient_blobs import PatientBlobs

EXACT, NORMALISED = Citation.CHECK_EXACT, Citation.CHECK_NORMALISED
NOT_FOUND, NOT_DONE = Citation.CHECK_NOT_FOUND, Citation.CHECK_NOT_DONE


class MemoryBlobs:
    """One blob, read in small pieces so that they end within characters and quotes."""

    def __init__(self, data: bytes, piece_bytes: int = 1 << 20) -> None:
        self.data = data
        self.piece_bytes = piece_bytes
        self.read_bytes = 0

    async def read(self, _key: str, *, offset: int, size: int) -> AsyncIterator[bytes]:
        end = offset + size
        for start in range(offset, end, self.piece_bytes):
            piece = self.data[start : min(start + self.piece_bytes, end)]
            self.read_bytes += len(piece)
            yield piece

    def create(self) -> object:
        raise NotImplementedError

    async def put(self, key: str, data: bytes) -> None:
        raise NotImplementedError


class BrokenBlobs(MemoryBlobs):
    """A blob that is gone."""

    async def read(self, _key: str, *, offset: int, size: int) -> AsyncIterator[bytes]:
        raise BlobMissingError
        yield b""


class AwayBlobs(MemoryBlobs):
    """A blob in a store that is away for a while, and again after each piece."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, piece_bytes=8)
        self._is_away = True

    async def read(self, _key: str, *, offset: int, size: int) -> AsyncIterator[bytes]:
        self._is_away = not self._is_away
        if not self._is_away:
            raise ObjectStoreError("it is away")
        async for piece in super().read(_key, offset=offset, size=size):
            yield piece
            raise ObjectStoreError("it is away again")


def shape(text: str) -> TextShape:
    return TextShape(characters=len(text), code_point_max=max(map(ord, text), default=0))


def desk(
    context: str | bytes | dict[str, str],
    *,
    kind: ContextKind = ContextKind.TEXT,
    piece_bytes: int = 1 << 20,
    time_max_s: float = 15.0,
) -> CitationDesk:
    documents: list[StoredDocument] = []
    if isinstance(context, dict):
        kind = ContextKind.DOCUMENTS
        offset = 0
        for name, text in context.items():
            size = len(text.encode())
            documents.append(
                StoredDocument(
                    name=name,
                    offset_bytes=offset,
                    size_bytes=size,
                    characters=len(text),
                    code_point_max=shape(text).code_point_max,
                )
            )
            offset += size
        data = "".join(context.values()).encode()
    else:
        data = context if isinstance(context, bytes) else context.encode()
    stored = StoredContext(
        context_id="c",
        kind=kind,
        title="",
        size_bytes=len(data),
        blake3="",
        blob_key="blobs/b",
        shape=shape(data.decode(errors="replace")),
        document_count=len(documents) or 1,
        created_us=0,
    )
    blobs = PatientBlobs(MemoryBlobs(data, piece_bytes), lambda: 0.0)  # type: ignore[arg-type]
    return CitationDesk(blobs, stored, documents, time_max_s=time_max_s)


async def checked(where: CitationDesk, text: str, *cited: Citation) -> list[Citation]:
    answer = Answer(text=text, citations=cited)
    await where.check(answer)
    return list(answer.citations)


def seen(citations: list[Citation]) -> list[tuple[str, int, int, str, bool, int]]:
    return [(c.document, c.start, c.end, c.quote, c.verified, c.check) for c in citations]


TEXT = "The invoice of May\nwas paid in full, twice. Ünder protest: the fee was 12 €."


@pytest.mark.parametrize(
    ("start", "end", "quote", "result"),
    [
        (4, 11, "invoice", (4, 11, EXACT)),
        (0, 18, "invoice of May", (4, 18, EXACT)),
        (5, 12, "invoice", (5, 12, NOT_FOUND)),
        (4, 22, "invoice of May was", (4, 22, NORMALISED)),
        (0, 30, "May   was paid", (15, 27, NORMALISED)),
        (44, 49, "Ünder", (44, 49, EXACT)),
        (72, 74, "€.", (72, 74, NOT_FOUND)),
        (74, 76, "€.", (74, 76, EXACT)),
        (74, 77, "€.", (74, 77, NOT_FOUND)),
        (1_000, 1_010, "invoice", (1_000, 1_010, NOT_FOUND)),
        (4, 11, "Invoice", (4, 11, NOT_FOUND)),
        (11, 4, "invoice", (11, 4, NOT_FOUND)),
        (-7, -1, "invoice", (-7, -1, NOT_FOUND)),
        (4, 11, "  ", (4, 11, NOT_FOUND)),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1 << 20, 3])
async def test_a_quote_is_compared_with_what_stands_at_its_place(
    start: int, end: int, quote: str, result: tuple[int, int, int], piece_bytes: int
) -> None:
    """Exactly first, then but for white space; a part of the place gets a place of its own."""
    cited = Citation(start=start, end=end, quote=quote, verified=True, check=EXACT)
    [citation] = await checked(desk(TEXT, piece_bytes=piece_bytes), "It was paid.", cited)

    assert (citation.start, citation.end, citation.check) == result
    assert citation.verified is (result[2] in (EXACT, NORMALISED))
    assert citation.quote == quote


async def test_a_place_alone_is_given_what_stands_there() -> None:
    [citation] = await checked(desk(TEXT), "It was paid [cite:19-35].")

    assert seen([citation]) == [("", 19, 35, "was paid in full", True, EXACT)]


@pytest.mark.parametrize(("extra", "check"), [(0, EXACT), (1, NOT_DONE)])
async def test_a_long_place_is_not_read(extra: int, check: int) -> None:
    where = desk("x" * 10_000)
    [citation] = await checked(where, f"[cite:0-{PLACE_CHARACTERS_MAX + extra}]")

    assert citation.check == check


DOCUMENTS = {
    "a.txt": "Übergabe am Montag. Alles bezahlt.",
    "b.txt": "Nothing of the kind is here.",
    "": "x",
}


@pytest.mark.parametrize(
    ("document", "quote", "result"),
    [
        ("a.txt", "Übergabe", True),
        ("b.txt", "Übergabe", False),
        ("missing.txt", "Übergabe", False),
        ("context", "Übergabe", False),
    ],
)
async def test_places_are_those_of_the_document_named(
    document: str, quote: str, result: bool
) -> None:
    cited = Citation(document=document, start=0, end=8, quote=quote)
    [citation] = await checked(desk(DOCUMENTS), "", cited)

    assert (citation.verified, citation.document) == (result, document)


async def test_overlapping_places_are_each_their_own() -> None:
    text = "[cite:a.txt:0-8] [cite:a.txt:4-12] [cite:a.txt:0-8]"

    assert seen(await checked(desk(DOCUMENTS, piece_bytes=1), text)) == [
        ("a.txt", 0, 8, "Übergabe", True, EXACT),
        ("a.txt", 4, 12, "gabe am ", True, EXACT),
    ]


async def test_a_place_that_code_and_the_answer_name_is_told_of_once() -> None:
    """Code leaves the name of an only document out; models call it `context`."""
    of_code = Citation(start=4, end=11, quote="invoice")

    told = await checked(desk(TEXT), "an “invoice” [cite:context:4-11]", of_code)

    assert seen(told) == [("", 4, 11, "invoice", True, EXACT)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("“the fee was 12 €”", ("", 59, 75, EXACT)),
        ('"The invoice of May was paid in full."', ("", 0, 35, NORMALISED)),
        ("“the fee was 13 €”", ("", 0, 0, NOT_FOUND)),
        ("“nvoice of May was pai”", ("", 5, 26, NORMALISED)),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1 << 20, 5])
async def test_a_quote_without_a_place_is_searched_for(
    text: str, expected: tuple[str, int, int, int], piece_bytes: int
) -> None:
    [citation] = await checked(desk(TEXT, piece_bytes=piece_bytes), text)

    assert (citation.document, citation.start, citation.end, citation.check) == expected


async def test_an_exact_place_goes_before_an_earlier_one_of_other_spacing() -> None:
    text = "one two\nthree four and then one two three four"
    [citation] = await checked(desk(text), "“one two three four”")

    assert (citation.start, citation.end, citation.check) == (28, 46, EXACT)


async def test_a_quote_does_not_reach_from_one_document_into_the_next() -> None:
    """What stands in no document is in nobody's words."""
    documents = {"a": "this was said", "b": " by two documents", "c": "by two documents here"}

    citations = await checked(desk(documents), "“said by two documents” “by two documents here”")

    assert seen(citations) == [
        ("", 0, 0, "said by two documents", False, NOT_FOUND),
        ("c", 0, 21, "by two documents here", True, EXACT),
    ]


async def test_a_quote_of_a_named_document_is_searched_for_there_only() -> None:
    answer = Answer(text=json.dumps({"document": "b.txt", "quote": "Alles bezahlt"}), is_json=True)
    await desk(DOCUMENTS).check(answer)

    assert not answer.citations[0].verified


JSON_CONTEXT = json.dumps({"note": 'He said "all is paid" –\nin full, on Monday'})


@pytest.mark.parametrize(
    ("quote", "check"),
    [
        ('said "all is paid" – in full', NORMALISED),
        ('He said "all is paid" –\nin full', EXACT),
        ("all is not paid", NOT_FOUND),
    ],
)
@pytest.mark.parametrize("is_ascii", [True, False])
async def test_quotes_are_found_within_the_strings_of_json(
    quote: str, check: int, is_ascii: bool
) -> None:
    """What code reads there, it reads without the escapes."""
    data = json.dumps(json.loads(JSON_CONTEXT), ensure_ascii=is_ascii)
    [citation] = await checked(desk(data, kind=ContextKind.JSON), "", Citation(quote=quote))

    assert (citation.check, citation.start, citation.end) == (check, 0, 0)


async def test_a_place_in_json_is_looked_up_by_what_it_says() -> None:
    """Code counts the characters of a member, and the stored text has none of those."""
    where = desk(JSON_CONTEXT, kind=ContextKind.JSON)
    cited = [
        Citation(document="note", start=9, end=20, quote="all is paid"),
        Citation(document="note", start=0, end=4, quote="Nay!"),
        Citation(document="note", start=0, end=4),
    ]

    checks = [citation.check for citation in await checked(where, "", *cited)]

    assert checks == [EXACT, NOT_FOUND, NOT_FOUND]


async def test_malformed_bytes_are_compared_as_they_are_read() -> None:
    data = b"a\xff\xfeb stands here and more"
    cited = Citation(start=0, end=4, quote="a\ufffd\ufffdb")

    assert (await checked(desk(data), "", cited))[0].verified


async def test_searches_are_bounded_in_number() -> None:
    quotes = [Citation(quote=f"no such quote {n}") for n in range(SEARCHES_MAX + 1)]

    checks = [citation.check for citation in await checked(desk(TEXT), "", *quotes)]

    assert checks == [NOT_FOUND] * SEARCHES_MAX + [NOT_DONE]


async def test_a_store_that_is_away_costs_the_check_and_not_the_answer() -> None:
    """The answer is paid for; that its quotations were not looked up is said."""
    where = desk(TEXT)
    broken = BrokenBlobs(TEXT.encode())
    where._blobs = PatientBlobs(broken, lambda: 0.0)  # type: ignore[arg-type]
    cited = [Citation(start=4, end=11, quote="invoice"), Citation(quote="the fee was")]

    assert [each.check for each in await checked(where, "", *cited)] == [NOT_DONE, NOT_DONE]


async def test_waiting_for_a_store_that_comes_back_takes_none_of_the_time_for_looking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer loses none of its proofs to a restart of the store."""
    monkeypatch.setattr(patient_blobs, "_PAUSE_S", 0.1)
    where = desk(TEXT, time_max_s=0.5)  # the waits take a second
    where._blobs = PatientBlobs(AwayBlobs(TEXT.encode()), lambda: 60.0)  # type: ignore[arg-type]
    cited = [Citation(start=4, end=11, quote="invoice"), Citation(quote="the fee was")]

    assert NOT_DONE not in [each.check for each in await checked(where, "", *cited)]


async def test_what_time_does_not_suffice_for_is_said_not_to_be_looked_up() -> None:
    """Not found would be a verdict on the answer."""
    where = desk("ä" * 100_000, piece_bytes=1_000, time_max_s=0.0)
    cited = [Citation(quote="never to be found"), Citation(start=90_000, end=90_001, quote="ä")]

    assert [each.check for each in await checked(where, "", *cited)] == [NOT_DONE, NOT_DONE]


texts = st.text(alphabet="ab \n\té€😀", max_size=60)


@settings(max_examples=150, deadline=None)
@given(texts, texts, st.integers(0, 60), st.integers(0, 60), st.integers(1, 7))
def test_a_place_is_verified_exactly_where_the_text_stands_there(
    text: str, other: str, start: int, end: int, piece_bytes: int
) -> None:
    """Exact is exact: no citation is verified that a reader would not find."""
    quote = other if other.strip() else text[start:end]
    where = desk({"x": "before", "d": text, "y": "after"}, piece_bytes=piece_bytes)
    cited = Citation(document="d", start=start, end=end, quote=quote)
    [citation] = asyncio.run(checked(where, "", cited)) or [Citation()]
    there = text[start:end]

    if start < end <= len(text) and quote:
        is_there = quote in there or (
            bool(quote.split()) and " ".join(quote.split()) in " ".join(there.split())
        )
        assert citation.verified is is_there
        if citation.check == EXACT:
            assert text[citation.start : citation.end] == quote
        elif citation.verified:
            shown = text[citation.start : citation.end]
            assert shown.split() == quote.split()
    elif start != end:
        assert citation.verified is False


@settings(max_examples=150, deadline=None)
@given(st.lists(texts, min_size=1, max_size=4), texts, st.integers(1, 7))
def test_a_search_finds_a_quote_exactly_where_it_stands_in_some_document(
    parts: list[str], quote: str, piece_bytes: int
) -> None:
    documents = {f"d{number}": part for number, part in enumerate(parts)}
    where = desk(documents, piece_bytes=piece_bytes)
    if not quote.strip() or not any(parts):
        return
    [citation] = asyncio.run(checked(where, "", Citation(quote=quote)))

    exact = [name for name, text in documents.items() if quote in text]
    spaced = " ".join(quote.split())
    is_there = any(spaced in " ".join(text.split()) for text in parts)
    assert citation.verified is (bool(exact) or is_there)
    if exact:
        assert citation.document == exact[0]
        assert documents[exact[0]][citation.start : citation.end] == quote
