"""The demo's context: a large text of mixed kinds, with one needle and many records in it.

The same seed and sizes give the same bytes on every version of Python: of the generator only
`random()` and what is drawn from it are used.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fathom_demo.background import Background
from fathom_demo.feedback import CATEGORIES, draw_categories, record_line
from fathom_demo.needle import Needle, draw_needle

DEFAULT_LINES = 1_000_000
DEFAULT_RECORDS = 3_000

_SECTION_LINES = 5_000
_ROOM_LINES = 200
"""Lines that must be left beside the records: for the needle, its decoys and some other text."""


@dataclass(frozen=True)
class CorpusTruth:
    """What is known of a corpus from its making; the models that are asked never see it."""

    seed: int
    """What the text follows from, together with the two sizes."""
    lines: int
    """Lines of the text, each with its line end."""
    records: int
    """Feedback records among them."""
    size_bytes: int
    """Size of the text in UTF-8."""
    sha256: str
    """Digest of those bytes, in hex."""
    needle_place: str
    """The place whose vault code the search question asks for."""
    needle_code: str
    """The right answer; it stands once in the text."""
    counts: dict[str, int]
    """The right number of records for each category."""


def write_corpus(
    path: Path, seed: int, *, lines: int = DEFAULT_LINES, records: int = DEFAULT_RECORDS
) -> CorpusTruth:
    """Write a corpus of exactly `lines` lines and return the truth about it.

    The file appears under its name only when it is whole. Raises ValueError when the records
    leave fewer than 200 lines for the rest.
    """
    if records < 0 or lines < records + _ROOM_LINES:
        raise ValueError(f"{records} records do not fit in {lines} lines beside {_ROOM_LINES}")
    rng = Random(seed)
    needle = draw_needle(rng)
    categories = draw_categories(rng, records)
    digest = hashlib.sha256()
    size_bytes = 0
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        for section in _sections(rng, lines, needle, categories):
            data = ("\n".join(section) + "\n").encode()
            digest.update(data)
            size_bytes += file.write(data)
    unfinished.replace(path)
    counted = Counter(categories)
    return CorpusTruth(
        seed=seed,
        lines=lines,
        records=records,
        size_bytes=size_bytes,
        sha256=digest.hexdigest(),
        needle_place=needle.place,
        needle_code=needle.code,
        counts={category: counted[category] for category in CATEGORIES},
    )


def _sections(
    rng: Random, lines: int, needle: Needle, categories: list[str]
) -> Iterator[list[str]]:
    """Yield the text in lists of lines, with the special blocks spread over all of it."""
    background = Background(rng)
    special: list[tuple[str, ...]] = [
        (record_line(rng, 10_001 + number, category),) for number, category in enumerate(categories)
    ]
    for block in (needle.block, *needle.decoys):
        special.insert(int(rng.random() * (len(special) + 1)), block)
    room = lines - sum(map(len, special))
    parts = max(1, lines // _SECTION_LINES)
    for part in range(parts):
        inserts = special[part * len(special) // parts : (part + 1) * len(special) // parts]
        plain = (part + 1) * room // parts - part * room // parts
        yield _woven(rng, _plain_blocks(background, plain), inserts)


def _plain_blocks(background: Background, lines: int) -> list[list[str]]:
    """Return ordinary blocks of exactly `lines` lines in all; a log burst fills the end."""
    blocks: list[list[str]] = []
    while lines > 0:
        block = background.block()
        if len(block) > lines:
            block = background.log_lines(lines)
        blocks.append(block)
        lines -= len(block)
    return blocks


def _woven(rng: Random, blocks: list[list[str]], inserts: list[tuple[str, ...]]) -> list[str]:
    """Join blocks with the inserts put between them at random places, in their order."""
    places = sorted(int(rng.random() * (len(blocks) + 1)) for _ in inserts)
    woven: list[str] = []
    done = 0
    for place, insert in zip(places, inserts, strict=True):
        for block in blocks[done:place]:
            woven.extend(block)
        woven.extend(insert)
        done = place
    for block in blocks[done:]:
        woven.extend(block)
    return woven


def main() -> None:
    """Write a corpus and print the truth about it as one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m fathom_demo.corpus", description=__doc__)
    parser.add_argument("path", type=Path, help="file to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lines", type=int, default=DEFAULT_LINES)
    parser.add_argument("--records", type=int, default=DEFAULT_RECORDS)
    options = parser.parse_args()
    try:
        truth = write_corpus(
            options.path, options.seed, lines=options.lines, records=options.records
        )
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(dataclasses.asdict(truth), ensure_ascii=False))


if __name__ == "__main__":
    main()
