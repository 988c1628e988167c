"""Turns a blob's UTF-8 into the code units that Python stores for a `str`, piece by piece.

Malformed sequences become U+FFFD exactly as `bytes.decode("utf-8", "replace")` has it. What a
blob is said to hold is checked on the way: a wrong description is an error, never a bad `str`.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator

PIECE_BYTES = 256 << 10
_ENCODINGS = {"ascii": "ascii", "latin1": "latin-1", "ucs2": "utf-16-le", "ucs4": "utf-32-le"}
_WIDTHS = {"ascii": 1, "latin1": 1, "ucs2": 2, "ucs4": 4}
_NARROWER = {"latin1": "ascii", "ucs2": "latin-1"}
"""The encoding that a text of a form must not fit, or Python would not compare it equal."""


class TextShapeError(ValueError):
    """A blob does not hold the text that it was said to hold."""


def form_of(code_point_max: int) -> str:
    """Return how Python stores a text with this largest code point."""
    if code_point_max < 0x80:
        return "ascii"
    if code_point_max < 0x100:
        return "latin1"
    return "ucs2" if code_point_max < 0x10000 else "ucs4"


def size_of(form: str, characters: int) -> int:
    """Return the bytes that the characters of a text take."""
    return _WIDTHS[form] * characters


def raw_pieces(fd: int, offset_bytes: int, size_bytes: int) -> Iterator[bytes]:
    """Yield a range of a file; raises TextShapeError where the file is shorter."""
    end = offset_bytes + size_bytes
    while offset_bytes < end:
        piece = os.pread(fd, min(PIECE_BYTES, end - offset_bytes), offset_bytes)
        if not piece:
            raise TextShapeError(f"the blob ends {end - offset_bytes} bytes early")
        offset_bytes += len(piece)
        yield piece


def whole_range(fd: int, offset_bytes: int, size_bytes: int) -> bytes:
    """Return a range of a file at once; raises TextShapeError where the file is shorter."""
    data = os.pread(fd, size_bytes, offset_bytes)
    if len(data) == size_bytes:
        return data
    return b"".join(raw_pieces(fd, offset_bytes, size_bytes))


def stored_pieces(fd: int, offset_bytes: int, size_bytes: int, form: str) -> Iterator[bytes]:
    """Yield the code units of the text that a range of a file decodes to.

    Raises TextShapeError where the text does not have this form.
    """
    if form == "ascii":
        yield from _ascii_pieces(fd, offset_bytes, size_bytes)
        return
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    narrower = _NARROWER.get(form)
    is_wide = False
    for piece in _with_end(raw_pieces(fd, offset_bytes, size_bytes)):
        text = decoder.decode(piece or b"", final=piece is None)
        is_wide = is_wide or not _fits(text, narrower)
        yield _encoded(text, form)
    if not is_wide:
        raise TextShapeError(f"no character needs {form}")


def _ascii_pieces(fd: int, offset_bytes: int, size_bytes: int) -> Iterator[bytes]:
    for piece in raw_pieces(fd, offset_bytes, size_bytes):
        if not piece.isascii():
            raise TextShapeError("a character is larger than ascii has")
        yield piece


def _with_end(pieces: Iterator[bytes]) -> Iterator[bytes | None]:
    yield from pieces
    yield None


def _encoded(text: str, form: str) -> bytes:
    try:
        units = text.encode(_ENCODINGS[form])
    except UnicodeEncodeError:
        units = b""
    # UTF-16 has pairs for what two bytes cannot hold; a `str` does not.
    if len(units) != size_of(form, len(text)):
        raise TextShapeError(f"a character is larger than {form} has")
    return units


def _fits(text: str, narrower: str | None) -> bool:
    """Tell whether a text would fit the next narrower form."""
    if narrower is None:
        return max(text, default="\0") < "\U00010000"
    try:
        text.encode(narrower)
    except UnicodeEncodeError:
        return False
    return True
