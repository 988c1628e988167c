"""Contracts: their clauses, defined terms and references, each with its place."""

# mypy: ignore-errors

import re

_HEADING = re.compile(
    r"^[ \t]*(?P<number>(?:(?:article|section|clause|schedule|annex|exhibit|appendix)\s+)?"
    r"(?:\d+(?:\.\d+)*|[IVXLC]+|\([a-z0-9]{1,3}\)|[A-Z]))(?P<mark>[.):]|\s*[-–—:]|(?=\s))[ \t]+"
    r"(?P<title>\S[^\n]*)$",
    re.IGNORECASE | re.MULTILINE,
)
_NAMED = re.compile(
    r"^[ \t]*(?:article|section|clause|schedule|annex|exhibit|appendix)\b", re.IGNORECASE
)


class Clause:
    """A clause: .number, .title, .text, and .document, .start and .end for where it stands."""

    def __init__(self, document, number, title, text, start):
        self.document, self.number, self.title = document, number, title
        self.text, self.start, self.end = text, start, start + len(text)

    def __repr__(self):
        return f"<{self.number} {self.title[:60]!r}, {len(self.text):,} characters>"

    def quote(self, words):
        """Return the sentence of the clause that has these words, with its place."""
        at = " ".join(self.text.split()).lower().find(" ".join(words.split()).lower())
        if at < 0:
            raise ValueError(f"clause {self.number} does not have {words!r}")
        pattern = r"\s+".join(map(re.escape, words.split()))
        hit = re.search(pattern, self.text, re.IGNORECASE)
        low = max((m.end() for m in re.finditer(r"[.;:]\s+", self.text[: hit.start()])), default=0)
        after = re.search(r"[.;](?=\s|$)", self.text[hit.end() :])
        high = hit.end() + (after.end() if after else 0)
        part = self.text[low:high].strip()[:2000]
        start = self.start + self.text.index(part, low)
        return {"quote": part, "document": self.document, "start": start, "end": start + len(part)}


def clauses(document=""):
    """Return the clauses of a contract in order; name the document where there are several."""
    text = _text(document)
    heads = [m for m in _HEADING.finditer(text) if _is_heading(m)]
    found = []
    if heads and text[: heads[0].start()].strip():
        found.append(Clause(document, "0", "before the first clause", text[: heads[0].start()], 0))
    for head, end in zip(heads, [*(m.start() for m in heads[1:]), len(text)]):
        title = head["title"].strip()[:200]
        part = text[head.start() : end].rstrip()
        found.append(Clause(document, head["number"].strip(), title, part, head.start()))
    return found or [Clause(document, "1", "whole text", text, 0)]


def defined_terms(document=""):
    """Return what a contract defines: a dict from the term to the words that define it."""
    text = _text(document)
    terms = {}
    for match in re.finditer(
        r"[\"“]([^\"”\n]{2,60})[\"”]\s+(?:shall mean|means|is|includes)\s", text
    ):
        terms.setdefault(match[1], " ".join(text[match.start() : match.end() + 300].split()))
    for match in re.finditer(r"\((?:the |each an? |an? )?[\"“]([^\"”\n]{2,60})[\"”]\)", text):
        low = max(match.start() - 250, 0)
        terms.setdefault(match[1], " ".join(text[low : match.end()].split()))
    return terms


def undefined_terms(document=""):
    """Return capitalised terms that are used at least three times and defined nowhere, by count."""
    text = _text(document)
    defined = {term.lower() for term in defined_terms(document)}
    counts = {}
    for match in re.finditer(r"(?<=[a-z,;] )([A-Z][a-z]+(?: [A-Z][a-z]+){0,3})", text):
        counts[match[1]] = counts.get(match[1], 0) + 1
    singular = {term for term in counts if term.lower() not in defined}
    kept = {t: n for t, n in counts.items() if t in singular and n >= 3}
    return dict(sorted(kept.items(), key=lambda item: -item[1]))


def references(document=""):
    """Return references to clauses: where each stands, what it names, and whether that is there."""
    parts = clauses(document)
    known = {re.sub(r"[^\w.]", "", part.number.split()[-1]).rstrip(".").lower() for part in parts}
    found = []
    for part in parts:
        named = re.finditer(
            r"\b(?:section|clause|article)s?\s+(\d+(?:\.\d+)*)", part.text, re.IGNORECASE
        )
        found += [
            (part.number, match[0], match[1].lower() in known)
            for match in named
            if match.start() > len(part.number)
        ]
    return found


def find_clauses(pattern, document=""):
    """Return the clauses whose text has a pattern, in order, without regard to case."""
    return [part for part in clauses(document) if re.search(pattern, part.text, re.IGNORECASE)]


def _is_heading(match):
    """A line that begins like a heading and is not the middle of a sentence."""
    title, number = match["title"].strip(), match["number"]
    if _NAMED.match(match[0]):
        return bool(match["mark"].strip()) or title[:1].isupper()
    if not match["mark"].strip() and "." not in number:
        return False
    return title[:1].isupper() or title[:1] in '"“('


def _text(document):
    if hasattr(context, "items"):
        if not document:
            raise ValueError(f"name the document, one of {list(context)[:20]}")
        return str(context[document][:])
    return str(context[:])
