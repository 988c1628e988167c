"""Providers reached through the `openai` SDK's low-level call.

The typed call walks unions at about a third of a millisecond a message; this one keeps the SDK's
credentials, URLs and errors and leaves bodies to `chat_format.py`. Retries are not made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpx2
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, Omit
from openai._models import FinalRequestOptions
from openai._types import RequestOptions

from llm_gateway.answers import Completion
from llm_gateway.catalog import Deployment
from llm_gateway.catalog import Provider as Endpoint
from llm_gateway.chat_format import StreamedReply, parse_reply, request_body
from llm_gateway.failures import FailureKind, ProviderError, failure_from_http
from llm_gateway.http_client import HttpClient, HttpPattern, HttpProxy, HttpReply
from llm_gateway.prompts import Prompt
from llm_gateway.provider import OnDelta

REPLY_BYTES_MAX = 32 << 20
_NO_KEY = "none"
"""The SDK insists on a key; for an endpoint without one the header is left out."""
_FROM_ENVIRONMENT = ("OpenAI-Organization", "OpenAI-Project")
"""Headers that the SDK fills from its own variables, for every endpoint alike."""


class OpenAIProvider:
    """One endpoint; implements `provider.Provider`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        """What it leads to."""
        # All of them, since the SDK makes a deep copy of the default of each that is not given, and
        # a new idempotency key for each call, which it then sends nowhere.
        self._options: RequestOptions = {
            "headers": _request_headers(endpoint),
            "max_retries": 0,
            "timeout": None,
            "params": {},
            "idempotency_key": "",
            "follow_redirects": False,
            "security": {"bearer_auth": True},
            "synthesize_event_and_data": False,
            "stream_mode": "legacy",
        }
        self._http = HttpClient(
            tls=endpoint.tls.context() if endpoint.tls else None,
            proxy=HttpProxy.at(endpoint.proxy.reveal())
            if endpoint.proxy
            else HttpProxy.of_environment(endpoint.base_url),
        )
        self._client = _Client(
            api_key=endpoint.api_key.reveal() if endpoint.api_key else _NO_KEY,
            base_url=endpoint.base_url,
            max_retries=0,
            default_headers=dict(endpoint.headers),
            timeout=None,  # the exchange is timed here, by its bytes
            http_client=self._http,
        )
        self._pattern: HttpPattern | None = None

    async def complete(
        self,
        deployment: Deployment,
        prompt: Prompt,
        output_tokens_max: int,
        on_delta: OnDelta | None,
    ) -> Completion:
        """Make one exchange; see `provider.Provider`."""
        stream = on_delta is not None
        body = request_body(deployment, prompt, output_tokens_max, stream=stream)
        async with self._exchange(body) as reply:
            if on_delta is None or not reply.is_stream:
                return parse_reply(await reply.read())
            return await _read_stream(reply, on_delta)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    @contextlib.asynccontextmanager
    async def _exchange(self, body: bytes) -> AsyncIterator[_Reply]:
        """Send `body` and give the reply; whatever the libraries raise becomes a ProviderError."""
        began = False
        try:
            async with asyncio.timeout(self.endpoint.timeout_s) as silence:
                reply = await self._post(body)
                began = True
                try:
                    yield _Reply(reply, silence, self.endpoint.timeout_s)
                finally:
                    reply.release()
        except APIStatusError as error:
            answer = error.response
            raise failure_from_http(
                answer.status_code, dict(answer.headers), answer.content, now=time.time()
            ) from None
        except TimeoutError:
            raise ProviderError(FailureKind.TIMED_OUT, "no byte in time") from None
        except (APIConnectionError, httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            # Only the type: the text holds URLs. A reset between answer and close is a cut too.
            if began:
                raise ProviderError(FailureKind.BROKEN_REPLY, "cut_off") from None
            problem = type(error.__cause__ or error).__name__
            raise ProviderError(FailureKind.UNREACHABLE, problem) from None

    async def _post(self, body: bytes) -> HttpReply:
        """Send once and return the reply; raises the SDK's error for a status that is one."""
        if self._pattern is None:
            request = await self._client.post(
                "/chat/completions", cast_to=httpx2.Request, options=self._options
            )
            self._pattern = HttpPattern(request)
        reply = await self._http.exchange(self._pattern, body)
        if reply.is_good:
            return reply
        try:
            raise self._client.error_of(await reply.as_error(self._pattern))
        finally:
            reply.release()


class _Client(AsyncOpenAI):
    """The SDK's client, which builds the request that is the pattern of all: they differ in their
    bodies alone. What it does around each request took as long as to send it.
    """

    async def request(self, cast_to: Any, options: FinalRequestOptions, **_: Any) -> Any:
        """Return the request, unsent."""
        assert cast_to is httpx2.Request
        return self._build_request(await self._prepare_options(options))

    def error_of(self, response: httpx2.Response) -> APIStatusError:
        """Return the SDK's error for a response whose status is one."""
        return self._make_status_error_from_response(response)


class _Reply:
    """The body of one reply as it comes; each chunk winds the timeout up again."""

    def __init__(self, reply: HttpReply, silence: asyncio.Timeout, timeout_s: float) -> None:
        self._reply = reply
        self._silence = silence
        self._timeout_s = timeout_s
        self._size = 0
        self.is_stream = "json" not in reply.content_type
        """False where a server answers a streaming request with a whole reply."""

    async def chunk(self) -> bytes:
        """Return the next bytes, none at the end; raises ProviderError (`too_large`) above
        REPLY_BYTES_MAX."""
        chunk = await self._reply.chunk()
        self._size += len(chunk)
        if self._size > REPLY_BYTES_MAX:
            raise ProviderError(FailureKind.BROKEN_REPLY, "too_large")
        if not self._reply.is_read:
            self._silence.reschedule(asyncio.get_running_loop().time() + self._timeout_s)
        return chunk

    async def read(self) -> bytes:
        """Return the whole."""
        whole = await self.chunk()
        if self._reply.is_read:  # at once, as most are
            return whole
        chunks = [whole]
        while chunk := await self.chunk():
            chunks.append(chunk)
        return b"".join(chunks)


def _request_headers(endpoint: Endpoint) -> dict[str, str | Omit]:
    given = {name.lower() for name in endpoint.headers}
    headers: dict[str, str | Omit] = {"content-type": "application/json"}
    headers |= {name: Omit() for name in _FROM_ENVIRONMENT if name.lower() not in given}
    return headers if endpoint.api_key else headers | {"Authorization": Omit()}


async def _read_stream(reply: _Reply, on_delta: OnDelta) -> Completion:
    # Read to the end of the body, past [DONE]: only then is the connection used again.
    streamed = StreamedReply()
    while chunk := await reply.chunk():
        for delta in streamed.feed(chunk):
            on_delta(delta)
    for delta in streamed.end():
        on_delta(delta)
    return streamed.completion()
