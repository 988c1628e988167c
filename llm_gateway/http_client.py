"""The HTTP client under the `openai` SDK: one aiohttp session, and of httpx2 only the forms of
request and response that the SDK speaks.

No redirects, cookies or authentication flows: a redirect would carry prompts elsewhere, and the
others took as long as the exchange itself. Errors of the network are aiohttp's own.
"""

from __future__ import annotations

import base64
import dataclasses
import ssl
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpx2
from multidict import CIMultiDict
from yarl import URL

_CONNECT_TIMEOUT_S = 5.0
_CONNECTIONS_MAX = 1000
_KEPT_S = 5.0
"""How long an idle connection is kept: servers close theirs, and a request may meet that."""
_ERRORS = 300
"""The first of the statuses that are no answer."""
_ERROR_BYTES_MAX = 256 << 10
"""Of the body of an error, which the SDK reads whole; what it says stands at the beginning."""
_HEAD = "aiohttp_head"
"""Extension of a request."""
_BY_BODY = "content-length"
"""Header that aiohttp makes."""
_UNPACKED = b"content-encoding"
"""Header of what aiohttp has unpacked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpProxy:
    """What leads to a server."""

    url: URL
    """Without the credential."""
    headers: dict[str, str] = dataclasses.field(repr=False)
    """For the proxy alone; they hold the credential."""

    @classmethod
    def at(cls, url: str) -> HttpProxy:
        """Return the proxy at a URL, which may hold a credential."""
        parsed, headers = URL(url), {}
        if parsed.user:
            # aiohttp makes the proxy's credential of this header, and warns of its older ways.
            credential = f"{parsed.user}:{parsed.password or ''}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(credential).decode()}"
        return cls(url=parsed.with_user(None), headers=headers)

    @classmethod
    def of_environment(cls, base_url: str) -> HttpProxy | None:
        """Return the one that the environment's usual variables name for a server, if any."""
        parts = urllib.parse.urlsplit(base_url)
        proxies = urllib.request.getproxies()
        url = proxies.get(parts.scheme) or proxies.get("all")
        if not url or urllib.request.proxy_bypass(parts.hostname or ""):
            return None
        return cls.at(url if "://" in url else f"http://{url}")


def prepared(request: httpx2.Request) -> httpx2.Request:
    """Return a request with what aiohttp needs of it: the pattern for `again`."""
    pairs = [pair for pair in request.headers.multi_items() if pair[0] != _BY_BODY]
    head = _Head(URL(str(request.url), encoded=True), CIMultiDict(pairs))
    return httpx2.Request(
        request.method, request.url, stream=httpx2.ByteStream(b""), extensions={_HEAD: head}
    )


def again(pattern: httpx2.Request, body: bytes) -> httpx2.Request:
    """Return the same request with another body."""
    stream = httpx2.ByteStream(body)
    return httpx2.Request(pattern.method, pattern.url, stream=stream, extensions=pattern.extensions)


@dataclasses.dataclass(frozen=True)
class _Head:
    """A request without its body, in aiohttp's words."""

    url: URL
    """Where it goes."""
    headers: CIMultiDict[str] = dataclasses.field(repr=False)
    """All but what aiohttp makes itself; they hold the key."""


class HttpClient(httpx2.AsyncClient):
    """One endpoint's connections, for requests that are `prepared`. Close it with its owner."""

    def __init__(self, *, tls: ssl.SSLContext | None, proxy: HttpProxy | None) -> None:
        """Connections are made with `tls`, or with the usual certificates, where the URL wants
        that."""
        super().__init__(transport=_NoTransport(), trust_env=False)
        self._tls = tls
        self._proxy: dict[str, Any] = {}
        if proxy is not None:
            self._proxy = {"proxy": proxy.url, "proxy_headers": proxy.headers}
        self._session: aiohttp.ClientSession | None = None

    async def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        """Return the response as soon as its head is there; the rest is read from its stream.

        Raises aiohttp.ClientError and OSError.
        """
        head: _Head = request.extensions[_HEAD]
        session = self._session or self._opened(head.url)
        response = await session.request(
            request.method,
            head.url,
            data=request.read(),
            headers=head.headers,
            allow_redirects=False,
            **self._proxy,
        )
        return httpx2.Response(
            response.status,
            headers=[pair for pair in response.raw_headers if pair[0].lower() != _UNPACKED],
            stream=_Body(response, None if response.status < _ERRORS else _ERROR_BYTES_MAX),
            request=request,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
        await super().aclose()

    def _opened(self, url: URL) -> aiohttp.ClientSession:
        """Make the session, while the loop runs. Certificates are read only for who needs them."""
        tls = self._tls
        if tls is None and url.scheme == "https":
            tls = httpx2.create_ssl_context()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=_CONNECTIONS_MAX, keepalive_timeout=_KEPT_S, ssl=tls or True
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            # The exchange is timed by who reads it, by its bytes.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        )
        return self._session


class _Body(httpx2.AsyncByteStream):
    """What follows a response's head."""

    def __init__(self, response: aiohttp.ClientResponse, bytes_max: int | None) -> None:
        self._response = response
        self._bytes_max = bytes_max

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give what has come, whenever something has; what is beyond `bytes_max` is left out."""
        left = self._bytes_max
        async for chunk in self._response.content.iter_any():
            if left is None:
                yield chunk
            else:
                yield chunk[:left]
                left -= len(chunk)
                if left <= 0:
                    return

    async def aclose(self) -> None:
        """Leave the connection to others where the body was read to its end; else it closes."""
        self._response.release()


class _NoTransport(httpx2.AsyncBaseTransport):
    """Keeps httpx2 from making connections, and certificates for them, that nobody uses."""
