"""What is claimed of the context, looked up in the context as it is stored. Nothing that the guest
or the model says of a place is believed.

A place is read and compared; a quote without one is searched for. Both take bounded time and
memory at any size of context.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import time
from collections.abc import AsyncIterator, Sequence

from fathom.orchestrator.v1.run_pb2 import Answer, Citation

from orchestrator.blobs import BlobMissingError
from orchestrator.contexts.stored_context import ContextKind, StoredContext, StoredDocument
from orchestrator.errors import ObjectStoreError
from orchestrator.runs.answers.claims import QUOTE_CHARACTERS_MAX, Claim, claims_of
from orchestrator.runs.answers.quote_search import QuoteSearch, WantedQuote, place_in_text
from orchestrator.runs.patient_blobs import PatientBlobs

_log = logging.getLogger(__name__)
SEARCHES_MAX = 100
"""Quotes without a place that are searched for, of one answer."""
PLACE_CHARACTERS_MAX = QUOTE_CHARACTERS_MAX
"""A longer place is no citation, and is not read."""
_TIME_MAX_S = 15.0
_ASCII_MAX = 0x7F
_OWN_NAME = "context"
"""What models call a context of one text."""


class CitationDesk:
    """Looks up what the answers of one run claim."""

    def __init__(
        self,
        blobs: PatientBlobs,
        context: StoredContext,
        documents: Sequence[StoredDocument],
        *,
        time_max_s: float = _TIME_MAX_S,
    ) -> None:
        """Take the context, and its documents where it has any."""
        self._blobs = blobs
        self._context = context
        self._time_max_s = time_max_s
        self._documents = list(documents) or [_only_text(context)]
        self._by_name = {document.name: document for document in self._documents}
        self._is_json = context.kind is ContextKind.JSON

    async def check(self, answer: Answer) -> None:
        """Replace an answer's citations, so far only said, by those and all that its text claims,
        looked up."""
        cited = [_claim(citation) for citation in answer.citations]
        claims = await asyncio.to_thread(
            claims_of, answer.text, is_json=answer.is_json, cited=cited
        )
        until_s = self._now_s() + self._time_max_s
        found: dict[Claim, Citation] = {}
        places: dict[str, list[Claim]] = {}
        searched: list[Claim] = []
        for claim in claims:
            document = self._document(claim)
            if claim.has_place and not self._is_json:
                if document is None or not _is_within(claim, document):
                    found[claim] = _citation(claim, Citation.CHECK_NOT_FOUND)
                elif _end(claim) - _start(claim) <= PLACE_CHARACTERS_MAX:
                    places.setdefault(document.name, []).append(claim)
            elif claim.quote.strip() and (document is not None or not claim.document):
                searched.append(claim)
            else:
                found[claim] = _citation(claim, Citation.CHECK_NOT_FOUND)
        try:
            for name, there in places.items():
                found |= await self._at_places(self._by_name[name], there, until_s)
            found |= await self._searched(searched[:SEARCHES_MAX], until_s)
        except (BlobMissingError, ObjectStoreError) as error:  # the answer is one all the same
            _log.warning("citations were not looked up", extra={"error": str(error)})
        del answer.citations[:]
        looked_up = (
            found.get(claim) or _citation(claim, Citation.CHECK_NOT_DONE) for claim in claims
        )
        # Code and the answer's text may name one place, each by another name of its document.
        answer.citations.extend(
            {each.SerializeToString(deterministic=True): each for each in looked_up}.values()
        )

    def _now_s(self) -> float:
        """Return the time; it stands still while the object store is away."""
        return time.monotonic() - self._blobs.waited_s

    def _document(self, claim: Claim) -> StoredDocument | None:
        """Return the document that a claim means; None where there is none, or none is named of
        several."""
        is_only = len(self._documents) == 1 and claim.document in ("", _OWN_NAME)
        if is_only or self._is_json:  # in which a name is a key, as far as anybody can tell
            return self._documents[0]
        return self._by_name.get(claim.document)

    async def _at_places(
        self, document: StoredDocument, claims: list[Claim], until_s: float
    ) -> dict[Claim, Citation]:
        """Compare what is claimed of places in one document; what time does not suffice for is
        left out."""
        if document.code_point_max <= _ASCII_MAX:  # a byte is a character
            texts = {
                claim: await self._read(document, _start(claim), _end(claim))
                for claim in claims
                if self._now_s() < until_s
            }
        else:
            texts = await self._decoded(document, claims, until_s)
        return {claim: _compared(claim, text, document.name) for claim, text in texts.items()}

    async def _read(self, document: StoredDocument, start: int, end: int) -> str:
        pieces = self._blobs.read(
            self._context.blob_key, offset=document.offset_bytes + start, size=end - start
        )
        return b"".join([piece async for piece in pieces]).decode("utf-8", "replace")

    async def _decoded(
        self, document: StoredDocument, claims: list[Claim], until_s: float
    ) -> dict[Claim, str]:
        """Return the texts at places, going through the document once."""
        parts: dict[Claim, list[str]] = {claim: [] for claim in claims}
        ends = max(map(_end, claims))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        base = left = 0
        async for data in self._pieces([document]):
            left += len(data)
            text = await asyncio.to_thread(decoder.decode, data, left == document.size_bytes)
            for claim, found in parts.items():
                low, high = max(_start(claim) - base, 0), _end(claim) - base
                if low < len(text) and high > 0:
                    found.append(text[low:high])
            base += len(text)
            if base >= ends or self._now_s() >= until_s:
                break
        return {claim: "".join(found) for claim, found in parts.items() if base >= _end(claim)}

    async def _searched(self, claims: list[Claim], until_s: float) -> dict[Claim, Citation]:
        """Search for quotes without a place; what time does not suffice for is left out."""
        if not claims:
            return {}
        named = {self._only_name(claim) for claim in claims}
        documents = [each for each in self._documents if None in named or each.name in named]
        wanted = {claim: WantedQuote(claim.quote, self._only_name(claim)) for claim in claims}
        search = QuoteSearch(documents, list(wanted.values()), is_json=self._is_json)
        is_whole = True
        async for data in self._pieces(documents):
            await asyncio.to_thread(search.feed, data)
            if search.is_done:
                break
            if self._now_s() >= until_s:
                is_whole = False
                break
        found = {claim: _found(claim, quote) for claim, quote in wanted.items()}
        return {
            claim: citation for claim, citation in found.items() if citation.verified or is_whole
        }

    def _only_name(self, claim: Claim) -> str | None:
        """Return the only document that a quote may stand in; None for any."""
        document = self._document(claim)
        return document.name if document else None

    async def _pieces(self, documents: Sequence[StoredDocument]) -> AsyncIterator[bytes]:
        """Yield the bytes of documents, those that stand one after the other in one reading."""
        position = 0
        while position < len(documents):
            first = documents[position]
            end = first.offset_bytes + first.size_bytes
            position += 1
            while position < len(documents) and documents[position].offset_bytes == end:
                end += documents[position].size_bytes
                position += 1
            async for piece in self._blobs.read(
                self._context.blob_key, offset=first.offset_bytes, size=end - first.offset_bytes
            ):
                yield piece


def _compared(claim: Claim, text: str, name: str) -> Citation:
    """Return what a place shows; a quote that is a part of what stands there has its own place."""
    start = _start(claim)
    citation = Citation(document=name, start=start, end=_end(claim), quote=claim.quote or text)
    if not claim.quote or claim.quote == text:
        citation.check = Citation.CHECK_EXACT
    elif (at := text.find(claim.quote)) >= 0:
        citation.start, citation.end = start + at, start + at + len(claim.quote)
        citation.check = Citation.CHECK_EXACT
    else:
        spaced, quote = " ".join(text.split()), " ".join(claim.quote.split())
        at = spaced.find(quote) if quote else -1
        citation.check = Citation.CHECK_NOT_FOUND
        if at >= 0:
            low, high = place_in_text(text, spaced, at, quote)
            citation.start, citation.end = start + low, start + high
            citation.check = Citation.CHECK_NORMALISED
    citation.verified = citation.check != Citation.CHECK_NOT_FOUND
    return citation


def _found(claim: Claim, quote: WantedQuote) -> Citation:
    """Return what searching for a quote has shown."""
    hit = quote.exact or quote.normalised
    if hit is None:
        return _citation(claim, Citation.CHECK_NOT_FOUND)
    return Citation(
        document=hit.document,
        start=hit.start,
        end=hit.end,
        quote=claim.quote,
        verified=True,
        check=Citation.CHECK_EXACT if quote.exact else Citation.CHECK_NORMALISED,
    )


def _claim(citation: Citation) -> Claim:
    """Return what code has cited; a quote without a place has one without characters."""
    if citation.start == citation.end:
        return Claim(citation.document, quote=citation.quote)
    return Claim(citation.document, citation.start, citation.end, citation.quote)


def _citation(claim: Claim, check: Citation.Check.ValueType) -> Citation:
    """Return a claim that was not verified."""
    return Citation(
        document=claim.document,
        start=claim.start or 0,
        end=claim.end or 0,
        quote=claim.quote,
        check=check,
    )


def _is_within(claim: Claim, document: StoredDocument) -> bool:
    start, end = _start(claim), _end(claim)
    return 0 <= start < end <= document.characters


def _start(claim: Claim) -> int:
    return claim.start or 0


def _end(claim: Claim) -> int:
    return claim.end or 0


def _only_text(context: StoredContext) -> StoredDocument:
    return StoredDocument(
        name="",
        offset_bytes=0,
        size_bytes=context.size_bytes,
        characters=context.shape.characters,
        code_point_max=context.shape.code_point_max,
    )
