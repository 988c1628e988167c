"""The scripted model, played by a test: one planned behaviour a request, where rules about requests
cannot say what a test wants.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from aiohttp import web
from fathom_demo.scripted_model import ChatRequest, Reply, ScriptedModel
from fathom_demo.scripted_model.openai_wire import completion_body, stream_chunks

Behaviour = Callable[[web.Request, ChatRequest], Awaitable[web.StreamResponse]]
USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
_ID = "reply-1"
_MODEL = "served-model"


class PlayedModel(ScriptedModel):
    """Does what was planned, one behaviour a request, and then the usual one."""

    def __init__(
        self, usual: Behaviour | None = None, *, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(player=self._play, tls=tls, drain_s=0.1)
        self.usual = usual or answers("hello there")
        self.planned: deque[Behaviour] = deque()
        self.bodies: list[dict[str, Any]] = []
        """What was received, in order."""
        self.headers: list[dict[str, str]] = []
        """The same requests' headers as they came, names in lower case."""

    def plan(self, *behaviours: Behaviour) -> None:
        """Do these first, one a request."""
        self.planned.extend(behaviours)

    @property
    def under_way(self) -> int:
        """Requests that have no answer yet."""
        return self.counters["in_flight"]

    @property
    def under_way_max(self) -> int:
        """The most there were at a time."""
        return self.counters["in_flight_max"]

    async def _play(self, http: web.Request, request: ChatRequest) -> web.StreamResponse:
        self.bodies.append(await http.json())
        self.headers.append({name.lower(): value for name, value in http.headers.items()})
        behaviour = self.planned.popleft() if self.planned else self.usual
        return await behaviour(http, request)


def answers(
    text: str | Callable[[ChatRequest], str],
    *,
    usage: dict[str, Any] | None = USAGE,
    finish_reason: str | None = "stop",
    reasoning: str = "",
    delay_s: float = 0.0,
) -> Behaviour:
    """Answer well, streamed when asked so. Without `usage` none is reported."""

    async def behave(http: web.Request, request: ChatRequest) -> web.StreamResponse:
        await asyncio.sleep(delay_s)
        reply = Reply(
            text(request) if callable(text) else text,
            finish_reason=finish_reason,
            has_usage=usage is not None,
            usage=usage,
            reasoning=reasoning,
            model=_MODEL,
        )
        if request.is_stream:
            return await _send(http, stream_chunks(request, reply, _ID))
        body = completion_body(request, reply, _ID)
        return web.Response(body=body, content_type="application/json")

    return behave


def fails(status: int, error: Any = None, *, headers: dict[str, str] | None = None) -> Behaviour:
    """Answer with an error status and, as the body, `{"error": error}`."""

    async def behave(http: web.Request, request: ChatRequest) -> web.StreamResponse:
        return web.json_response({"error": error or {}}, status=status, headers=headers)

    return behave


def sends(data: bytes, content_type: str = "application/json") -> Behaviour:
    """Answer with status 200 and bytes as they are."""

    async def behave(http: web.Request, request: ChatRequest) -> web.StreamResponse:
        return web.Response(body=data, content_type=content_type)

    return behave


def streams(chunks: Sequence[dict[str, Any] | str], *, then: Behaviour | None = None) -> Behaviour:
    """Send events and then end, or do `then` in the middle of the stream."""
    events = [each if isinstance(each, str) else json.dumps(each) for each in chunks]

    async def behave(http: web.Request, request: ChatRequest) -> web.StreamResponse:
        sent = (f"data: {event}\n\n".encode() for event in events)
        response = await _send(http, sent, end=then is None)
        if then is not None:
            await then(http, request)
            await response.write_eof()
        return response

    return behave


def resets() -> Behaviour:
    """Break the connection off."""

    async def behave(http: web.Request, request: ChatRequest) -> web.StreamResponse:
        assert http.transport is not None
        http.transport.abort()
        return web.Response()

    return behave


async def ends(http: web.Request, request: ChatRequest) -> web.StreamResponse:
    """Do nothing more: the end of what is streamed."""
    return web.Response()


class Gate:
    """Holds requests until the test opens it."""

    def __init__(self, then: Behaviour) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self._then = then

    async def __call__(self, http: web.Request, request: ChatRequest) -> web.StreamResponse:
        """Say that a request is there, wait, and do the rest."""
        self.reached.set()
        await self.opened.wait()
        return await self._then(http, request)


def text_chunk(text: str) -> dict[str, Any]:
    """Return the event of one piece of text."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {"id": _ID, "model": _MODEL, "choices": [choice]}


async def _send(
    http: web.Request, events: Iterable[bytes], *, end: bool = True
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(http)
    for event in events:
        await response.write(event)
    if end:
        await response.write_eof()
    return response
