"""An OpenAI-compatible endpoint on loopback that does what a test tells it, faults included."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

from aiohttp import web

Behaviour = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]
USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}


class FakeProvider:
    """Serves `/v1/chat/completions`: one planned behaviour a request, then the usual one."""

    def __init__(self, usual: Behaviour | None = None) -> None:
        self.usual = usual or answers("hello there")
        self.planned: deque[Behaviour] = deque()
        self.bodies: list[dict[str, Any]] = []
        """What was received, in order."""
        self.headers: list[dict[str, str]] = []
        """The same requests' headers, names in lower case."""
        self.under_way = 0
        self.under_way_max = 0
        self.base_url = ""
        self._runner = web.AppRunner(
            self._application(), handler_cancellation=True, shutdown_timeout=0.1
        )

    def plan(self, *behaviours: Behaviour) -> None:
        """Do these first, one a request."""
        self.planned.extend(behaviours)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=64 << 20)
        application.router.add_post("/v1/chat/completions", self._handle)
        return application

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        behaviour = self.planned.popleft() if self.planned else self.usual
        self.under_way += 1
        self.under_way_max = max(self.under_way_max, self.under_way)
        try:
            return await behaviour(request, body)
        finally:
            self.under_way -= 1


def answers(
    text: str | Callable[[dict[str, Any]], str],
    *,
    usage: dict[str, Any] | None = USAGE,
    finish_reason: str | None = "stop",
    reasoning: str = "",
    delay_s: float = 0.0,
) -> Behaviour:
    """Answer well, streamed word by word when asked so. Without `usage` none is reported."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(delay_s)
        said = text(body) if callable(text) else text
        if body.get("stream"):
            chunks = [_chunk({"reasoning_content": reasoning})] if reasoning else []
            chunks += [_chunk({"content": word}) for word in _words(said)]
            chunks.append(_chunk({}, finish_reason))
            if usage is not None:
                chunks.append({"choices": [], "usage": usage})
            return await _send_stream(request, [*chunks, "[DONE]"])
        message = {"role": "assistant", "content": said, "reasoning_content": reasoning}
        reply: dict[str, Any] = {
            "id": "reply-1",
            "model": "served-model",
            "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        }
        if usage is not None:
            reply["usage"] = usage
        return web.json_response(reply)

    return behave


def fails(status: int, error: Any = None, *, headers: dict[str, str] | None = None) -> Behaviour:
    """Answer with an error status and, as the body, `{"error": error}`."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": error or {}}, status=status, headers=headers)

    return behave


def sends(data: bytes, content_type: str = "application/json") -> Behaviour:
    """Answer with status 200 and bytes as they are."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(body=data, content_type=content_type)

    return behave


def streams(chunks: Sequence[dict[str, Any] | str], *, then: Behaviour | None = None) -> Behaviour:
    """Send events and then end, or do `then` in the middle of the stream."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await _send_stream(request, chunks, end=then is None)
        if then is not None:
            await then(request, body)
            await response.write_eof()
        return response

    return behave


def resets() -> Behaviour:
    """Break the connection off."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return behave


async def ends(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Do nothing more: the end of what is streamed."""
    return web.Response()


class Gate:
    """Holds requests until the test opens it."""

    def __init__(self, then: Behaviour) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self._then = then

    async def __call__(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """Say that a request is there, wait, and do the rest."""
        self.reached.set()
        await self.opened.wait()
        return await self._then(request, body)


def text_chunk(text: str) -> dict[str, Any]:
    """Return the event of one piece of text."""
    return _chunk({"content": text})


def _chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {
        "id": "reply-1",
        "model": "served-model",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def _words(text: str) -> list[str]:
    words = text.split(" ")
    return [word if index == 0 else f" {word}" for index, word in enumerate(words) if text]


async def _send_stream(
    request: web.Request, chunks: Sequence[dict[str, Any] | str], *, end: bool = True
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for chunk in chunks:
        data = chunk if isinstance(chunk, str) else json.dumps(chunk)
        await response.write(f"data: {data}\n\n".encode())
    if end:
        await response.write_eof()
    return response
