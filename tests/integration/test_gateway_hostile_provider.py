"""A provider that was taken over: what its answers can do to the gateway, and get of it."""

from __future__ import annotations

import asyncio
import gzip
import resource
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from common.config import Secret
from llm_gateway.failures import FailureKind, ProviderError
from llm_gateway.openai_provider import REPLY_BYTES_MAX, OpenAIProvider
from tests.support.gateway import deployment, endpoint, prompt

KEY = "sk-the-key-of-the-provider"
ANSWER = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'
Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Played:
    """A server that writes bytes, and keeps the requests that it gets."""

    def __init__(self, *answers: bytes, repeated: bytes = b"") -> None:
        self.heads: list[bytes] = []
        self.port = 0
        self.written_bytes = 0
        self._answers = list(answers)
        self._repeated = repeated

    async def behave(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests until there is no answer left; then go on for ever with what is to be
        repeated."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(size)
                writer.write(self._answers.pop(0))
                await writer.drain()
                while self._repeated and not self._answers:
                    writer.write(self._repeated)
                    self.written_bytes += len(self._repeated)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, IndexError):
            writer.transport.abort()  # gone, or nothing left to answer


@asynccontextmanager
async def reaching(played: Played, **changes: Any) -> AsyncIterator[OpenAIProvider]:
    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        playing.append(asyncio.create_task(played.behave(reader, writer)))

    playing: list[asyncio.Task[None]] = []
    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    async with server:
        played.port = server.sockets[0].getsockname()[1]
        values: dict[str, Any] = {
            "base_url": f"http://127.0.0.1:{played.port}/v1",
            "api_key": Secret(KEY),
        }
        provider = OpenAIProvider(endpoint(**values | changes))
        try:
            yield provider
        finally:
            await provider.close()
            for task in playing:
                task.cancel()
            await asyncio.gather(*playing, return_exceptions=True)


async def failure_of(provider: OpenAIProvider, *, streamed: bool = False) -> ProviderError:
    with pytest.raises(ProviderError) as failed:
        await provider.complete(deployment(), prompt(), 50, (lambda _: None) if streamed else None)
    assert KEY not in f"{failed.value!r} {failed.value.__cause__!r}"
    return failed.value


def head(*lines: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join((b"HTTP/1.1 " + status, *lines, b"", b""))


@pytest.mark.parametrize("status", [b"301 M", b"302 F", b"303 S", b"307 T", b"308 P"])
async def test_a_redirect_is_followed_nowhere(status: bytes) -> None:
    """The key and the prompt would go where somebody else says."""
    elsewhere = Played(head(b"Content-Length: 0"))
    async with reaching(elsewhere):
        place = f"Location: http://127.0.0.1:{elsewhere.port}/v1".encode()
        played = Played(head(place, b"Content-Length: 0", status=status))
        async with reaching(played) as provider:
            failure = await failure_of(provider)

    assert failure.http_status == int(status.split()[0])
    assert elsewhere.heads == []


async def test_a_cookie_is_not_kept() -> None:
    """One call's answer would otherwise mark those of other tenants."""
    length = b"Content-Length: %d" % len(ANSWER)
    answer = head(b"Set-Cookie: a=b; Path=/", b"Content-Type: application/json", length) + ANSWER
    played = Played(answer, answer)
    async with reaching(played) as provider:
        for _ in range(2):
            await provider.complete(deployment(), prompt(), 50, None)

    assert len(played.heads) == 2
    assert b"cookie" not in played.heads[1].lower()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("start", "repeated"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"x-header: y\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\nx: ", b"y" * 10_000),
        (b"HTTP/1.1 200 ", b"y" * 10_000),
        (head(b"Transfer-Encoding: chunked"), b"1;" + b"e" * 10_000),
        (head(b"Transfer-Encoding: chunked") + b"0\r\n", b"x-trailer: y\r\n" * 1000),
        (head(), b" " * 100_000),
        (head(b"Content-Type: text/event-stream"), b"data: " + b"y" * 100_000),
        (head(b"Content-Type: text/event-stream"), b": nothing\n\n" * 10_000),
    ],
    ids=["headers", "header", "reason", "chunk", "trailers", "body", "line", "comments"],
)
async def test_what_has_no_end_is_given_up(start: bytes, repeated: bytes, streamed: bool) -> None:
    """Each is bounded in bytes or in time, and costs no memory to speak of."""
    played = Played(start, repeated=repeated)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with reaching(played, timeout_s=0.5) as provider:
        failure = await failure_of(provider, streamed=streamed)

    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert grown_kb < 4 * REPLY_BYTES_MAX >> 10
    assert failure.kind in {
        *(FailureKind.BROKEN_REPLY, FailureKind.UNREACHABLE, FailureKind.TIMED_OUT),
    }


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request"])
async def test_a_bomb_is_not_unpacked(coding: bytes, status: bytes) -> None:
    unpacked = 8 * REPLY_BYTES_MAX
    data = gzip.compress(bytes(unpacked)) if coding == b"gzip" else zlib.compress(bytes(unpacked))
    length = b"Content-Length: %d" % len(data)
    played = Played(head(b"Content-Encoding: " + coding, length, status=status) + data)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with reaching(played) as provider:
        failure = await failure_of(provider)
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert grown_kb < 4 * REPLY_BYTES_MAX >> 10
    assert failure.http_status == (0 if status.startswith(b"200") else 400)
