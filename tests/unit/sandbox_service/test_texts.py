"""From UTF-8 to the code units of a `str`, checked against Python's own decoding."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_service import texts

ENCODINGS = {"ascii": "ascii", "latin1": "latin-1", "ucs2": "utf-16-le", "ucs4": "utf-32-le"}


class Blob:
    """Bytes behind a descriptor."""

    def __init__(self, data: bytes) -> None:
        self.fd = os.memfd_create("blob")
        os.write(self.fd, data)

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make borders between pieces fall inside characters."""
    monkeypatch.setattr(texts, "PIECE_BYTES", 3)
    yield


def stored(data: bytes, form: str) -> bytes:
    with Blob(data) as fd:
        return b"".join(texts.stored_pieces(fd, 0, len(data), form))


@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda s: s.encode("utf-8", "replace")))
def test_pieces_decode_as_the_whole_does(data: bytes) -> None:
    """Malformed sequences are replaced as `errors="replace"` does, across pieces too."""
    text = data.decode("utf-8", "replace")
    form = texts.form_of(max(map(ord, text), default=0))

    units = stored(data, form)

    assert units.decode(ENCODINGS[form]) == text
    assert len(units) == texts.size_of(form, len(text))


@pytest.mark.parametrize(
    ("text", "form"),
    [("é", "ascii"), ("€", "latin1"), ("😀", "ucs2"), ("€abc", "ascii"), ("abc😀", "latin1")],
)
def test_a_character_that_does_not_fit_is_an_error(text: str, form: str) -> None:
    """A wrong description must not become a broken `str`."""
    with pytest.raises(texts.TextShapeError, match="larger"):
        stored(text.encode(), form)


@pytest.mark.parametrize(
    ("text", "form"), [("abc", "latin1"), ("é", "ucs2"), ("€", "ucs4"), ("", "latin1")]
)
def test_a_form_wider_than_needed_is_an_error(text: str, form: str) -> None:
    """Python compares by form first: a `str` wider than it need be equals no other."""
    with pytest.raises(texts.TextShapeError, match="needs"):
        stored(text.encode(), form)


def test_a_blob_shorter_than_said_is_an_error() -> None:
    with Blob(b"abc") as fd, pytest.raises(texts.TextShapeError, match="2 bytes early"):
        list(texts.raw_pieces(fd, 0, 5))


def test_a_range_within_a_blob_is_read_alone() -> None:
    with Blob(b"0123456789") as fd:
        assert b"".join(texts.raw_pieces(fd, 2, 5)) == b"23456"


FORMS: list[tuple[int, Literal["ascii", "latin1", "ucs2", "ucs4"]]] = [
    (0, "ascii"),
    (0x7F, "ascii"),
    (0x80, "latin1"),
    (0xFF, "latin1"),
    (0x100, "ucs2"),
    (0xFFFF, "ucs2"),
    (0x10000, "ucs4"),
    (0x10FFFF, "ucs4"),
]


@pytest.mark.parametrize(("code_point_max", "form"), FORMS)
def test_the_form_follows_from_the_largest_code_point(code_point_max: int, form: str) -> None:
    assert texts.form_of(code_point_max) == form
