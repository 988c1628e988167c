"""Contexts for benchmarks: texts of several kinds, written where the service finds its blobs."""

from __future__ import annotations

import random
from pathlib import Path

from fathom.sandbox.v1 import session_pb2

NEEDLE = "the silver heron of Lake Corrib"
"""Stands once in a log and in a sparse text, at the very end."""
_END = f"{NEEDLE}\n".encode()
_BLOCK_BYTES = 16 << 20
_ISLAND_BYTES = 1 << 20
_WORDS = ("request", "served", "cache", "retry", "timeout", "peer", "closed", "user", "shard")
_LINES = {
    "ascii": "A line of plain text that stands for all the others like it, number 0123456789.\n",
    "latin1": "Là où la rivière s'élargit, les pêcheurs préfèrent l'été à l'hiver; déjà, ça va.\n",
    "cjk": "在河流变宽的地方,渔民更喜欢夏天而不是冬天。川が広がるところでは、漁師は夏を好む。\n",
    "emoji": "😀🎉 ship it 🚀🚀 今日は良い日 👍🏽 thanks 🙏 see you ☕🌧️🌈 tomorrow 😴😴\n",
}


class Blobs:
    """The object store's folder."""

    def __init__(self, folder: Path) -> None:
        """Make the folder."""
        self.folder = folder
        (folder / "bench").mkdir(parents=True)

    def text(self, kind: str, size_bytes: int) -> session_pb2.ContextMount:
        """Write a text and describe it.

        Its kind says how Python stores it: `ascii` and `latin1` with one byte a character, `cjk`
        with two, `emoji` with four.
        """
        line = _LINES[kind]
        encoded = line.encode()
        count, rest = divmod(size_bytes, len(encoded))
        (self.folder / _key(kind)).write_bytes(encoded * count + b" " * rest)
        return _mount(kind, size_bytes, count * len(line) + rest, ord(max(line)))

    def log(self, size_bytes: int) -> session_pb2.ContextMount:
        """Write lines as a server logs them: 16 MiB of different ones, over and over."""
        block = _log_lines(_BLOCK_BYTES)
        left = size_bytes - len(_END)
        with (self.folder / _key("log")).open("wb") as file:
            while left:
                left -= file.write(block[:left])
            file.write(_END)
        return _mount("log", size_bytes, size_bytes, ord("~"))

    def sparse(self, size_bytes: int, step_bytes: int) -> session_pb2.ContextMount:
        """Write a text of NUL characters, which takes no disk, with 1 MiB of log at each step."""
        block = _log_lines(_ISLAND_BYTES)
        with (self.folder / _key("sparse")).open("wb") as file:
            for start in range(0, size_bytes - len(block) - len(_END), step_bytes):
                file.seek(start)
                file.write(block)
            file.seek(size_bytes - len(_END))
            file.write(_END)
        return _mount("sparse", size_bytes, size_bytes, ord("~"))

    def remove(self, mount: session_pb2.ContextMount) -> None:
        """Delete a blob that is needed no more."""
        (self.folder / mount.blob_key).unlink()


def _log_lines(size_bytes: int) -> bytes:
    source = random.Random(7)
    lines: list[str] = []
    left = size_bytes
    while left > 0:
        time = f"2026-11-{source.randrange(1, 29):02}T{source.randrange(24):02}:00:00Z"
        words = " ".join(source.choices(_WORDS, k=source.randrange(3, 12)))
        where = f"10.{source.randrange(256)}.{source.randrange(256)}.{source.randrange(256)}"
        lines.append(f"{time} INFO {where} {words} in {source.randrange(10_000)} ms\n")
        left -= len(lines[-1])
    return "".join(lines).encode()[: size_bytes - 1] + b"\n"


def _key(name: str) -> str:
    return f"bench/{name}"


def _mount(
    name: str, size_bytes: int, characters: int, code_point_max: int
) -> session_pb2.ContextMount:
    return session_pb2.ContextMount(
        variable="context",
        kind=session_pb2.ContextMount.KIND_TEXT,
        blob_key=_key(name),
        size_bytes=size_bytes,
        text_shape=session_pb2.TextShape(characters=characters, code_point_max=code_point_max),
    )
