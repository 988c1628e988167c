"""The contexts of one session on the worker's side: open blobs, and how to hand them over.

Small texts travel inline. A large one is allocated by the guest at its final size and filled
here, straight into the session's saved pages. A lazy one stays in its blob, open for as long
as the session lives.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from common.blob_index.text_index import IndexFormatError
from sandbox_service import texts
from sandbox_service.frames import Mount, Text
from sandbox_service.guest_memory import GuestMemory
from sandbox_service.texts import TextShapeError
from sandbox_service.worker import lazy_contexts
from sandbox_service.worker.guest_calls import LazyQuestion, MountOutline, TextOutline
from sandbox_service.worker.image import SessionImage
from sandbox_service.worker.lazy_contexts import LazyMount
from sandbox_service.worker.search import Tick

INLINE_BYTES_MAX = 64 << 10
"""A text of up to this size goes to the guest inline."""
_INLINE_TOTAL_BYTES = 4 << 20
_OBJECT_BYTES = 128
"""At least what a `str` and its place in a dict take besides the characters."""
_VALUE_SHARE = 8
"""A part of a lazy text that is made a `str` takes at most one in so many of the memory."""


class ContextError(Exception):
    """A context cannot be loaded as described."""

    def __init__(self, variable: str, message: str) -> None:
        super().__init__(message)
        self.variable = variable


class Contexts:
    """The blobs of a session's mounts; those that are not lazy only until they are loaded."""

    def __init__(self, mounts: list[Mount], fds: list[int], memory_bytes_max: int) -> None:
        """Take over open files: for each mount its blob, and its index where it has one."""
        self._mounts = mounts
        self._value_bytes_max = memory_bytes_max // _VALUE_SHARE
        self._fds: dict[int, list[int]] = {}
        self._lazy: dict[int, LazyMount] = {}
        rest = list(fds)
        for number, mount in enumerate(mounts):
            count = 1 + mount.has_index
            self._fds[number], rest = rest[:count], rest[count:]

    def memory_bytes(self) -> int:
        """Return the least memory that the loaded contexts take."""
        return sum(
            _OBJECT_BYTES + (0 if mount.has_index else _stored_bytes(mount, text))
            for mount in self._mounts
            for text in mount.texts
        )

    def variable(self, mount_number: int) -> str:
        """Return the variable of a context, or nothing where there is no such context."""
        return self._mounts[mount_number].variable if mount_number < len(self._mounts) else ""

    def outlines(self) -> list[MountOutline]:
        """Describe the mounts to the guest."""
        return [
            MountOutline(
                variable=mount.variable,
                kind=mount.kind,
                count=len(mount.texts),
                is_lazy=mount.has_index,
                value_bytes_max=self._value_bytes_max,
            )
            for mount in self._mounts
        ]

    def texts_from(self, mount_number: int, start: int) -> list[TextOutline]:
        """Describe the texts of a mount from a position on, as many as fit one answer."""
        mount = self._mounts[mount_number]
        outlines: list[TextOutline] = []
        inline_bytes = 0
        for number, text in enumerate(mount.texts[start:], start):
            outline = self._outline(mount_number, number, text)
            inline_bytes += _OBJECT_BYTES + (text.size_bytes if outline.inline is not None else 0)
            outlines.append(outline)
            if inline_bytes > _INLINE_TOTAL_BYTES:
                break
        return outlines

    def fill(
        self,
        mount_number: int,
        text_number: int,
        address: int,
        image: SessionImage,
        memory: GuestMemory,
    ) -> None:
        """Write a large text to the guest's memory; raises ContextError where it differs."""
        mount = self._mounts[mount_number]
        text = mount.texts[text_number]
        try:
            image.fill(
                memory, address, _stored_bytes(mount, text), self._pieces(mount_number, text)
            )
        except ValueError as error:  # TextShapeError, or more or less than was announced
            raise ContextError(mount.variable, f"{_called(mount, text)}{error}") from error

    def answer(self, question: LazyQuestion, tick: Tick) -> bytes | None:
        """Answer a cell's question about a lazy context; None where there is no such text."""
        number = question.mount
        if number >= len(self._mounts) or not self._mounts[number].has_index:
            return None
        if question.text >= len(self._mounts[number].texts):
            return None
        return lazy_contexts.answer(self._lazy_mount(number), question, tick)

    def close_loaded(self) -> None:
        """Close the blobs that nothing is asked of once the guest has them."""
        for number, mount in enumerate(self._mounts):
            if not mount.has_index:
                self._close(number)

    def close(self) -> None:
        """Close the blobs."""
        for number in list(self._fds):
            self._close(number)

    def _close(self, number: int) -> None:
        for fd in self._fds.pop(number, ()):
            os.close(fd)

    def _lazy_mount(self, number: int) -> LazyMount:
        if number not in self._lazy:
            blob, index = self._fds[number]
            self._lazy[number] = LazyMount(self._mounts[number], blob, index)
        return self._lazy[number]

    def _pieces(self, mount_number: int, text: Text) -> Iterator[bytes]:
        fd, mount = self._fds[mount_number][0], self._mounts[mount_number]
        if mount.kind == "json":
            return texts.raw_pieces(fd, text.offset_bytes, text.size_bytes)
        form = texts.form_of(text.code_point_max)
        return texts.stored_pieces(fd, text.offset_bytes, text.size_bytes, form)

    def _outline(self, mount_number: int, number: int, text: Text) -> TextOutline:
        mount = self._mounts[mount_number]
        if mount.has_index:
            return self._lazy_outline(mount_number, number, text)
        is_json = mount.kind == "json"
        inline = None
        if text.size_bytes <= INLINE_BYTES_MAX:
            inline = self._inline(mount_number, text)
        return TextOutline(
            name=text.name,
            inline=inline,
            form="raw" if is_json else texts.form_of(text.code_point_max),
            units=text.size_bytes if is_json else text.characters,
        )

    def _lazy_outline(self, mount_number: int, number: int, text: Text) -> TextOutline:
        mount = self._mounts[mount_number]
        try:
            lazy = self._lazy_mount(mount_number)
            if text.is_lazy and mount.kind != "json":
                lazy.text(number)  # a text that is not as described is best found at once
        except (TextShapeError, IndexFormatError) as error:
            raise ContextError(mount.variable, f"{_called(mount, text)}{error}") from error
        return TextOutline(
            name=text.name, inline=None, form="lazy", units=text.characters, is_lazy=text.is_lazy
        )

    def _inline(self, mount_number: int, text: Text) -> str:
        mount = self._mounts[mount_number]
        try:
            fd = self._fds[mount_number][0]
            pieces = texts.raw_pieces(fd, text.offset_bytes, text.size_bytes)
            decoded = b"".join(pieces).decode("utf-8", "replace")
        except TextShapeError as error:
            raise ContextError(mount.variable, f"{_called(mount, text)}{error}") from error
        if mount.kind != "json" and len(decoded) != text.characters:
            raise ContextError(
                mount.variable,
                f"{_called(mount, text)}{len(decoded)} characters, not {text.characters}",
            )
        return decoded


def _stored_bytes(mount: Mount, text: Text) -> int:
    if mount.kind == "json":
        return text.size_bytes
    return texts.size_of(texts.form_of(text.code_point_max), text.characters)


def _called(mount: Mount, text: Text) -> str:
    return f"document {text.name!r}: " if mount.kind == "documents" else ""
