"""A chat-completions endpoint over a bare socket: the least that asking can cost. It serves as
the floor under the gateway's figures, and asks a peer that speaks the same protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Sequence

import orjson

_FIRST_CONTENT = re.compile(rb'"content": ?"[^"]')
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_GOOD = b"HTTP/1.1 200 "
_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_READ_BYTES = 1 << 16


class HttpEndpoint:
    """One endpoint; each exchange under way has a connection, which is used again after it."""

    def __init__(self, address: str, *, model: str, stream_model: str, path: str, key: str) -> None:
        """`stream_model` is asked for streams."""
        self._address = address
        self._model = model
        self._stream_model = stream_model
        self._head = f"POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n"
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.connections = 0
        """Opened so far."""

    async def ask(self, texts: Sequence[str]) -> None:
        """Have messages answered whole; raises RuntimeError where they are not."""
        async with self._exchange(self._request(self._model, texts)) as reader:
            head = await reader.readuntil(_HEAD_END)
            length = _LENGTH.search(head)
            if length is None:
                body = await reader.readuntil(_LAST_CHUNK)
            else:
                body = await reader.readexactly(int(length[1]))
        if not head.startswith(_GOOD) or not _FIRST_CONTENT.search(body):
            raise RuntimeError(f"{self._address} did not answer: {head!r} {body!r}")

    async def first_piece_s(self, texts: Sequence[str]) -> float:
        """Have messages answered in pieces; return how long the first one took, after the last."""
        request = self._request(self._stream_model, texts, stream=True)
        started = time.perf_counter()
        first = None
        received = b""
        async with self._exchange(request) as reader:
            while not received.endswith(_LAST_CHUNK):
                data = await reader.read(_READ_BYTES)
                if not data:
                    break
                received += data
                if not received.startswith(_GOOD[: len(received)]):
                    raise RuntimeError(f"{self._address} did not answer: {received!r}")
                if first is None and _FIRST_CONTENT.search(received):
                    first = time.perf_counter() - started
        if first is None:
            raise RuntimeError(f"{self._address} did not answer: {received!r}")
        return first

    @property
    def idle(self) -> int:
        """Connections that can be used again."""
        return sum(not reader.at_eof() for reader, _ in self._idle)

    async def close(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.close()
            with contextlib.suppress(OSError):  # the server may have closed it first
                await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def _exchange(self, request: bytes) -> AsyncIterator[asyncio.StreamReader]:
        reader, writer = await self._connected()
        try:
            writer.write(request)
            yield reader
        except BaseException:
            writer.close()  # what has not been read to its end would be read with the next answer
            raise
        self._idle.append((reader, writer))

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return an idle connection that the server has not closed meanwhile, else a new one."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        host, _, port = self._address.rpartition(":")
        self.connections += 1
        return await asyncio.open_connection(host, int(port))

    def _request(self, model: str, texts: Sequence[str], *, stream: bool = False) -> bytes:
        body = orjson.dumps(
            {
                "model": model,
                "messages": [{"role": "user", "content": text} for text in texts],
                "max_tokens": 1000,
                "stream": stream,
            }
        )
        head = f"{self._head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        return head.encode() + body
