"""How an answer goes over the wire: whole or in chunks, or spoiled on its way by a fault.

What the answer says is decided before; a fault here concerns bytes, time and the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from aiohttp import web

from fathom_demo.scripted_model.faults import FaultRule

_PIECE_BYTES = 16
"""What a slow trickle sends at a time."""


class Delivery:
    """One answer on its way to a client."""

    def __init__(self, http: web.Request, fault: FaultRule | None, closing: asyncio.Event) -> None:
        """`closing` is set when the server ends: what hangs then breaks off."""
        self._http = http
        self._fault = fault
        self._effect = fault.effect if fault else ""
        self._closing = closing

    async def hang(self) -> web.StreamResponse:
        """Never answer."""
        await self._closing.wait()
        return self.broken_off()

    def broken_off(self, response: web.StreamResponse | None = None) -> web.StreamResponse:
        """Close the connection under a response, as a server does that dies."""
        if self._http.transport is not None:
            self._http.transport.abort()
        return response or web.Response()

    async def whole(self, body: bytes) -> web.StreamResponse:
        """Send a JSON body."""
        match self._effect:
            case "garbage":
                return web.Response(body=_HTML, content_type="application/json")
            case "wrong_type":
                return web.Response(body=_HTML, content_type="text/html")
            case "cut" | "stall" | "trickle":
                response = web.StreamResponse(headers={"content-type": "application/json"})
                response.content_length = len(body)
                return await self._spoiled(response, [body])
            case "huge":
                body = self._padding + body
                return web.Response(body=body, content_type="application/json")
            case _:
                return web.Response(body=body, content_type="application/json")

    async def stream(self, chunks: Iterable[bytes]) -> web.StreamResponse:
        """Send server-sent events."""
        if self._effect == "wrong_type":
            return web.Response(body=_HTML, content_type="text/html")
        response = web.StreamResponse(
            headers={"content-type": "text/event-stream", "cache-control": "no-cache"}
        )
        events = list(chunks)
        if self._effect == "garbage":
            events.insert(1, b"data: {no JSON here\n\n")
        if self._effect == "huge":
            events.insert(0, b":" + self._padding + b"\n\n")
        if self._effect == "duplicate":
            events = [event for event in events for _ in range(_times(event))]
        return await self._spoiled(response, events)

    @property
    def _padding(self) -> bytes:
        """White space: legal before JSON, and in a comment before events, however much it is."""
        return b" " * (self._fault.size_bytes if self._fault else 0)

    async def _spoiled(
        self, response: web.StreamResponse, parts: list[bytes]
    ) -> web.StreamResponse:
        await response.prepare(self._http)
        for part in self._sent_of(parts):
            await response.write(part)
            if self._effect == "trickle" and self._fault is not None:
                await asyncio.sleep(self._fault.pause_ms / 1000)
        if self._effect == "stall":
            await self._closing.wait()
        if self._effect in ("cut", "stall"):
            return self.broken_off(response)
        await response.write_eof()
        return response

    def _sent_of(self, parts: list[bytes]) -> Iterator[bytes]:
        """Yield what is sent of an answer, in the pieces that it is sent in."""
        if self._effect in ("cut", "stall"):
            is_whole = len(parts) == 1
            yield from [parts[0][: len(parts[0]) // 2]] if is_whole else parts[: len(parts) // 2]
            return
        if self._effect == "trickle":
            data = b"".join(parts)
            for start in range(0, len(data), _PIECE_BYTES):
                yield data[start : start + _PIECE_BYTES]
            return
        yield from parts


_HTML = b"<html>no JSON here</html>"


def _times(event: bytes) -> int:
    """Return how often an event is sent where deltas are sent twice: those with text are."""
    return 2 if b'"content":"' in event and b'"content":""' not in event else 1
