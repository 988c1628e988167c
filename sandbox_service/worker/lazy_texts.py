"""A text that stays in its blob: its characters and lines found through the index.

Positions are bytes of the blob on this side and characters on the guest's. The blob is read,
never mapped: one that is cut short underneath is an error then and no fatal signal.
"""

from __future__ import annotations

import os
from bisect import bisect_right

from common.blob_index.text_index import BLOCK_BYTES, RESTART_BYTES, TextIndex, restart_shift
from sandbox_service import texts


class LazyText:
    """A range of a blob's bytes, seen as the characters that it decodes to."""

    def __init__(self, fd: int, index: TextIndex, offset_bytes: int, size_bytes: int) -> None:
        """Describe a range; reads at most a block at each of its ends."""
        self._fd = fd
        self._index = index
        self.start = offset_bytes
        """First byte."""
        self.stop = offset_bytes + size_bytes
        """Byte after the last one."""
        self.is_ascii = index.is_ascii
        """Whether all of its blob is ASCII."""
        self.is_plain = index.is_ascii or (index.is_well_formed and self._is_cut_well())
        """Whether its bytes are good UTF-8 as they are."""
        # What stands before the first boundary within the range is counted by hand: decoding
        # from the range's start may differ from decoding the blob up to there.
        self._first = -(-offset_bytes // BLOCK_BYTES)
        self._last = self.stop // BLOCK_BYTES
        self._head_end = min(self._boundary(self._first), self.stop)
        head = self.read(self.start, self._head_end)
        self._head_characters = _length(head)
        self._head_line_feeds = head.count(b"\n")
        self.characters = self.characters_before(self.stop)
        """Characters of the whole range."""
        self.line_feeds = self.line_feeds_before(self.stop)
        """Line feeds of the whole range."""

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes; raises texts.TextShapeError where the blob has become shorter."""
        return texts.whole_range(self._fd, start, stop - start)

    def clean(self, start: int, stop: int) -> bytes:
        """Return the text between two places where decoding may begin anew, as good UTF-8."""
        data = self.read(start, stop)
        if self.is_plain or data.isascii():
            return data
        return data.decode("utf-8", "replace").encode()

    def read_into(self, buffer: bytearray, start: int, stop: int) -> int:
        """Read bytes into a buffer that is large enough; return how many.

        Raises texts.TextShapeError where the blob has become shorter.
        """
        size = os.preadv(self._fd, [memoryview(buffer)[: stop - start]], start)
        if size != stop - start:
            raise texts.TextShapeError(f"the blob ends {stop - start - size} bytes early")
        return size

    def restart_from(self, position: int) -> int:
        """Return the first byte at or after a position where decoding may begin anew."""
        if position <= self.start:
            return self.start
        if position >= self.stop or self._index.is_ascii:
            return min(position, self.stop)
        return position + restart_shift(
            self.read(position, min(position + RESTART_BYTES, self.stop))
        )

    def characters_before(self, position: int) -> int:
        """Return the characters before a byte that begins one."""
        if position <= self._head_end:
            return _length(self.read(self.start, position))
        block, boundary = self._block_at(position)
        whole = self._index.characters_before(block) - self._index.characters_before(self._first)
        return self._head_characters + whole + _length(self.read(boundary, position))

    def line_feeds_before(self, position: int) -> int:
        """Return the line feeds before a byte."""
        if position <= self._head_end:
            return self.read(self.start, position).count(b"\n")
        block, boundary = self._block_at(position)
        whole = self._index.line_feeds_before(block) - self._index.line_feeds_before(self._first)
        return self._head_line_feeds + whole + self.read(boundary, position).count(b"\n")

    def byte_of_character(self, number: int) -> int:
        """Return the byte that begins a character, counted from 0; the end for any beyond."""
        if number >= self.characters:
            return self.stop
        if number < self._head_characters:
            return self.start + _byte_offset(self.read(self.start, self._head_end), number)
        before_first = self._index.characters_before(self._first)
        target = number - self._head_characters + before_first
        block = self._index.block_of_character(target, self._first, self._last)
        start = self._boundary(block)
        data = self.read(start, min(self._boundary(block + 1), self.stop))
        return start + _byte_offset(data, target - self._index.characters_before(block))

    def byte_of_line(self, number: int) -> int:
        """Return the byte after a number of line feeds; the end where there are not as many."""
        if number > self.line_feeds:
            return self.stop
        if number <= self._head_line_feeds:
            return self.start + _after_line_feed(self.read(self.start, self._head_end), number)
        before_first = self._index.line_feeds_before(self._first)
        target = number - self._head_line_feeds + before_first
        block = self._index.block_of_line_feed(target, self._first, self._last)
        start = self._boundary(block)
        data = self.read(start, min(self._boundary(block + 1), self.stop))
        return start + _after_line_feed(data, target - self._index.line_feeds_before(block))

    def _is_cut_well(self) -> bool:
        """Tell whether a good blob is cut before a character at both ends of the range."""
        ends = (
            self.read(at, min(at + 1, self._index.size_bytes)) for at in (self.start, self.stop)
        )
        return not any(restart_shift(byte) for byte in ends)

    def _block_at(self, position: int) -> tuple[int, int]:
        """Return the block that a position belongs to and where it begins."""
        block = min(position // BLOCK_BYTES, self._index.blocks)
        boundary = self._boundary(block)
        if boundary > position:  # among the few bytes that belong to the block before
            block -= 1
            boundary = self._boundary(block)
        return block, boundary

    def _boundary(self, block: int) -> int:
        """Return where a block begins, as the index has it."""
        nominal = min(block * BLOCK_BYTES, self._index.size_bytes)
        if self._index.is_ascii or not block:
            return nominal
        following = self.read(nominal, min(nominal + RESTART_BYTES, self._index.size_bytes))
        return nominal + restart_shift(following)


def _length(data: bytes) -> int:
    return len(data) if data.isascii() else len(data.decode("utf-8", "replace"))


def _byte_offset(data: bytes, characters: int) -> int:
    """Return where in the bytes a number of characters ends."""
    if data.isascii():
        return characters
    text = data.decode("utf-8", "replace")
    # U+FFFD takes three bytes and what it stands for at most three: the lengths agree only
    # where each of them agrees.
    if len(text.encode()) == len(data):
        return len(text[:characters].encode())
    # A part of a sequence decodes to one character as the whole of it does, so the characters
    # of ever longer beginnings only grow, and the longest one that has as many is it.
    beginnings = range(len(data) + 1)
    return bisect_right(beginnings, characters, key=lambda end: _length(data[:end])) - 1


def _after_line_feed(data: bytes, number: int) -> int:
    position = 0
    for _ in range(number):
        position = data.index(b"\n", position) + 1
    return position
