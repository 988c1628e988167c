"""Sources of a synthesis: what each is, its sections, and the passages that bear on a question."""

# mypy: ignore-errors

import collections
import math
import re

_SECTION = re.compile(
    r"(?:\A|\n[ \t]*\n)(?:#{1,4}[ \t]+|\d+(?:\.\d+)*\.?[ \t]+)?([A-Z][^\n.]{1,69}[^\n.:])"
    r"(?=\n(?:([=~^\"*-])\2{2,}[ \t]*\n|[ \t]*\n))"
)
"""A line by itself, or underlined, as in Markdown, reStructuredText and plain papers."""
_TITLE = re.compile(r"^title:[ \t]*(\S.*)$", re.IGNORECASE | re.MULTILINE)
_ABSTRACT = re.compile(
    r"\babstract[.:\s]*\n?[=~^*-]*\s*(.{40,1500}?)(?:\n\s*\n|\Z)", re.IGNORECASE | re.DOTALL
)
_WORD = re.compile(r"[^\W\d_]{3,}")


class Source:
    """A source: .document, .title, .year, .abstract and .characters."""

    def __init__(self, document, text):
        lines_ = [line.strip("# \t") for line in text[:4000].split("\n") if line.strip("# \t")]
        years = re.findall(r"\b(?:19|20)\d\d\b", text[:3000])
        found, titled = _ABSTRACT.search(text[:8000]), _TITLE.search(text[:2000])
        self.document, self.characters = document, len(text)
        self.title = (titled[1] if titled else lines_[0] if lines_ else document)[:200]
        self.year = int(years[0]) if years else None
        self.abstract = " ".join((found[1] if found else text[:600]).split())

    def __repr__(self):
        return f"{self.document}: {self.title[:80]!r} ({self.year or 'no year'})"


def sources():
    """Return what each document of `context` is: title, year, abstract, size."""
    return [Source(name, str(context[name][:])) for name in _names()]


def sections(document):
    """Return the sections of a source: triples of heading, start and end."""
    text = str(_text(document)[:])
    heads = [match for match in _SECTION.finditer(text) if len(match[1].split()) <= 10]
    ends = [*(match.start(1) for match in heads[1:]), len(text)]
    return [(head[1].strip(), head.start(1), end) for head, end in zip(heads, ends)]


def relevant(question, limit=20, size=900):
    """Return the passages nearest to a question by their words, the best first."""
    asked = {_stem(word) for word in _WORD.findall(question.lower())}
    parts = [part for name in _names() for part in _paragraphs(name, size)]
    bags = [collections.Counter(_stem(w) for w in _WORD.findall(p["text"].lower())) for p in parts]
    sizes = [sum(bag.values()) for bag in bags]
    mean = (sum(sizes) / len(sizes)) if sizes else 1.0
    seen = {word: sum(word in bag for bag in bags) for word in asked}
    for part, bag, length in zip(parts, bags, sizes):
        part["score"] = round(
            sum(
                math.log(1 + (len(parts) - seen[word] + 0.5) / (seen[word] + 0.5))
                * bag[word]
                * 2.2
                / (bag[word] + 1.2 * (0.25 + 0.75 * length / mean))
                for word in asked
                if bag[word]
            ),
            2,
        )
    best = sorted((p for p in parts if p["score"] > 0), key=lambda p: -p["score"])
    return best[:limit]


def figures(pattern=r"\d[\d.,]*\s?%", limit=200):
    """Return sentences with figures, percentages by default: dicts with document, start and end."""
    found = []
    for match in grep(pattern, limit=limit):
        name = match.document or ""
        text = _text(name)
        low = max(match.start - 250, 0)
        window = str(text[low : match.end + 250])
        at = match.start - low
        begin = max((m.end() for m in re.finditer(r"[.!?]\s+|\n\s*\n", window[:at])), default=0)
        stop = re.search(r"[.!?](?=\s|$)|\n\s*\n", window[at + len(match.text) :])
        end = at + len(match.text) + (stop.end() if stop else 0)
        part = window[begin:end].strip()
        start = low + window.index(part, begin)
        if found and (found[-1]["document"], found[-1]["start"]) == (name, start):
            continue  # a sentence with two figures
        found.append({"document": name, "start": start, "end": start + len(part), "text": part})
    return found


def source_table(rows):
    """Return a Markdown table of rows, dicts with the same keys, for the answer's text."""
    if not rows:
        return ""
    keys = list(rows[0])
    cells = [
        [str(row.get(key, "")).replace("|", "/").replace("\n", " ") for key in keys] for row in rows
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [keys, ["---"] * len(keys), *cells])


def _names():
    return list(context) if hasattr(context, "items") else [""]


def _text(document):
    return context[document] if hasattr(context, "items") else context


def _paragraphs(document, size):
    text = str(_text(document)[:])
    begin = 0
    for match in re.finditer(r"\n\s*\n|\Z", text):
        if match.start() - begin >= size or match.end() == len(text):
            part = text[begin : match.start()]
            lead = len(part) - len(part.lstrip())
            if part.strip():
                start, body = begin + lead, part.strip()
                yield {"document": document, "start": start, "end": start + len(body), "text": body}
            begin = match.end()


def _stem(word):
    return re.sub(r"(ations?|ing|ies|es|ed|s)$", "", word) or word
