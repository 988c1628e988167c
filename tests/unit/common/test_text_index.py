"""The index of a blob: where decoding may begin anew, and what is no index."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.blob_index import text_index
from common.blob_index.source import UnindexableError
from common.blob_index.text_index import BLOCK_BYTES, IndexFormatError, TextIndex


@pytest.fixture
def files() -> Iterator[tuple[int, int]]:
    """Two empty files: of a blob and of its index."""
    fds = os.memfd_create("blob"), os.memfd_create("index")
    yield fds
    for fd in fds:
        os.close(fd)


@given(st.binary(max_size=12), st.lists(st.sampled_from(b"\x80\xbfa\xe2\xf0\xc3"), max_size=12))
def test_decoding_may_begin_anew_where_it_is_said(before: bytes, after: list[int]) -> None:
    following = bytes(after)

    shift = text_index.restart_shift(following)

    whole = before + following
    cut = len(before) + shift
    parts = whole[:cut].decode("utf-8", "replace") + whole[cut:].decode("utf-8", "replace")
    assert parts == whole.decode("utf-8", "replace")


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("unit", ["a", "\u20ac", "\U0001f600\n"])
def test_counts_are_right_at_the_borders_of_blocks(
    files: tuple[int, int], unit: str, extra: int
) -> None:
    blob, target = files
    text = unit * ((2 * BLOCK_BYTES + extra) // len(unit.encode()))
    data = text.encode() + b"\n" * extra
    os.write(blob, data)
    text_index.build(blob, len(data), target)

    index = TextIndex.checked(target, len(data))

    assert index.blocks == -(-len(data) // BLOCK_BYTES)
    assert index.characters_before(index.blocks) == len(data.decode())
    assert index.line_feeds_before(index.blocks) == data.count(b"\n")
    assert index.is_ascii == data.isascii()
    assert index.is_well_formed


def test_bytes_that_are_each_malformed_are_not_taken_for_ascii(files: tuple[int, int]) -> None:
    """They have as many characters as bytes, too."""
    blob, target = files
    os.write(blob, b"\xff" * 100)
    text_index.build(blob, 100, target)

    index = TextIndex(target, 100)

    assert index.characters_before(index.blocks) == 100
    assert not index.is_ascii
    assert not index.is_well_formed


@pytest.mark.parametrize("damage", ["header", "entry", "short", "long", "empty"])
def test_a_damaged_index_is_no_index(files: tuple[int, int], damage: str) -> None:
    blob, target = files
    os.write(blob, b"x" * 200_000)
    text_index.build(blob, 200_000, target)
    size = os.fstat(target).st_size
    if damage in ("header", "entry"):
        os.pwrite(target, b"\x07", 3 if damage == "header" else size - 3)
    else:
        os.ftruncate(target, {"short": size - 1, "long": size + 1, "empty": 0}[damage])

    with pytest.raises(IndexFormatError):
        TextIndex.checked(target, 200_000)


def test_an_index_of_another_blob_is_none(files: tuple[int, int]) -> None:
    blob, target = files
    os.write(blob, b"x" * 10)
    text_index.build(blob, 10, target)

    with pytest.raises(IndexFormatError, match="another"):
        TextIndex(target, 11)


def test_a_blob_that_is_shorter_than_said_is_an_error(files: tuple[int, int]) -> None:
    blob, target = files
    os.write(blob, b"x" * 10)

    with pytest.raises(UnindexableError, match="1 bytes early"):
        text_index.build(blob, 11, target)
